"""A static schedule: which graph runs at which network call, and what is carried between calls.

A schedule has named rows (a row says which units are held or get a cached change added) and one row
name per network call. The reserved name `hold` means that no graph runs: the network's last output,
after guidance, stands in. A forecast replaces the last value by a fixed linear combination of the last
few; it changes no graph, because whoever runs the graphs forms it.

Rows may run different networks: the plan's own, cut and perhaps distilled (with other kernels in later phases), or the
untouched one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from edgediff.config import Model
from edgediff.errors import PlanError, did_you_mean
from edgediff.graph.units import Action, Live, UnitGraph
from edgediff.runtime.steps import StepRow, StepTable

HOLD = "hold"
OUTPUT = "output"
OWN, UNTOUCHED = "own", "untouched"


class Row(Model):
    """What differs from a full run: names of units, layers or blocks; and which `network` the row runs: `own`, cut
    and distilled as the plan says, or the `untouched` one, or `phase1` and so on: a distilled one's kernels of a later
    phase of the timesteps."""

    hold: tuple[str, ...] = ()
    delta: tuple[str, ...] = ()
    network: Literal["own", "untouched", "phase1", "phase2", "phase3"] = "own"

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A row of the plan's own network does not say so."""
        values: dict[str, Any] = write(self)
        if self.network == OWN:
            del values["network"]
        return values

    @property
    def is_full(self) -> bool:
        """Whether it computes all of its network."""
        return not self.hold and not self.delta

    def actions(self, graph: UnitGraph) -> dict[str, Action]:
        """Unit name -> action. Raises PlanError for unknown names, or one unit both held and changed."""
        held, changed = graph.expand(self.hold), graph.expand(self.delta)
        both = sorted(held & changed)
        if both:
            raise PlanError(f"unit '{both[0]}' is both held and delta in one row", code="schedule")
        return {**dict.fromkeys(held, "hold"), **dict.fromkeys(changed, "delta")}  # type: ignore[dict-item]


class Forecast(Model):
    """At call `call`, the value of `what` is sum_k weights[k] * (its value k computations ago, 0 the newest).

    `what` is `output` (the network's output after guidance, at a call that holds) or a carry that the call's row
    reads: a unit's name, or `<unit>+` for its change.
    """

    call: int = Field(ge=1)
    what: str = OUTPUT
    weights: tuple[float, ...] = Field(min_length=1)


class Schedule(Model):
    """Rows by name, and the row of each network call.

    At the calls in `unguided` the prompt runs alone even if the recipe guides. At those in `held_guidance` too, and
    its difference from the empty prompt is forecast: sum_k weights[k] * (that of the k-th last guided call).
    """

    rows: dict[str, Row] = Field(min_length=1)
    calls: tuple[str, ...] = Field(min_length=1)
    forecasts: tuple[Forecast, ...] = ()
    unguided: tuple[int, ...] = ()
    held_guidance: dict[int, tuple[float, ...]] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Schedule:
        if HOLD in self.rows:
            raise ValueError(f"'{HOLD}' is reserved for calls in which no graph runs")
        for index, name in enumerate(self.calls):
            if name != HOLD and name not in self.rows:
                raise ValueError(f"call {index} names row '{name}'{did_you_mean(name, [*self.rows, HOLD])}")
        if self.calls[0] == HOLD:
            raise ValueError("the first call cannot hold: there is no earlier output")
        for forecast in self.forecasts:
            self._check_forecast(forecast)
        for what, indices in (("unguided", self.unguided), ("held_guidance", tuple(self.held_guidance))):
            if any(not 0 <= index < len(self.calls) for index in indices):
                raise ValueError(f"'{what}' names calls {indices}; there are calls 0 to {len(self.calls) - 1}")
        return self

    def _check_forecast(self, forecast: Forecast) -> None:
        call, name = forecast.call, self.calls[forecast.call] if forecast.call < len(self.calls) else None
        if name is None or (name == HOLD) != (forecast.what == OUTPUT):
            raise ValueError(
                f"call {call} cannot forecast '{forecast.what}': the output is forecast where the row is '{HOLD}', "
                "a carry where a graph runs"
            )
        ran = sum(before != HOLD for before in self.calls[:call])
        if forecast.what == OUTPUT and len(forecast.weights) > ran:
            raise ValueError(f"call {call} forecasts from {len(forecast.weights)} outputs; {ran} are computed by then")

    def __str__(self) -> str:
        """One letter per call: capital for a row that holds nothing, `.` for a held output."""
        letters = {HOLD: "."}
        for name, row in self.rows.items():
            letter = name[0].upper() if row.is_full else name[0].lower()
            while letter in letters.values():
                letter = chr(ord(letter) + 1)
            letters[name] = letter
        return "".join(letters[name] for name in self.calls)


