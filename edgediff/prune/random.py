"""Layers drawn by lot until the budget is met, the best of several draws: the baseline of no method at all.

What a draw costs is its output loss, all its layers removed together, measured as `laptop` measures it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget, check_budget, take_in_order
from edgediff.prune._candidates import Granularity, candidates, check_scored, close_selection
from edgediff.prune._measure import open_output_loss
from edgediff.prune._unit_costs import budget_costs
from edgediff.scoring.scores import StageScores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace


class Spec(Model):
    """`best_of` draws are made from `seed` on and the one of least output loss is kept. `keep` names units,
    layers or blocks that stay. `costs` is a JSON file, unit -> [ms, ms when cut], for a budget of time."""

    budget: Budget
    granularity: Granularity = "layer"
    best_of: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    timesteps: int = Field(default=4, ge=1)
    keep: tuple[str, ...] = ()
    costs: str | None = None
    memory_gb: float = Field(default=2.0, gt=0)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """Draws, measures each draw and keeps the best. Raises MethodError for a budget that cannot be met."""
    graph = pipeline.graph
    costs = budget_costs(spec.budget, spec.costs, pipeline, progress)
    names = candidates(graph, spec.granularity, spec.keep)
    draws = [draw_selection(spec, names, graph, costs, spec.seed + index) for index in range(spec.best_of)]
    loss, memo = open_output_loss(pipeline, trace, spec.timesteps, spec.memory_gb)
    with memo:
        losses = loss.measure(draws, progress=progress, text="measuring draws")
    best = min(range(len(draws)), key=losses.__getitem__)
    return StageScores(
        values=dict.fromkeys(draws[best], losses[best]),
        costs=costs,
        selection=draws[best],
        checks={"losses": losses, "output_loss": losses[best]},
    )


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The best draw; the score of each of its layers is the loss of all together."""
    check_scored(graph, scores.values)
    return tuple(Cut(unit=name, by="random", score=scores.values[name]) for name in scores.selection or ())


def draw_selection(
    spec: Spec, names: tuple[str, ...], graph: UnitGraph, costs: dict[str, tuple[float, float]], seed: int
) -> tuple[str, ...]:
    """One draw, in the network's order, without layers that the budget does not need."""
    needed = check_budget(spec.budget, names, graph, costs)
    if needed <= 0:
        return ()
    total = spec.budget.measure(graph, costs)
    savings = [total - spec.budget.measure(graph.with_cuts([name]), costs) for name in names]
    lots = random.Random(f"edgediff random {seed}")
    order = lots.sample(range(len(names)), len(names))
    taken = take_in_order(order, [lots.random() for _ in names], savings, needed)
    chosen = [name for name, is_taken in zip(names, taken, strict=True) if is_taken]
    return close_selection(graph, chosen)
