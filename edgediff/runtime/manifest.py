"""`manifest.json`, version 2.0: the bundle as a program that a phone interprets. `docs/format.md` is the definition.

The classes here are its tables (section 5), in its order: their fields are read in the order in which they stand, so
that the first fault in a document is the same one for every reader. What must hold between keys is in `rules`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from edgediff.config import Model
from edgediff.errors import BundleError, ConfigError, did_you_mean
from edgediff.runtime.precision import Word
from edgediff.runtime.steps import Number, StepRow, StepTable, Update

VERSION = "2.0"
SCHEMA_MAJOR = 2
BATCH: Literal["batch"] = "batch"
SCALE: Literal["scale"] = "scale"

Makes = Literal["image", "audio"]
Kind = Literal["text-to-image", "class-to-image", "unconditional-image", "unconditional-audio"]  # of a model
Mode = Literal["batched", "sequential"]
DType = Literal["float32", "float16", "int64", "int32"]
Stream = Literal["mt19937", "philox"]
Takes = Literal["prompt", "negative_prompt", "picture", "mask"]

NAME_LENGTH, PATH_LENGTH = 200, 400
MAX_ELEMENTS, MAX_LATENT = 2**28, 2**24
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # and no others: what Unicode calls control grows with its versions
_PATH = re.compile(r"[A-Za-z0-9._+\-/@]+")


@dataclass(frozen=True)
class Length:
    """How many items a list has. Looked at after the items, which pydantic's own limits are not: the first fault in a
    document is to be the same one for every reader."""

    low: int
    high: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        low = {"minItems": self.low} if self.low else {}
        return {**handler(schema), **low, "maxItems": self.high}

    def check(self, value: Sized) -> Sized:
        if not self.low <= len(value) <= self.high:
            wanted = f"{self.low} to {self.high}" if self.low else f"at most {self.high}"
            raise ValueError(f"has {len(value)} items; {wanted} are allowed")
        return value


class PathError(ValueError):
    """A path that a bundle must not name; the reader reports it under this code."""

    code = "path"


def safe_path(path: str) -> str:
    """A relative path that stays inside the bundle (section 4). Raises PathError for any other."""
    if not 1 <= len(path) <= PATH_LENGTH or not _PATH.fullmatch(path):
        raise PathError(f"a path in a bundle has 1 to {PATH_LENGTH} characters of A-Z a-z 0-9 . _ + - / @")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise PathError("a path in a bundle is relative, with one slash between its parts, and never leaves it")
    return path


def _no_control(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("a name has no control characters")
    return value


Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH), AfterValidator(_no_control)]
Path = Annotated[str, AfterValidator(safe_path)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Short = Annotated[str, Field(max_length=NAME_LENGTH)]
Token = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]
Dimension = Annotated[int, Field(ge=1, le=2**20)]
Size = Dimension | Literal["batch"]
Weights = Annotated[tuple[Number, ...], Length(1, 64)]


def _few_elements(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    if sum(size == BATCH for size in shape) > 1:
        raise ValueError("'batch' stands once in a shape")
    if math.prod(2 if size == BATCH else size for size in shape) > MAX_ELEMENTS:
        raise ValueError(f"a tensor has at most {MAX_ELEMENTS} elements")
    return shape


Shape = Annotated[tuple[Size, ...], Length(0, 6), AfterValidator(_few_elements)]


def _small_latent(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MAX_LATENT:
        raise ValueError(f"a latent has at most {MAX_LATENT} elements")
    return shape


Latent = Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Length(2, 3), AfterValidator(_small_latent)]


class Added(Model):
    """A token that is taken out of the text as it stands. Several `ids`: a textual inversion of several vectors."""

    content: Token
    ids: Annotated[tuple[Annotated[int, Field(ge=0, le=2**24)], ...], Length(1, 64)]
    normalized: bool = False
    single_word: bool = False
    left_strip: bool = False
    right_strip: bool = False


class TokenizerSpec(Model):
    """A tokenizer in the bundle's one normal form, whatever layout the model had (section 6)."""

    kind: Literal["clip"]
    vocab: Path
    merges: Path
    length: int = Field(ge=2, le=4096)
    begin: Token
    end: Token
    pad: Token
    unknown: Token
    added: Annotated[tuple[Added, ...], Length(0, 4096)] = ()


