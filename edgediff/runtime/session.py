"""One program and its runners: texts to conditions, noise to a latent step by step, the latent to pixels."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgediff.errors import BundleError, ConfigError
from edgediff.runtime.calls import BadCall, Calls, check_finite, find_tensor, pick_output
from edgediff.runtime.conditions import (
    PER_ROW,
    PICTURED,
    Asked,
    Pictures,
    Texts,
    TextTokenizer,
    make_conditions,
    read_inputs,
)
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Manifest, Scale
from edgediff.runtime.pictures import PictureReader
from edgediff.runtime.rng import Rng
from edgediff.runtime.runners import open_runners, used_graphs
from edgediff.runtime.sound import Sound, to_samples
from edgediff.runtime.steps import run_steps

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SEED = 2**64 - 1


class OpenedBundle(Protocol):
    """What the loop needs of a bundle: where it lies, its programs, its tokenizers. `bundle.Bundle` is one; a runtime
    opens none by itself."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    def tokenizers(self) -> Mapping[str, TextTokenizer]: ...


@dataclass(frozen=True, slots=True)
class GenerationStep:
    """One network call: `latent` is x_{i+1}, `output` is e_i after guidance, both [1, *latent] float32.

    `graph` is None when the last output was held. `seconds_graph` is spent inside runners, `seconds_total`
    in the whole row.
    """

    index: int
    total: int
    graph: str | None
    timestep: float
    latent: Array
    output: Array
    seconds_graph: float
    seconds_total: float
    _preview: Callable[[Array], Array] = field(repr=False, compare=False)

    def preview(self) -> Image:
        """A small picture of the latent: by the bundle's preview, else by its decoder, which costs a decoding."""
        from PIL import Image

        pixels = self._preview(self.latent)
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def __str__(self) -> str:
        """One line: `step 3 of 50, full at time 939, 24 ms`."""
        what = f"{self.graph or 'held'} at time {self.timestep:g}"
        return f"step {self.index + 1} of {self.total}, {what}, {1e3 * self.seconds_total:.0f} ms"


