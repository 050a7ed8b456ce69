"""The planner under a budget: cuts, sampler, steps, guidance and schedule weighed together on one target.

Every candidate is a whole plan. Its price is the target's own (the estimator's time of each of its graphs, not MACs),
its quality is measured: the error of the final latents on the calibration prompts, against the recipe's untouched
trajectory. The methods that have a budget of their own get the one that is left after what every image costs, so that
their exact programs (see `reuse._skipping`) search inside; what remains outside is a few dozen plans, and the best of
them that fits is found by looking at all. The same sampler with fewer steps and DPM++ 2M are among them: a method that
cannot beat them is not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgediff.documents.plan import Front, Plan, Point
from edgediff.documents.recipe import BudgetTable, Recipe, SamplerTable, StageTable
from edgediff.documents.target import Target
from edgediff.errors import EdgeDiffError, MethodError, PlanError, SamplerError
from edgediff.estimate import PlanEstimate, estimate_plan
from edgediff.estimate.operators import OperatorTable
from edgediff.planning.planner import Calibrator, make_plan
from edgediff.plugins import Progress
from edgediff.scoring.scores import Scores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


STEPS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30)  # the ladder of baselines
SHARES = (0.08, 0.1, 0.12, 0.16, 0.2, 0.25, 0.33, 0.5)
CACHES = ((2, 0), (3, 0), (5, 0), (2, 1), (3, 1))  # DeepCache: interval, branch
BASELINES = ("dpmpp_2m",)


class Measure(Protocol):
    """Mean squared error of the final latents of a plan, and the reference's mean square (`flow` keeps it)."""

    def loss(self, plan: Plan) -> float: ...

    @property
    def power(self) -> float: ...


@dataclass(frozen=True)
class Candidate:
    """A plan, what it is, and its price; `loss` None until it is measured."""

    what: str
    plan: Plan
    price: PlanEstimate
    baseline: bool
    loss: float | None = None


