"""Denoiser families. Each file describes one family as a unit graph and runs single units of it;
`evaluate` here runs any live set of any family.

A family module exposes `HANDLES` (class names), `describe_units(model, sizes) -> tuple[units, inputs,
output]`, `run_unit(model, unit, reads)` and `pass_unit(model, unit, streams)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError
from edgediff.graph.units import Live, Unit, UnitGraph
from edgediff.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Input sizes that costs are counted for: latent height and width (of sound 1 and its samples), text tokens."""

    height: int
    width: int
    tokens: int = 77


def family_of(model: nn.Module) -> ModuleType:
    """The family that handles the class of `model`. Raises ModelError naming all classes that are handled."""
    return _family_named(type(model).__name__)


@cache
def _family_named(wanted: str) -> ModuleType:
    """Kept, since every run of a network asks."""
    handled: list[str] = []
    for name in plugin_names("networks"):
        family = load_plugin("networks", name)
        if wanted in family.HANDLES:
            return family
        handled += family.HANDLES
    raise ModelError(
        f"no network family describes '{wanted}' (known: {', '.join(sorted(handled))}); "
        "add edgediff/networks/<family>.py",
        code="unknown_family",
    )


def unit_graph(model: nn.Module, sizes: Sizes) -> UnitGraph:
    """The unit graph of an uncut denoiser with parameters, MACs and output shape of every unit.

    MACs are counted by tracing shapes through every unit (no arithmetic is done, no memory is used):
    convolutions and matrix products, those of attention included, for one sample.
    """
    family = family_of(model)
    units, inputs, output = family.describe_units(model)
    graph = UnitGraph(family.NAME, units, inputs, output)
    return replace(graph, units=_count_costs(family, model, graph, sizes))


def evaluate(
    model: nn.Module,
    graph: UnitGraph,
    live: Live,
    inputs: Mapping[str, Tensor],
    carries: Mapping[str, Tensor] | None = None,
    writes: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs the live units of `graph`; returns the output and the carries named in `writes`.

    `inputs` are the network's inputs by name, `carries` the values of `live.reads`. With nothing held
    and nothing cut the output is that of the model's own forward, bit for bit.
    """
    family = family_of(model)
    carries = carries or {}
    values = {**inputs, **{name: carries[name] for name in live.reads if not name.endswith("+")}}
    deltas = {name[:-1] for name in live.reads if name.endswith("+")}
    last = _last_use(graph, live, deltas, writes)
    written: dict[str, Tensor] = {}
    for index, name in enumerate(live.run):
        unit = graph.by_name[name]
        passes = name in graph.cuts or name in deltas
        reads = [values[read] for read in (unit.stream if passes else unit.reads)]
        value = family.pass_unit(model, unit, reads) if passes else family.run_unit(model, unit, reads)
        if name in deltas:
            value = value + carries[f"{name}+"]
        values[name] = value
        if f"{name}+" in writes and not passes:
            streams = [values[read] for read in unit.stream]
            written[f"{name}+"] = value - family.pass_unit(model, unit, streams)
        for done in last.get(index, ()):
            values.pop(done, None)
    written.update({name: values[name] for name in writes if name not in written})
    return values[graph.output], written


def _last_use(graph: UnitGraph, live: Live, deltas: set[str], writes: Sequence[str]) -> dict[int, list[str]]:
    """Index into `live.run` -> values that nothing reads after it, so that memory is freed on the way."""
    last: dict[str, int] = {}
    for index, name in enumerate(live.run):
        unit = graph.by_name[name]
        changed = f"{name}+" in writes
        passes = name in graph.cuts or name in deltas
        for read in {*(unit.stream if passes else unit.reads), *(unit.stream if changed else ())}:
            last[read] = index
    kept = {graph.output, *writes}
    done: dict[int, list[str]] = {}
    for value, index in last.items():
        if value not in kept:
            done.setdefault(index, []).append(value)
    return done


def _count_costs(family: ModuleType, model: nn.Module, graph: UnitGraph, sizes: Sizes) -> tuple[Unit, ...]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from edgediff.networks._operators import count_operators, describe_operators, watch_operators

    units: list[Unit] = []
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        values = family.example_inputs(model, sizes, batch=1)
        for unit in graph.units:
            reads = [values[read] for read in unit.reads]
            operators = describe_operators(family, model, unit)
            with watch_operators(model, operators) as shapes:
                value, macs, attention = _counted(family.run_unit, model, unit, reads)
            values[unit.name] = value
            spare = 0
            if unit.cutting == "shortcut":
                streams = [values[read] for read in unit.stream]
                spare = _counted(family.pass_unit, model, unit, streams)[1]
            units.append(
                replace(
                    unit,
                    parameters=sum(p.numel() for p in family.unit_parameters(model, unit)),
                    stream_parameters=sum(p.numel() for p in family.stream_parameters(model, unit)),
                    macs=macs,
                    attention_macs=attention,
                    stream_macs=spare,
                    shape=tuple(value.shape[1:]),
                    operators=count_operators(model, operators, shapes),
                )
            )
    return tuple(units)


def _counted(function: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, int, int]:
    """The function's value, its MACs, and those of the two products of its attention."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode
    from torch.utils.flop_counter import FlopCounterMode

    attention = 0

    class WatchAttention(TorchFunctionMode):
        def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal attention
            if called is F.scaled_dot_product_attention:
                query, key, value = args[:3]
                rows = query.numel() // query.shape[-1]
                attention += rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return called(*args, **(kwargs or {}))

    with WatchAttention(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return result, counter.get_total_flops() // 2, attention