@dataclass(frozen=True)
class Wiring:
    """One row as a graph: what it computes of which network, which carries it reads and which it writes."""

    live: Live
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    network: str = OWN


def full_schedule(calls: int) -> Schedule:
    """Every call runs everything."""
    return Schedule(rows={"full": Row()}, calls=("full",) * calls)


def split_phases(schedule: Schedule, phases: Sequence[int]) -> Schedule:
    """The schedule with rows of the plan's own network split by the phase of each call: `full` becomes `full` in phase
    0 and `full_phase1` in phase 1."""
    rows: dict[str, Row] = {}
    calls: list[str] = []
    for name, phase in zip(schedule.calls, phases, strict=True):
        if name == HOLD:
            calls.append(HOLD)
            continue
        row, own = schedule.rows[name], name
        if phase and row.network == OWN:
            row, own = Row.model_validate({**row.model_dump(), "network": f"phase{phase}"}), f"{name}_phase{phase}"
        rows[own] = row
        calls.append(own)
    return schedule.model_copy(update={"rows": rows, "calls": tuple(calls)})


def graph_for(network: str, graph: UnitGraph) -> UnitGraph:
    """The units of the network that a row runs; `graph` is the plan's own, with its cuts."""
    return graph.without_cuts() if network == UNTOUCHED else graph


def fold_forecasts(table: StepTable, schedule: Schedule) -> StepTable:
    """The step table with every forecast of the output written into its coefficients.

    A sampler's update is linear in the network's outputs and a forecast is linear in those that were computed, so
    the fold is exact, and whoever executes rows need not know of it. Raises PlanError where a sampler that clips
    meets a forecast (a clip is not linear), or for call counts that differ.
    """
    if len(table.rows) != len(schedule.calls):
        message = f"the schedule has {len(schedule.calls)} calls, the sampler makes {len(table.rows)}"
        raise PlanError(message, code="step_count")
    wanted = {f.call: f.weights for f in schedule.forecasts if f.what == OUTPUT}
    if not wanted:
        return table
    computed: list[int] = []
    sources: list[dict[int, float]] = []  # call -> the computed outputs that its output is made of
    rows: list[StepRow] = []
    for index, (row, name) in enumerate(zip(table.rows, schedule.calls, strict=True)):
        if name != HOLD:
            computed.insert(0, index)
        weights = wanted.get(index, (1.0,))
        sources.append(dict(zip(computed, weights, strict=False)))
        if row.update.clip is not None and index in wanted:
            message = f"sampler '{table.sampler}' clips at call {index}: its output cannot be forecast there; hold it"
            raise PlanError(message, code="forecast")
        total: dict[int, float] = {}
        for back, coefficient in enumerate(row.update.e):
            for call, weight in sources[index - back].items():
                total[index - call] = total.get(index - call, 0.0) + coefficient * weight
        folded = tuple(total.get(back, 0.0) for back in range(max(total, default=-1) + 1))
        rows.append(row.model_copy(update={"update": row.update.model_copy(update={"e": folded})}))
    return table.model_copy(update={"rows": tuple(rows)})


def mixes(schedule: Schedule) -> tuple[dict[str, tuple[float, ...]], ...]:
    """Per call, the weights of each carry that is forecast, by carry."""
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in schedule.calls]
    for forecast in schedule.forecasts:
        if forecast.what != OUTPUT:
            found[forecast.call][forecast.what] = forecast.weights
    return tuple(found)


