"""The reuse method `alternate`: every second call takes over what the feed-forwards added. `edgediff.reuse.ReuseMethod`
says what each member is."""

from __future__ import annotations

from edgediff.config import Model
from edgediff.graph.schedule import Row, Schedule
from edgediff.reuse import Setting, reuse_row


class Spec(Model):
    """No settings."""


def propose(spec: Spec, setting: Setting) -> Schedule:
    setting.need("feed-forward", method="alternate")
    names = tuple("taken" if call % 2 else "full" for call in range(setting.calls))
    return Schedule(rows={"full": Row(), "taken": reuse_row(setting.branches("feed-forward"))}, calls=names)
