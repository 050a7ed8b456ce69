"""Pictures from a bundle: the program of the manifest, executed with numpy around any backend's runners.

The loop is a generator (`Session.steps`), so progress, preview and cancelling need no callbacks. Verification
runs the same loop on eager runners. Classifier-free guidance at network call i, with scale s:

    e_i = e(x_i, negative) + s (e(x_i, prompt) - e(x_i, negative))        in float32
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgediff.errors import BackendError, BundleError, ConfigError, did_you_mean, unknown
from edgediff.manifest import BATCH, Graph, Manifest, ProgramRow, TensorSpec
from edgediff.plugins import load_plugin
from edgediff.rng import Rng
from edgediff.steps import StepRow, run_steps

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgediff.bundle import Bundle

Array = np.ndarray[Any, np.dtype[Any]]
FIXED_INPUTS = ("sample", "timestep", "encoder_hidden_states")
MAX_SEED = 2**64 - 1


class Runner(Protocol):
    """One graph, loaded. Backends make it:

    `open_runner(bundle_folder, graph, artifact, *, batch, threads) -> Runner`.
    """

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. The caller owns them; the inputs may be overwritten once `run` has returned."""
        ...


class TextTokenizer(Protocol):
    """What `tokenizer.Tokenizer` offers."""

    def encode(self, text: str, max_length: int) -> list[int]: ...


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
        self, manifest: Manifest, tokenizer: TextTokenizer | None, runners: Mapping[str, Runner],
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
        spec = _spec(self.manifest.graphs[stage.graph].inputs, stage.input)
        ids = np.array([self.tokenizer.encode(prompt, program.tokenize.length)], dtype=spec.dtype)
        return self._once(stage.graph, {stage.input: ids}, stage.output)

    def embed(self, prompt: str, negative_prompt: str = "") -> Array | None:
        """What the rows read: [2, length, width] in the order negative, prompt; [1, length, width] when no
        row is guided; None when the program has no text.

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

    def steps(
        self, prompt: str = "", negative_prompt: str = "", seed: int = 0, latent: Array | None = None,
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
        text = self.embed(prompt, negative_prompt) if embeddings is None else self._checked(embeddings)
        start = drawn if latent is None else np.asarray(latent, np.float32)
        return self._run(start, text, lambda: np.asarray(rng.normal(shape), np.float32))

    def decode(self, latent: Array) -> Array:
        """uint8 [height, width, channels] of a latent [1, *latent]: round((x / 2 + 1/2) * 255), clamped."""
        if self.manifest.kind == "unconditional-audio":
            raise BundleError("makes sound, which is not decoded to a picture", code="kind")
        stage = self.manifest.program.decode
        spec = _spec(self.manifest.graphs[stage.graph].inputs, stage.input)
        scaled = np.asarray(latent * np.float32(stage.scale) + np.float32(stage.shift), dtype=spec.dtype)
        value = self._once(stage.graph, {stage.input: scaled}, stage.output)
        pixels = value[0].transpose(1, 2, 0).astype(np.float32)
        image: Array = np.rint((pixels * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).astype(np.uint8)
        return image

    def _once(self, graph: str, inputs: dict[str, Array], output: str) -> Array:
        try:
            return _finite(_output(self.runners[graph].run(inputs), output))
        except _Bad as error:
            raise error.named(f"graph '{graph}'") from None

    def _run(self, latent: Array, text: Array | None, draw: Callable[[], Array]) -> Iterator[GenerationStep]:
        rows, calls = self.manifest.program.rows, _Calls(self, text)
        for step in run_steps(self.manifest.program.table(), latent, calls.predict, draw):
            yield GenerationStep(
                step.index, step.total, rows[step.index].graph, step.timestep, step.latent, step.output,
                calls.seconds, step.seconds,
            )

    def _checked(self, embeddings: Array) -> Array:
        need = 2 if self.is_guided else 1
        if embeddings.ndim != 3 or embeddings.shape[0] != need:
            shape = "[2, length, width]: negative, prompt" if need == 2 else "[1, length, width]"
            message = f"embeddings have shape {embeddings.shape}, this bundle needs {shape}"
            raise ConfigError(message, code="embeddings")
        return embeddings


class _Call:
    """One graph for one side (0 negative, 1 prompt) or both (batch 2): what can be looked up before the first
    row, the inputs that stay, and the buffers that every row fills."""

    def __init__(self, runner: Runner, graph: Graph, text: Array | None, batch: int, side: int) -> None:
        specs = {spec.name: spec for spec in graph.inputs}
        self.run, self.batch, self.output = runner.run, batch, graph.outputs[0].name
        self.dtype = specs["sample"].dtype
        self.reads = [(carry, tensor, specs[tensor]) for carry, tensor in graph.carries_in.items()]
        self.writes = list(graph.carries_out.items())
        self.inputs: dict[str, Array] = {}
        self.timestep = np.zeros(specs["timestep"].sized(batch), specs["timestep"].dtype)
        self.inputs["timestep"] = self.timestep
        self.sample = np.empty(specs["sample"].sized(batch), self.dtype) if batch == 2 else None
        if text is not None and "encoder_hidden_states" in specs:
            part = text if batch == 2 else text[-1:] if side else text[:1]
            dtype = specs["encoder_hidden_states"].dtype
            self.inputs["encoder_hidden_states"] = np.ascontiguousarray(part, dtype=dtype)

    def feed(self, latent: Array, timestep: float) -> dict[str, Array]:
        """The inputs of a row, without its carries. At batch 1 in float32 the latent itself goes in."""
        self.timestep.fill(timestep)
        if self.sample is None:
            self.inputs["sample"] = np.asarray(latent, self.dtype)
        else:
            self.sample[...] = latent
            self.inputs["sample"] = self.sample
        return self.inputs

    def own(self, value: Array) -> Array:
        """A runner that passes its sample on returns our buffer, which the next row overwrites."""
        shared = self.sample is not None and np.may_share_memory(value, self.sample)
        return value.copy() if shared else value


class _Calls:
    """The network calls of one picture, with what they carry: one set of carries in batched mode, one per
    prompt in sequential mode. Holds buffers, so it serves one picture only."""

    def __init__(self, session: Session, text: Array | None) -> None:
        self.session, self.text, self.seconds = session, text, 0.0
        self.rows = session.manifest.program.rows
        self.batched = session.manifest.program.mode == "batched"
        self.stores: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
        self.ready: dict[tuple[str, int, int], _Call] = {}

    def predict(self, index: int, row: StepRow, latent: Array) -> Array | None:
        """e_i [1, *latent] float32, or None for a held row."""
        self.seconds = 0.0
        name, scale = self.rows[index].graph, self.rows[index].guidance
        if name is None:
            return None
        try:
            if scale is None:
                return _finite(self._call(name, 1, 1, latent, row.timestep))
            if self.batched:
                both = self._call(name, 2, 0, latent, row.timestep)
                negative, positive = both[:1], both[1:]
            else:
                negative = self._call(name, 1, 0, latent, row.timestep)
                positive = self._call(name, 1, 1, latent, row.timestep)
            output = positive - negative
            output *= scale
            output += negative
            return _finite(output)
        except _Bad as error:
            where = f"row {index} (graph '{name}', timestep {row.timestep:g})"
            raise error.named(where) from None

    def _call(self, name: str, batch: int, side: int, latent: Array, timestep: float) -> Array:
        call = self.ready.get((name, batch, side))
        if call is None:
            graph, runner = self.session.manifest.graphs[name], self.session.runners[name]
            call = self.ready[name, batch, side] = _Call(runner, graph, self.text, batch, side)
        store = self.stores[0 if self.batched else side]
        inputs = call.feed(latent, timestep)
        for carry, tensor, spec in call.reads:
            inputs[tensor] = _carried(store, carry, spec, batch)
        start = time.perf_counter()
        outputs = call.run(inputs)
        self.seconds += time.perf_counter() - start
        for carry, tensor in call.writes:
            store[carry] = call.own(_output(outputs, tensor))
        value = call.own(_output(outputs, call.output))
        if value.shape[0] != batch or value.shape[1:] != latent.shape[1:]:
            raise _Bad("output", f"put out the shape {value.shape}, not {(batch, *latent.shape[1:])}")
        return value if value.dtype == np.float32 else value.astype(np.float32)


class _Bad(Exception):
    """Something wrong in a call; whoever knows the row and the graph names them."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def named(self, where: str) -> BackendError | BundleError:
        kind = BundleError if self.code.startswith("carry") else BackendError
        return kind(f"{where} {self.message}", code=self.code)


