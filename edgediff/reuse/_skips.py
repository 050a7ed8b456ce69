"""A U-Net's two paths, by the resnets that join a skip to the stream."""

from __future__ import annotations

from edgediff.errors import MethodError
from edgediff.graph.units import Unit
from edgediff.reuse import Setting


def joins(setting: Setting, method: str) -> tuple[Unit, ...]:
    """The resnets of the up path that read the stream and a skip, in order. Raises MethodError when there are none."""
    setting.need("resnet", method=method)
    found = tuple(unit for unit in setting.graph.of_role("resnet") if len(unit.stream) > 1)
    if not found:
        raise MethodError(f"{method} needs skips from a down path to an up path, and no resnet joins one", code="role")
    return found


def deep_feature(setting: Setting, branch: int, method: str) -> str:
    """The unit whose output the up layer `branch` (0: the shallowest) takes from below. Raises MethodError for a branch
    deeper than the network."""
    found = joins(setting, method)
    if branch >= len(found):
        raise MethodError(
            f"branch = {branch} is deeper than the network: it has branches 0 to {len(found) - 1}", code="branch"
        )
    return found[-1 - branch].stream[0]


def encoder_blocks(setting: Setting, method: str) -> tuple[str, ...]:
    """The blocks before the first join, embeddings left out: all that makes skips and what lies below them."""
    first = joins(setting, method)[0]
    units = setting.graph.units[: setting.graph.units.index(first)]
    return tuple(dict.fromkeys(unit.block for unit in units if unit.role != "embedding"))
