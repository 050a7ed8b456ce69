"""LAPTOP-Diff (arXiv 2404.11098): layers removed by what their removal does to the network's output.

The score of a layer is what its removal alone does to the network's output on calibration latents,
s_i = E || eps(without i) - eps ||^2. Removing several is taken to cost the sum, so the best selection
under a budget is a covering knapsack, solved exactly here by mixed-integer programming (HiGHS). That sum is
checked on random subsets; where it explains too little (R2 < 0.9), the selection is made in ten parts of the
budget and all layers are scored again after each, on top of what is gone, and of the two selections the one
whose measured loss is less is kept.

Read were the paper's opening and summaries of it, no code: score and additivity are the paper's; which layers are
candidates, the solver, timesteps sampled evenly along the trajectory and scored without guidance, and the ten parts are
our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.graph.units import UnitGraph
from edgediff.prune._additivity import Additivity, compare_sums, draw_subsets
from edgediff.prune._budget import Budget, Solver, check_budget, choose
from edgediff.prune._candidates import Granularity, candidates, check_scored, close_selection
from edgediff.prune._measure import open_output_loss
from edgediff.prune._unit_costs import budget_costs
from edgediff.scoring.scores import Milliseconds, StageScores, check_finite

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.prune._prefix import OutputLoss
    from edgediff.sampling.trace import Trace

ADDITIVE = 0.9  # R2 from which the sum of single losses is believed
PARTS = 10


class Spec(Model):
    """`timesteps` calls of the trajectory are sampled evenly for every calibration prompt. `subsets` random
    subsets check additivity (0: not checked). `rescore`: score again after each tenth of the budget, `auto` where
    R2 is below 0.9. `solver`: `greedy` is there for comparison. `keep` names units, layers or blocks that stay.
    `costs` is a JSON file, unit -> [ms, ms when cut], for a budget of time (without one, units are timed on this
    machine). `memory_gb` bounds the activations that are kept while scoring."""

    budget: Budget
    granularity: Granularity = "layer"
    timesteps: int = Field(default=4, ge=1)
    subsets: int = Field(default=16, ge=0)
    rescore: Literal["auto", "always", "never"] = "auto"
    solver: Solver = "milp"
    keep: tuple[str, ...] = ()
    costs: str | None = None
    memory_gb: float = Field(default=2.0, gt=0)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """Output loss of every candidate: mean squared change of the network's output, the prompt alone.

    `checks` holds the additivity found, and for each selection that was made its layers and its loss measured
    with all of them gone. Raises MethodError for a budget that cannot be met and for losses that are not finite.
    """
    graph = pipeline.graph
    names = candidates(graph, spec.granularity, spec.keep)
    costs = budget_costs(spec.budget, spec.costs, pipeline, progress)
    needed = check_budget(spec.budget, names, graph, costs)
    loss, memo = open_output_loss(pipeline, trace, spec.timesteps, spec.memory_gb)
    with memo:
        values = dict(zip(names, loss.measure([[name] for name in names], progress=progress), strict=True))
        check_finite(values, "laptop")
        if needed <= 0:
            return StageScores(values=values, costs=costs, selection=())
        search = _Search(spec, loss, values, costs, progress)
        additivity = search.check_additivity(needed) if spec.subsets else None
        search.try_selection("one_shot", choose(spec.budget, values, graph, costs, spec.solver))
        if spec.rescore == "always" or (spec.rescore == "auto" and _doubtful(additivity)):
            search.try_selection("rescored", search.select_in_parts())
    checks: dict[str, Any] = {"selections": search.tried}
    if additivity is not None:
        checks["additivity"] = additivity.model_dump(mode="json")
    return StageScores(values=values, costs=costs, selection=search.best(), checks=checks)


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The selection that scoring ended with, each layer with its single loss. Raises MethodError when the scores
    are of another network."""
    check_scored(graph, scores.values)
    chosen = scores.selection
    if chosen is None:
        chosen = close_selection(graph, choose(spec.budget, scores.values, graph, scores.costs, spec.solver))
    return tuple(Cut(unit=name, by="laptop", score=scores.values.get(name, 0.0)) for name in chosen)


@dataclass
class _Search:
    """Selections of one scoring run and their measured losses."""

    spec: Spec
    loss: OutputLoss
    values: Mapping[str, float]
    costs: dict[str, Milliseconds]
    progress: Progress | None

    def __post_init__(self) -> None:
        self.tried: dict[str, dict[str, Any]] = {}

    @property
    def graph(self) -> UnitGraph:
        return self.loss.graph

    def check_additivity(self, needed: float) -> Additivity:
        """Random subsets up to the share that has to go."""
        budget, graph = self.spec.budget, self.graph
        total = budget.measure(graph, self.costs)
        subsets = draw_subsets(list(self.values), graph, budget, self.costs, needed / total, self.spec.subsets)
        measured = self.loss.measure(subsets, progress=self.progress, text="checking additivity")
        removed = [1 - budget.measure(graph.with_cuts(names), self.costs) / total for names in subsets]
        return compare_sums(subsets, self.values, measured, removed)

    def try_selection(self, name: str, chosen: tuple[str, ...]) -> None:
        closed = close_selection(self.graph, chosen)
        [measured] = self.loss.measure([closed], progress=self.progress, text="measuring the selection")
        cut = self.graph.with_cuts(closed)
        self.tried[name] = {
            "units": list(closed),
            "output_loss": measured,
            "summed": sum(self.values[unit] for unit in chosen),
            "parameters": cut.parameters(),
            "macs": cut.macs(),
        }

    def select_in_parts(self) -> tuple[str, ...]:
        """After each tenth of the budget all that is left is scored on top of what is gone: a layer's score is
        then what it adds to the loss. Parts are cumulative, so what one overshoots the next need not remove."""
        budget, chosen = self.spec.budget, tuple[str, ...]()
        total = budget.measure(self.graph, self.costs)
        allowed = budget.allowed(total)
        losses = dict(self.values)
        gone = 0.0
        for part in range(1, PARTS + 1):
            cut = self.graph.with_cuts(chosen)
            stays = total - (total - allowed) * part / PARTS
            if budget.measure(cut, self.costs) <= stays * (1 + 1e-12):
                continue
            if chosen:
                left = [name for name in self.values if name not in chosen]
                sets = [(*chosen, name) for name in left]
                text = f"scoring layers again, part {part} of {PARTS}"
                measured = self.loss.measure(sets, base=chosen, progress=self.progress, text=text)
                losses = {name: value - gone for name, value in zip(left, measured, strict=True)}
            more = choose(_absolute(budget, stays, cut, self.costs), losses, cut, self.costs, self.spec.solver)
            chosen = tuple(name for name in self.values if name in {*chosen, *more})
            [gone] = self.loss.measure([chosen], progress=self.progress, text="measuring the selection")
        return chosen

    def best(self) -> tuple[str, ...]:
        """The tried selection of least measured loss."""
        found = min(self.tried.values(), key=lambda tried: float(tried["output_loss"]))
        return tuple(found["units"])


def _doubtful(additivity: Additivity | None) -> bool:
    return additivity is not None and additivity.r2 is not None and additivity.r2 < ADDITIVE


def _absolute(budget: Budget, stays: float, cut: UnitGraph, costs: Mapping[str, Milliseconds]) -> Budget:
    """A budget of the same kind under which `stays` of its unit is left of the cut graph."""
    amount = stays if budget.key == "latency_ms" else stays / budget.measure(cut, costs)
    return Budget.model_validate({budget.key: amount})
