"""One program and its runners: texts to embeddings, noise to a latent step by step, the latent to pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from edgediff.errors import BundleError, ConfigError
from edgediff.runtime.calls import BadCall, Calls, check_finite, find_tensor, pick_output
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Manifest, ProgramRow
from edgediff.runtime.rng import Rng
from edgediff.runtime.runners import open_runners, used_graphs
from edgediff.runtime.sound import Sound, to_samples
from edgediff.runtime.steps import run_steps

FIXED_INPUTS, TEXT = ("sample", "timestep"), "encoder_hidden_states"
MAX_SEED = 2**64 - 1


class TextTokenizer(Protocol):
    """What `tokenizer.Tokenizer` offers."""

    def encode(self, text: str, max_length: int) -> list[int]: ...


class OpenedBundle(Protocol):
    """What the loop needs of a bundle: where it lies, its program, its tokenizer (None: no text). `bundle.Bundle` is
    one; a runtime opens none by itself."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    def tokenizer(self) -> TextTokenizer | None: ...


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


class Session:
    """The runners of one backend and the program that drives them. Not for two threads at once."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: TextTokenizer | None,
        runners: Mapping[str, Runner],
        load_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """`runners` by graph name; each takes every batch size that the program asks of it.

        `load_seconds` is how long each took to load, `<graph>` or `<graph>@<batch>` (`open_session` fills
        it). `tokenizer` may be None where only `embeddings` are used. Raises BundleError when a runner is
        missing, or a graph has an input that nothing feeds.
        """
        self.manifest, self.tokenizer, self.runners = manifest, tokenizer, dict(runners)
        self.load_seconds = dict(load_seconds or {})
        for name, _ in used_graphs(manifest):
            if name not in manifest.graphs or name not in self.runners:
                raise BundleError(f"the program runs graph '{name}', which has no runner", code="graph")
        for row in manifest.program.rows:
            _check_row(manifest, row)

    @cached_property
    def is_guided(self) -> bool:
        """Whether any row runs both prompts."""
        return any(row.guidance is not None for row in self.manifest.program.rows)

    def encode(self, prompt: str) -> Array:
        """The embedding [1, length, width] of one text. Raises ConfigError for a prompt that is not text."""
        program = self.manifest.program
        if program.tokenize is None or program.encode is None:
            raise ConfigError(f"a {self.manifest.kind} bundle takes no prompt", code="prompt")
        if self.tokenizer is None:
            message = "this session has no tokenizer; pass embeddings in place of a prompt"
            raise ConfigError(message, code="prompt")
        if not isinstance(prompt, str):
            message = f"a prompt is one text, not {type(prompt).__name__} ({prompt!r:.60})"
            raise ConfigError(message, code="prompt")
        stage = program.encode
        spec = find_tensor(self.manifest.graphs[stage.graph].inputs, stage.input)
        ids = np.array([self.tokenizer.encode(prompt, program.tokenize.length)], dtype=spec.dtype)
        return self._once(stage.graph, {stage.input: ids}, stage.output)

    def embed(self, prompt: str, negative_prompt: str = "") -> Array | None:
        """What the rows read: [2, length, width] in the order negative, prompt; [1, length, width] when no
        row is guided; None when the program has no text (`label` then is what the rows read, if anything is).

        Raises ConfigError for texts that would have no effect.
        """
        if self.manifest.program.encode is None:
            if prompt or negative_prompt:
                message = f"a {self.manifest.kind} bundle takes no prompt; leave it empty"
                raise ConfigError(message, code="prompt")
            return None
        if not self.is_guided:
            if negative_prompt:
                message = "this bundle has no guidance, so a negative prompt has no effect; leave it empty"
                raise ConfigError(message, code="negative_prompt")
            return self.encode(prompt)
        return np.concatenate([self.encode(negative_prompt), self.encode(prompt)])

    def label(self, prompt: str) -> Array:
        """int64 classes of a class-to-image program: [2], no class and the prompt's; [1] when no row is guided.

        Raises ConfigError for a prompt that is neither a class's name nor its number.
        """
        classes = self.manifest.program.classes
        if classes is None:
            raise ConfigError(f"a {self.manifest.kind} bundle has no classes", code="prompt")
        found = classes.find(prompt)
        return np.array([classes.null, found] if self.is_guided else [found], np.int64)

    def steps(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        latent: Array | None = None,
        embeddings: Array | None = None,
    ) -> Iterator[GenerationStep]:
        """Runs the rows, yielding after each; closing the generator cancels.

        `latent` [1, *latent] stands in for the seed's own x_0 (scaled by `init_scale` already); later noise
        is what it would have been. `embeddings` (as `embed` returns them) stand in for the prompts. Arguments
        are checked, and the texts encoded, at the call. Raises ConfigError, BackendError (`non_finite`,
        `output`).
        """
        rng = Rng(_checked_seed(seed), self.manifest.rng.kind)
        shape = (1, *self.manifest.program.latent)
        drawn = np.asarray(rng.normal(shape), np.float32) * np.float32(self.manifest.program.init_scale)
        if latent is not None and latent.shape != shape:
            message = f"the latent has shape {latent.shape}, this bundle needs {shape}"
            raise ConfigError(message, code="latent")
        start = drawn if latent is None else np.asarray(latent, np.float32)
        given = self._conditions(prompt, negative_prompt, embeddings)
        return self._run(start, given, lambda: np.asarray(rng.normal(shape), np.float32))

    def decode(self, latent: Array) -> Array:
        """uint8 [height, width, channels] of a latent [1, *latent]: round((x / 2 + 1/2) * 255), clamped."""
        if self.manifest.kind == "unconditional-audio":
            raise BundleError("makes sound, which is not decoded to a picture; ask for `sound`", code="kind")
        pixels = self._decoded(latent).transpose(1, 2, 0).astype(np.float32)
        image: Array = np.rint((pixels * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).astype(np.uint8)
        return image

    def sound(self, latent: Array) -> Sound:
        """The sound of a latent [1, channels, samples], 16 bit. Raises BundleError for a bundle of pictures."""
        rate = self.manifest.program.decode.sample_rate
        if rate is None:
            raise BundleError("makes pictures; ask for `decode`", code="kind")
        return Sound(to_samples(self._decoded(latent)), rate)

    def render(self, latent: Array) -> Array:
        """What the bundle makes, as whole numbers: the picture's uint8, or the sound's int16 [samples, channels]."""
        is_sound = self.manifest.program.decode.sample_rate is not None
        return self.sound(latent).samples if is_sound else self.decode(latent)

    def _decoded(self, latent: Array) -> Array:
        """Values in about [-1, 1], without the batch."""
        stage = self.manifest.program.decode
        value = latent * np.float32(stage.scale) + np.float32(stage.shift)
        if stage.graph is not None:
            spec = find_tensor(self.manifest.graphs[stage.graph].inputs, stage.input)
            value = self._once(stage.graph, {stage.input: np.asarray(value, dtype=spec.dtype)}, stage.output)
        return np.asarray(value[0])

    def _once(self, graph: str, inputs: dict[str, Array], output: str) -> Array:
        try:
            return check_finite(pick_output(self.runners[graph].run(inputs), output))
        except BadCall as error:
            raise error.named(f"graph '{graph}'") from None

    def _conditions(self, prompt: str, negative_prompt: str, embeddings: Array | None) -> dict[str, Array]:
        classes = self.manifest.program.classes
        if classes is not None:
            if negative_prompt:
                raise ConfigError("a class-to-image bundle takes no negative prompt; leave it empty", code="prompt")
            return {classes.input: self.label(prompt)}
        text = self.embed(prompt, negative_prompt) if embeddings is None else self._checked(embeddings)
        return {} if text is None else {TEXT: text}

    def _run(self, latent: Array, given: dict[str, Array], draw: Callable[[], Array]) -> Iterator[GenerationStep]:
        rows, calls = self.manifest.program.rows, Calls(self.manifest, self.runners, given)
        for step in run_steps(self.manifest.program.table(), latent, calls.predict, draw):
            yield GenerationStep(
                step.index,
                step.total,
                rows[step.index].graph,
                step.timestep,
                step.latent,
                step.output,
                calls.seconds,
                step.seconds,
            )

    def _checked(self, embeddings: Array) -> Array:
        need = 2 if self.is_guided else 1
        if embeddings.ndim != 3 or embeddings.shape[0] != need:
            shape = "[2, length, width]: negative, prompt" if need == 2 else "[1, length, width]"
            message = f"embeddings have shape {embeddings.shape}, this bundle needs {shape}"
            raise ConfigError(message, code="embeddings")
        return embeddings


def open_session(bundle: OpenedBundle, backend: str | None = None, threads: int | None = None) -> Session:
    """Loads every graph that the program uses, at once, timing each load.

    `backend` None is the first that the manifest names for all of them. A backend opens a graph once per
    batch size that the program needs (2 and 1 where guidance is cut off). Raises BackendError for a backend
    that the bundle has no artifacts for, and whatever the backend raises.
    """
    runners, seconds = open_runners(bundle.manifest, bundle.folder, backend, threads)
    return Session(bundle.manifest, bundle.tokenizer(), runners, seconds)


def _check_row(manifest: Manifest, row: ProgramRow) -> None:
    if row.graph is None:
        return
    graph = manifest.graphs[row.graph]
    program = manifest.program
    null = program.classes.null if program.classes is not None else None
    if row.guidance is not None and program.encode is None and null is None:
        what = "no text" if program.classes is None else "no class for no class"
        message = f"the row at timestep {row.timestep:g} is guided, but the program has {what}"
        raise BundleError(message, code="graph")
    supplied = [*FIXED_INPUTS, *([TEXT] if program.encode else [])]
    supplied += [program.classes.input] if program.classes else []
    for name in FIXED_INPUTS:
        find_tensor(graph.inputs, name)
    for spec in graph.inputs:
        if spec.name not in supplied and spec.name not in graph.carries_in.values():
            message = f"graph '{row.graph}' reads '{spec.name}', which this runtime cannot supply"
            raise BundleError(f"{message} (it has {', '.join(supplied)} and carries)", code="tensor")


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        message = f"the seed is {seed!r:.40}; it must be a whole number from 0 to {MAX_SEED}"
        raise ConfigError(message, code="seed")
    return seed
