"""`manifest.json`: the bundle as a program that a phone interprets.

Graphs are typed functions; the program is tokenize -> encode -> rows -> decode. Each row is one network
call: which graph runs (or none: the last output is held), at which timestep, with which guidance, which
carries go in and out, and the coefficients of the latent's update. A new method needs no new app.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from edgediff.config import Model
from edgediff.errors import BundleError, ConfigError, SamplerError, did_you_mean
from edgediff.runtime.precision import Precision
from edgediff.runtime.steps import StepRow, StepTable

SCHEMA_MAJOR = 1
BATCH: Literal["batch"] = "batch"
Kind = Literal["text-to-image", "class-to-image", "unconditional-image", "unconditional-audio"]
Mode = Literal["batched", "sequential"]
Size = int | Literal["batch"]
DType = Literal["float32", "float16", "int64", "int32"]


class TensorSpec(Model):
    """One input or output. `batch` in a shape is 1, or 2 when guidance is batched (order: empty prompt, prompt)."""

    name: str
    dtype: DType
    shape: tuple[Size, ...]

    def sized(self, batch: int) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else batch for size in self.shape)


class Artifact(Model):
    """Where a graph is on one backend: file, function or method inside it, precision, further files it needs.

    `delegates`: what the backend hands the graph to, and in how many pieces; `outside`: operators that nothing took,
    by name and place in the network. `memory_bytes`: what the graph needs while it runs, weights left out.

    `chunks` are files that go on where `file` ends, in order, each with the same function: a chunk takes those of
    the graph's inputs that it has, and what the chunks before it put out, by name. `states` maps inputs and outputs
    of the graph to states that the backend keeps itself: such a tensor does not cross. All graphs of a file share
    its states, whoever runs them keeps one set per picture (one per prompt in sequential mode), and each state is
    one carry.
    """

    file: str
    function: str | None = None
    precision: Precision
    data: tuple[str, ...] = ()
    delegates: dict[str, int] = {}
    outside: dict[str, int] = {}
    memory_bytes: int | None = Field(default=None, ge=0)
    chunks: tuple[str, ...] = ()
    states: dict[str, str] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that running the graph needs."""
        return (self.file, *self.chunks, *self.data)

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        return safe_path(value)

    @field_validator("data", "chunks")
    @classmethod
    def _all_inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(safe_path(path) for path in value)


class Graph(Model):
    """A typed function. `carries_in` and `carries_out` map carry names to its input and output names."""

    component: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    carries_in: dict[str, str] = {}
    carries_out: dict[str, str] = {}
    parameters: int = 0
    macs: int = 0
    artifacts: dict[str, Artifact] = {}


class Tokenize(Model):
    """Folder of the tokenizer (`vocab.json`, `merges.txt`), and how many ids a prompt becomes."""

    folder: str
    length: int = Field(ge=2)

    @field_validator("folder")
    @classmethod
    def _inside(cls, value: str) -> str:
        return safe_path(value)


class Encode(Model):
    """Runs once per text: ids `[1, length]` in, embedding `[1, length, width]` out."""

    graph: str
    input: str
    output: str


class Classes(Model):
    """Class-to-image: a prompt is one of `names`, or a number below `count`. Graphs read it as `input`, int64
    `[batch]`; guided rows run `null`, the class of no class, beside it (in batched mode: null first)."""

    input: str = "class_labels"
    count: int = Field(ge=1)
    null: int | None = None
    names: tuple[str, ...] = ()

    def find(self, prompt: str) -> int:
        """The class that a prompt is. Raises ConfigError for what is neither a name nor a number below `count`."""
        known = {name: index for index, name in enumerate(self.names)}
        text = prompt.strip()
        found = known.get(text, int(text) if text.isascii() and text.isdecimal() else -1)
        if not 0 <= found < self.count:
            names = f", or a name{did_you_mean(text, known)}" if known else ""
            message = f"'{text:.60}' is no class: give a number from 0 to {self.count - 1}{names}"
            raise ConfigError(message, code="prompt")
        return found


class Decode(Model):
    """latent * scale + shift -> graph -> values in [-1, 1]. Without a graph the latent is the picture itself, or the
    sound `[channels, samples]`, which has `sample_rate` of them a second."""

    graph: str | None = None
    input: str = "z"
    output: str = "image"
    scale: float = 1.0
    shift: float = 0.0
    sample_rate: int | None = Field(default=None, ge=1)


class ProgramRow(StepRow):
    """One network call. `graph` None holds the last output.

    `guidance` s runs both prompts: e = e_empty + s (e_prompt - e_empty). None runs the prompt alone, and then
    `held_guidance` adds what guided rows left: e = e_prompt + sum_k held_guidance[k] d_k, with d_k = e_prompt -
    e_empty of the guided row k guided rows ago, 0 the newest. A carry that the graph reads is
    sum_k mix[carry][k] * (its value k writes ago, 0 the newest); a carry not in `mix` is its newest value.
    """

    graph: str | None = None
    guidance: float | None = None
    held_guidance: tuple[float, ...] | None = None
    mix: dict[str, tuple[float, ...]] = {}


