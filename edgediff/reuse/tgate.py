"""T-GATE (arXiv 2404.02747): from call `gate` on no text is looked at, and guidance is off. For networks
with cross-attention.

Cross-attention adds the branch output that it stored at call gate - 1; from then on the prompt runs alone. Before the
gate, from call `warm_up` on, self-attention is computed at every `self_interval`-th call only, after the gate at every
`late_interval`-th (both 1: always). What is stored is a branch's output before the residual addition, so these are
cached changes of units; each costs one carry of the size of its tokens.

We differ from the paper in one thing: it stores the mean of the two guidance halves, we keep each half's own and go on
with the prompt's, since the runtime carries per prompt. The presets of 25 calls are gate 10, self_interval 5, warm_up 2
(SDXL) and gate 15, self_interval 3 (PixArt); at other step counts the same shares, as here: 40 % of the calls.
"""

from __future__ import annotations

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.reuse import Setting, reuse_row


class Spec(Model):
    """`gate` is a call index; None: 40 % of the calls. `guidance_off` false cuts off cross-attention alone."""

    gate: int | None = Field(default=None, ge=1)
    warm_up: int = Field(default=2, ge=0)
    self_interval: int = Field(default=1, ge=1)
    late_interval: int = Field(default=1, ge=1)
    guidance_off: bool = True


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Up to four rows: `full`, `sparse` (self-attention's change), `gated` (cross-attention's), `gated_sparse`. Raises
    MethodError for networks without cross-attention, and for a gate outside the calls."""
    setting.need("cross-attention", method="tgate")
    calls = setting.calls
    cross, own = setting.branches("cross-attention"), setting.branches("self-attention")
    gate = spec.gate if spec.gate is not None else max(1, round(0.4 * calls))
    if gate >= calls:
        raise MethodError(f"gate = {gate}: it needs 1 to {calls - 1}, the sampler makes {calls} calls", code="gate")
    rows = {
        "full": Row(),
        "sparse": reuse_row(own),
        "gated": reuse_row(cross),
        "gated_sparse": reuse_row((*own, *cross)),
    }
    order = tuple(_row(spec, call, gate) for call in range(calls))
    return Schedule(
        rows={name: rows[name] for name in rows if name in order},
        calls=order,
        unguided=tuple(range(gate, calls)) if spec.guidance_off else (),
    )


def _row(spec: Spec, call: int, gate: int) -> str:
    if call >= gate:
        return "gated" if call % spec.late_interval == 0 else "gated_sparse"
    computes = call <= spec.warm_up or call % spec.self_interval == 0 or call == gate - 1
    return "full" if computes else "sparse"
