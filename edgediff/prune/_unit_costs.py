"""Milliseconds of every unit: from a table that the user brings, or timed on this machine."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import Model, parse_json, read_text
from edgediff.errors import MethodError, unknown
from edgediff.prune._budget import Budget
from edgediff.scores import Milliseconds
from edgediff.units import UnitGraph

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.pipeline import Pipeline
    from edgediff.trace import Progress

ROUNDS, WARM_UP = 15, 3


class _Table(Model):
    unit_ms: dict[str, Milliseconds]


def budget_costs(
    budget: Budget, file: str | None, pipeline: Pipeline, progress: Progress | None = None
) -> dict[str, Milliseconds]:
    """The cost table that a budget of time needs; empty for a budget of parameters or MACs.

    Raises ConfigError for a file that is missing or no table, MethodError for names that do not belong to the
    network or are missing.
    """
    if file is not None:
        return read_costs(Path(file), pipeline.graph)
    return time_units(pipeline, progress) if budget.is_time else {}


def read_costs(path: Path, graph: UnitGraph) -> dict[str, Milliseconds]:
    """`{"unit_ms": {unit: [ms, ms when cut]}}`, one entry for every unit of the network."""
    table = parse_json(read_text(path), _Table, where=str(path)).unit_ms
    for name in table:
        if name not in graph.by_name:
            raise MethodError(unknown("unit", name, graph.by_name), where=str(path), code="costs")
    missing = [name for name in graph.by_name if name not in table]
    if missing:
        raise MethodError(f"has no time for {len(missing)} units, '{missing[0]}' first", where=str(path), code="costs")
    return table


def write_costs(costs: dict[str, Milliseconds]) -> str:
    """The text of a table that `read_costs` takes."""
    return json.dumps({"unit_ms": {name: list(pair) for name, pair in costs.items()}}, indent=2) + "\n"


def time_units(pipeline: Pipeline, progress: Progress | None = None) -> dict[str, Milliseconds]:
    """Medians over rounds of running every unit of the network once, for one sample, through PyTorch on this
    machine; so they rank units as this machine does. For a phone bring a table of its own.

    Rounds go through the whole network in its order, so that slow moments of the machine fall on all units
    alike, and the caches of the processor hold what they hold in a real call.
    """
    import torch

    from edgediff.networks import family_of

    graph, network = pipeline.graph, pipeline.denoiser
    family: Any = family_of(network)
    whole: dict[str, list[float]] = {unit.name: [] for unit in graph.units}
    left: dict[str, list[float]] = {unit.name: [] for unit in graph.units}
    with torch.inference_mode():
        inputs = family.example_inputs(network, pipeline.sizes, batch=1)
        for turn in range(WARM_UP + ROUNDS):
            values: dict[str, Tensor] = dict(inputs)
            for unit in graph.units:
                reads = [values[name] for name in unit.reads]
                values[unit.name], taken = _timed(family.run_unit, network, unit, reads)
                spare = 0.0
                if unit.cutting == "shortcut":
                    spare = _timed(family.pass_unit, network, unit, [values[name] for name in unit.stream])[1]
                if turn >= WARM_UP:
                    whole[unit.name].append(taken)
                    left[unit.name].append(spare)
            if progress is not None:
                progress("timing units on this machine", turn + 1, WARM_UP + ROUNDS)
    return {name: (statistics.median(whole[name]), statistics.median(left[name])) for name in whole}


def _timed(function: Any, network: Any, unit: Any, reads: list[Tensor]) -> tuple[Tensor, float]:
    """The value and the milliseconds; on an accelerator until it is done."""
    import torch

    start = time.perf_counter()
    value: Tensor = function(network, unit, reads)
    if value.device.type == "cuda":
        torch.cuda.synchronize(value.device)
    return value, (time.perf_counter() - start) * 1e3
