"""How much may stay, and the selection that gets there: exact by mixed-integer programming, or greedy."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.scoring.scores import Milliseconds

Solver = Literal["milp", "greedy"]
KEYS = ("parameters", "macs", "latency", "latency_ms")


class Budget(Model):
    """What stays of the denoiser, exactly one of: the share of its `parameters`, of its `macs`, of the time of
    one call (`latency`), or that time itself (`latency_ms`, milliseconds of one call for one sample)."""

    parameters: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)
    latency: float | None = Field(default=None, gt=0, le=1)
    latency_ms: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(getattr(self, key) is not None for key in KEYS) != 1:
            raise ValueError(f"a budget is exactly one of {', '.join(f'{{ {key} = ... }}' for key in KEYS)}")
        return self

    @property
    def key(self) -> str:
        return next(key for key in KEYS if getattr(self, key) is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.key))

    @property
    def is_time(self) -> bool:
        return self.key in ("latency", "latency_ms")

    def measure(self, graph: UnitGraph, costs: Mapping[str, Milliseconds]) -> float:
        """Parameters, MACs or milliseconds of the (cut) graph, whichever this budget is about."""
        if self.key == "parameters":
            return graph.parameters()
        if self.key == "macs":
            return graph.macs()
        return call_time(graph, costs)

    def allowed(self, total: float) -> float:
        """What may stay of `total`, in its unit."""
        return self.amount if self.key == "latency_ms" else self.amount * total

    def __str__(self) -> str:
        return f"budget {{ {self.key} = {self.amount:g} }}"


def call_time(graph: UnitGraph, costs: Mapping[str, Milliseconds]) -> float:
    """Milliseconds of one call of the (cut) graph by a table of unit costs. Raises MethodError for a unit
    that the table lacks."""
    total = 0.0
    for name in graph.live().run:
        if name not in costs:
            raise MethodError(
                f"the cost table has no time for unit '{name}'; it needs every unit of the network", code="costs"
            )
        whole, left = costs[name]
        total += left if name in graph.cuts else whole - _saved_within(graph, name, whole, costs)
    return total


def _saved_within(graph: UnitGraph, name: str, whole: float, costs: Mapping[str, Milliseconds]) -> float:
    """Milliseconds that cut operators save inside a unit that stays. A table without operators gives them the part
    of the unit's time that they have of its MACs: norms and activations then count nothing."""
    unit, saved = graph.by_name[name], 0.0
    for operator in graph.removed(unit):
        if operator.name in costs:
            before, after = costs[operator.name]
            saved += before - after
        elif unit.macs:
            saved += whole * (operator.macs - operator.left_macs) / unit.macs
    return min(saved, whole)


def choose(
    budget: Budget,
    losses: Mapping[str, float],
    graph: UnitGraph,
    costs: Mapping[str, Milliseconds] | None = None,
    solver: Solver = "milp",
) -> tuple[str, ...]:
    """The candidates of least summed loss whose removal meets the budget. Raises MethodError when removing
    all of them does not, saying how far it goes."""
    costs = costs or {}
    needed = check_budget(budget, losses, graph, costs)
    if needed <= 0:
        return ()
    total = budget.measure(graph, costs)
    savings = [total - budget.measure(graph.with_cuts([name]), costs) for name in losses]
    solve = select if solver == "milp" else select_greedily
    taken = solve(list(losses.values()), savings, needed)
    return tuple(name for name, is_taken in zip(losses, taken, strict=True) if is_taken)


def check_budget(
    budget: Budget, names: Mapping[str, object] | Sequence[str], graph: UnitGraph, costs: Mapping[str, Milliseconds]
) -> float:
    """How much has to go, in the budget's unit. Raises MethodError when all candidates together are less."""
    total = budget.measure(graph, costs)
    needed = total - budget.allowed(total)
    least = budget.measure(graph.with_cuts(names), costs)
    if total - least < needed * (1 - 1e-12):
        unit = "ms" if budget.is_time else budget.key
        raise MethodError(
            f"{budget} cannot be met: removing all {len(names)} candidates leaves {least / total:.3f} of the "
            f"{'time' if budget.is_time else budget.key} ({least:.4g} of {total:.4g} {unit}), so at most "
            f"{1 - least / total:.1%} can be removed; ask for at least "
            f"{least if budget.key == 'latency_ms' else least / total:.4g}",
            code="budget",
        )
    return needed


def select(losses: Sequence[float], savings: Sequence[float], needed: float) -> list[bool]:
    """Which items to take so that the savings reach `needed` at the least summed loss: a 0-1 covering
    knapsack, solved exactly by HiGHS. Losses below zero count as zero, so that nothing is taken for its own
    sake; among equal sums the one that removes less is taken."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    unit = max(savings) or 1
    weights = np.array(savings, dtype=float) / unit
    scale = max(*losses, 0.0) or 1.0
    costs = np.clip(np.array(losses, dtype=float) / scale, 0, None) + 1e-9 * weights
    for margin in (0.0, 1e-6, 1e-5):  # HiGHS takes a constraint as met within 1e-7 or so
        least = min(needed / unit * (1 + margin), float(weights.sum()))
        with _quiet_library():
            result = milp(
                costs,
                constraints=LinearConstraint(weights[None, :], lb=least),
                integrality=np.ones(len(losses)),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if not result.success:
            raise MethodError(f"the selection of layers failed: {result.message}", code="solver")
        taken = [bool(round(value)) for value in result.x]
        if sum(saved for saved, is_taken in zip(savings, taken, strict=True) if is_taken) >= needed * (1 - 1e-12):
            return taken
    raise MethodError(f"the selection of layers misses the budget of {needed:.6g} by rounding", code="solver")


@contextmanager
def _quiet_library() -> Iterator[None]:
    """HiGHS prints a line to standard output now and then, whatever it is told; --json must stay JSON."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C++ has buffered goes where it was printed to
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def select_greedily(losses: Sequence[float], savings: Sequence[float], needed: float) -> list[bool]:
    """Least loss per saving first, until the savings reach `needed`; then whatever turns out to be superfluous
    is put back, the dearest first. For comparison: `select` is exact."""
    order = sorted(range(len(losses)), key=lambda i: losses[i] / savings[i] if savings[i] > 0 else float("inf"))
    return take_in_order(order, losses, savings, needed)


def take_in_order(order: Sequence[int], losses: Sequence[float], savings: Sequence[float], needed: float) -> list[bool]:
    """Items in this order until the savings reach `needed`, less those that can be put back, dearest first."""
    taken = [False] * len(losses)
    saved = 0.0
    for index in order:
        if saved >= needed:
            break
        taken[index] = True
        saved += savings[index]
    for index in sorted((i for i, is_taken in enumerate(taken) if is_taken), key=lambda i: -losses[i]):
        if saved - savings[index] >= needed:
            taken[index] = False
            saved -= savings[index]
    return taken
