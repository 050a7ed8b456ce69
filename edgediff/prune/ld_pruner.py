"""LD-Pruner (arXiv 2404.11936): operators removed by how far that moves the final latents.

Each operator is removed by itself (the identity, or the cheapest replacement that keeps the shape), the same
seeds are sampled again, and its score is the shift of the mean and of the standard deviation of the final latents
over the seeds. Of the paper the abstract and summaries were read; the score's norm, L2 and not squared, is that of
another project which uses the same score (Hybrid-SD).

Operators, by our choice, are convolutions, linear maps, norms and activations; whole attentions and feed-forwards,
whose branch becomes zero; and whole resnets, which keep their shortcut. They go in ascending order of score, of
score per MAC or of score per millisecond that their removal saves, until the budget is met.

Scoring everything costs operators x seeds x steps. Here all are scored on a quarter of the seeds, the better half of
them on half of the seeds, and the better half of those on all (successive halving: our choice). What was dropped on
the way is removed only when all that went further is gone. How much the order depends on the seeds is Kendall's tau
between two halves of them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget, check_budget
from edgediff.prune._candidates import check_scored
from edgediff.prune._in_order import remove_in_order
from edgediff.prune._memo import Memo
from edgediff.prune._unit_costs import budget_costs
from edgediff.scoring.scores import Milliseconds, StageScores, check_finite

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.prune._latent_shift import Halves, LatentSampler
    from edgediff.sampling.trace import Trace

Kind = Literal["conv", "linear", "norm", "activation", "attention", "feed_forward", "resnet"]
KINDS: tuple[Kind, ...] = ("conv", "linear", "norm", "activation", "attention", "feed_forward", "resnet")
UNIT_KINDS: dict[str, Kind] = {  # by role
    "self-attention": "attention",
    "cross-attention": "attention",
    "feed-forward": "feed_forward",
    "resnet": "resnet",
}
RUNGS = (4, 2, 1)  # a rung samples this part of the seeds; after each but the last, half of the operators goes on


class Spec(Model):
    """`by`: what orders the operators: the `score`, or the score for each MAC or millisecond saved. `kinds` of
    operators to consider. `seeds` (a multiple of 8) latents are sampled in `steps` of `sampler`; `guidance` above
    1 doubles the cost. `halving` off scores every operator on all seeds. `keep` names units, layers, blocks or
    operators that stay. `costs` is a JSON file, unit -> [ms, ms when cut], for a budget or an order by time
    (without one, units and operators are timed on this machine). `batch` seeds run at once."""

    budget: Budget
    by: Literal["score", "per_mac", "per_ms"] = "score"
    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)
    seeds: int = Field(default=32, ge=8, multiple_of=8)
    sampler: str = "ddim"
    steps: int = Field(default=10, ge=1)
    guidance: float = Field(default=1.0, ge=0)
    halving: bool = True
    keep: tuple[str, ...] = ()
    costs: str | None = None
    batch: int = Field(default=16, ge=1)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """The shift of the final latents by the removal of every operator, and the operators chosen.

    `checks`: `tau` between seed halves (of all operators on the first rung, of those of the last rung on all
    seeds), `rungs` (how many operators were scored on how many seeds), `share_of_full_cost` (1 without halving),
    and `joint`, the shift with all chosen operators gone. Raises MethodError for a budget that cannot be met.
    """
    graph = pipeline.graph
    names = operators(graph, spec)
    costs = budget_costs(spec.budget, spec.costs, pipeline, progress, operators=True, always=spec.by == "per_ms")
    check_budget(spec.budget, names, graph, costs)
    with _memo(spec, pipeline, trace) as memo:
        race = _Race(spec, _sampler(spec, pipeline, trace), memo, graph, costs, progress)
        race.run(names)
        values = {name: race.scores[name][0] for name in names}
        check_finite(values, "ld_pruner")
        chosen = remove_in_order(spec.budget, race.order(names), graph, costs)
        joint = race.measure(chosen, spec.seeds, ()) if chosen else (0.0, 0.0, 0.0)
    checks = {
        "tau": {"first_rung": race.tau(names, 0), "last_rung": race.tau(names, race.last)},
        "rungs": race.counts,
        "share_of_full_cost": race.share(names),
        "joint": joint[0],
    }
    return StageScores(values=values, costs=costs, selection=chosen, checks=checks)


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The operators that scoring chose, each with its own score. Raises MethodError when the scores are of another
    network."""
    check_scored(graph, scores.values)
    return tuple(Cut(unit=name, by="ld_pruner", score=scores.values[name]) for name in scores.selection or ())


def operators(graph: UnitGraph, spec: Spec) -> tuple[str, ...]:
    """Names that are removed one by one: those of the kinds asked for, in the order of the network, whose removal
    saves something that the budget counts. Raises PlanError for an unknown name in `keep`, MethodError when nothing
    is left."""
    kept = graph.expand(spec.keep)
    found: list[str] = []
    for unit in graph.units:
        if unit.name in kept or unit.name in graph.cuts:
            continue
        if UNIT_KINDS.get(unit.role) in spec.kinds and unit.cutting != "protected":
            found.append(unit.name)
        found += [o.name for o in unit.operators if o.kind in spec.kinds and o.name in graph.operators]
    found = [name for name in found if name not in kept]
    if not spec.budget.is_time:
        total = spec.budget.measure(graph, {})
        found = [name for name in found if spec.budget.measure(graph.with_cuts([name]), {}) < total]
    if not found:
        raise MethodError("no operator of these kinds may be removed", code="no_candidates")
    return tuple(found)


