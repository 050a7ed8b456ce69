"""A table of gates that is given: by name, or as a JSON file such as DiP-GO's training leaves (`GateTable`). For every
network that has its blocks.

    {"blocks": ["down_blocks.0", ...], "gates": [[1, 1, ...], [0, 0, ...], ...], "source": "..."}

`dipgo-sd15-50-p0.80` is what the table released for Stable Diffusion 1.5 at ratio 0.8 (50 calls, DiP-GO, arXiv
2410.16942) amounts to: the whole network at ten calls, everything off at the others, that is a held output; block
MACs 3.38 T of 16.94 T as published. Our only departure: at call 7 the released table has down_blocks.3 off, 1.1 % of
one call, which would be a second graph for nothing. Compare it with the same sampler at ten steps.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from edgediff.config import Model, read_outside
from edgediff.errors import MethodError, unknown
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.reuse import Setting
from edgediff.reuse._gates import GateTable, gate_schedule

PRESETS = {"dipgo-sd15-50-p0.80": (50, (0, 7, 13, 19, 20, 21, 26, 32, 39, 48))}


class Spec(Model):
    """One of `file` and `preset`."""

    file: str | None = None
    preset: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Spec:
        if (self.file is None) == (self.preset is None):
            raise ValueError(f"give either 'file' or 'preset' (presets: {', '.join(PRESETS)})")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(unknown("preset", self.preset, PRESETS))
        return self


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Raises ConfigError for a file that is no table, MethodError for another number of calls or unknown blocks."""
    if spec.file is not None:
        return gate_schedule(read_outside(Path(spec.file), GateTable), setting.graph, setting.calls)
    calls, keys = PRESETS[str(spec.preset)]
    if calls != setting.calls:
        message = f"preset '{spec.preset}' is for {calls} network calls; the sampler makes {setting.calls}"
        raise MethodError(message, code="step_count")
    return Schedule(rows={"full": Row()}, calls=tuple("full" if call in keys else HOLD for call in range(calls)))
