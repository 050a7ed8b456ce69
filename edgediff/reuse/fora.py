"""FORA (arXiv 2407.01425): a DiT's attention and feed-forward outputs are stored and taken again between key calls.
For DiTs:
networks whose branches are units of their own.

What is held is a branch's output before its adaLN gate: the gate of the current call still applies to it, so the
modulations run at every call. A key call is one from which a multiple of `interval` calls remain (and the first).
Two carries per block, each of all tokens.
"""

from __future__ import annotations

from pydantic import Field

from edgediff.config import Model
from edgediff.graph.schedule import Row, Schedule, full_schedule
from edgediff.reuse import BRANCHES, Setting


class Spec(Model):
    """`interval` 1 runs everything always; 3 is the released example for 250 calls."""

    interval: int = Field(default=3, ge=1)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises MethodError for a network whose units add their branches themselves."""
    setting.need("stream", method="fora")
    if spec.interval == 1:
        return full_schedule(setting.calls)
    held = setting.branches(*BRANCHES)
    last = setting.calls - 1
    names = tuple(
        "full" if call == 0 or (last - call) % spec.interval == 0 else "reuse" for call in range(setting.calls)
    )
    rows = {"full": Row(), "reuse": Row(hold=held)}
    return Schedule(rows={name: rows[name] for name in rows if name in names}, calls=names)