class Session:
    """The runners of one backend and the program that drives them. Not for two threads at once."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizers: Mapping[str, TextTokenizer],
        runners: Mapping[str, Runner],
        load_seconds: Mapping[str, float] | None = None,
        program: str | None = None,
    ) -> None:
        """`runners` by graph name; each takes every batch size that the program asks of it.

        `load_seconds` is how long each took to load, `<graph>` or `<graph>@<batch>` (`open_session` fills
        it). `tokenizers` may be empty where only `given` conditions are used. Raises ConfigError for an unknown
        program, BundleError when a runner is missing.
        """
        self.manifest, self.tokenizers, self.runners = manifest, tokenizers, dict(runners)
        self.load_seconds = dict(load_seconds or {})
        self.name, self.program = program or manifest.default, manifest.program(program)
        for name, _ in used_graphs(manifest, self.name):
            if name not in self.runners:
                raise BundleError(f"the program runs graph '{name}', which has no runner", code="graph")
        self._pictures = PictureReader(manifest, self.program, self._once)

    @property
    def is_guided(self) -> bool:
        """Whether any row runs both sides."""
        return self.program.guides

    def embed(self, prompt: str, negative_prompt: str = "", *, guidance: float | None = None) -> dict[str, Array]:
        """What the rows read beside the picture and the mask, by input name: two rows in the order empty side, prompt
        side; one where no row guides. Raises ConfigError for texts that the program does not take."""
        self._check_texts(prompt, negative_prompt)
        pictured = [name for name, one in self.manifest.conditions.items() if one.source in PICTURED]
        return self._conditions(Asked(prompt, negative_prompt, embedded_guidance=self._embedded(guidance)), pictured)

    def steps(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        *,
        noise: Array | None = None,
        latent: Array | None = None,
        given: Mapping[str, Array] | None = None,
        picture: Any = None,
        mask: Any = None,
        guidance: float | None = None,
    ) -> Iterator[GenerationStep]:
        """Runs the rows, yielding after each; closing the generator cancels.

        `noise` [1, *latent] stands in for the standard normal draw of x_0, `latent` for x_0 itself; later noise
        is what it would have been. `picture` [H, W, 3] and `mask` [H, W] are uint8. `guidance` is the scale, within the
        program's range. `given` (as `embed` returns it) stands in for what the prompts would give. Arguments are
        checked, and the texts encoded, at the call. Raises ConfigError (under the argument's name), BackendError
        (`non_finite`, `output`).
        """
        rng = Rng(_checked_seed(seed), self.manifest.rng)
        shape = (1, *self.program.latent)
        for what, value in (("noise", noise), ("latent", latent)):
            if value is not None and value.shape != shape:
                raise ConfigError(f"the {what} has shape {value.shape}, this program needs {shape}", code=what)
        if given is None:
            self._check_texts(prompt, negative_prompt)
        scale = self._asked(guidance)
        pixels, painted = self._pictures.check(picture, mask)
        given = {name: self._checked(name, value) for name, value in (given or {}).items()}
        drawn = _Drawn(rng, shape, noise, self._starts_from_noise())
        pictures = self._pictures.read(pixels, painted, drawn.of, drawn.first)
        asked = Asked(prompt, negative_prompt, pictures, self._embedded(scale))
        values = {**self._conditions(asked, given), **given}
        init = self.program.init
        start = drawn.noise * np.float32(init.noise)
        if init.picture and pictures.latent is not None:
            start = start + pictures.latent * np.float32(init.picture)
        start = start if latent is None else np.asarray(latent, np.float32)
        return self._run(start, Calls(self.manifest, self.program, self.runners, values, scale), pictures, drawn)

    def decode(self, latent: Array) -> Array:
        """uint8 [height, width, channels] of a latent [1, *latent]: round((x / 2 + 1/2) * 255), clamped."""
        return _pixels(self._picture(latent))

    def decode_judged(self, latent: Array) -> tuple[Array, bool]:
        """What `decode` returns, and whether the bundle's safety checker marks it; False where it has none."""
        values, safety = self._picture(latent), self.manifest.safety
        if safety is None:
            return _pixels(values), False
        (found,) = self._once(safety.graph, {safety.input: values}, (safety.output,))
        return _pixels(values), bool((found > safety.threshold).any())

    def sound(self, latent: Array) -> Sound:
        """The sound of a latent [1, channels, samples], 16 bit. Raises BundleError for a bundle of pictures."""
        rate = self.manifest.decoder.sample_rate
        if rate is None:
            raise BundleError("makes pictures; ask for `decode`", code="kind")
        return Sound(to_samples(self._decoded(latent)[0]), rate)

    def render(self, latent: Array) -> Array:
        """What the bundle makes, as whole numbers: the picture's uint8, or the sound's int16 [samples, channels]."""
        return self.sound(latent).samples if self.manifest.makes == "audio" else self.decode(latent)

    def preview(self, latent: Array) -> Array:
        """uint8 [height, width, channels] of a latent on its way, by the bundle's preview, else by its decoder."""
        spec = self.manifest.preview
        if spec is None:
            return self.decode(latent)
        if spec.graph is not None and spec.input is not None and spec.output is not None:
            return _pixels(self._once(spec.graph, {spec.input: latent}, (spec.output,))[0])
        return _pixels(_weighed(latent, np.array(spec.weights, np.float32), np.array(spec.bias, np.float32)))

    def _picture(self, latent: Array) -> Array:
        if self.manifest.makes == "audio":
            raise BundleError("makes sound, which is not decoded to a picture; ask for `sound`", code="kind")
        return self._decoded(latent)

    def _decoded(self, latent: Array) -> Array:
        """Values in about [-1, 1], `[1, ...]`."""
        stage = self.manifest.decoder
        value: Array = latent * np.float32(stage.scale) + np.float32(stage.shift)
        if stage.graph is None or stage.input is None or stage.output is None:
            return value
        return self._once(stage.graph, {stage.input: value}, (stage.output,))[0]

    def _once(self, graph: str, inputs: dict[str, Array], outputs: tuple[str, ...]) -> list[Array]:
        """Some outputs of a graph that runs once, all of them finite."""
        types = self.manifest.graphs[graph].inputs
        fed = {name: np.asarray(value, find_tensor(types, name).dtype) for name, value in inputs.items()}
        try:
            found = self.runners[graph].run(fed)
            return [check_finite(pick_output(found, name)) for name in outputs]
        except BadCall as error:
            raise error.named(f"graph '{graph}'") from None

    def _check_texts(self, prompt: str, negative_prompt: str) -> None:
        """Refuses what is no text, and texts that would have no effect."""
        takes = self.program.takes
        for code, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if not isinstance(text, str):
                message = f"a prompt is one text, not {type(text).__name__} ({text!r:.60})"
                raise ConfigError(message, where=f"--{code.replace('_', '-')}", code=code)
        if prompt and "prompt" not in takes:
            raise ConfigError("this program takes no prompt; leave it empty", code="prompt")
        if negative_prompt and "negative_prompt" not in takes:
            why = "its guidance reads no text" if self.is_guided else "it has no guidance"
            message = f"a negative prompt has no effect on this program ({why}); leave it empty"
            raise ConfigError(message, code="negative_prompt")

    def _asked(self, guidance: float | None) -> float | None:
        """The scale that a caller may ask for. Raises ConfigError outside the program's range."""
        if guidance is None:
            return None
        own = self.program.guidance or self.program.embedded_guidance
        number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
        if not number or own is None or not own.low <= guidance <= own.high:
            message = f"guidance {guidance!r:.40}: this program {_range_text(own)}"
            raise ConfigError(message, where="--guidance", code="guidance")
        return guidance

    def _embedded(self, guidance: float | None) -> float | None:
        """The asked scale, where it is the embedded one that a caller may ask for."""
        return guidance if self.program.guidance is None else None

    def _starts_from_noise(self) -> bool:
        blends = (row.blend for row in self.program.rows if row.blend is not None)
        return self.program.init.noise != 0 or any(blend.noise != 0 for blend in blends)

    def _conditions(self, asked: Asked, leave_out: Container[str]) -> dict[str, Array]:
        texts = Texts(self.manifest, self.tokenizers, self._once)
        return make_conditions(self.manifest, self.program, texts, asked, leave_out)

    def _checked(self, name: str, value: Array) -> Array:
        specs = read_inputs(self.manifest, self.program)
        if name not in specs or self.manifest.conditions[name].source in PER_ROW:
            raise ConfigError(f"'{name}' is no condition of this program", code="given")
        wanted = (2 if self.is_guided else 1, *specs[name].sized(1)[1:])
        if value.shape != wanted:
            message = (
                f"'{name}' has shape {value.shape}, this program needs {wanted} (empty side first where it guides)"
            )
            raise ConfigError(message, code="given")
        return value

    def _run(self, latent: Array, calls: Calls, pictures: Pictures, drawn: _Drawn) -> Iterator[GenerationStep]:
        rows = self.program.rows

        def blend(index: int, value: Array) -> Array:
            mix = rows[index].blend
            if mix is None or pictures.latent is None or pictures.mask is None:
                return value
            outside = pictures.latent * np.float32(mix.picture) + drawn.noise * np.float32(mix.noise)
            blended: Array = pictures.mask * value + (1 - pictures.mask) * outside
            return blended

        for step in run_steps(self.program.table(), latent, calls.predict, drawn.next, blend):
            graph = rows[step.index].graph
            times = calls.seconds, step.seconds
            yield GenerationStep(
                step.index, step.total, graph, step.timestep, step.latent, step.output, *times, self.preview
            )


class _Drawn:
    """The stream of noise of one picture, x_0's draw in its place."""

    def __init__(self, rng: Rng, shape: tuple[int, ...], noise: Array | None, needed: bool) -> None:
        self._rng, self._shape, self._needed = rng, shape, needed
        self._given = None if noise is None else np.asarray(noise, np.float32)
        self.noise = np.zeros(shape, np.float32)

    def next(self) -> Array:
        """The next draw of the latent's shape."""
        return self.of(self._shape)

    def of(self, shape: tuple[int, ...]) -> Array:
        """The next draw of any shape: a posterior's is its mean's."""
        return np.asarray(self._rng.normal(shape), np.float32)

    def first(self) -> None:
        """Draws x_0's where it is needed, or takes what was given: then the stream goes on without it."""
        if self._given is not None:
            self.noise = self._given
        elif self._needed:
            self.noise = self.next()


def open_session(
    bundle: OpenedBundle, backend: str | None = None, threads: int | None = None, program: str | None = None
) -> Session:
    """Loads every graph that the program uses, at once, timing each load.

    `backend` None is the first that the manifest names for all of them. A backend opens a graph once per
    batch size that the program needs (2 and 1 where guidance is cut off). Raises ConfigError for an unknown program,
    BackendError for a backend that the bundle has no artifacts for, and whatever the backend raises.
    """
    runners, seconds = open_runners(bundle.manifest, bundle.folder, backend, threads, program)
    return Session(bundle.manifest, bundle.tokenizers(), runners, seconds, program)


def _pixels(value: Array) -> Array:
    """[1, c, h, w] in [-1, 1] to uint8 [h, w, c]."""
    pixels = value[0].transpose(1, 2, 0).astype(np.float32)
    image: Array = np.rint((pixels * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return image


def _weighed(latent: Array, weights: Array, bias: Array) -> Array:
    """[1, 3, h, w]: sum_c weights[c] x[c] + bias, from left to right as every reader adds."""
    total = np.zeros((1, 3, *latent.shape[2:]), np.float32)
    for channel, weight in enumerate(weights):
        total += latent[:, channel : channel + 1] * weight[:, None, None]
    value: Array = total + bias[:, None, None]
    return value


def _range_text(scale: Scale | None) -> str:
    if scale is None:
        return "has no guidance"
    if scale.low == scale.high:
        return f"was fitted for {scale.scale:g} alone; build it with a range to change it"
    return f"takes {scale.low:g} to {scale.high:g}"


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        message = f"the seed is {seed!r:.40}; it must be a whole number from 0 to {MAX_SEED}"
        raise ConfigError(message, code="seed")
    return seed
