"""Guidance in an interval (Kynkaanniemi et al., arXiv 2404.07724): outside it the prompt runs alone, at half the cost.
For every network that is guided.

The paper's interval is of noise levels; ours, as a recipe's `[guidance] interval`, of the calls' relative positions
(0 first, 1 last). As a method it leaves the reference guided everywhere, so that a report shows what it changes.
"""

from __future__ import annotations

from edgediff.config import Model
from edgediff.documents.recipe import Interval
from edgediff.graph.schedule import Schedule, full_schedule
from edgediff.reuse import Setting


class Spec(Model):
    """Guided are the calls whose position lies in `interval`."""

    interval: Interval = (0.1, 0.7)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Everything runs at every call. A recipe without guidance is left as it is."""
    last, (start, end) = max(setting.calls - 1, 1), spec.interval
    outside = tuple(call for call in range(setting.calls) if not start <= call / last <= end)
    return full_schedule(setting.calls).model_copy(update={"unguided": outside})