class Program(Model):
    """`latent` is the shape without batch. `mode`: both prompts in one batch, or one call after the other
    with carries of their own."""

    tokenize: Tokenize | None = None
    encode: Encode | None = None
    classes: Classes | None = None
    decode: Decode = Decode()
    latent: tuple[int, ...]
    init_scale: float
    sampler: str
    steps: int
    mode: Mode
    rows: tuple[ProgramRow, ...] = Field(min_length=1)

    def table(self) -> StepTable:
        """The rows as a step table."""
        rows = tuple(StepRow(timestep=r.timestep, input_scale=r.input_scale, update=r.update) for r in self.rows)
        return StepTable(sampler=self.sampler, steps=self.steps, init_scale=self.init_scale, rows=rows)


class RngSpec(Model):
    """How noise is drawn from a seed: one stream, the initial latent first, then each row's noise in order."""

    kind: Literal["mt19937", "philox"] = "mt19937"


class FileEntry(Model):
    """A file of the bundle: relative path, size, SHA-256 (hex)."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        return safe_path(value)


class DenoiserSource(Model):
    """The folder of `edgediff distill`, and the SHA-256 of the denoiser's file in it."""

    folder: str
    weights: str


class Source(Model):
    """Where the weights come from: the model, and the denoiser that stands in for its own, if one does."""

    model: str
    revision: str | None = None
    weights: str
    denoiser: DenoiserSource | None = None
    licence: str = "unknown"