class CarrySpec(Model):
    """A value that one row's graph hands to later ones."""

    dtype: DType
    shape: Shape

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape with `batch` filled in."""
        return tuple(batch if size == BATCH else size for size in self.shape)


class TensorSpec(Model):
    """One input or output. `batch` in a shape is 1, or 2 in a batched guided row (order: empty side, prompt side)."""

    name: Name
    dtype: DType
    shape: Shape

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape with `batch` filled in."""
        return tuple(batch if size == BATCH else size for size in self.shape)


class Artifact(Model):
    """Where a graph is on one backend: file, function or method inside it, precision, further files it needs.

    `chunks` are files that go on where `file` ends, in order, each with the same function: a chunk takes those of
    the graph's inputs that it has, and what the chunks before it put out, by name. `states` maps inputs and outputs
    of the graph to states that the backend keeps itself: such a tensor does not cross. All graphs of a file share
    its states, whoever runs them keeps one set per picture (one per prompt in sequential mode), and each state is
    one carry.
    """

    file: Path
    function: Short | None = None
    precision: Word
    data: Annotated[tuple[Path, ...], Length(0, 64)] = ()
    chunks: Annotated[tuple[Path, ...], Length(0, 64)] = ()
    delegates: Annotated[dict[Name, Count], Field(max_length=512)] = {}
    outside: Annotated[dict[Name, Count], Field(max_length=512)] = {}
    memory_bytes: Count | None = None
    states: Annotated[dict[Name, Name], Field(max_length=512)] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that running the graph needs."""
        return (self.file, *self.chunks, *self.data)


class Graph(Model):
    """A typed function. `carries_in` and `carries_out` map carry names to its input and output names."""

    component: Name
    inputs: Annotated[tuple[TensorSpec, ...], Length(1, 512)]
    outputs: Annotated[tuple[TensorSpec, ...], Length(1, 512)]
    carries_in: Annotated[dict[Name, Name], Field(max_length=512)] = {}
    carries_out: Annotated[dict[Name, Name], Field(max_length=512)] = {}
    parameters: Count = 0
    macs: Count = 0
    artifacts: Annotated[dict[Name, Artifact], Field(max_length=16)] = {}

    def free_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that are no carries: each has a condition where the graph is the denoiser's."""
        carried = set(self.carries_in.values())
        return tuple(spec for spec in self.inputs if spec.name not in carried)

    def free_outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs that are no carries: of a denoiser's graph exactly one, the prediction."""
        carried = set(self.carries_out.values())
        return tuple(spec for spec in self.outputs if spec.name not in carried)


class Encoder(Model):
    """A text's ids `[1, length]` in, tensors out. Runs once for each text of a picture."""

    tokenizer: Name
    graph: Name
    ids: Name
    mask: Name | None = None


class Fed(Model):
    """A source without keys of its own: the latent, the time, the embedded guidance, the picture, its mask."""

    source: Literal["latent", "timestep", "guidance", "picture", "masked_picture", "mask"] = Field(alias="from")


class TextOutput(Model):
    """One output of an encoder."""

    encoder: Name
    output: Name


class Text(Model):
    """Outputs of encoders, joined along the last axis. `empty`: what an empty negative prompt becomes."""

    source: Literal["text"] = Field(default="text", alias="from")
    outputs: Annotated[tuple[TextOutput, ...], Length(1, 8)]
    empty: Literal["encode", "zeros"] = "encode"


class TextMask(Model):
    """1 up to the text's end token, 0 after it."""

    source: Literal["text_mask"] = Field(default="text_mask", alias="from")
    encoder: Name


class Classes(Model):
    """A prompt is one of `names`, or a number below `count`; `null` is the class of no class, which guides."""

    source: Literal["class"] = Field(default="class", alias="from")
    count: int = Field(ge=1, le=2**20)
    null: Annotated[int, Field(ge=0, le=2**20)] | None = None
    names: Annotated[tuple[str, ...], Length(0, 2**20)] = ()

    def find(self, prompt: str) -> int:
        """The class that a prompt is. Raises ConfigError for what is neither a name nor a number below `count`."""
        known = {name: index for index, name in enumerate(self.names)}
        text = prompt.strip()
        found = known.get(text, int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else -1)
        if not 0 <= found < self.count:
            names = f", or a name{did_you_mean(text, known)}" if known else ""
            message = f"'{text:.60}' is no class: give a number from 0 to {self.count - 1}{names}"
            raise ConfigError(message, code="prompt")
        return found


