"""A sampler's table, a schedule and its guidance as the rows that every runtime executes."""

from __future__ import annotations

from edgediff.documents.plan import GuidancePlan
from edgediff.errors import PlanError
from edgediff.graph.schedule import HOLD, Schedule, carry_name, fold_forecasts, mixes
from edgediff.runtime.manifest import SCALE, Held, Mode, ProgramRow
from edgediff.runtime.steps import StepTable


def plan_guidance(asked: tuple[float | None, ...], schedule: Schedule, mode: Mode) -> GuidancePlan:
    """The guidance that is asked for per call, less what the schedule's method takes out or holds.

    Raises PlanError where guidance is held before any guided call.
    """
    alone = {*schedule.unguided, *schedule.held_guidance}
    guidance = tuple(None if index in alone else scale for index, scale in enumerate(asked))
    held = tuple(_folded(schedule.held_guidance.get(index), scale) for index, scale in enumerate(asked))
    ran = [i for i, name in enumerate(schedule.calls) if name != HOLD and guidance[i] is not None]
    for index, weights in enumerate(held):
        if weights is not None and len(weights) > (count := sum(earlier < index for earlier in ran)):
            message = f"call {index} holds the guidance of {len(weights)} earlier calls, but {count} are guided by then"
            raise PlanError(message, code="schedule")
    has_held = any(weights is not None for weights in held)
    return GuidancePlan(
        mode=mode, calls=guidance, held=held if has_held else (), asked=asked if guidance != asked else ()
    )


def _folded(weights: tuple[float, ...] | None, scale: float | None) -> tuple[float, ...] | None:
    if weights is None or scale is None:
        return None
    return tuple(weight * (scale - 1.0) for weight in weights)


def follow_scale(rows: tuple[ProgramRow, ...], scale: float) -> tuple[ProgramRow, ...]:
    """The rows with the scale that is asked for in place of `scale`: guided rows name it, and held differences are
    multiplied by it less 1 when the program runs."""
    found = []
    for row in rows:
        changes: dict[str, object] = {}
        if row.guidance == scale:
            changes["guidance"] = SCALE
        if row.held is not None:
            weights = tuple(weight / (scale - 1.0) for weight in row.held.weights)
            changes["held"] = Held(weights=weights, times="scale_minus_one")
        found.append(row.model_copy(update=changes))
    return tuple(found)


def program_rows(table: StepTable, schedule: Schedule, guidance: GuidancePlan) -> tuple[ProgramRow, ...]:
    """One row per network call. Raises PlanError when a forecast does not fit the sampler."""
    folded = fold_forecasts(table, schedule)
    held = guidance.held or (None,) * len(folded.rows)
    return tuple(
        ProgramRow(
            timestep=row.timestep,
            input_scale=row.input_scale,
            update=row.update,
            graph=None if call == HOLD else call,
            guidance=None if call == HOLD else scale,
            held=None if call == HOLD or kept is None else Held(weights=kept),
            mix={carry_name(carry): weights for carry, weights in mix.items()},
        )
        for row, call, scale, kept, mix in zip(
            folded.rows, schedule.calls, guidance.calls, held, mixes(schedule), strict=True
        )
    )
