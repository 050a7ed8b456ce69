"""DeepCache (arXiv 2312.00858): key calls run the whole network and leave the deep feature that the others
read. For U-Nets.

`branch` counts the up path's layers from the shallowest, 0: calls between run the up layers `branch` to 0
and those down layers whose skips they join; what the next deeper layer gave stands in from the cache.
Which down layers that are follows from liveness; this file names the one feature that is held.

Keys are every `interval`-th call (`uniform`), or as many but dense around call `centre`: `non_uniform` in the form
that keeps signs, `released` as the authors' code behaves, whose roots of negative numbers are complex (see
`_keys.centre_keys`). Neither `centre` nor `power` has a default there; ours put the densest place at 30 % of the calls.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.graph.schedule import Row, Schedule, full_schedule
from edgediff.reuse import Setting
from edgediff.reuse._keys import centre_keys
from edgediff.reuse._skips import deep_feature


class Spec(Model):
    """`interval` 1 runs everything always. `centre` (a call index) and `power` belong to the non-uniform forms."""

    interval: int = Field(default=3, ge=1)
    branch: int = Field(default=0, ge=0)
    mode: Literal["uniform", "non_uniform", "released"] = "uniform"
    centre: int | None = Field(default=None, ge=0)
    power: float = Field(default=1.4, gt=1)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Full at the keys, shallow between them. Raises MethodError for a network without skips, a branch deeper than
    they go, and a centre outside the calls."""
    calls = setting.calls
    held = deep_feature(setting.graph, spec.branch)
    if spec.interval == 1:
        return full_schedule(calls)
    if spec.mode == "uniform":
        keys = tuple(range(0, calls, spec.interval))
    else:
        centre = spec.centre if spec.centre is not None else int(0.3 * calls)
        count = -(-calls // spec.interval)
        keys = centre_keys(calls, count, centre, spec.power, released=spec.mode == "released")
    names = tuple("full" if call in keys else "shallow" for call in range(calls))
    return Schedule(rows={"full": Row(), "shallow": Row(hold=(held,))}, calls=names)
