"""What may be removed as one piece, at three granularities; and a selection without left-overs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgediff.errors import MethodError, unknown
from edgediff.graph.units import Role, Unit, UnitGraph

Granularity = Literal["pair", "layer", "unit"]
SUB_LAYERS: tuple[Role, ...] = ("self-attention", "cross-attention", "feed-forward")


def candidates(graph: UnitGraph, granularity: Granularity, keep: Iterable[str] = ()) -> tuple[str, ...]:
    """Names that may be cut one by one, in the order of the network.

    `pair`: a resnet with the transformer behind it. `layer`: resnets and transformer blocks by themselves (a
    transformer with a single block goes as a whole, its projections included), and the attentions of unconditional
    networks. `unit`: every self-attention, cross-attention and feed-forward instead of the transformer block.
    Nothing in `keep` is among them: units, layers or blocks. Raises PlanError for a name in `keep` that does not
    exist, MethodError when nothing is left.
    """
    kept = graph.expand(keep)
    names: dict[str, None] = {}
    for unit in graph.units:
        name = _candidate_of(graph, unit, granularity)
        if name is not None and not kept & {piece.name for piece in cuttable(graph, name)}:
            names[name] = None
    if not names:
        raise MethodError(
            f"nothing of this {graph.family} may be cut at granularity '{granularity}'"
            + (" outside of what is kept" if kept else ""),
            code="no_candidates",
        )
    return tuple(names)


def cuttable(graph: UnitGraph, name: str) -> tuple[Unit, ...]:
    """The units of a candidate; `pair` names a layer, all of whose units may be cut."""
    return tuple(unit for unit in graph.select(name) if unit.name not in graph.cuts)


def close_selection(graph: UnitGraph, names: Iterable[str]) -> tuple[str, ...]:
    """`names`, and the projections of every transformer that has lost all it held: what they would still
    compute is a linear map of nothing new (our choice; papers speak of transformer blocks only)."""
    chosen = tuple(dict.fromkeys(names))
    cuts = graph.expand(chosen) | graph.cuts
    extra: list[str] = []
    for unit in graph.units:
        if unit.role == "projection" and len(unit.reads) > 1 and unit.name not in cuts:
            transformer = unit.name.rpartition(".")[0]
            if all(u.name in cuts for u in graph.select(transformer) if u.role in SUB_LAYERS):
                extra.append(transformer)
    return (*chosen, *extra)


def check_names(graph: UnitGraph, names: Iterable[str]) -> None:
    """Raises PlanError (did you mean) for a name that is no unit, layer or block of the graph, and for a
    protected unit."""
    for name in names:
        graph.with_cuts([name])


def check_scored(graph: UnitGraph, names: Iterable[str]) -> None:
    """Raises MethodError when scores are of another network."""
    known = {*graph.names(), *graph.operators}
    for name in names:
        if name not in known:
            raise MethodError(f"the scores are not of this network: {unknown('unit', name, known)}", code="scores")


def _candidate_of(graph: UnitGraph, unit: Unit, granularity: Granularity) -> str | None:
    if unit.cutting == "protected" or unit.name in graph.cuts:
        return None
    if granularity == "pair":
        return unit.layer if unit.role == "resnet" else None
    if unit.role not in ("resnet", *SUB_LAYERS):
        return None
    block, inside, _ = unit.name.rpartition(".transformer_blocks.")
    if granularity == "unit" or not inside:
        return unit.name
    transformer, block = block, unit.name.rpartition(".")[0]
    blocks = {u.name.rpartition(".")[0] for u in graph.select(transformer) if u.role in SUB_LAYERS}
    return transformer if len(blocks) == 1 else block
