"""A U-Net's two paths, by the resnets that join a skip to the stream."""

from __future__ import annotations

from edgediff.errors import MethodError
from edgediff.graph.units import Unit, UnitGraph
from edgediff.reuse import need_role


def joins(graph: UnitGraph, method: str) -> tuple[Unit, ...]:
    """The resnets of the up path that read the stream and a skip, in order. Raises MethodError when there are none."""
    need_role(graph, "resnet", method=method)
    found = tuple(unit for unit in graph.of_role("resnet") if len(unit.stream) > 1)
    if not found:
        raise MethodError(f"{method} needs skips from a down path to an up path, and no resnet joins one", code="role")
    return found


def deep_feature(graph: UnitGraph, branch: int, method: str = "deepcache") -> str:
    """The unit whose output the up layer `branch` (0: the shallowest) takes from below. Raises MethodError for a branch
    deeper than the network."""
    found = joins(graph, method)
    if branch >= len(found):
        raise MethodError(
            f"branch = {branch} is deeper than the network: it has branches 0 to {len(found) - 1}", code="branch"
        )
    return found[-1 - branch].stream[0]


def encoder_blocks(graph: UnitGraph, method: str) -> tuple[str, ...]:
    """The blocks before the first join, embeddings left out: all that makes skips and what lies below them."""
    first = joins(graph, method)[0]
    units = graph.units[: graph.units.index(first)]
    return tuple(dict.fromkeys(unit.block for unit in units if unit.role != "embedding"))
