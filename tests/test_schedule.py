"""Forecasts and held guidance: folded into the step table, wired into graphs, mixed by the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgediff.errors import PlanError
from edgediff.graph.schedule import HOLD, Forecast, Row, Schedule, fold_forecasts, wire_schedule
from edgediff.graph.units import Unit, UnitGraph
from edgediff.runtime import Session
from edgediff.runtime.manifest import Held
from edgediff.runtime.steps import Clip, StepRow, StepTable, Update, apply_update, run_steps
from tests.program_cases import Letters, StandIn
from tests.valid_bundle import LATENT, make_manifest

CALLS = ("full", "full", HOLD, HOLD, "full", HOLD, "full", HOLD)
FORECASTS = (
    Forecast(call=2, weights=(2.0, -1.0)),
    Forecast(call=3, weights=(3.0, -2.0)),
    Forecast(call=5, weights=(1.5, -0.75, 0.25)),
)


def chain_graph() -> UnitGraph:
    """one -> two -> out, with `one` also read by `out`."""
    units = (
        Unit("one", "resnet", ("sample",)),
        Unit("two", "resnet", ("one",)),
        Unit("out", "output", ("two", "one")),
    )
    return UnitGraph("hand", units, ("sample",), "out")


def make_table(length: int, *, clip: bool = False) -> StepTable:
    """A multistep sampler with other coefficients in every row."""
    draw = np.random.default_rng(0)
    rows = []
    for index in range(length):
        depth = min(index + 1, 3)
        update = Update(
            x=tuple(draw.uniform(0.4, 0.6, min(depth, 2)).tolist()),
            e=tuple(draw.normal(size=depth).tolist()),
            clip=Clip(x=1.0, e=0.5, limit=1.0, weight=0.3) if clip else None,
        )
        rows.append(StepRow(timestep=float(length - index), update=update))
    return StepTable(sampler="drawn", steps=length, init_scale=1.0, rows=tuple(rows))


def by_hand(table: StepTable, schedule: Schedule, start: np.ndarray) -> list[np.ndarray]:
    """Forecasts formed before each update, as a paper would write it."""
    weights = {f.call: f.weights for f in schedule.forecasts}
    latents, outputs, computed, found = [start], [], [], []
    for index, (row, name) in enumerate(zip(table.rows, schedule.calls, strict=True)):
        if name == HOLD:
            output = sum(w * e for w, e in zip(weights.get(index, (1.0,)), computed, strict=False))
        else:
            output = np.sin(latents[0] * 3.0 + row.timestep)
            computed.insert(0, output)
        outputs.insert(0, output)
        latents.insert(0, apply_update(row.update, latents, outputs))
        found.append(latents[0])
    return found


def test_a_folded_table_is_the_forecast_itself() -> None:
    table, start = make_table(8), np.random.default_rng(1).normal(size=(4, 4))
    schedule = Schedule(rows={"full": Row()}, calls=CALLS, forecasts=FORECASTS)
    folded = fold_forecasts(table, schedule)
    folded.check()

    def predict(index: int, row: StepRow, latent: Any) -> Any:
        return None if CALLS[index] == HOLD else np.sin(latent * 3.0 + row.timestep)

    for step, expected in zip(run_steps(folded, start, predict), by_hand(table, schedule, start), strict=True):
        np.testing.assert_allclose(step.latent, expected, rtol=1e-12)


def test_a_table_without_forecasts_is_left_alone() -> None:
    table = make_table(8)
    assert fold_forecasts(table, Schedule(rows={"full": Row()}, calls=CALLS)) is table


def test_a_clipping_sampler_refuses_a_forecast() -> None:
    schedule = Schedule(rows={"full": Row()}, calls=CALLS, forecasts=FORECASTS[:1])
    with pytest.raises(PlanError, match="clips at call 2"):
        fold_forecasts(make_table(8, clip=True), schedule)


def test_another_step_count_is_refused() -> None:
    with pytest.raises(PlanError, match="has 8 calls, the sampler makes 7"):
        fold_forecasts(make_table(7), Schedule(rows={"full": Row()}, calls=CALLS))


@pytest.mark.parametrize(
    ("forecast", "words"),
    [
        (Forecast(call=1, weights=(1.0,)), "where the row is 'hold'"),
        (Forecast(call=9, weights=(1.0,)), "cannot forecast"),
        (Forecast(call=2, what="mid", weights=(1.0,)), "where a graph runs"),
        (Forecast(call=2, weights=(1.0, 1.0, 1.0)), "3 outputs; 2 are computed"),
    ],
)
def test_forecasts_that_cannot_be(forecast: Forecast, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Schedule(rows={"full": Row()}, calls=CALLS, forecasts=(forecast,))


def test_a_mix_makes_every_earlier_writer_write() -> None:
    rows = {"a": Row(), "b": Row(hold=("one",)), "c": Row(hold=("two",))}
    mixed = (Forecast(call=3, what="two", weights=(2.0, -1.0)),)
    wired = wire_schedule(Schedule(rows=rows, calls=("a", "b", "a", "c"), forecasts=mixed), chain_graph())
    assert wired["a"].writes == ("one", "two")
    assert wired["b"].writes == ("two",)
    plain = wire_schedule(Schedule(rows=rows, calls=("a", "b", "a", "c")), chain_graph())
    assert plain["b"].writes == ()
    with pytest.raises(PlanError, match="2 values of 'two', of which no earlier call"):
        wire_schedule(
            Schedule(rows=rows, calls=("a", "c"), forecasts=(mixed[0].model_copy(update={"call": 1}),)), chain_graph()
        )


def test_the_runtime_mixes_a_carry_and_holds_guidance() -> None:
    calls = (("full", 3.0), ("full", 2.0), ("shallow", None), ("shallow", 2.0))
    plain = make_manifest("batched", calls)
    rows = list(plain.program().rows)
    rows[2] = rows[2].model_copy(update={"mix": {"mid": (2.0, -1.0)}, "held": Held(weights=(3.0, -0.5))})
    rows[3] = rows[3].model_copy(update={"mix": {"mid": (1.5, -0.5)}})
    full, shallow = StandIn("full"), StandIn("shallow")
    for mode in ("batched", "sequential"):
        program = plain.program().model_copy(update={"rows": tuple(rows), "mode": mode})
        one = plain.model_copy(update={"programs": {plain.default: program}})
        one.check()
        session = Session(one, {name: Letters() for name in one.tokenizers}, {n: StandIn(n) for n in one.graphs})
        words = session.embed("a", "a a")["encoder_hidden_states"]
        steps = list(session.steps("a", "a a", seed=1))

        def call(network: StandIn, side: int, row: int, latent: Any, carry: Any = None) -> dict[str, np.ndarray]:
            time, text = np.array([rows[row].timestep]), words[side : side + 1]  # noqa: B023
            inputs = {"sample": latent, "timestep": time, "encoder_hidden_states": text}
            return network.run({**inputs, "cache_in_mid": carry} if carry is not None else inputs)

        before = [call(full, side, 0, session_start(1)) for side in (0, 1)]
        second = [call(full, side, 1, steps[0].latent) for side in (0, 1)]
        carry = [2.0 * b["cache_out_mid"] - a["cache_out_mid"] for a, b in zip(before, second, strict=True)]
        older, difference = (each[1]["noise_pred"] - each[0]["noise_pred"] for each in (before, second))
        assert abs(difference).max() > 1e-3 and abs(older).max() > 1e-3, "the two sides differ"
        expected = call(shallow, 1, 2, steps[1].latent, carry[1])["noise_pred"] + 3.0 * difference - 0.5 * older
        np.testing.assert_allclose(steps[2].output, expected, rtol=1e-4, atol=1e-5)
        carry = [1.5 * b["cache_out_mid"] - 0.5 * a["cache_out_mid"] for a, b in zip(before, second, strict=True)]
        low, high = (call(shallow, side, 3, steps[2].latent, carry[side])["noise_pred"] for side in (0, 1))
        np.testing.assert_allclose(steps[3].output, low + 2.0 * (high - low), rtol=1e-4, atol=1e-5)


def session_start(seed: int) -> np.ndarray:
    from edgediff.runtime.rng import Rng

    return np.asarray(Rng(seed).normal((1, *LATENT)), np.float32)
