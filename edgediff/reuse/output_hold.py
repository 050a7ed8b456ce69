"""Output hold: the network runs at key calls, its output (after guidance) stands in at the others; no feature is
cached and one graph is enough. For every network. It is what DiP-GO's released table amounts to (see `gates`), and the
cheapest baseline.

The keys are given, or `count` of them by a mode of `_keys` (`front_dense` and the like with exponent `power`).
"""

from __future__ import annotations

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.reuse import Setting
from edgediff.reuse._keys import Mode, check_keys, spread_keys


class Spec(Model):
    """One of `keys` and `count`."""

    keys: tuple[int, ...] | None = None
    count: int | None = Field(default=None, ge=1)
    mode: Mode = "uniform"
    power: float = Field(default=1.4, gt=0)
    prefix: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _one(self) -> Spec:
        if (self.keys is None) == (self.count is None):
            raise ValueError("give either 'keys' (call indices) or 'count' (how many)")
        return self


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises MethodError for keys that do not exist, and counts that do not fit."""
    if spec.keys is not None:
        keys = check_keys(spec.keys, setting.calls)
    else:
        keys = spread_keys(spec.mode, setting.calls, spec.count or 1, spec.power, spec.prefix)
    return hold_between(keys, setting.calls)


def hold_between(keys: tuple[int, ...], calls: int) -> Schedule:
    """Full at the keys, held between them."""
    return Schedule(rows={"full": Row()}, calls=tuple("full" if call in keys else HOLD for call in range(calls)))
