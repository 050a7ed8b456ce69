"""Path search and linear forecasts: exact against every path there is, and against what really happens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgediff.errors import MethodError
from edgediff.graph.schedule import HOLD, Forecast, Row, Schedule
from edgediff.reuse import Setting, linear_forecast, path_search
from edgediff.reuse._skipping import Path, cheapest, find_paths, improve, minimax_path, walk
from edgediff.reuse._trajectory import Trajectory, record
from edgediff.runtime.steps import StepRow, StepTable, Update
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import guidance_calls, step_table
from tests.tiny import tiny_pipeline

CALLS = 7


def make_table(calls: int = CALLS) -> StepTable:
    rows = (StepRow(timestep=float(i), update=Update(x=(0.9 + 0.01 * i,), e=(-0.2 - 0.03 * i,))) for i in range(calls))
    return StepTable(sampler="hand", steps=calls, init_scale=1.0, rows=tuple(rows))


def make_trajectory(seed: int, guidance: tuple[float | None, ...] = (3.0,) * CALLS) -> Trajectory:
    """A drawn trajectory whose latents really follow from its outputs."""
    draw, table = np.random.default_rng(seed), make_table(len(guidance))
    calls = len(guidance)
    walk_ = np.cumsum(draw.normal(size=(calls, 40)), axis=0) * 0.3 + draw.normal(size=40)
    change = np.cumsum(draw.normal(size=(calls, 40)), axis=0) * 0.1 + draw.normal(size=40)
    latents = [draw.normal(size=40)]
    for index, row in enumerate(table.rows):
        output = walk_[index] + ((guidance[index] or 1.0) - 1.0) * change[index]
        latents.append(row.update.x[0] * latents[-1] + row.update.e[0] * output)
    vectors = np.concatenate([walk_, change, np.array(latents)])
    return Trajectory(table, guidance, vectors @ vectors.T / 40, np.linspace(0.5, 1.5, calls + 1))


def every_path(trajectory: Trajectory, longest: int, oldest: int):
    """All (calls, guided) and the loss that the dynamic program's state can see."""
    count = trajectory.calls
    for size in range(1, count + 1):
        for rest in itertools.combinations(range(1, count), size - 1):
            calls = (0, *rest)
            if max(b - a for a, b in itertools.pairwise((*calls, count))) > longest:
                continue
            for flags in itertools.product((True, False), repeat=size - 1):
                guided = (0, *(c for c, flag in zip(rest, flags, strict=True) if flag))
                loss = loss_of(trajectory, calls, guided, oldest)
                if loss is not None:
                    yield calls, guided, loss


def loss_of(trajectory: Trajectory, calls, guided, oldest: int) -> float | None:
    outputs, total, last = [], 0.0, 0
    for call, after in itertools.pairwise((*calls, trajectory.calls)):
        last = call if call in guided else last
        if call - last > oldest:
            return None
        outputs.insert(0, trajectory.output(call, (last,)))
        total += trajectory.skip(call, outputs[:2], after)[0] * trajectory.gain[after]
    return total


@pytest.mark.parametrize(("longest", "oldest"), [(7, 7), (3, 7), (4, 2), (3, 0)])
def test_the_dynamic_program_equals_trying_everything(longest: int, oldest: int) -> None:
    trajectory = make_trajectory(longest + oldest)
    found = find_paths(trajectory, most_guided=CALLS, most_alone=CALLS, longest=longest, oldest=oldest)
    best: dict[tuple[int, int], tuple[float, tuple, tuple]] = {}
    for calls, guided, loss in every_path(trajectory, longest, oldest):
        key = (len(guided), len(calls) - len(guided))
        if key not in best or loss < best[key][0]:
            best[key] = (loss, calls, guided)
    assert found.keys() == best.keys()
    for key, (loss, calls, guided) in best.items():
        assert found[key].loss == pytest.approx(loss, rel=1e-9)
        assert (found[key].calls, found[key].guided) == (calls, guided)