class Constant(Model):
    """A vector that never changes, such as the sizes that SDXL is told; `empty` is the empty side's."""

    source: Literal["constant"] = Field(default="constant", alias="from")
    values: Annotated[tuple[Number, ...], Length(1, 4096)]
    empty: Annotated[tuple[Number, ...], Length(1, 4096)] | None = None


Condition = Annotated[Fed | Text | TextMask | Classes | Constant, Field(discriminator="source")]


class Decoder(Model):
    """latent * scale + shift -> graph -> values in [-1, 1]. Without a graph the latent is the result itself."""

    graph: Name | None = None
    input: Name | None = None
    output: Name | None = None
    scale: Number = 1.0
    shift: Number = 0.0
    sample_rate: Annotated[int, Field(ge=1, le=10**6)] | None = None


class PictureEncoder(Model):
    """A picture `[1, 3, *size]` in [-1, 1] to its latent: ((mean + deviation eps) - shift) * scale."""

    graph: Name
    input: Name
    mean: Name
    deviation: Name | None = None
    scale: Number = 1.0
    shift: Number = 0.0
    size: Annotated[tuple[Annotated[int, Field(ge=1, le=2**14)], ...], Length(2, 2)]


class Safety(Model):
    """Runs on what the decoder puts out; a value above `threshold` flags the picture."""

    graph: Name
    input: Name
    output: Name
    threshold: Number


Colour = Annotated[tuple[Number, ...], Length(3, 3)]


class Preview(Model):
    """A small picture of a step: a graph, or sum_c weights[c] x[c] + bias."""

    graph: Name | None = None
    input: Name | None = None
    output: Name | None = None
    weights: Annotated[tuple[Colour, ...], Length(1, 64)] | None = None
    bias: Colour | None = None


class Init(Model):
    """x_0 = noise * z + picture * y."""

    noise: Number
    picture: Number = 0.0


class Scale(Model):
    """A guidance scale: what counts when nothing is asked, and the range that a caller may ask for."""

    scale: float = Field(ge=0, le=1000)
    low: float = Field(ge=0, le=1000)
    high: float = Field(ge=0, le=1000)

    @classmethod
    def fixed(cls, scale: float) -> Scale:
        """A scale that no caller changes."""
        return cls(scale=scale, low=scale, high=scale)


class Held(Model):
    """Weights of the differences that guided rows left; times s - 1 where a caller may ask for another s."""

    weights: Weights
    times: Literal["one", "scale_minus_one"] = "one"


class Blend(Model):
    """Outside the mask: picture * y + noise * z_0."""

    picture: Number
    noise: Number


class ProgramRow(StepRow):
    """One network call (section 3). `graph` None holds the last output; `guidance` None runs the prompt side alone."""

    graph: Name | None = None
    timestep: Number
    input_scale: Number = 1.0
    guidance: Number | Literal["scale"] | None = None
    held: Held | None = None
    mix: Annotated[dict[Name, Weights], Field(max_length=512)] = {}
    update: Update
    blend: Blend | None = None


class Program(Model):
    """What one picture is: how it starts, and one row per network call. All programs share graphs and weights."""

    takes: Annotated[tuple[Takes, ...], Length(0, 4)] = ()
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    latent: Latent
    init: Init
    sampler: Short
    steps: int = Field(ge=1, le=10_000)
    mode: Mode
    guidance: Scale | None = None
    embedded_guidance: Scale | None = None
    rows: Annotated[tuple[ProgramRow, ...], Length(1, 10_000)]

    def table(self) -> StepTable:
        """The rows as a step table."""
        rows = tuple(StepRow(timestep=r.timestep, input_scale=r.input_scale, update=r.update) for r in self.rows)
        return StepTable(sampler=self.sampler, steps=self.steps, init_scale=self.init.noise, rows=rows)

    @property
    def guides(self) -> bool:
        """Whether some row runs both sides."""
        return any(row.guidance is not None for row in self.rows)

    def graphs(self) -> tuple[str, ...]:
        """Graphs that the rows run, in the order of first use."""
        return tuple(dict.fromkeys(row.graph for row in self.rows if row.graph is not None))

    def calls(self) -> dict[tuple[str, int], int]:
        """How often a picture runs each graph at each batch: `(graph, batch) -> calls`, in order of first use."""
        found: dict[tuple[str, int], int] = {}
        for row in self.rows:
            if row.graph is None:
                continue
            batch = 2 if row.guidance is not None and self.mode == "batched" else 1
            times = 2 if row.guidance is not None and self.mode == "sequential" else 1
            found[row.graph, batch] = found.get((row.graph, batch), 0) + times
        return found


