"""DeepCache (arXiv 2312.00858), uniform form: every `interval`-th call runs the whole network and leaves
the deep feature that the calls between read.

`branch` counts the up path's layers from the shallowest, 0: calls between run the up layers `branch` to 0
and those down layers whose skips they join; what the next deeper layer gave stands in from the cache.
Which down layers that are follows from liveness; this file names the one feature that is held.
"""

from __future__ import annotations

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.reuse import Setting
from edgediff.schedule import Row, Schedule, full_schedule


class Spec(Model):
    """`interval` 1 runs everything always."""

    interval: int = Field(default=3, ge=1)
    branch: int = Field(default=0, ge=0)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Full, then `interval - 1` shallow calls, and again. Raises MethodError for a network without an
    up path, or a branch deeper than it."""
    graph, calls = setting.graph, setting.calls
    joins = [unit for unit in graph.units if unit.kind == "resnet" and unit.block.startswith("up_blocks")]
    if not joins:
        raise MethodError(f"deepcache serves networks with an up path; family '{graph.family}' has none")
    if spec.branch >= len(joins):
        raise MethodError(
            f"branch = {spec.branch} is deeper than the network: it has branches 0 to {len(joins) - 1}",
            code="branch",
        )
    if spec.interval == 1:
        return full_schedule(calls)
    held = joins[-1 - spec.branch].stream[0]
    names = ["full" if call % spec.interval == 0 else "shallow" for call in range(calls)]
    return Schedule(rows={"full": Row(), "shallow": Row(hold=(held,))}, calls=tuple(names))
