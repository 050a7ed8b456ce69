"""The estimator: prices add up, intervals widen with ignorance, and what is not known is said."""

from __future__ import annotations

import pytest

from edgediff.errors import ConfigError
from edgediff.estimate import estimate_graph, estimate_plan, price_units
from edgediff.estimate.coefficients import TERM_NAMES, load_coefficients
from edgediff.plan import BackendPlan
from edgediff.schedule import wire_schedule
from edgediff.target import Target, load_target
from tests.tiny import tiny_pipeline, tiny_plan

BACKENDS = {"onnxruntime": BackendPlan(precision="fp16")}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(pipe):
    return tiny_plan(pipe, BACKENDS)


def test_every_class_prices_every_term():
    for name, unit in load_coefficients().classes.items():
        assert set(unit.theta) == set(TERM_NAMES), name
        assert all(set(delta) == set(TERM_NAMES) for delta in unit.delta.values()), name


def test_prices_of_units_sum_to_the_graph(pipe):
    graph, target = pipe.graph, load_target("galaxy_s24")
    live = graph.live()
    prices = price_units(graph, target, "onnxruntime", "fp16", batch=2)
    whole = estimate_graph(graph, target, "onnxruntime", "fp16", batch=2)
    assert prices.of(graph, live) == pytest.approx(whole.p50, rel=1e-9)
    assert whole.low == pytest.approx(whole.p50 * prices.low)
    assert 0 < whole.low < whole.p50 < whole.high


def test_a_held_layer_saves_time(pipe, plan):
    target = load_target("pixel_9")
    wirings = wire_schedule(plan.schedule, pipe.graph.with_cuts(cut.unit for cut in plan.cuts))
    times = {name: estimate_graph(pipe.graph, target, live=w.live).p50 for name, w in wirings.items()}
    macs = {name: pipe.graph.macs(w.live) for name, w in wirings.items()}
    assert sorted(times, key=times.__getitem__) == sorted(macs, key=macs.__getitem__)


def test_a_plan_says_what_it_stands_on(pipe, plan):
    found = estimate_plan(plan, pipe.graph, load_target("galaxy_s24"))
    assert found.source == "estimated"
    assert found.latency_ms.low < found.latency_ms.p50 < found.latency_ms.high
    assert found.fits is True
    assert "memory_ceiling_gb" in found.unverified


def test_a_small_ceiling_does_not_fit(pipe, plan):
    small = Target(name="small", backends=("onnxruntime",), memory_gb=0.05, memory_ceiling_gb=0.05)
    assert estimate_plan(plan, pipe.graph, small).fits is False


def test_a_chip_without_figures_gets_an_answer_with_a_wider_interval(pipe):
    graph = pipe.graph
    known = estimate_graph(graph, load_target("galaxy_s25"), "onnxruntime", "fp16")
    bare = estimate_graph(graph, Target(name="bare", backends=("onnxruntime",)), "coreml", "fp16")
    assert bare.high / bare.low > known.high / known.low


def test_unknown_precision(pipe):
    with pytest.raises(ConfigError, match="unknown precision 'fp8'; did you mean"):
        estimate_graph(pipe.graph, load_target("pixel_9"), precision="fp8")
