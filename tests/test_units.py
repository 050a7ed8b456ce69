"""Liveness and cuts on a hand-made graph: a -> b -> c -> d -> out, with a skip from a to d."""

from __future__ import annotations

import pytest

from edgediff.errors import PlanError
from edgediff.graph.schedule import HOLD, Row, Schedule, carry_name, full_schedule, used_rows, wire_schedule
from edgediff.graph.units import Unit, UnitGraph


def make_graph() -> UnitGraph:
    def unit(name: str, reads: tuple[str, ...], stream: tuple[str, ...] = (), **options: object) -> Unit:
        return Unit(name, "unit", reads, stream, macs=10, parameters=5, shape=(4,), **options)  # type: ignore[arg-type]

    units = (
        unit("down.a", ("sample",), block="down"),
        unit("down.b", ("down.a",), ("down.a",), cutting="identity", block="down"),
        unit("mid.c", ("down.b",), ("down.b",), cutting="identity", block="mid"),
        Unit(
            "up.d",
            "resnet",
            ("mid.c", "down.a"),
            ("mid.c", "down.a"),
            "shortcut",
            "up",
            macs=10,
            parameters=5,
            stream_macs=3,
            stream_parameters=2,
            shape=(4,),
        ),
        unit("out", ("up.d",)),
    )
    return UnitGraph("hand", units, ("sample",), "out")


def test_everything_runs_when_nothing_is_said():
    assert make_graph().live().run == ("down.a", "down.b", "mid.c", "up.d", "out")
    assert make_graph().macs() == 50


def test_producers_of_a_held_unit_are_not_run_unless_something_else_reads_them():
    graph = make_graph()
    live = graph.live({"mid.c": "hold"})
    assert live.run == ("down.a", "up.d", "out")
    assert live.reads == ("mid.c",)
    assert graph.macs(live) == 30


def test_holding_everything_carries_only_what_is_read():
    graph = make_graph()
    live = graph.live(dict.fromkeys(("down.a", "down.b", "mid.c", "up.d"), "hold"))
    assert live.run == ("out",) and live.reads == ("up.d",)


def test_a_delta_keeps_its_stream_alive():
    graph = make_graph()
    live = graph.live({"mid.c": "delta"})
    assert live.run == ("down.a", "down.b", "mid.c", "up.d", "out")
    assert live.reads == ("mid.c+",)
    assert graph.macs(live) == 40


def test_a_cut_unit_passes_its_stream_on_and_keeps_a_shortcut():
    graph = make_graph().with_cuts(["mid", "up.d"])
    assert graph.macs() == 10 + 10 + 0 + 3 + 10
    assert graph.parameters() == 5 + 5 + 0 + 2 + 5
    assert graph.live({"mid.c": "hold"}).reads == (), "a cut unit is not held: it costs nothing"


def test_protected_and_unknown_units_are_errors_that_help():
    with pytest.raises(PlanError, match=r"unit 'out' \(unit\) is protected and cannot be cut"):
        make_graph().with_cuts(["out"])
    with pytest.raises(PlanError, match=r"unknown unit 'down\.bb'; did you mean 'down\.b'\?"):
        make_graph().with_cuts(["down.bb"])


def test_wiring_writes_what_later_calls_read():
    schedule = Schedule(
        rows={"full": Row(), "shallow": Row(hold=("mid",))}, calls=("full", "shallow", HOLD, "shallow", "full")
    )
    wired = wire_schedule(schedule, make_graph())
    assert wired["full"].writes == ("mid.c",) and wired["full"].reads == ()
    assert wired["shallow"].reads == ("mid.c",) and wired["shallow"].writes == ()
    assert str(schedule) == "Fs.sF"
    assert used_rows(schedule) == ["full", "shallow"]


def test_the_last_writer_in_time_is_the_one_that_writes():
    rows = {"full": Row(), "deep": Row(hold=("down.b",)), "shallow": Row(hold=("mid",))}
    wired = wire_schedule(Schedule(rows=rows, calls=("full", "deep", "shallow")), make_graph())
    assert wired["deep"].writes == ("mid.c",) and wired["full"].writes == ("down.b",)


def test_reading_a_carry_that_nobody_wrote_is_an_error():
    schedule = Schedule(rows={"shallow": Row(hold=("mid",))}, calls=("shallow",))
    with pytest.raises(PlanError, match=r"call 0 \('shallow'\) reads 'mid\.c', which no earlier call has computed"):
        wire_schedule(schedule, make_graph())


@pytest.mark.parametrize(
    ("rows", "calls", "text"),
    [
        ({"full": Row()}, ("full", "ful"), "call 1 names row 'ful'; did you mean 'full'"),
        ({"full": Row()}, (HOLD, "full"), "the first call cannot hold"),
        ({HOLD: Row()}, (HOLD,), "'hold' is reserved"),
        ({"full": Row()}, (), "at least 1 item"),
    ],
)
def test_schedules_that_contradict_themselves(rows, calls, text):
    with pytest.raises(ValueError, match=text):
        Schedule(rows=rows, calls=calls)


def test_one_unit_is_not_held_and_changed_at_once():
    with pytest.raises(PlanError, match=r"unit 'mid\.c' is both held and delta"):
        Row(hold=("mid",), delta=("mid.c",)).actions(make_graph())


def test_names():
    assert carry_name("up_blocks.1.resnets.2+") == "up_blocks_1_resnets_2_change"
    assert str(full_schedule(3)) == "FFF"