def open_session(bundle: Bundle, backend: str | None = None, threads: int | None = None) -> Session:
    """Loads every graph that the program uses, at once, timing each load.

    `backend` None is the first that the manifest names for all of them. A backend opens a graph once per
    batch size that the program needs (2 and 1 where guidance is cut off). Raises BackendError for a backend
    that the bundle has no artifacts for, and whatever the backend raises.
    """
    manifest, loaded, seconds = bundle.manifest, {}, {}
    name = choose_backend(manifest, backend)
    opener = load_plugin("backends", name).open_runner
    batches: dict[str, list[int]] = {}
    for graph, batch in used_graphs(manifest):
        batches.setdefault(graph, []).append(batch)
    for graph, sizes in batches.items():
        typed = manifest.graphs[graph]
        opened: dict[int, Runner] = {}
        for batch in sizes:
            start = time.perf_counter()
            opened[batch] = opener(bundle.folder, typed, typed.artifacts[name], batch=batch, threads=threads)
            seconds[graph if len(sizes) == 1 else f"{graph}@{batch}"] = time.perf_counter() - start
        loaded[graph] = opened[sizes[0]] if len(sizes) == 1 else _ByBatch(opened)
    return Session(manifest, bundle.tokenizer(), loaded, seconds)


def used_graphs(manifest: Manifest) -> tuple[tuple[str, int], ...]:
    """(graph, batch) pairs that the program runs, in the order of first use."""
    program = manifest.program
    found: list[tuple[str, int]] = [(program.encode.graph, 1)] if program.encode else []
    for row in program.rows:
        if row.graph is not None:
            found.append((row.graph, 2 if row.guidance is not None and program.mode == "batched" else 1))
    return tuple(dict.fromkeys([*found, (program.decode.graph, 1)]))


