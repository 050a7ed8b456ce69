"""What each unit is worth, by each pruning method of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgediff.config import Model, dump_json, parse, parse_outside
from edgediff.documents.recipe import Recipe, StageTable
from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.plugins import load_plugin

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace

Milliseconds = tuple[float, float]


class StageScores(Model):
    """What one pruning method measured.

    `values`: candidate (a name that `UnitGraph.select` knows) -> score; low means safe to remove.
    `costs`: unit -> milliseconds of one call of it, and of what is left of it when it is cut; empty unless
    the method's budget is a time.
    `selection`: what the method already chose, where choosing needs the network (re-scoring, best of n).
    `checks`: measured properties of the scores themselves, as plain data for the report.
    """

    values: dict[str, Annotated[float, Field(allow_inf_nan=True)]] = {}
    costs: dict[str, Milliseconds] = {}
    selection: tuple[str, ...] | None = None
    checks: dict[str, Any] = {}


@dataclass(frozen=True)
class Scores:
    """The unit graph and what every pruning method found, by its place in the recipe."""

    graph: UnitGraph
    by_stage: tuple[StageScores, ...] = field(default=())

    def to_json(self) -> str:
        """Canonical JSON of the stages; the graph is the pipeline's and is not repeated."""
        return dump_json({"stages": [stage.model_dump(mode="json", exclude_none=True) for stage in self.by_stage]})

    @classmethod
    def from_json(cls, graph: UnitGraph, text: str, *, where: str) -> Scores:
        """Reads what `to_json` wrote. Raises ConfigError naming `where`."""
        return cls(graph, parse_outside(text, _Stages, where=where).stages)


class _Stages(Model):
    stages: tuple[StageScores, ...]


def read_spec(folder: str, stage: StageTable) -> Model:
    """The method's own `Spec` from its recipe table. Raises ConfigError for unknown kinds and keys."""
    plugin = load_plugin(folder, stage.kind)
    spec: Model = parse(stage.options(), plugin.Spec, where=f'[[{folder}]] kind = "{stage.kind}"')
    return spec


def score_trace(pipeline: Pipeline, trace: Trace | None, recipe: Recipe, progress: Progress | None = None) -> Scores:
    """Scores every candidate by every `[[prune]]` stage of the recipe.

    Raises MethodError when a score is NaN or infinite (naming the unit), or when the recipe prunes and
    there is no trace.
    """
    found: list[StageScores] = []
    for stage in recipe.prune:
        if trace is None:
            raise MethodError(f"pruning by '{stage.kind}' needs a trace; record_trace first", code="no_trace")
        plugin = load_plugin("prune", stage.kind)
        scores: StageScores = plugin.score(read_spec("prune", stage), pipeline, trace, progress)
        check_finite(scores.values, stage.kind)
        found.append(scores)
    return Scores(pipeline.graph, tuple(found))


def check_finite(values: Mapping[str, float], kind: str) -> None:
    """Raises MethodError naming the first unit whose score is NaN or infinite."""
    for unit, score in values.items():
        if not math.isfinite(score):
            raise MethodError(
                f"the score of unit '{unit}' by '{kind}' is {score}; the network gives values that are "
                "not finite on the calibration prompts",
                code="not_finite",
            )
