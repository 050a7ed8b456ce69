"""TaylorSeer (arXiv 2503.06923): skipped calls extrapolate what was computed by its finite differences. For U-Nets and
DiTs.

At a full call D_0 = y and D_{m+1} = (D_m - D_m of the full call before) / gap, up to `order` as far as there are
calls. At a call x after the last full one y = sum_m D_m x^m / m!. That is a fixed combination of the last order + 1
values of y, so the weights are worked out here and nothing but a weighted sum happens on the phone. Full are the first
`first` calls and then every `interval`-th; `order` 0 is plain reuse.

`what = "output"` forecasts the network's output after guidance, with no carry at all (the `lite` variant keeps the
last block's output instead; the last unit of a network would still have to run on it). `what = "features"` forecasts
DeepCache's deep feature of `branch` (U-Nets), or every branch output of FORA (DiTs); each carry is then kept order + 1
times. A sampler that clips cannot take a forecast of the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.graph.schedule import HOLD, OUTPUT, Forecast, Row, Schedule
from edgediff.reuse import BRANCHES, Setting
from edgediff.reuse._skips import deep_feature


class Spec(Model):
    """`interval` between full calls, after the first `first`."""

    interval: int = Field(default=4, ge=1)
    order: int = Field(default=1, ge=0, le=3)
    first: int = Field(default=3, ge=1)
    what: Literal["output", "features"] = "output"
    branch: int = Field(default=0, ge=0)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises MethodError for a branch deeper than the network, and one without such features."""
    calls = setting.calls
    keys = [call for call in range(calls) if call < spec.first or (call - spec.first + 1) % spec.interval == 0]
    carries = _carries(spec, setting)
    skipped = "forecast" if carries else HOLD
    forecasts = [
        Forecast(call=call, what=what, weights=weights)
        for call in range(calls)
        if call not in keys
        for weights in [taylor_weights([key for key in keys if key < call], call, spec.order)]
        if weights != (1.0,)
        for what in carries or (OUTPUT,)
    ]
    order = tuple("full" if call in keys else skipped for call in range(calls))
    rows = {"full": Row(), "forecast": Row(hold=carries)}
    return Schedule(rows={name: rows[name] for name in rows if name in order}, calls=order, forecasts=tuple(forecasts))


def taylor_weights(keys: Sequence[int], call: int, order: int) -> tuple[float, ...]:
    """Weights of the values at `keys` (ascending calls before `call`), newest first, trailing zeros left out."""
    differences: list[list[float]] = []
    for index, key in enumerate(keys):
        found = [[float(position == index) for position in range(len(keys))]]
        gap = key - keys[index - 1]
        for before, _ in zip(differences, range(order), strict=False):
            found.append([(now - old) / gap for now, old in zip(found[-1], before, strict=True)])
        differences = found
    ahead = call - keys[-1]
    factors = [ahead**m / math.factorial(m) for m in range(len(differences))]
    total = [sum(f * d[position] for f, d in zip(factors, differences, strict=True)) for position in range(len(keys))]
    newest = [*reversed(total)]
    while len(newest) > 1 and newest[-1] == 0.0:
        newest.pop()
    return tuple(newest)


def _carries(spec: Spec, setting: Setting) -> tuple[str, ...]:
    if spec.what == "output":
        return ()
    if setting.graph.of_role("stream"):
        return setting.branches(*BRANCHES)
    return (deep_feature(setting.graph, spec.branch, "taylorseer"),)
