"""MagCache (arXiv 2506.09045): a call repeats the last residual while its magnitude is predicted to hardly change.
For DiTs and U-Nets.

Calibrated once: gamma_i = |r_i| / |r_{i-1}|, the mean over tokens and prompts of the ratio of norms. From the last
computed call on, R = prod gamma, err = sum |1 - R|, n = calls since; a call is skipped while err <= error and
n <= longest, and never among the first `retention` of the calls. The paper decides while it runs; gamma is fixed after
calibration, so the same decisions are made here, at export.

r is what all blocks of a DiT add to their input. It is wired as the change of every unit of role `stream` (two carries
per block; their sum is the paper's one). A U-Net has no such sum: there r is the output and a skipped call holds
it (ours), which needs no carry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.reuse import Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgediff.plugins import Progress
    from edgediff.sampling.rollout import Rollout


class Spec(Model):
    """The defaults are those published for FLUX; U-Nets change faster and want a larger `error`."""

    error: float = Field(default=0.24, ge=0)
    longest: int = Field(default=5, ge=1)
    retention: float = Field(default=0.1, ge=0, le=1)


def basis(spec: Spec) -> dict[str, Any]:
    """`measure` serves every spec."""
    return {}


def measure(spec: Spec, rollout: Rollout, setting: Setting, progress: Progress | None = None) -> dict[str, Any]:
    """`ratios`: gamma of each call, 1 for the first."""
    import torch

    from edgediff.reuse._features import visit_features

    additions = _additions(setting)
    sums, before, batches = [0.0] * setting.calls, torch.zeros(0), 0

    def visit(call: int, values: dict[str, Tensor]) -> None:
        nonlocal before, batches
        if additions:
            residual = torch.stack([values[f"{name}+"] for name in additions]).sum(0)
            norms = residual.norm(dim=-1)
        else:
            norms = values["output"].norm(dim=1)
        if call == 0:
            batches += 1
            sums[0] += 1.0
        else:
            common = min(len(norms), len(before))  # where guidance starts or stops, the prompts' half
            sums[call] += float((norms[-common:] / before[-common:].clamp(min=1e-9)).mean())
        before = norms

    visit_features(rollout, setting, [f"{name}+" for name in additions], visit, progress, "MagCache")
    return {"ratios": [value / batches for value in sums]}


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises MethodError for ratios of another step count."""
    ratios = setting.measured.get("ratios", [])
    if len(ratios) != setting.calls:
        raise MethodError("the measured ratios belong to another network or step count", code="step_count")
    computes = decide(ratios, spec)
    additions = _additions(setting)
    skipped = "residual" if additions else HOLD
    order = tuple("full" if own else skipped for own in computes)
    rows = {"full": Row(), "residual": Row(delta=additions)}
    return Schedule(rows={name: rows[name] for name in rows if name in order}, calls=order)


def decide(ratios: Sequence[float], spec: Spec) -> list[bool]:
    """Whether each call computes."""
    kept = max(1, round(spec.retention * len(ratios)))
    computes, product, error, skipped = [], 1.0, 0.0, 0
    for call, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1.0 - product)
        skipped += 1
        if call >= kept and error <= spec.error and skipped <= spec.longest:
            computes.append(False)
        else:
            computes.append(True)
            product, error, skipped = 1.0, 0.0, 0
    return computes


def _additions(setting: Setting) -> tuple[str, ...]:
    return tuple(u.name for u in setting.graph.of_role("stream"))
