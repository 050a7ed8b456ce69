"""What each unit is worth, by each pruning method of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgediff.config import Model, parse
from edgediff.errors import MethodError
from edgediff.plugins import load_plugin
from edgediff.recipe import Recipe, StageTable
from edgediff.units import UnitGraph

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.trace import Progress, Trace


@dataclass(frozen=True)
class Scores:
    """The unit graph and, per pruning method (by its place in the recipe), candidate name -> score.

    A candidate is a name that `UnitGraph.select` knows; a low score means safe to remove.
    """

    graph: UnitGraph
    by_stage: tuple[dict[str, float], ...] = field(default=())


def read_spec(folder: str, stage: StageTable) -> Model:
    """The method's own `Spec` from its recipe table. Raises ConfigError for unknown kinds and keys."""
    plugin = load_plugin(folder, stage.kind)
    spec: Model = parse(stage.options(), plugin.Spec, where=f"[[{folder}]] kind = \"{stage.kind}\"")
    return spec


def score_trace(
    pipeline: Pipeline, trace: Trace | None, recipe: Recipe, progress: Progress | None = None
) -> Scores:
    """Scores every candidate by every `[[prune]]` stage of the recipe.

    Raises MethodError when a score is NaN or infinite (naming the unit), or when the recipe prunes and
    there is no trace.
    """
    found: list[dict[str, float]] = []
    for stage in recipe.prune:
        if trace is None:
            raise MethodError(f"pruning by '{stage.kind}' needs a trace; record_trace first", code="no_trace")
        plugin = load_plugin("prune", stage.kind)
        scores: dict[str, float] = plugin.score(read_spec("prune", stage), pipeline, trace, progress)
        for unit, score in scores.items():
            if not math.isfinite(score):
                raise MethodError(
                    f"the score of unit '{unit}' by '{stage.kind}' is {score}; the network gives values that are "
                    "not finite on the calibration prompts",
                    code="not_finite",
                )
        found.append(scores)
    return Scores(pipeline.graph, tuple(found))
