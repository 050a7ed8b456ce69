"""SmoothCache (arXiv 2411.10510): each kind of component is computed again when its output has changed enough. For
networks with attention.

One calibration run gives, for each kind c and lag j = 1..lags,

    e_c(i, j) = mean over layers of |y_{i+j} - y_i|_1 / |y_{i+j}|_1 ,

y_i the layer's output at call i. Scan: at call i the largest lag with e_c(i, j) <= threshold is taken, c is computed at
i and taken again at the next j calls; none: it is computed, and i goes on by one. The first and the last call compute
everything. Rows are the sets of kinds that are computed.

The kinds are self-attention, cross-attention and feed-forward: those of a DiT before their gates, which are held; those
of a U-Net (ours: the paper has transformers) as changes that are added, and resnets are always computed.
Layers count alike; an error is the mean over calibration prompts and both guidance halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.reuse import BRANCHES, Setting, reuse_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgediff.plugins import Progress
    from edgediff.sampling.rollout import Rollout


class Spec(Model):
    """`threshold` 0.08, 0.18 and 0.35 are those published for DiT-XL with 50 calls; `lags` the longest reuse."""

    threshold: float = Field(default=0.18, ge=0)
    lags: int = Field(default=3, ge=1, le=12)


def basis(spec: Spec) -> dict[str, Any]:
    """`measure` serves every threshold."""
    return {"lags": spec.lags}


def measure(spec: Spec, rollout: Rollout, setting: Setting, progress: Progress | None = None) -> dict[str, Any]:
    """`errors[kind][i][j - 1]` = e_c(i, j), shorter at the end of the run."""
    from edgediff.reuse._features import visit_features

    layers = component_layers(setting)
    names = [name for kind in layers.values() for name in kind]
    sums = {kind: [[0.0] * min(spec.lags, setting.calls - 1 - i) for i in range(setting.calls)] for kind in layers}
    past: list[dict[str, Tensor]] = []
    batches = 0

    def visit(call: int, values: dict[str, Tensor]) -> None:
        nonlocal batches
        if call == 0:
            past.clear()
            batches += 1
        for lag, before in enumerate(past, 1):
            for kind, own in layers.items():
                gaps = [_relative(values[name], before[name]) for name in own]
                sums[kind][call - lag][lag - 1] += sum(gaps) / len(gaps)
        past.insert(0, values)
        del past[spec.lags :]

    visit_features(rollout, setting, names, visit, progress, "SmoothCache")
    return {"errors": {k: [[v / batches for v in row] for row in rows] for k, rows in sums.items()}}


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises MethodError for a network without such units, and for measurements of another step count."""
    layers = component_layers(setting)
    computed = {}
    for kind in layers:
        errors = setting.measured.get("errors", {}).get(kind, [])
        if len(errors) != setting.calls:
            raise MethodError("the measured errors belong to another network or step count", code="step_count")
        computed[kind] = scan(errors, spec.threshold)
    rows: dict[str, Row] = {}
    order = []
    for call in range(setting.calls):
        reused = [kind for kind in layers if not computed[kind][call]]
        name = "_".join(["reuse", *reused]) if reused else "full"
        rows.setdefault(name, reuse_row(carry for kind in reused for carry in layers[kind]))
        order.append(name)
    return Schedule(rows=rows, calls=tuple(order))


def scan(errors: Sequence[Sequence[float]], threshold: float) -> list[bool]:
    """Whether each call computes, from e(i, j) of one kind."""
    calls = len(errors)
    computes = [False] * calls
    call = 0
    while call < calls:
        computes[call] = True
        fitting = [lag for lag, error in enumerate(errors[call], 1) if error <= threshold]
        call += 1 + max(fitting, default=0)
    computes[-1] = True
    return computes


def component_layers(setting: Setting) -> dict[str, list[str]]:
    """The carries of each kind. Raises MethodError where there are none."""
    setting.need(*BRANCHES, method="smoothcache")
    cuts = setting.graph.cuts
    found = {
        role.replace("-", "_"): [carry for carry in setting.branches(role) if carry.rstrip("+") not in cuts]
        for role in BRANCHES
    }
    return {kind: names for kind, names in found.items() if names}


def _relative(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().sum() / now.abs().sum().clamp(min=1e-12))
