"""Delta-DiT (arXiv 2406.01125): a span of DiT blocks is skipped, and the change it made at the last full call is added.
For DiTs.

Before call `switch` the rear blocks are skipped (the front ones draw outlines), from then on the front blocks; every
`interval`-th call is full. The sizes of the two spans are not known to us: `share` of the blocks, a half, is ours.

The change of a span is the sum of the changes of its residual additions, and that is how it is wired: two carries per
skipped block where the paper stores one for the span. The numbers are the same (but for the order of the sum); the
memory is not: for DiT-XL/2 at 256 px (28 blocks, 256 tokens of 1152) 14 blocks are 28 carries of 0.59 MB in fp16.
"""

from __future__ import annotations

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule, full_schedule
from edgediff.reuse import Setting


class Spec(Model):
    """`switch` is a call index; None: half of the calls. `interval` 1 runs everything always."""

    interval: int = Field(default=2, ge=1)
    switch: int | None = Field(default=None, ge=0)
    share: float = Field(default=0.5, gt=0, le=1)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Rows `full`, `front` (runs the front blocks) and `rear`. Raises MethodError for a network whose
    branches are no units of their own, and for a switch past the last call."""
    setting.need("stream", method="delta_dit")
    calls = setting.calls
    if spec.interval == 1:
        return full_schedule(calls)
    switch = spec.switch if spec.switch is not None else calls // 2
    if switch > calls:
        raise MethodError(f"switch = {switch}: it needs 0 to {calls}, the calls of the sampler", code="switch")
    blocks = list(dict.fromkeys(u.block for u in setting.graph.of_role("stream")))
    count = max(1, round(spec.share * len(blocks)))
    rows = {
        "full": Row(),
        "front": Row(delta=_additions(setting, blocks[-count:])),
        "rear": Row(delta=_additions(setting, blocks[:count])),
    }
    names = tuple(
        "full" if call % spec.interval == 0 else "front" if call < switch else "rear" for call in range(calls)
    )
    return Schedule(rows={name: rows[name] for name in rows if name in names}, calls=names)


def _additions(setting: Setting, blocks: list[str]) -> tuple[str, ...]:
    return tuple(u.name for u in setting.graph.of_role("stream") if u.block in blocks)
