"""Methods that say which features are computed at which step. One file, one method.

A method exposes `Spec` (its TOML table) and `propose(spec, setting) -> Schedule`. One that is calibrated also
exposes `measure(spec, rollout, setting, progress) -> dict`: what it found on the calibration prompts, as plain data
that JSON can hold, kept in the cache and given back to `propose` as `setting.measured`; `basis(spec)` says what of
the spec it depends on (all of it, if there is no such function). `refine(spec, rollout, setting, schedule, progress)`
may end with a look at the proposed schedule itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.runtime.steps import StepTable


@dataclass(frozen=True)
class Setting:
    """What a method plans for: the (cut) network's units, the sampler's table, the guidance scale that the recipe
    asks for at each network call (None: the prompt alone), how many graphs a bundle may have, and what the method
    measured."""

    graph: UnitGraph
    table: StepTable
    guidance: tuple[float | None, ...]
    max_graphs: int = 3
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Network calls of one picture."""
        return len(self.table.rows)

    def need(self, *families: str, method: str) -> None:
        """Raises MethodError unless the network belongs to one of the families that the method serves."""
        if self.graph.family not in families:
            served = " and ".join(families)
            raise MethodError(
                f"{method} serves {served} networks; this one is {self.graph.family}. `edgediff methods` lists what "
                "each method serves",
                code="family",
            )