class Manifest(Model):
    """The whole program of a bundle. `parity` and `profile` are what `verify` and `profile` measured."""

    schema_version: str = "1.0"
    kind: Kind
    name: str
    carries: dict[str, TensorSpec] = {}
    graphs: dict[str, Graph]
    program: Program
    rng: RngSpec = RngSpec()
    files: tuple[FileEntry, ...]
    source: Source
    tools: dict[str, str] = {}
    plan: str = "plan.json"
    parity: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None

    def check(self, *, where: str = "manifest.json") -> None:
        """States what must hold inside a manifest. Raises BundleError, its code naming the rule:
        `version`, `graph`, `tensor`, `carry`, `carry_before_write`, `guidance`, `history`, `file`."""
        check_version(self.schema_version, where)
        listed = {entry.path for entry in self.files}
        if len(listed) != len(self.files):
            raise BundleError("a file is listed twice", where=where, code="file")
        if self.plan not in listed:
            raise BundleError(f"the plan '{self.plan}' is not among the files", where=where, code="file")
        tokenize = self.program.tokenize
        if tokenize is not None and not any(path.startswith(f"{tokenize.folder}/") for path in listed):
            message = f"the tokenizer's folder '{tokenize.folder}' has no file among the files"
            raise BundleError(message, where=where, code="file")
        if (self.kind == "unconditional-audio") != (self.program.decode.sample_rate is not None):
            message = f"a bundle of kind '{self.kind}' has " + (
                "no decode.sample_rate, which sound needs"
                if self.program.decode.sample_rate is None
                else "a decode.sample_rate, which is for sound"
            )
            raise BundleError(message, where=where, code="value")
        for name, graph in self.graphs.items():
            self._check_graph(name, graph, listed, where)
        self._check_states(where)
        program = self.program
        stages: tuple[Encode | Decode | None, ...] = (program.encode, program.decode)
        for stage in stages:
            if stage is not None and stage.graph is not None:
                graph = self._graph(stage.graph, where)
                _need(stage.graph, graph.inputs, stage.input, where)
                _need(stage.graph, graph.outputs, stage.output, where)
        self._check_rows(where)
        try:
            program.table().check()
        except SamplerError as error:
            raise BundleError(error.message, where=where, code="history") from error

    def _graph(self, name: str, where: str) -> Graph:
        if name not in self.graphs:
            message = f"the program runs graph '{name}', which does not exist{did_you_mean(name, self.graphs)}"
            raise BundleError(message, where=where, code="graph")
        return self.graphs[name]

    def _check_graph(self, name: str, graph: Graph, listed: set[str], where: str) -> None:
        for backend, artifact in graph.artifacts.items():
            for file in artifact.files:
                if file not in listed and not any(path.startswith(f"{file}/") for path in listed):
                    message = f"graph '{name}' on {backend} needs '{file}', which is not among the files"
                    raise BundleError(message, where=where, code="file")
        sides = ((graph.carries_in, graph.inputs), (graph.carries_out, graph.outputs))
        for carries, tensors in sides:
            for carry, tensor in carries.items():
                if carry not in self.carries:
                    raise BundleError(f"graph '{name}' uses unknown carry '{carry}'", where=where, code="carry")
                spec = _need(name, tensors, tensor, where)
                if (spec.dtype, spec.shape) != (self.carries[carry].dtype, self.carries[carry].shape):
                    message = f"carry '{carry}' and tensor '{tensor}' of graph '{name}' differ in type or shape"
                    raise BundleError(message, where=where, code="carry")

    def _check_states(self, where: str) -> None:
        """A carry is in one state of one file, or in none, for all graphs of a backend; and nothing mixes it."""
        mixed = {carry for row in self.program.rows for carry in row.mix}
        for backend in sorted({name for graph in self.graphs.values() for name in graph.artifacts}):
            places: dict[str, tuple[str, str] | None] = {}
            for name, graph in sorted(self.graphs.items()):
                if (artifact := graph.artifacts.get(backend)) is None:
                    continue
                ends = [*graph.carries_in.items(), *graph.carries_out.items()]
                if strangers := sorted(artifact.states.keys() - {tensor for _, tensor in ends}):
                    message = f"graph '{name}' on {backend} has a state for '{strangers[0]}', which is no carry of it"
                    raise BundleError(message, where=where, code="carry")
                for carry, tensor in ends:
                    state = artifact.states.get(tensor)
                    place = (artifact.file, state) if state is not None else None
                    if places.setdefault(carry, place) != place:
                        message = f"carry '{carry}' is in one state for some graphs on {backend}, and not for others"
                        raise BundleError(message, where=where, code="carry")
            held = {carry: place for carry, place in places.items() if place is not None}
            if len(set(held.values())) < len(held):
                raise BundleError(f"two carries are in one state on {backend}", where=where, code="carry")
            if both := sorted(mixed & held.keys()):
                message = f"a row mixes carry '{both[0]}', which is a state on {backend}: it has its newest value only"
                raise BundleError(message, where=where, code="carry")

    def _check_rows(self, where: str) -> None:
        written: dict[str, list[bool]] = {}
        ran, guided_rows = False, 0
        for index, row in enumerate(self.program.rows):
            self._check_held_guidance(index, row, guided_rows, where)
            if row.graph is None:
                if not ran or row.mix:
                    message = f"row {index} holds the output " + ("and mixes" if ran else "before any graph has run")
                    raise BundleError(message, where=where, code="carry" if ran else "carry_before_write")
                continue
            guided_last, ran = row.guidance is not None, True
            guided_rows += guided_last
            graph = self._graph(row.graph, where)
            for carry, weights in row.mix.items():
                if carry not in graph.carries_in or not weights:
                    message = f"row {index} mixes '{carry}', which graph '{row.graph}' does not read, or from nothing"
                    raise BundleError(message, where=where, code="carry")
                if len(weights) > (count := len(written.get(carry, ()))):
                    message = f"row {index} mixes {len(weights)} values of '{carry}', of which {count} are written"
                    raise BundleError(message, where=where, code="carry_before_write")
            for carry in graph.carries_in:
                if carry not in written:
                    message = f"row {index} ('{row.graph}') reads carry '{carry}' before any row writes it"
                    raise BundleError(message, where=where, code="carry_before_write")
                if guided_last and not all(written[carry][: len(row.mix.get(carry, (1.0,)))]):
                    message = f"row {index} is guided but carry '{carry}' was written without guidance"
                    raise BundleError(message, where=where, code="carry")
            for carry in graph.carries_out:
                written.setdefault(carry, []).insert(0, guided_last)

    @staticmethod
    def _check_held_guidance(index: int, row: ProgramRow, guided: int, where: str) -> None:
        held = row.held_guidance
        if held is None:
            return
        if row.graph is None or row.guidance is not None or not held:
            message = f"row {index} holds guidance: it needs a graph, weights, and no guidance of its own"
            raise BundleError(message, where=where, code="guidance")
        if len(held) > guided:
            message = f"row {index} holds the guidance of {len(held)} rows, and {guided} before it are guided"
            raise BundleError(message, where=where, code="carry_before_write")


def check_version(version: str, where: str) -> None:
    """Raises BundleError for a major version that this reader does not know."""
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    if not match or int(match[1]) != SCHEMA_MAJOR:
        message = f"schema_version '{version}' cannot be read: this edgediff reads {SCHEMA_MAJOR}.x; update edgediff"
        raise BundleError(message, where=where, code="version")


class PathError(ValueError):
    """A path that a bundle must not name; the reader reports it under this code."""

    code = "path"


def safe_path(path: str) -> str:
    """A relative path that stays inside the bundle, in POSIX form. Raises PathError for any other."""
    parts = PurePosixPath(path).parts
    if not path or "\\" in path or re.match(r"^[A-Za-z]:", path):
        raise PathError("a path in a bundle is relative, with forward slashes")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path):
        raise PathError("a path in a bundle has no control characters and no half of a surrogate pair")
    if path.startswith("/"):
        raise PathError("a path in a bundle is never absolute")
    if ".." in parts or "." in path.split("/") or "" in path.split("/"):
        raise PathError("a path in a bundle never leaves it")
    return path


def _need(graph: str, tensors: tuple[TensorSpec, ...], name: str, where: str) -> TensorSpec:
    found = next((tensor for tensor in tensors if tensor.name == name), None)
    if found is None:
        message = f"graph '{graph}' has no tensor '{name}'{did_you_mean(name, [t.name for t in tensors])}"
        raise BundleError(message, where=where, code="tensor")
    return found
