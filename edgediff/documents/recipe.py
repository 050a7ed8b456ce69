"""A recipe: how to compress, independent of the device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from edgediff.config import Model, read_outside
from edgediff.documents.weight_format import parse_format
from edgediff.errors import ConfigError, did_you_mean, unknown
from edgediff.plugins import data_folder
from edgediff.runtime.precision import Word, refuse_renamed


def _one_word(value: Any) -> Any:
    """Refuses the table that stood in the place of the word, and words that are gone."""
    if isinstance(value, dict):
        raise ValueError(
            'a precision is one word now: write precision = "w8a8" (or another) before the first [table]; '
            "format, bits and choices belong to [weights]"
        )
    return refuse_renamed(value)


Wanted = Annotated[Literal["auto", Word], BeforeValidator(_one_word)]


class SamplerTable(Model):
    """`kind` is a name of `edgediff.sampling.table.SAMPLERS`; `steps` the sampler's steps."""

    kind: str = "ddim"
    steps: int = Field(default=50, ge=1, le=1000)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= value[0] < value[1] <= 1.0:
        raise ValueError("the interval needs 0 <= start < end <= 1")
    return value


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]


class GuidanceTable(Model):
    """Classifier-free guidance: `scale` 1.0 or less turns it off; it acts on calls whose relative
    position in the trajectory (0 first, 1 last) lies in `interval`. `range` lets whoever runs the bundle ask for
    another scale within it, where nothing was fitted to this one."""

    scale: float = Field(default=7.5, ge=0.0, le=100.0)
    interval: Interval = (0.0, 1.0)
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_around_scale(self) -> GuidanceTable:
        if self.range is not None and not 1.0 < self.range[0] <= self.scale <= self.range[1] <= 100.0:
            raise ValueError(f"range = {list(self.range)}: it needs 1 < low <= scale ({self.scale:g}) <= high <= 100")
        return self


class CalibrationTable(Model):
    """Prompts that the methods measure on: `file` (one prompt a line, UTF-8), else the model's own."""

    prompts: int = Field(default=8, ge=1)
    file: str | None = None
    seed: int = Field(default=0, ge=0)


def _known_format(word: str) -> str:
    try:
        if word:
            parse_format(word)
    except ConfigError as error:
        raise ValueError(error.message) from error
    return word


FormatWord = Annotated[str, AfterValidator(_known_format)]