def wire_schedule(schedule: Schedule, graph: UnitGraph) -> dict[str, Wiring]:
    """Row name -> its graph, for the rows that some call uses.

    A graph writes a carry if some later call reads what one of its calls left there. Raises PlanError
    when a call reads a unit that no earlier call has run.
    """
    graphs = {name: graph_for(schedule.rows[name].network, graph) for name in used_rows(schedule)}
    lives = {name: own.live(schedule.rows[name].actions(own)) for name, own in graphs.items()}
    writes: dict[str, set[str]] = {name: set() for name in lives}
    writers: dict[str, list[str]] = {}
    weights = mixes(schedule)
    for index, name in enumerate(schedule.calls):
        if name == HOLD:
            continue
        for carry in weights[index]:
            if carry not in lives[name].reads:
                message = f"call {index} ('{name}') forecasts '{carry}', which its row does not hold"
                raise PlanError(message, code="schedule")
        for carry in lives[name].reads:
            count = len(weights[index].get(carry, (1.0,)))
            past = writers.get(carry, [])
            if len(past) < count:
                many = f"{count} values of '{carry}', of which" if count > 1 else f"'{carry}', which"
                raise PlanError(
                    f"call {index} ('{name}') reads {many} no earlier call has computed; "
                    "run it in an earlier call or do not hold it here",
                    code="carry_before_write",
                )
            for writer in past[-count:]:
                writes[writer].add(carry)
        for unit in graphs[name].computed(lives[name]):
            for carry in (unit, f"{unit}+"):
                writers.setdefault(carry, []).append(name)
    return {
        name: Wiring(live, live.reads, tuple(sorted(writes[name])), schedule.rows[name].network)
        for name, live in lives.items()
    }


def merge_rows(schedule: Schedule, graph: UnitGraph, limit: int) -> Schedule:
    """The schedule with at most `limit` graphs: rows are merged into rows that hold only what all of them hold.

    A merged row computes more than each of its parts, so nothing is lost but time; the partition with the least
    added MACs over all calls is taken, two rows of one network at a time. Raises PlanError where a merge cannot be
    wired, and for fewer graphs than networks.
    """
    if limit < 1:
        raise PlanError(f"max_graphs = {limit}: a bundle needs one graph at least", code="max_graphs")
    while len(names := used_rows(schedule)) > limit:
        prices = {name: row_macs(schedule.rows[name], graph) for name in names}
        best: tuple[float, str, str, Row] | None = None
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                if schedule.rows[first].network != schedule.rows[second].network:
                    continue
                both = _common(schedule.rows[first], schedule.rows[second], graph)
                price = row_macs(both, graph)
                added = sum(price - prices[name] for name in schedule.calls if name in (first, second))
                if best is None or added < best[0]:
                    best = (added, first, second, both)
        if best is None:
            message = f"max_graphs = {limit}, but the schedule runs {len(names)} networks, a graph each; allow as many"
            raise PlanError(message, code="max_graphs")
        _, first, second, both = best
        rows = {name: row for name, row in schedule.rows.items() if name != second} | {first: both}
        calls = tuple(first if name == second else name for name in schedule.calls)
        reads = {name: set(_live(row, graph).reads) for name, row in rows.items()}
        kept = tuple(f for f in schedule.forecasts if f.what == OUTPUT or f.what in reads[calls[f.call]])
        schedule = schedule.model_copy(update={"rows": rows, "calls": calls, "forecasts": kept})
    return schedule


def _common(one: Row, other: Row, graph: UnitGraph) -> Row:
    """What both rows hold, and what both add a cached change to."""

    def shared(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
        both = graph.expand(first) & graph.expand(second)
        return tuple(unit.name for unit in graph.units if unit.name in both)

    return Row(hold=shared(one.hold, other.hold), delta=shared(one.delta, other.delta), network=one.network)


def row_macs(row: Row, graph: UnitGraph) -> int:
    """Multiply-accumulates of one sample through a row; `graph` is the plan's own."""
    return graph_for(row.network, graph).macs(_live(row, graph))


def _live(row: Row, graph: UnitGraph) -> Live:
    own = graph_for(row.network, graph)
    return own.live(row.actions(own))


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
