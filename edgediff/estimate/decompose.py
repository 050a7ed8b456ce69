"""Units as operators, from their role, shape and cost alone, so that a plan can be priced before any graph exists.

A unit knows its MACs, parameters and output shape; how many convolutions, products, norms and element-wise
passes that is follows from its role. Where the network is at hand, `record.record_operators` is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgediff.errors import ModelError
from edgediff.estimate.operators import Kind, Operator, OperatorTable, merged_table
from edgediff.graph.units import Live, Role, Unit, UnitGraph

# role -> (arithmetic operators with weights, norms, element-wise passes, layout changes), attention's own apart.
# Read off diffusers' blocks; element-wise passes count activations, additions and the halves of a norm's affine.
PARTS: dict[Role, tuple[int, int, int, int]] = {
    "embedding": (2, 0, 4, 1),
    "modulation": (1, 0, 1, 0),
    "entry": (1, 0, 0, 0),
    "exit": (1, 1, 1, 0),
    "projection": (1, 1, 0, 1),
    "stream": (0, 0, 2, 0),
    "resnet": (3, 2, 4, 0),
    "sampler": (1, 1, 1, 1),
    "self-attention": (4, 1, 1, 4),
    "cross-attention": (4, 1, 1, 4),
    "feed-forward": (2, 1, 3, 1),
}
PROJECTION_OUT = (1, 0, 1, 1)  # a projection that also reads what the transformer read, and adds it


def unit_operators(unit: Unit, *, stream_only: bool = False) -> tuple[Operator, ...]:
    """The operators of one unit on one sample; with `stream_only` those that are left of it when it is cut or
    when its cached change is added (its shortcut, or the one addition)."""
    return tuple(_stream(unit) if stream_only else _whole(unit))


def graph_operators(graph: UnitGraph, live: Live | None = None) -> OperatorTable:
    """The operators of what is live in `graph` (default: all of the cut network), for one sample.

    A cached change that is added costs one element-wise pass; a cut unit what its shortcut costs.
    """
    chosen = live or graph.live()
    whole = set(graph.computed(chosen))
    found = [op for name in chosen.run for op in unit_operators(graph.by_name[name], stream_only=name not in whole)]
    return merged_table(found, peak_values=peak_values(graph, chosen), ports=carried_values(graph, chosen))


def carried_values(graph: UnitGraph, live: Live) -> float:
    """Values that a call takes from earlier calls; what else enters and leaves a denoiser is small beside them."""
    return float(sum(graph.by_name[read.rstrip("+")].output_values for read in live.reads))


def peak_values(graph: UnitGraph, live: Live) -> int:
    """The most activation values alive at once when units run in order and each is freed after its last reader;
    half as much again for what a unit holds inside (its norm's and its widest product's outputs)."""
    order = {name: index for index, name in enumerate(live.run)}
    last: dict[str, int] = {}
    for name, index in order.items():
        for read in graph.by_name[name].reads:
            last[read] = index
    alive, most = sum(graph.by_name[read.rstrip("+")].output_values for read in live.reads), 0
    for name, index in order.items():
        unit = graph.by_name[name]
        alive += unit.output_values
        inside = 8 * unit.output_values if unit.role == "feed-forward" else 3 * unit.output_values
        most = max(most, alive + inside)
        alive -= sum(graph.by_name[r].output_values for r, at in last.items() if at == index and r in order)
    return most


def _whole(unit: Unit) -> Iterator[Operator]:
    products, norms, passes, layouts = _parts(unit)
    values = float(unit.output_values)
    spatial = len(unit.shape) == 3
    channels = (unit.shape[0] if spatial else unit.shape[-1]) if unit.shape else 1
    rows = max(1, round(values / max(channels, 1)))
    plain = unit.macs - unit.attention_macs
    if plain > 0:
        kind = _product_kind(unit, spatial)
        count = max(products if unit.role != "resnet" or unit.stream_macs else 2, 1)
        macs = plain / count
        depth = max(1, round(macs / max(rows * channels, 1)))
        reads = values if kind == "conv" else macs / max(channels, 1)
        yield Operator(kind, count, macs, unit.parameters / count, reads, values, rows, channels, depth)
    if unit.attention_macs > 0:
        scores = unit.attention_macs / 2 / max(channels, 1) * _heads(channels)
        yield Operator(
            "matmul",
            2,
            unit.attention_macs / 2,
            0.0,
            values + scores / 2,
            values / 2 + scores / 2,
            rows,
            max(1, round(scores / _heads(channels) / rows)),
            channels // _heads(channels),
        )
        yield Operator("softmax", 1, reads=scores, writes=scores)
    if norms:
        yield Operator("norm", norms, parameters=2.0 * channels, reads=values, writes=values)
    if passes:
        yield Operator("elementwise", passes, reads=1.5 * values, writes=values)
    if layouts:
        yield Operator("layout", layouts, reads=values, writes=values)


def _parts(unit: Unit) -> tuple[int, int, int, int]:
    """Raises ModelError for a unit without a role, whose price would be a guess."""
    if unit.role == "":
        message = f"unit '{unit.name}' ({unit.kind}) has no role, so it has no price; networks.unit_graph gives roles"
        raise ModelError(message, code="role")
    return PROJECTION_OUT if unit.role == "projection" and len(unit.reads) > 1 else PARTS[unit.role]


def _stream(unit: Unit) -> Iterator[Operator]:
    values = float(unit.output_values)
    if unit.stream_macs:
        rows = max(1, round(values / unit.shape[0]))
        yield Operator(
            "pointwise",
            1,
            float(unit.stream_macs),
            float(unit.stream_parameters),
            unit.stream_macs / unit.shape[0],
            values,
            rows,
            unit.shape[0],
            max(1, round(unit.stream_macs / values)),
        )
    yield Operator("elementwise", 1, reads=2 * values, writes=values)


def _product_kind(unit: Unit, spatial: bool) -> Kind:
    if not spatial:
        return "linear"
    return "pointwise" if unit.role == "projection" else "conv"


def _heads(channels: int) -> int:
    """Attention heads where the unit does not say: 8, Stable Diffusion's."""
    return 8 if channels >= 64 else 1