def search_plan(
    pipeline: Pipeline,
    scores: Scores,
    recipe: Recipe,
    target: Target,
    *,
    calibrator: Calibrator,
    measure: Measure,
    components: dict[str, OperatorTable],
    backends: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan with the least measured loss within the recipe's `[budget]`, with the whole front in `plan.front`.

    Raises PlanError when even the cheapest plan is over the budget: it is named with its price.
    """
    budget = recipe.budget or BudgetTable()

    def make(one: Recipe) -> tuple[Plan, PlanEstimate]:
        plan = make_plan(pipeline, scores, one, target, backends=backends, calibrator=calibrator)
        return plan, estimate_plan(plan, pipeline.graph, target, components=components)

    found: list[Candidate] = []
    for what, one, baseline in variations(recipe, pipeline, make, budget):
        if progress is not None:
            progress(f"plans: {what}", len(found), 40)
        try:
            plan, price = make(one)
        except (MethodError, SamplerError):
            continue  # the method does not serve this network or this sampler, or has no path that cheap
        found.append(Candidate(what, plan.model_copy(update={"recipe": recipe.digest()}), price, baseline))
    fitting = [each for each in found if _excess(each.price, budget) is None]
    if not fitting:
        raise _too_small(found, budget, target)
    measured: list[Candidate] = []
    for index, each in enumerate(found):
        if progress is not None:
            progress(f"measuring {each.what}", index, len(found))
        worth = budget.latency_ms is None or each.price.latency_ms.p50 <= WORTH * budget.latency_ms
        measured.append(
            Candidate(each.what, each.plan, each.price, each.baseline, measure.loss(each.plan) if worth else None)
        )
    chosen = choose(measured, budget)
    return chosen.plan.model_copy(update={"front": _front(measured, chosen, budget, measure.power)})


WORTH = 2.0  # candidates beyond this many budgets are priced but not measured


def choose(candidates: list[Candidate], budget: BudgetTable) -> Candidate:
    """The fitting candidate with the least loss; at equal loss the cheaper one."""
    fitting = [c for c in candidates if c.loss is not None and _excess(c.price, budget) is None]
    return min(fitting, key=lambda c: (c.loss or 0.0, c.price.latency_ms.p50, c.what))


def variations(
    recipe: Recipe, pipeline: Pipeline, make: Callable[[Recipe], tuple[Plan, PlanEstimate]], budget: BudgetTable
) -> Iterator[tuple[str, Recipe, bool]]:
    """(name, recipe, whether it is a baseline) of every candidate: with the recipe's cuts and without."""
    for cuts in (recipe.prune, ()) if recipe.prune else ((),):
        base = recipe.model_copy(update={"prune": cuts, "reuse": (), "budget": None})
        cut = " on the cut network" if cuts else ""
        for kind in (recipe.sampler.kind, *(b for b in BASELINES if b != recipe.sampler.kind)):
            for steps in (*(s for s in STEPS if s < recipe.sampler.steps), recipe.sampler.steps):
                sampler = SamplerTable(kind=kind, steps=steps)
                yield f"{kind} {steps}{cut}", base.model_copy(update={"sampler": sampler}), not cuts
        for stage in recipe.reuse:
            yield f"{stage.kind} of the recipe{cut}", base.model_copy(update={"reuse": (stage,)}), False
        for interval, branch in CACHES:
            stage = StageTable.model_validate({"kind": "deepcache", "interval": interval, "branch": branch})
            yield f"deepcache {interval}/{branch}{cut}", base.model_copy(update={"reuse": (stage,)}), False
        for share, price in _shares(base, make, budget):
            stage = StageTable.model_validate({"kind": "linear_forecast", "share": share, "price": list(price)})
            yield f"linear_forecast {share:.3f}{cut}", base.model_copy(update={"reuse": (stage,)}), False


def _shares(
    base: Recipe, make: Callable[[Recipe], tuple[Plan, PlanEstimate]], budget: BudgetTable
) -> Iterator[tuple[float, tuple[float, float]]]:
    """Shares of the untouched denoiser's time, the one that just fits first, with the target's price of a guided
    call and of one alone."""
    plan, price = make(base)
    guided = next((price.graphs[n].p50 for n in price.graphs if n.endswith("@2")), None)
    single = base.model_copy(update={"guidance": base.guidance.model_copy(update={"scale": 1.0})})
    alone = make(single)[1].graphs["full"].p50
    if guided is None:
        guided = 2.0 * alone if plan.guidance.mode == "sequential" else alone
    prices = (round(guided / alone, 4), 1.0)
    whole = sum(guided if scale is not None else alone for scale in plan.guidance.calls)
    fixed = price.latency_ms.p50 - whole
    shares = list(SHARES)
    if budget.latency_ms is not None and 0.0 < (exact := (budget.latency_ms - fixed) / whole) < 1.0:
        shares.insert(0, math.floor(exact * 1e4) / 1e4)
    for share in shares:
        yield share, prices


def _excess(price: PlanEstimate, budget: BudgetTable) -> str | None:
    """The first limit that a price is over, or None."""
    if budget.latency_ms is not None and price.latency_ms.p50 > budget.latency_ms:
        return "latency"
    ceiling = budget.memory_mb if budget.memory_mb is not None else price.ceiling_mb
    if ceiling is not None and price.memory_mb > ceiling:
        return "memory"
    return None


def _too_small(found: list[Candidate], budget: BudgetTable, target: Target) -> EdgeDiffError:
    cheapest = min(found, key=lambda c: (_excess(c.price, budget) == "memory", c.price.latency_ms.p50))
    limit = _excess(cheapest.price, budget)
    memory = budget.memory_mb or cheapest.price.ceiling_mb or 0.0
    asked = f"{budget.latency_ms:.0f} ms" if limit == "latency" else f"{memory:.0f} MB"
    return PlanError(
        f"no plan fits {asked} on {target.name}: the cheapest, {cheapest.what}, is estimated at "
        f"{cheapest.price.latency_ms.p50:.0f} ms and {cheapest.price.memory_mb:.0f} MB; allow that much, choose a "
        "smaller model, or fewer bits",
        code="budget",
    )


def _front(candidates: list[Candidate], chosen: Candidate, budget: BudgetTable, power: float) -> Front:
    better = [c for c in candidates if c.loss is not None and chosen.loss is not None and c.loss < chosen.loss]
    limits = sorted({limit for c in better if (limit := _excess(c.price, budget)) is not None})
    points = tuple(
        Point(
            what=c.what,
            baseline=c.baseline,
            latency_ms=round(c.price.latency_ms.p50, 3),
            memory_mb=c.price.memory_mb,
            macs=c.plan.cost.macs,
            snr_db=None if c.loss is None else round(_decibels(power, c.loss), 3),
        )
        for c in candidates
    )
    return Front(points=points, chosen=candidates.index(chosen), binding=tuple(limits), target_source="estimated")


def _decibels(power: float, loss: float) -> float:
    return 10.0 * math.log10(power / max(loss, power * 1e-12))
