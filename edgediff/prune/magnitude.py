"""Layers of the smallest weights go first: the baseline that looks at no data.

The score of a layer is the sum of the absolute values of what its removal takes away, so the selection under a
budget of parameters takes the smallest mean weights, and exactly as many as needed (methods by magnitude are
about single weights or channels; carrying it over to layers is our choice).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget, choose
from edgediff.prune._candidates import Granularity, candidates, check_scored, close_selection, cuttable
from edgediff.prune._unit_costs import budget_costs
from edgediff.scoring.scores import StageScores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace


class Spec(Model):
    """`keep` names units, layers or blocks that stay. `costs` is a JSON file, unit -> [ms, ms when cut], for a
    budget of time."""

    budget: Budget
    granularity: Granularity = "layer"
    keep: tuple[str, ...] = ()
    costs: str | None = None


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """Sum of the absolute weights that go with each candidate."""
    import torch

    from edgediff.networks import family_of

    graph, network = pipeline.graph, pipeline.denoiser
    family = family_of(network)
    found: dict[str, float] = {}
    with torch.inference_mode():
        for name in candidates(graph, spec.granularity, spec.keep):
            total = 0.0
            for unit in cuttable(graph, name):
                stays = {id(p) for p in family.stream_parameters(network, unit)}
                gone = [p for p in family.unit_parameters(network, unit) if id(p) not in stays]
                total += sum(float(p.abs().double().sum()) for p in gone)
            found[name] = total
    return StageScores(values=found, costs=budget_costs(spec.budget, spec.costs, pipeline, progress))


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The smallest weights that meet the budget. Raises MethodError when none does."""
    check_scored(graph, scores.values)
    chosen = choose(spec.budget, scores.values, graph, scores.costs)
    return tuple(
        Cut(unit=name, by="magnitude", score=scores.values.get(name, 0.0)) for name in close_selection(graph, chosen)
    )
