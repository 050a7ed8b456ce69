"""Pruning methods: each file is one `kind` (`Pruner`) and proposes cuts. No method changes a network."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edgediff.config import Model
    from edgediff.documents.plan import Cut
    from edgediff.graph.units import UnitGraph
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace
    from edgediff.scoring.scores import StageScores


class Pruner(Protocol):
    """A file in this folder, or an entry point of `edgediff.prune`. `Spec` is its table in a recipe."""

    NAME: str
    Spec: type[Model]

    @abstractmethod
    def score(self, spec: Any, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
        """What each candidate is worth on the calibration prompts; low means safe to remove."""

    @abstractmethod
    def propose(self, spec: Any, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
        """The cuts that meet the spec, of what earlier cuts have left of `graph`. Raises MethodError for none."""


DOOR = Pruner
