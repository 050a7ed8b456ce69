"""Latency and memory of a graph or a whole plan on a device that is not at hand, with an interval. No torch.

Stable entry points, for planners and reports alike:

    estimate_graph(work, target, backend=None, precision=None, *, live=None, batch=1) -> Interval
    price_units(graph, target, backend=None, precision=None, *, batch=1) -> UnitPrices
    estimate_plan(plan, graph, target, backend=None, *, components=None) -> PlanEstimate

The model is a roofline per class of operator: a call costs a constant, every operator its launch, its MACs at
the rate that its class reaches on that kind of unit, and its traffic at the bandwidth it reaches. The terms add
up (Paleo, Qi et al. 2017, has the same form), so a unit has a price of its own and a planner may sum prices.
The coefficients are fitted to published measurements (`python -m edgediff.estimate.fit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgediff.config import Model
from edgediff.documents.plan import Plan
from edgediff.documents.target import Target
from edgediff.estimate.decompose import carried_values, graph_operators, unit_operators
from edgediff.estimate.device import Device, open_device
from edgediff.estimate.memory import plan_memory
from edgediff.estimate.operators import OperatorTable
from edgediff.graph.schedule import HOLD, graph_for, wire_schedule
from edgediff.graph.units import Live, UnitGraph

__all__ = ["Interval", "PlanEstimate", "UnitPrices", "estimate_graph", "estimate_plan", "price_units"]

Z80 = 1.2816  # a normal variable lies within this many standard deviations 80 times in 100


class Interval(Model):
    """Milliseconds: the middle estimate and the ends of an 80 % prediction interval."""

    low: float
    p50: float
    high: float


class PlanEstimate(Model):
    """`estimate`'s answer. `graphs` is one call of each graph or component (`name@2`: both prompts in one batch),
    `latency_ms` a whole image, `memory_mb` the peak in MB (10^6 bytes), `fits` whether that is below the target's
    ceiling (None: the ceiling is not known). `unverified` names the figures behind it that nothing vouches for,
    `unknown_operators` operators without a class, priced by their traffic alone."""

    target: str
    backend: str
    precision: str
    source: str = "estimated"
    latency_ms: Interval
    graphs: dict[str, Interval]
    load_ms: Interval
    memory_mb: float
    ceiling_mb: float | None = None
    fits: bool | None = None
    basis: str = ""
    unverified: tuple[str, ...] = ()
    unknown_operators: dict[str, int] = {}


@dataclass(frozen=True)
class UnitPrices:
    """Milliseconds that each unit adds to a call (`run`), and that what is left of it adds when it is cut or its
    cached change is added (`stream`); `call_ms` is paid by every call, `value_ms` for every
    value that it is given. Middle estimates; `low` and `high` are the
    factors of the 80 % interval, which units of one device share."""

    call_ms: float
    value_ms: float
    run: Mapping[str, float]
    stream: Mapping[str, float]
    low: float
    high: float

    def of(self, graph: UnitGraph, live: Live) -> float:
        """Milliseconds of one call that computes `live`; the same as `estimate_graph(...).p50`."""
        whole = set(graph.computed(live))
        call = self.call_ms + self.value_ms * carried_values(graph, live)
        return call + sum(self.run[n] if n in whole else self.stream[n] for n in live.run)


def estimate_graph(
    work: UnitGraph | OperatorTable,
    target: Target,
    backend: str | None = None,
    precision: str | None = None,
    *,
    live: Live | None = None,
    batch: int = 1,
) -> Interval:
    """Milliseconds of one call of a graph on `target`.

    `work` is a unit graph, of which `live` is computed (default: all of it), or a table of operators for one
    sample. `backend` defaults to the target's first, `precision` (a word of `runtime.precision`) to what the target
    says for it. Raises ConfigError for a precision that does not exist.
    """
    table = graph_operators(work, live) if isinstance(work, UnitGraph) else work
    device = open_device(target, backend, precision)
    return around(device.price(table.scaled(batch)), device.spread)


def price_units(
    graph: UnitGraph, target: Target, backend: str | None = None, precision: str | None = None, *, batch: int = 1
) -> UnitPrices:
    """The price of every unit of `graph`, so that a planner can weigh thousands of live sets at once."""
    device = open_device(target, backend, precision)

    def price(stream_only: bool) -> dict[str, float]:
        return {
            unit.name: device.price_operators(op.scaled(batch) for op in unit_operators(unit, stream_only=stream_only))
            for unit in graph.units
        }

    wide = float(np.exp(Z80 * device.spread))
    return UnitPrices(device.call_ms, device.value_ms * batch, price(False), price(True), 1 / wide, wide)


def estimate_plan(
    plan: Plan,
    graph: UnitGraph,
    target: Target,
    backend: str | None = None,
    *,
    components: Mapping[str, OperatorTable] | None = None,
    denoiser: Mapping[str, OperatorTable] | None = None,
) -> PlanEstimate:
    """A whole plan on `target`: every graph per call, an image, loading, and the peak memory.

    `graph` is the unit graph of the untouched denoiser. `components` are the operators of what runs once per
    image (text encoder, decoder), by name; without them the image is the denoiser's part alone. `denoiser` are
    exact tables of the plan's graphs where they are known, in place of what the units imply. `backend` defaults
    to the plan's first that the target has.
    """
    backend = backend or next((name for name in plan.backends if name in target.backends), target.backends[0])
    precision = plan.backends[backend].precision if backend in plan.backends else None
    device = open_device(target, backend, precision)
    cut = graph.with_cuts(one.unit for one in plan.cuts)
    wirings = wire_schedule(plan.schedule, cut)
    tables = {
        name: (denoiser or {}).get(name) or graph_operators(graph_for(w.network, cut), w.live)
        for name, w in wirings.items()
    }
    parts = dict(components or {})
    mid: dict[str, float] = {name: device.price(table) for name, table in parts.items()}
    image = sum(mid.values()) + (mid.get("text_encoder", 0.0) if _is_guided(plan) else 0.0)
    for call, scale in zip(plan.schedule.calls, plan.guidance.calls, strict=True):
        if call == HOLD:
            continue
        twice = scale is not None
        batch = 2 if twice and plan.guidance.mode == "batched" else 1
        name = f"{call}@{batch}" if batch > 1 else call
        if name not in mid:
            mid[name] = device.price(tables[call].scaled(batch))
        image += mid[name] * (2 if twice and batch == 1 else 1)
    memory = plan_memory(plan, cut, tables, parts, device.precision)
    ceiling = target.memory_ceiling_gb
    unknown: dict[str, int] = {}
    for table in (*tables.values(), *parts.values()):
        for name, count in table.unknown.items():
            unknown[name] = unknown.get(name, 0) + count
    return PlanEstimate(
        target=target.name,
        backend=backend,
        precision=device.precision,
        latency_ms=around(image, device.spread),
        graphs={n: around(v, device.spread) for n, v in mid.items()},
        load_ms=_load_time(device, memory.weights_mb),
        memory_mb=round(memory.peak_mb, 1),
        ceiling_mb=ceiling * 1000 if ceiling else None,
        fits=memory.peak_mb <= ceiling * 1000 if ceiling else None,
        basis=device.how,
        unverified=device.guesses,
        unknown_operators=unknown,
    )


def around(middle: float, spread: float) -> Interval:
    """The 80 % interval of a log-normal whose median is `middle`."""
    wide = float(np.exp(Z80 * spread))
    return Interval(low=middle / wide, p50=middle, high=middle * wide)


def _is_guided(plan: Plan) -> bool:
    return any(scale is not None for scale in plan.guidance.calls)


def _load_time(device: Device, weights_mb: float) -> Interval:
    """Reading and hashing the weights at 0.2 to 2 GB/s (flash of phones; middle 0.7): a guess from specifications,
    compilation on the device not included."""
    return Interval(low=weights_mb / 2.0, p50=weights_mb / 0.7, high=weights_mb / 0.2)
