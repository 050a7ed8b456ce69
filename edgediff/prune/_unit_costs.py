"""Milliseconds of every unit: from a table that the user brings, or timed on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import Model, read_outside
from edgediff.errors import MethodError, unknown
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget
from edgediff.scoring.scores import Milliseconds

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress

ROUNDS, WARM_UP = 15, 3


class _Table(Model):
    unit_ms: dict[str, Milliseconds]


def budget_costs(
    budget: Budget,
    file: str | None,
    pipeline: Pipeline,
    progress: Progress | None = None,
    *,
    always: bool = False,
    operators: bool = False,
) -> dict[str, Milliseconds]:
    """The cost table that a budget of time needs (`always`: whatever the budget); empty for a budget of parameters
    or MACs. `operators` times the operators inside the units too.

    Raises ConfigError for a file that is missing or no table, MethodError for names that do not belong to the
    network or are missing.
    """
    if file is not None:
        return read_costs(Path(file), pipeline.graph)
    return time_units(pipeline, progress, operators=operators) if budget.is_time or always else {}


def read_costs(path: Path, graph: UnitGraph) -> dict[str, Milliseconds]:
    """`{"unit_ms": {unit: [ms, ms when cut]}}`, an entry for every unit of the network, and for operators if known."""
    table = read_outside(path, _Table).unit_ms
    for name in table:
        if name not in graph.by_name and name not in graph.operators:
            raise MethodError(unknown("unit", name, [*graph.by_name, *graph.operators]), where=str(path), code="costs")
    missing = [name for name in graph.by_name if name not in table]
    if missing:
        raise MethodError(f"has no time for {len(missing)} units, '{missing[0]}' first", where=str(path), code="costs")
    return table


def write_costs(costs: dict[str, Milliseconds]) -> str:
    """The text of a table that `read_costs` takes."""
    return json.dumps({"unit_ms": {name: list(pair) for name, pair in costs.items()}}, indent=2) + "\n"


def time_units(
    pipeline: Pipeline, progress: Progress | None = None, *, operators: bool = False
) -> dict[str, Milliseconds]:
    """The least over rounds of running every unit of the network once, for one sample, through PyTorch on this
    machine; so they rank units as this machine does. For a phone bring a table of its own.

    Rounds go through the whole network in its order, so that the caches of the processor hold what they hold in a
    real call. The least, because on a busy machine a median is mostly the time of others.
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
        inner = _time_operators(pipeline, inputs, progress) if operators else {}
    return {**{name: (min(whole[name]), min(left[name])) for name in whole}, **inner}


def _time_operators(
    pipeline: Pipeline, inputs: dict[str, Tensor], progress: Progress | None
) -> dict[str, Milliseconds]:
    """In rounds of their own, so that watching operators does not weigh on the times of the units."""
    from edgediff.networks import evaluate
    from edgediff.networks._operators import replace_operator

    graph, network = pipeline.graph, pipeline.denoiser
    whole: dict[str, list[float]] = {name: [] for name in graph.operators}
    left: dict[str, list[float]] = {name: [] for name in graph.operators}
    started: dict[str, float] = {}
    turns: list[int] = []

    def before(name: str) -> Any:
        def note(module: Any, inputs: Any) -> None:
            _finish(inputs[0])
            started[name] = time.perf_counter()

        return note

    def after(name: str, instead: Any) -> Any:
        def note(module: Any, inputs: Any, output: Tensor) -> None:
            _finish(output)
            taken = (time.perf_counter() - started[name]) * 1e3
            spare = _timed(lambda *_: instead(inputs[0]), None, None, [])[1]
            if len(whole[name]) < len(turns):  # an activation runs several times in one call: its times add up
                whole[name].append(0.0)
                left[name].append(0.0)
            whole[name][-1] += taken
            left[name][-1] += spare

        return note

    handles = []
    for name in graph.operators:
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before(name)))
        handles.append(module.register_forward_hook(after(name, replace_operator(name, module))))
    try:
        for turn in range(WARM_UP + ROUNDS):
            turns.append(turn)
            evaluate(network, graph, graph.live(), inputs)
            if progress is not None:
                progress("timing operators on this machine", turn + 1, WARM_UP + ROUNDS)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (min(whole[name][WARM_UP:]), min(left[name][WARM_UP:])) for name in whole}


def _finish(value: Tensor) -> None:
    """Waits until an accelerator has made the value."""
    import torch

    if value.device.type == "cuda":
        torch.cuda.synchronize(value.device)


def _timed(function: Any, network: Any, unit: Any, reads: list[Tensor]) -> tuple[Tensor, float]:
    """The value and the milliseconds; on an accelerator until it is done."""
    start = time.perf_counter()
    value: Tensor = function(network, unit, reads)
    _finish(value)
    return value, (time.perf_counter() - start) * 1e3