class WeightsTable(Model):
    """How weights are coded where the precision alone does not say it. Backends that cannot hold coded weights refuse
    the plan.

    `format` codes every large weight (a word of `documents.weight_format`: `palette6`, `w4/32`, `sparse50+palette4`);
    `bits` is a budget instead, in bits per weight of the denoiser, which measured sensitivity spends on the `choices`,
    layer by layer.
    """

    format: FormatWord = ""
    bits: float | None = Field(default=None, gt=0, le=16)
    choices: tuple[FormatWord, ...] = Field(
        default=("palette2", "palette3", "palette4", "palette6", "palette8"), min_length=2
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> WeightsTable:
        if self.format and self.bits is not None:
            raise ValueError("format codes all weights alike, bits chooses per layer: give one of them")
        return self


class ParityTable(Model):
    """Floors in dB below which a bundle fails: per graph by its precision, or `coded_db` with `[weights]`; and the
    final image."""

    renamed: ClassVar[dict[str, str]] = {"int8_db": "write w8_db, w8a8_db or w8a16_db"}

    fp32_db: float = 60.0
    tf32_db: float = 40.0
    fp16_db: float = 40.0
    bf16_db: float = 20.0
    w8_db: float = 20.0
    w8a8_db: float = 20.0
    w8a16_db: float = 20.0
    w4_db: float = 15.0
    w4a8_db: float = 15.0
    coded_db: float = 15.0
    image_db: float = 35.0

    def graph_floor(self, precision: Word, *, coded: bool) -> float:
        """The floor of a graph, whose weights may be coded beyond what its precision says."""
        return float(getattr(self, "coded_db" if coded else f"{precision}_db"))


class StageTable(Model):
    """One `[[prune]]` or `[[reuse]]` table; every key but `kind` belongs to that method's `Spec`."""

    model_config = {"extra": "allow", "frozen": True}
    kind: str

    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class ProgramTable(Model):
    """One `[[program]]`: a way to run the same network, which an app offers as a choice. All programs of a recipe share
    its cuts, graphs and weights. `guidance` None is the recipe's."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[\w.+-]+$")
    sampler: SamplerTable = SamplerTable()
    guidance: GuidanceTable | None = None
    reuse: tuple[StageTable, ...] = Field(default=(), max_length=1)


class BudgetTable(Model):
    """What one image may take on the target: then the planner chooses sampler, steps, guidance and schedule within
    it, and `[sampler]` and `[guidance]` say the reference. `memory_mb` None is the target's own ceiling."""

    latency_ms: float | None = Field(default=None, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)


class DistillTable(Model):
    """How the pruned network recovers; see `edgediff.distill`. The defaults are for the embedded model.

    `batch` samples make a step, over all processes and in `accumulate` parts. `rate` is AdamW's, warmed up over
    `warm_up` steps, then constant or along a cosine to 0. `task`, `output` and `feature` weigh the three losses;
    `features` says how the feature losses are weighed among themselves: `normalised` by the teacher's mean square
    (LAPTOP-Diff), `normalised_root` by its root, `plain` all alike (BK-SDM), `none` not at all. `taps` are the ends of
    the blocks, or of the layers. `empty_share` of the captions is left out, for guidance. `average` is the decay of
    the averaged weights, which are what is kept. Every `probe_every` steps the loss on fixed samples is logged.
    `phases` above 1 gives convolutions that stay the removed ones of their stage as experts (A-SDM), mixed
    differently in each equal part of the timesteps: one graph for each phase in the bundle.
    """

    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    rate: float = Field(default=3e-4, gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "cosine"
    warm_up: int = Field(default=20, ge=0)
    task: float = Field(default=1.0, ge=0)
    output: float = Field(default=1.0, ge=0)
    feature: float = Field(default=1.0, ge=0)
    features: Literal["normalised", "normalised_root", "plain", "none"] = "normalised"
    taps: Literal["block", "layer"] = "block"
    empty_share: float = Field(default=0.1, ge=0, le=1)
    average: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = Field(default=0, ge=0)
    probe_every: int = Field(default=50, ge=1)
    phases: int = Field(default=1, ge=1, le=4)

    @model_validator(mode="after")
    def _parts(self) -> DistillTable:
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} does not divide into {self.accumulate} parts")
        if self.task == self.output == 0 and (self.feature == 0 or self.features == "none"):
            raise ValueError("every loss has weight 0; give task, output or feature a weight")
        return self


PROGRAMS_OWN = {
    "sampler": "one [sampler] at the top (move it into them: [program.sampler])",
    "reuse": "one [[reuse]] at the top (move it into them: [[program.reuse]])",
    "budget": "a [budget], which chooses sampler and steps itself",
}  # what only a recipe without programs says at the top


class Recipe(Model):
    """One recipe file; see `recipes/balanced.toml`. `precision` is a word of `runtime.precision`, for all backends;
    `auto` leaves it to the target."""

    name: str = Field(min_length=1)
    description: str = ""
    sampler: SamplerTable = SamplerTable()
    guidance: GuidanceTable = GuidanceTable()
    calibration: CalibrationTable = CalibrationTable()
    prune: tuple[StageTable, ...] = ()
    distill: DistillTable | None = None
    reuse: tuple[StageTable, ...] = ()
    budget: BudgetTable | None = None
    precision: Wanted = "auto"
    weights: WeightsTable = WeightsTable()
    parity: ParityTable = ParityTable()
    max_graphs: int = Field(default=3, ge=1)
    program: tuple[ProgramTable, ...] = ()
    default: str = ""

    @model_validator(mode="after")
    def _one_reuse(self) -> Recipe:
        if len(self.reuse) > 1:
            raise ValueError("a recipe has at most one [[reuse]] table: a call has one row")
        return self

    @model_validator(mode="after")
    def _programs_or_one(self) -> Recipe:
        names = [one.name for one in self.program]
        for index, name in enumerate(names):
            if name in names[:index]:
                message = "two [[program]] tables have this name, and an app chooses by name; give it another"
                raise ValueError(f"'program.{index}.name' = '{name}': {message}")
        if names and (both := [key for key in PROGRAMS_OWN if key in self.model_fields_set]):
            message = f"a recipe has either [[program]] tables or {PROGRAMS_OWN[both[0]]}, never both"
            raise ValueError(f"key '{both[0]}': {message}")
        if self.default and self.default not in names:
            known = did_you_mean(self.default, names) if names else "; it has no [[program]] tables"
            raise ValueError(f"'default' = '{self.default}' is no program of this recipe{known}")
        return self

    def programs(self) -> dict[str, Recipe]:
        """Every program as a recipe of its own, the default one (else the first) first; `main` where there are no
        `[[program]]` tables."""
        if not self.program:
            return {"main": self}
        first = self.default or self.program[0].name
        ordered = sorted(self.program, key=lambda one: one.name != first)
        whole = {"program": (), "default": ""}
        return {
            one.name: self.model_copy(
                update={**whole, "sampler": one.sampler, "reuse": one.reuse, "guidance": one.guidance or self.guidance}
            )
            for one in ordered
        }


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name (`balanced`), by file, or as it is. Raises ConfigError."""
    if isinstance(recipe, Recipe):
        return recipe
    return read_outside(find_config("recipe", recipe), Recipe)


def with_budget(recipe: Recipe, budget: str | float | None) -> Recipe:
    """The recipe with a time for one image in place of its own: `"2.0s"`, `"800ms"`, or a number of seconds.

    Raises ConfigError for anything else, and for a recipe of programs."""
    if budget is None:
        return recipe
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)?\s*", str(budget))
    milliseconds = float(match[1]) * (1.0 if match[2] == "ms" else 1000.0) if match else 0.0
    if milliseconds <= 0.0:
        raise ConfigError(f"budget '{budget}' is no time above 0; write 2.0s or 800ms", where="--budget", code="budget")
    if recipe.program:
        message = f"recipe '{recipe.name}' has [[program]] tables, which say sampler and steps, as a budget would"
        raise ConfigError(f"{message}; leave it out, or give a recipe without them", where="--budget", code="budget")
    table = (recipe.budget or BudgetTable()).model_copy(update={"latency_ms": milliseconds})
    return recipe.model_copy(update={"budget": table})


def list_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return config_names("recipe")


def find_config(kind: str, name: str | Path) -> Path:
    """The TOML file of a recipe or target given by name or by path. Raises ConfigError for neither."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    packaged = data_folder(f"{kind}s") / f"{name}.toml"
    if not packaged.is_file():
        raise ConfigError(unknown(kind, str(name), config_names(kind)), code=f"unknown_{kind}")
    return packaged


def config_names(kind: str) -> list[str]:
    """Names of all recipes or targets in the package."""
    return sorted(path.stem for path in data_folder(f"{kind}s").glob("*.toml"))
