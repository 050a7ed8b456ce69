"""Removal one after the other until the budget is met, where what one saves depends on what is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgediff.errors import MethodError, PlanError
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget
from edgediff.scoring.scores import Milliseconds


def remove_in_order(
    budget: Budget, order: Sequence[str], graph: UnitGraph, costs: Mapping[str, Milliseconds]
) -> tuple[str, ...]:
    """Names in this order until the budget is met; one that saves nothing on top of what is gone is left out, and
    an operator goes with the unit that is cut after it. In the end whatever is not needed any more is put back, the
    last taken first. Raises MethodError when everything together does not meet the budget."""
    total = budget.measure(graph, costs)
    allowed = budget.allowed(total) * (1 + 1e-12)
    taken: list[str] = []
    stays = total
    for name in order:
        if stays <= allowed:
            break
        within = {o.name for unit in graph.units if unit.name == name for o in unit.operators}
        after = [one for one in taken if one not in within] + [name]
        less = _measure(budget, graph, after, costs)
        if less is not None and less < stays:
            taken, stays = after, less
    if stays > allowed:
        raise MethodError(
            f"{budget} cannot be met: removing operators one after the other leaves {stays / total:.3f} of "
            f"the {'time' if budget.is_time else budget.key}; ask for at least that",
            code="budget",
        )
    for name in reversed(taken[:-1]):
        fewer = [one for one in taken if one != name]
        left = _measure(budget, graph, fewer, costs)
        if left is not None and left <= allowed:
            taken = fewer
    return tuple(taken)


def _measure(budget: Budget, graph: UnitGraph, names: Sequence[str], costs: Mapping[str, Milliseconds]) -> float | None:
    """None where the cuts leave a wrong shape."""
    try:
        return budget.measure(graph.with_cuts(names), costs)
    except PlanError:
        return None