def list_backends(manifest: Manifest) -> list[str]:
    """Backends that have an artifact of every graph that the program uses, in the manifest's order."""
    graphs = [manifest.graphs[name] for name, _ in used_graphs(manifest)]
    return [name for name in graphs[0].artifacts if all(name in graph.artifacts for graph in graphs)]


def choose_backend(manifest: Manifest, backend: str | None = None) -> str:
    """`backend` if the bundle has it, the first one for None. Raises BackendError naming those it has."""
    have = list_backends(manifest)
    if not have:
        raise BackendError(f"bundle '{manifest.name}' has no backend with all of its graphs; build it again")
    if backend is None:
        return have[0]
    if backend not in have:
        message = f"bundle '{manifest.name}' was not built for it: {unknown('backend', backend, have)}"
        raise BackendError(message, code="backend")
    return backend


def generate_steps(
    bundle: Bundle, prompt: str = "", *, negative_prompt: str = "", seed: int = 0, backend: str | None = None,
    threads: int | None = None,
) -> Iterator[GenerationStep | Image]:
    """Yields every step and, last, the picture. Closing the generator cancels."""
    from PIL import Image

    session = open_session(bundle, backend, threads)
    latent: Array | None = None
    for step in session.steps(prompt, negative_prompt, seed):
        latent = step.latent
        yield step
    if latent is None:
        raise BundleError("the program has no rows", code="graph")
    pixels = session.decode(latent)
    yield Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def generate(
    bundle: Bundle, prompt: str = "", *, negative_prompt: str = "", seed: int = 0, backend: str | None = None,
    threads: int | None = None, progress: Callable[[GenerationStep], None] | None = None,
) -> Image:
    """One picture (PIL). `progress` is called after every step. The same bundle, backend, seed and texts give
    the same picture. Raises ConfigError for bad arguments, BackendError, BundleError."""
    last: Any = None
    for last in generate_steps(
        bundle, prompt, negative_prompt=negative_prompt, seed=seed, backend=backend, threads=threads
    ):
        if progress is not None and isinstance(last, GenerationStep):
            progress(last)
    image: Image = last
    return image


class _ByBatch:
    """Runners of one graph at several batch sizes, chosen by the batch of `sample`."""

    def __init__(self, runners: dict[int, Runner]) -> None:
        self._runners = runners

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._runners[inputs["sample"].shape[0]].run(inputs)


def _check_row(manifest: Manifest, row: ProgramRow) -> None:
    if row.graph is None:
        return
    graph = manifest.graphs[row.graph]
    if row.guidance is not None and manifest.program.encode is None:
        message = f"the row at timestep {row.timestep:g} is guided, but the program has no text"
        raise BundleError(message, code="graph")
    text = FIXED_INPUTS if manifest.program.encode else FIXED_INPUTS[:2]
    for name in FIXED_INPUTS[:2]:
        _spec(graph.inputs, name)
    for spec in graph.inputs:
        if spec.name not in text and spec.name not in graph.carries_in.values():
            message = f"graph '{row.graph}' reads '{spec.name}', which this runtime cannot supply"
            raise BundleError(f"{message} (it has {', '.join(text)} and carries)", code="tensor")


def _carried(store: dict[str, Array], carry: str, spec: TensorSpec, batch: int) -> Array:
    """A carry at the batch of this call: a row of the prompt alone keeps the prompt's half."""
    if carry not in store:
        raise _Bad("carry_before_write", f"reads carry '{carry}' before any row writes it")
    value = store[carry]
    if BATCH in spec.shape and value.shape[axis := spec.shape.index(BATCH)] != batch:
        if batch == 2:
            raise _Bad("carry", f"is guided, but carry '{carry}' was written without guidance")
        value = value.take([1], axis=axis) if axis else value[1:]
    return value if value.dtype == spec.dtype else value.astype(spec.dtype)


def _spec(tensors: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    message = f"there is no tensor '{name}'{did_you_mean(name, [t.name for t in tensors])}"
    raise BundleError(message, code="tensor")


def _output(outputs: dict[str, Array], name: str) -> Array:
    if name not in outputs:
        raise _Bad("output", f"did not return '{name}'{did_you_mean(name, outputs)}")
    return outputs[name]


def _finite(value: Array) -> Array:
    good = np.isfinite(value)
    if not good.all():
        raise _Bad(
            "non_finite",
            f"put out {value.size - int(good.sum())} of {value.size} values that are NaN or infinite; a precision "
            "that overflows does that (try fp32 for this graph), and so do damaged weights",
        )
    return value


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        message = f"the seed is {seed!r:.40}; it must be a whole number from 0 to {MAX_SEED}"
        raise ConfigError(message, code="seed")
    return seed
