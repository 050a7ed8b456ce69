"""Which part of the network each graph of a plan computes, layer by layer: what a report draws as a map."""

from __future__ import annotations

from typing import Any

from edgediff.documents.plan import Plan
from edgediff.graph.schedule import graph_for, wire_schedule
from edgediff.graph.units import Unit, UnitGraph


def map_layers(plan: Plan, graph: UnitGraph) -> list[dict[str, Any]]:
    """One record per layer of the untouched network, in the order of execution:

    `name`, `block`, `macs` of one sample; `cut`, the fraction of its units that the plan removed; `runs`, graph
    name -> the fraction of its MACs that the graph computes (units, where the layer has no MACs); `held`, the
    graphs that read something of it from the cache.
    """
    cut = graph.with_cuts(unit.unit for unit in plan.cuts)
    wirings = wire_schedule(plan.schedule, cut)
    computed = {name: set(graph_for(w.network, cut).computed(w.live)) for name, w in wirings.items()}
    read = {name: {carry.rstrip("+") for carry in wiring.reads} for name, wiring in wirings.items()}
    layers: dict[str, list[Unit]] = {}
    for unit in graph.units:
        layers.setdefault(unit.layer or unit.block or unit.name, []).append(unit)
    return [
        {
            "name": name,
            "block": units[0].block,
            "macs": sum(unit.macs for unit in units),
            "cut": sum(unit.name in cut.cuts for unit in units) / len(units),
            "runs": {graph_name: _share(units, names) for graph_name, names in computed.items()},
            "held": [graph_name for graph_name, names in read.items() if any(u.name in names for u in units)],
        }
        for name, units in layers.items()
    ]


def _share(units: list[Unit], computed: set[str]) -> float:
    total = sum(unit.macs for unit in units)
    if not total:
        return sum(unit.name in computed for unit in units) / len(units)
    return round(sum(unit.macs for unit in units if unit.name in computed) / total, 4)