def _sampler(spec: Spec, pipeline: Pipeline, trace: Trace) -> LatentSampler:
    from edgediff.prune._latent_shift import LatentSampler
    from edgediff.sampling.trace import guidance_calls, step_table

    table = step_table(pipeline, spec.sampler, spec.steps)
    guidance = guidance_calls(spec.guidance, (0.0, 1.0), len(table.rows))
    return LatentSampler(pipeline, table, guidance, trace.prompts, trace.seeds[0], spec.batch)


def _memo(spec: Spec, pipeline: Pipeline, trace: Trace) -> Memo:
    return Memo(
        {
            "what": "latent shift",
            "weights": pipeline.weights,
            "prompts": trace.prompts,
            "seed": trace.seeds[0],
            "cuts": sorted(pipeline.graph.cuts),
            "sampling": [spec.sampler, spec.steps, spec.guidance],
            "torch": importlib.metadata.version("torch"),
        }
    )


@dataclass
class _Race:
    """Successive halving over seeds. `scores` are name -> (all seeds so far, their even half, their odd half)."""

    spec: Spec
    sampler: LatentSampler
    memo: Memo
    graph: UnitGraph
    costs: dict[str, Milliseconds]
    progress: Progress | None
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)
    counts: list[dict[str, int]] = field(default_factory=list)
    _moments: dict[tuple[str, ...], tuple[int, Halves]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = RUNGS if self.spec.halving else (1,)
        self.rungs = [self.spec.seeds // part for part in parts]
        self.last = len(self.rungs) - 1

    def run(self, names: Sequence[str]) -> None:
        """Scores all, then ever fewer on ever more seeds."""
        going = list(names)
        for rung, seeds in enumerate(self.rungs):
            self.counts.append({"operators": len(going), "seeds": seeds})
            for index, name in enumerate(going):
                self.scores[name] = self.measure([name], seeds, going)
                self.reached[name] = rung
                if self.progress is not None:
                    self.progress(f"removing operators, {seeds} seeds", index + 1, len(going))
            check_finite({name: self.scores[name][0] for name in going}, "ld_pruner")
            better = sorted(going, key=self._worth)[: -(-len(going) // 2)]
            for name in set(going) - set(better):
                self._moments.pop((name,), None)
            going = [name for name in going if name in better]

    def measure(self, cuts: Sequence[str], seeds: int, going: Sequence[str]) -> tuple[float, float, float]:
        """The shifts by removing `cuts`, on this many seeds; seeds sampled on an earlier rung are not sampled again
        (unless scoring was killed in between)."""
        key = f"{seeds} {' '.join(cuts)}"
        known = self.memo.get(key)
        if known is None:
            known = self._latents((), seeds).shifts(self._latents(tuple(cuts), seeds))
            self.memo.put(key, *known)
        return known[0], known[1], known[2]

    def _latents(self, cuts: tuple[str, ...], seeds: int) -> Halves:
        done, found = self._moments.get(cuts, (0, None))
        if found is None or done > seeds:
            done, found = 0, None
        if done < seeds:
            more = self.sampler.sample(cuts, done, seeds)
            found = more if found is None else found + more
            self._moments[cuts] = (seeds, found)
        assert found is not None
        return found

    def order(self, names: Sequence[str]) -> list[str]:
        """Who went furthest first, and among those the most worth removing."""
        return sorted(names, key=lambda name: (-self.reached[name], self._worth(name)))

    def _worth(self, name: str) -> float:
        """Low is worth removing."""
        value = self.scores[name][0]
        if self.spec.by == "score":
            return value
        budget = Budget(macs=1.0) if self.spec.by == "per_mac" else Budget(latency=1.0)
        saved = budget.measure(self.graph, self.costs) - budget.measure(self.graph.with_cuts([name]), self.costs)
        return value / saved if saved > 0 else float("inf")

    def tau(self, names: Sequence[str], rung: int) -> float | None:
        """Kendall's tau between the scores by even and by odd seeds, on the seeds of this rung. None for fewer than
        three operators."""
        from scipy.stats import kendalltau

        seeds = self.rungs[rung]
        found = [self.memo.get(f"{seeds} {name}") for name in names if self.reached[name] >= rung]
        pairs = [(values[1], values[2]) for values in found if values is not None]
        if len(pairs) < 3:
            return None
        tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
        return tau if tau == tau else None

    def share(self, names: Sequence[str]) -> float:
        """Seeds sampled, over those of scoring every operator on all seeds."""
        sampled = sum(self.rungs[self.reached[name]] for name in names)
        return sampled / (len(names) * self.spec.seeds)
