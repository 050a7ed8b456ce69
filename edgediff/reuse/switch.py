"""A-SDM's switching (arXiv 2406.00210): a light network in one phase of the schedule, the untouched one in the other.

The light network is what the recipe's `[[prune]]` tables leave, and where MODEL is a folder of `edgediff distill`, what
was trained there. A cut alone shares every weight with the untouched network, so the second graph costs a bundle
next to nothing; a distilled one brings weights of its own. A summary of the paper names the order, the light
network in the early steps; where to switch it does not say, and works with two models of another kind go the other way
round, so both are settings.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.reuse import Setting


class Spec(Model):
    """The `light` network runs in the `first` or the `last` calls: in this `share` of them, rounded, at least one;
    and the untouched one in at least one."""

    light: Literal["first", "last"] = "first"
    share: float = Field(default=0.5, gt=0, lt=1)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """One row for each of the two networks. Raises MethodError when nothing is cut, and for a single call."""
    if not setting.graph.cuts:
        raise MethodError(
            "switch alternates a cut network with the untouched one, and nothing is cut: give the recipe a [[prune]], "
            "or MODEL a folder of edgediff distill",
            code="no_cuts",
        )
    if setting.calls < 2:
        raise MethodError("switch needs two network calls, one for each network; ask for more steps", code="calls")
    count = min(max(round(spec.share * setting.calls), 1), setting.calls - 1)
    light, whole = ("light",) * count, ("whole",) * (setting.calls - count)
    return Schedule(
        rows={"light": Row(), "whole": Row(network="untouched")},
        calls=light + whole if spec.light == "first" else whole + light,
    )
