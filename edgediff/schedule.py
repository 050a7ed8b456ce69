"""A static schedule: which graph runs at which network call, and what is carried between calls.

A schedule has named rows (a row says which units are held or get a cached change added) and one row
name per network call. The reserved name `hold` means that no graph runs: the network's last output,
after guidance, stands in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import PlanError, did_you_mean
from edgediff.units import Action, Live, UnitGraph

HOLD = "hold"


class Row(Model):
    """What differs from a full run: names of units, layers or blocks."""

    hold: tuple[str, ...] = ()
    delta: tuple[str, ...] = ()

    def actions(self, graph: UnitGraph) -> dict[str, Action]:
        """Unit name -> action. Raises PlanError for unknown names, or one unit both held and changed."""
        held, changed = graph.expand(self.hold), graph.expand(self.delta)
        both = sorted(held & changed)
        if both:
            raise PlanError(f"unit '{both[0]}' is both held and delta in one row", code="schedule")
        return {**dict.fromkeys(held, "hold"), **dict.fromkeys(changed, "delta")}  # type: ignore[dict-item]


class Schedule(Model):
    """Rows by name, and the row of each network call."""

    rows: dict[str, Row] = Field(min_length=1)
    calls: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Schedule:
        if HOLD in self.rows:
            raise ValueError(f"'{HOLD}' is reserved for calls in which no graph runs")
        for index, name in enumerate(self.calls):
            if name != HOLD and name not in self.rows:
                raise ValueError(f"call {index} names row '{name}'{did_you_mean(name, [*self.rows, HOLD])}")
        if self.calls[0] == HOLD:
            raise ValueError("the first call cannot hold: there is no earlier output")
        return self

    def __str__(self) -> str:
        """One letter per call: capital for a row that holds nothing, `.` for a held output."""
        letters = {HOLD: "."}
        for name, row in self.rows.items():
            letter = name[0].upper() if row == Row() else name[0].lower()
            while letter in letters.values():
                letter = chr(ord(letter) + 1)
            letters[name] = letter
        return "".join(letters[name] for name in self.calls)


@dataclass(frozen=True)
class Wiring:
    """One row as a graph: what it computes, which carries it reads and which it writes."""

    live: Live
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def full_schedule(calls: int) -> Schedule:
    """Every call runs everything."""
    return Schedule(rows={"full": Row()}, calls=("full",) * calls)


def wire_schedule(schedule: Schedule, graph: UnitGraph) -> dict[str, Wiring]:
    """Row name -> its graph, for the rows that some call uses.

    A graph writes a carry if some later call reads what one of its calls left there. Raises PlanError
    when a call reads a unit that no earlier call has run.
    """
    lives = {name: graph.live(schedule.rows[name].actions(graph)) for name in used_rows(schedule)}
    writes: dict[str, set[str]] = {name: set() for name in lives}
    writer: dict[str, str] = {}
    for index, name in enumerate(schedule.calls):
        if name == HOLD:
            continue
        for carry in lives[name].reads:
            if carry not in writer:
                raise PlanError(
                    f"call {index} ('{name}') reads '{carry}', which no earlier call has computed; "
                    "run it in an earlier call or do not hold it here",
                    code="carry_before_write",
                )
            writes[writer[carry]].add(carry)
        for unit in graph.computed(lives[name]):
            writer[unit] = writer[f"{unit}+"] = name
    return {
        name: Wiring(live, live.reads, tuple(sorted(writes[name])))
        for name, live in lives.items()
    }


def used_rows(schedule: Schedule) -> list[str]:
    """Row names in the order of their first call, `hold` left out."""
    return list(dict.fromkeys(name for name in schedule.calls if name != HOLD))


def carry_name(carry: str) -> str:
    """A carry as an identifier that every backend accepts: `up_blocks.1.resnets.2+` ->
    `up_blocks_1_resnets_2_change`."""
    return carry.replace("+", "_change").replace(".", "_")


def carried(wirings: Iterable[Wiring]) -> tuple[str, ...]:
    """Every carry that some graph reads."""
    return tuple(sorted({carry for wiring in wirings for carry in wiring.reads}))
