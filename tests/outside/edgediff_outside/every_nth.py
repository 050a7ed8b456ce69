"""The pruner `every_nth`: feed-forwards go by their place alone. `edgediff.prune.Pruner` says what each member is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.graph.units import UnitGraph
from edgediff.scoring.scores import StageScores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace


class Spec(Model):
    """Every `n`-th feed-forward is cut."""

    n: int = Field(default=2, ge=2)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    units = pipeline.graph.of_role("feed-forward")
    return StageScores(values={unit.name: float((index + 1) % spec.n) for index, unit in enumerate(units)})


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    return tuple(Cut(unit=name, by="every_nth", score=score) for name, score in scores.values.items() if score == 0.0)
