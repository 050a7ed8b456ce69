"""Faster Diffusion (arXiv 2312.09608), encoder propagation: the encoder runs at key calls only. For U-Nets.

The decoder runs at every call with the current time embedding, on the skips and the mid block's output of the last key
call. A decoder call thus reads no latent at all; the paper runs those between two keys in one batch, which a phone
gains nothing from, and we do not. Every skip is carried, the first convolution's too: 13 tensors for SD-1.5.

`keys` None takes the published set of 50 calls, {0, 1, 2, 3, 5, 10, 15, 25, 35}; other step counts give `keys` or
`interval`. The paper's injection of prior noise, z + 0.003 z_T below t = 500, changes the sampler, not what is
computed; it is left out.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.reuse import Setting
from edgediff.reuse._keys import check_keys
from edgediff.reuse._skips import encoder_blocks

PUBLISHED = {50: (0, 1, 2, 3, 5, 10, 15, 25, 35)}


class Spec(Model):
    """Encoder calls: `keys`, or every `interval`-th; neither: the published set."""

    keys: tuple[int, ...] | None = None
    interval: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _not_both(self) -> Spec:
        if self.keys is not None and self.interval is not None:
            raise ValueError("give 'keys' or 'interval', not both")
        return self


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Full at the keys, the decoder alone elsewhere. Raises MethodError for networks without an encoder, for keys that
    do not exist, and for a step count without published keys."""
    encoder = encoder_blocks(setting.graph, "faster_diffusion")
    keys = _keys(spec, setting.calls)
    rows = {"full": Row(), "decoder": Row(hold=encoder)}
    calls = tuple("full" if call in keys else "decoder" for call in range(setting.calls))
    return Schedule(rows={name: row for name, row in rows.items() if name in calls}, calls=calls)


def _keys(spec: Spec, calls: int) -> tuple[int, ...]:
    if spec.keys is not None:
        return check_keys(spec.keys, calls)
    if spec.interval is not None:
        return tuple(range(0, calls, spec.interval))
    if calls not in PUBLISHED:
        counts = ", ".join(map(str, PUBLISHED))
        message = f"published encoder keys are for {counts} calls, the sampler makes {calls}: give keys or interval"
        raise MethodError(message, code="step_count")
    return PUBLISHED[calls]
