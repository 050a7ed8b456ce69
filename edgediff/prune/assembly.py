"""A-SDM's model assembly (arXiv 2312.15516, 2406.00210): a lighter network, rebuilt stage by stage.

Stages are taken in the order of their MACs per parameter: the shallow ones, which cost the most time for the fewest
weights, first. Within a stage the layer (a resnet with the transformer behind it) whose absence does least to the
output, beside all that is gone already, is left out until `keep` layers remain; then the next stage follows, until
the budget is met. Only the idea could be read, in the abstracts and a summary: order, criterion and stop are our
choice. Recovery is `edgediff distill`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget, check_budget
from edgediff.prune._candidates import candidates, check_scored
from edgediff.prune._measure import open_output_loss
from edgediff.prune._unit_costs import budget_costs
from edgediff.scoring.scores import StageScores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace


class Spec(Model):
    """`keep` layers stay in every stage. `timesteps` calls of the trajectory are sampled for every calibration
    prompt. `costs` is a JSON file, unit -> [ms, ms when cut], for a budget of time."""

    budget: Budget
    keep: int = Field(default=1, ge=0)
    timesteps: int = Field(default=4, ge=1)
    costs: str | None = None
    memory_gb: float = Field(default=2.0, gt=0)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """Output loss of each layer left out, together with those left out before it. Raises MethodError for a budget
    that cannot be met with `keep` layers in every stage."""
    graph = pipeline.graph
    costs = budget_costs(spec.budget, spec.costs, pipeline, progress)
    stages = spare_layers(graph, spec.keep)
    needed = check_budget(spec.budget, [name for names, count in stages for name in names[:count]], graph, costs)
    total = spec.budget.measure(graph, costs)
    gone: dict[str, float] = {}
    loss, memo = open_output_loss(pipeline, trace, spec.timesteps, spec.memory_gb)
    with memo:
        for names, count in stages:
            for _ in range(count):
                if total - spec.budget.measure(graph.with_cuts(gone), costs) >= needed * (1 - 1e-12):
                    break
                left = [name for name in names if name not in gone]
                losses = loss.measure([[*gone, name] for name in left], progress=progress, text="leaving layers out")
                best = min(range(len(left)), key=losses.__getitem__)
                gone[left[best]] = losses[best]
    return StageScores(values=gone, costs=costs, selection=tuple(gone))


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The layers left out, in the order in which they went, each with the loss after it."""
    check_scored(graph, scores.values)
    return tuple(Cut(unit=name, by="assembly", score=scores.values[name]) for name in scores.selection or ())


def spare_layers(graph: UnitGraph, keep: int) -> list[tuple[tuple[str, ...], int]]:
    """For each stage, most MACs per parameter first: its layers, and how many of them may go."""
    stages: dict[str, list[str]] = {}
    for name in candidates(graph, "pair"):
        stages.setdefault(graph.select(name)[0].block, []).append(name)
    order = sorted(stages, key=lambda block: -_intensity(graph, block))
    return [(tuple(stages[block]), max(0, len(stages[block]) - keep)) for block in order]


def _intensity(graph: UnitGraph, block: str) -> float:
    units = graph.select(block)
    return sum(unit.macs for unit in units) / max(1, sum(unit.parameters for unit in units))