@pytest.mark.parametrize("price", [(2.0, 1.0), (1.4, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("budget", [3.0, 5.5, 8.0, 20.0])
def test_the_choice_under_a_budget_equals_trying_everything(price, budget: float) -> None:
    trajectory = make_trajectory(3)
    found = cheapest(find_paths(trajectory, most_guided=7, most_alone=7, longest=7, oldest=7), budget, price)
    fitting = [
        (loss, calls)
        for calls, guided, loss in every_path(trajectory, 7, 7)
        if len(guided) * price[0] + (len(calls) - len(guided)) * price[1] <= budget
    ]
    assert found is not None
    assert found.loss == pytest.approx(min(fitting)[0], rel=1e-9)


def test_calls_without_guidance_run_alone_and_the_interval_is_kept() -> None:
    trajectory = make_trajectory(5, (None, None, 2.0, 2.0, 2.0, None, None))
    paths = find_paths(trajectory, most_guided=3, most_alone=7, longest=3, oldest=9)
    for path in paths.values():
        assert set(path.guided) <= {2, 3, 4}
    full = paths[3, 4]
    assert full.loss == pytest.approx(0.0, abs=1e-9)


def test_improving_never_loses_and_keeps_the_counts() -> None:
    trajectory = make_trajectory(11, (3.0,) * 12)
    for path in find_paths(trajectory, most_guided=4, most_alone=4, longest=6, oldest=9).values():
        better = improve(trajectory, path, 3, longest=6)
        assert len(better.calls) == len(path.calls)
        assert len(better.guided) == len(path.guided)
        assert better.loss <= sum(gap.loss for gap in walk(trajectory, path.calls, path.guided, 3)) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_minimax_and_shortest_paths_equal_trying_everything(seed: int) -> None:
    draw, end = np.random.default_rng(seed), 8
    weights = np.where(np.triu(np.ones((end + 1, end + 1)), 1) > 0, draw.uniform(size=(end + 1, end + 1)), np.inf)
    weights[draw.uniform(size=weights.shape) < 0.2] = np.inf
    for nodes in range(1, end + 1):
        paths = [
            ((0, *rest), [float(weights[a, b]) for a, b in itertools.pairwise((0, *rest, end))])
            for rest in itertools.combinations(range(1, end), nodes - 1)
        ]
        paths = [(path, edges) for path, edges in paths if np.isfinite(edges).all()]
        if not paths:
            assert minimax_path(weights, nodes) == ()
            assert path_search.shortest_path(weights, nodes) == ()
            continue
        assert minimax_path(weights, nodes) == min(paths, key=lambda each: sorted(each[1], reverse=True))[0]
        assert path_search.shortest_path(weights, nodes) == min(paths, key=lambda each: sum(each[1]))[0]


# On a network


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    pipeline = tiny_pipeline(tmp_path_factory.mktemp("tiny"))
    table = step_table(pipeline, "ddim", 8)
    setting = Setting(pipeline.graph, table, guidance_calls(3.0, (0.0, 1.0), 8))
    rollout = Rollout(pipeline, ["a", "b c", "d"], [0, 1, 2], batch=2)
    measured = linear_forecast.measure(linear_forecast.Spec(longest=4), rollout, setting)
    return rollout, Setting(setting.graph, table, setting.guidance, 3, measured)


def test_one_skip_has_exactly_the_predicted_error(bench) -> None:
    """The closed form is exact while the trajectory before the gap is the reference's."""
    rollout, setting = bench
    trajectory = Trajectory.of(setting, setting.measured)
    seen = {}
    rollout.run(setting.table, None, setting.guidance, lambda call: seen.setdefault(call.index, []).append(call.latent))
    reference = torch.cat(seen[5])
    weights = trajectory.skip(2, [trajectory.output(2, (2,)), trajectory.output(1, (1,))], 5)
    schedule = Schedule(
        rows={"full": Row()},
        calls=("full", "full", "full", HOLD, HOLD, "full", "full", "full"),
        forecasts=tuple(Forecast(call=c, weights=tuple(weights[1])) for c in (3, 4)),
    )
    met = {}

    def watch(call):
        met.setdefault(call.index, []).append(call.latent)

    rollout.run(setting.table, schedule, setting.guidance, watch)
    error = float(((torch.cat(met[5]) - reference) ** 2).mean())
    assert error == pytest.approx(weights[0], rel=2e-3)


def test_a_share_of_one_is_the_untouched_network(bench) -> None:
    rollout, setting = bench
    schedule = Schedule(rows={"full": Row()}, calls=("full",) * 8)
    full = rollout.run(setting.table, None, setting.guidance)
    assert torch.equal(rollout.run(setting.table, schedule, setting.guidance), full)


def test_forecasts_beat_holding_the_same_calls_and_refining_beats_forecasts(bench) -> None:
    rollout, setting = bench
    spec = linear_forecast.Spec(share=0.5, longest=4)
    schedule = linear_forecast.propose(spec, setting)
    assert schedule.forecasts
    full = rollout.run(setting.table, None, setting.guidance)

    def error(one: Schedule) -> float:
        return float(((rollout.run(setting.table, one, setting.guidance) - full) ** 2).mean())

    refined = linear_forecast.refine(spec, rollout, setting, schedule)
    assert refined.calls == schedule.calls
    held = schedule.model_copy(update={"forecasts": ()})
    assert error(refined) <= error(schedule) * 1.001 < error(held)


def test_budgets_and_samplers_that_cannot_be(bench) -> None:
    rollout, setting = bench
    with pytest.raises(MethodError, match=r"share = 0.01 is below the cheapest path, 0\.\d+"):
        linear_forecast.propose(linear_forecast.Spec(share=0.01), setting)
    with pytest.raises(MethodError, match="calls = 9: the sampler makes 8"):
        path_search.propose(path_search.Spec(calls=9), setting)
    with pytest.raises(MethodError, match="calls = 1 is too few: gaps are at most 3 calls long, so 3"):
        path_search.propose(path_search.Spec(calls=1, longest=3), setting)
    table = step_table(rollout.pipeline, "dpmpp_2m", 8)
    with pytest.raises(MethodError, match="'dpmpp_2m' has more at call"):
        record(rollout, Setting(setting.graph, table, setting.guidance), "path_search")


def test_prices_change_the_choice() -> None:
    trajectory = make_trajectory(8, (3.0,) * 10)
    paths = find_paths(trajectory, most_guided=10, most_alone=10, longest=5, oldest=9)
    dear, cheap = (cheapest(paths, 8.0, price) for price in ((2.0, 1.0), (1.0, 1.0)))
    assert isinstance(dear, Path)
    assert isinstance(cheap, Path)
    assert len(cheap.guided) >= len(dear.guided)
    assert cheap.loss <= dear.loss