class FileEntry(Model):
    """A file of the bundle: relative path, size, SHA-256 (hex)."""

    path: Path
    bytes: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DenoiserSource(Model):
    """The folder of `edgediff distill`, and the SHA-256 of the denoiser's file in it."""

    folder: str
    weights: str


class Source(Model):
    """Where the weights come from: the model, its pipeline's class, and the denoiser that stands in for its own."""

    model: str
    weights: str
    licence: str = "unknown"
    revision: str | None = None
    pipeline: str | None = None
    denoiser: DenoiserSource | None = None


class Manifest(Model):
    """The whole bundle. `evidence` is what `verify`, `evaluate`, `compare` and `profile` found: see `evidence`."""

    schema_version: str = VERSION
    name: Name
    makes: Makes
    rng: Stream = "mt19937"
    tokenizers: Annotated[dict[Name, TokenizerSpec], Field(max_length=8)] = {}
    carries: Annotated[dict[Name, CarrySpec], Field(max_length=4096)] = {}
    graphs: Annotated[dict[Name, Graph], Field(min_length=1, max_length=256)]
    encoders: Annotated[dict[Name, Encoder], Field(max_length=8)] = {}
    conditions: Annotated[dict[Name, Condition], Field(min_length=1, max_length=64)]
    decoder: Decoder
    picture: PictureEncoder | None = None
    safety: Safety | None = None
    preview: Preview | None = None
    programs: Annotated[dict[Name, Program], Field(min_length=1, max_length=64)]
    default: Name
    plan: Path = "plan.json"
    files: Annotated[tuple[FileEntry, ...], Length(1, 65_536)]
    source: Source
    tools: Annotated[dict[Name, str], Field(max_length=64)] = {}
    evidence: dict[str, Any] = {}

    @property
    def kind(self) -> Kind:
        """What the default program makes of what, in a word for people."""
        if self.makes == "audio":
            return "unconditional-audio"
        graphs = self.programs[self.default].graphs()
        read = {spec.name for name in graphs for spec in self.graphs[name].free_inputs()}
        sources = {self.conditions[name].source for name in read if name in self.conditions}
        if "class" in sources:
            return "class-to-image"
        return "text-to-image" if "text" in sources else "unconditional-image"

    def to_json(self) -> str:
        """Canonical JSON, but that maps keep their order: that of a graph's artifacts is the order of preference."""
        values = self.model_dump(by_alias=True, exclude_none=True)  # not pydantic's JSON, which writes NaN as null
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def program(self, name: str | None = None) -> Program:
        """A program by name, the default for None. Raises ConfigError naming those that there are."""
        wanted = self.default if name is None else name
        if wanted not in self.programs:
            near = did_you_mean(wanted, self.programs)
            message = f"bundle '{self.name}' has no program '{wanted:.60}'{near}"
            raise ConfigError(message, where="--program", code="program")
        return self.programs[wanted]

    def check(self, *, where: str = "manifest.json") -> None:
        """States what must hold between keys (section 7). Raises BundleError under the code of the broken rule."""
        from edgediff.runtime.rules import check_manifest

        check_manifest(self, where)


def check_version(version: str, where: str) -> None:
    """Raises BundleError for a major version that this reader does not know."""
    match = re.fullmatch(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)", version, re.ASCII)
    if match and match[1] == "1":
        message = f"schema_version '{version}' is the first format, which is no longer read: build the bundle again"
        raise BundleError(message, where=where, code="version")
    if not match or match[1] != str(SCHEMA_MAJOR):
        message = f"schema_version '{version}' cannot be read: this edgediff reads {SCHEMA_MAJOR}.x; update edgediff"
        raise BundleError(message, where=where, code="version")
