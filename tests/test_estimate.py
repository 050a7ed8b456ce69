"""The estimator: prices add up, intervals widen with ignorance, and what is not known is said."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from edgediff.cli.commands.estimate import estimates_text
from edgediff.documents.plan import BackendPlan
from edgediff.documents.target import Target, load_target
from edgediff.errors import ConfigError
from edgediff.estimate import estimate_graph, estimate_plan, price_units
from edgediff.estimate.coefficients import TERM_NAMES, load_coefficients
from edgediff.estimate.decompose import graph_operators
from edgediff.estimate.device import open_device
from edgediff.estimate.fit import HEXAGON
from edgediff.estimate.fitting import Prior, fit, scaled_design, spec_of, start
from edgediff.estimate.operators import Operator, OperatorTable
from edgediff.estimate.record import record_operators
from edgediff.estimate.roofline import PART_OF
from edgediff.estimate.rows import Chip, Measurement, cpu_rows, hexagon_rows, load_graphs
from edgediff.graph.schedule import wire_schedule
from edgediff.networks import family_of
from edgediff.report.devices import devices_plot
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
    with pytest.raises(ConfigError, match=r"unknown precision 'fp8' \(allowed: bf16, .* w8, w8a16, w8a8\)"):
        estimate_graph(pipe.graph, load_target("pixel_9"), precision="fp8")


def test_devices_are_drawn_with_their_intervals(pipe, plan):
    small = Target(name="too small", backends=("onnxruntime",), memory_gb=0.05, memory_ceiling_gb=0.05)
    found = [estimate_plan(plan, pipe.graph, target) for target in (load_target("galaxy_s25"), small)]
    drawn = ElementTree.fromstring(devices_plot({"balanced": found}))
    words = ["".join(one.itertext()) for one in drawn.iter() if one.tag.endswith("text")]
    assert {"Galaxy S25", "too small", "does not fit", "balanced"} <= set(words)
    circles = [one for one in drawn.iter() if one.tag.endswith("circle")]
    assert [one.get("fill") == "#fff" for one in circles] == [False, True]


def test_the_table_has_80_columns_and_names_what_has_no_class(pipe, plan):
    odd = OperatorTable((Operator("other", 2, reads=1e6, writes=1e6),), {"fft_c2c": 2})
    found = [
        estimate_plan(plan, pipe.graph, load_target(name), components={"text_encoder": odd})
        for name in ("snapdragon_7_gen_3", "iphone_12", "raspberry_pi_5")
    ]
    text = estimates_text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "priced by their traffic: fft_c2c (2)" in " ".join(text.split())
    assert text.splitlines()[1].startswith("Snapdragon 7 Gen 3 p")


def test_what_is_carried_into_a_call_costs_time(pipe):
    target, table = load_target("galaxy_s24"), graph_operators(pipe.graph)
    more = replace(table, ports=table.ports + 1e6)
    assert estimate_graph(more, target).p50 > estimate_graph(table, target).p50


def test_wider_chips_of_one_generation_are_no_faster_and_narrower_ones_slower():
    chips = [Chip(name, "hexagon", {"fp16": peak}, 60.0, 73.0) for name, peak in (("a", 17e3), ("b", 30e3), ("c", 5e3))]
    wide, wider, narrow = (spec_of(HEXAGON, chip) for chip in chips)
    assert wide.tolist() == wider.tolist()
    assert narrow[0] > wide[0]


def test_weights_are_held_once_however_often_they_are_read():
    layer = torch.nn.Linear(8, 8)
    table = record_operators(lambda x: layer(layer(x)), [torch.zeros(1, 8)], layer)
    assert table.parameters == sum(p.numel() for p in layer.parameters())
    assert table.macs == 2 * 64
    assert table.ports == 16


def test_rows_are_of_one_job_and_of_undisturbed_runs():
    rows, chips = cpu_rows()
    assert not any(chip.startswith("CD8180|361") for chip in {row.chip for row in rows}), "slower than one thread"
    assert {chips[row.chip].name for row in rows} >= {"RK3588", "SM8350"}
    assert len({(r.graph, r.chip, r.runtime, r.precision) for r in hexagon_rows()}) == len(hexagon_rows())


def test_measured_chips_are_nearer_than_others(pipe):
    def width(name: str) -> float:
        found = estimate_graph(pipe.graph, load_target(name), "onnxruntime", "fp16")
        return found.high / found.low

    assert width("galaxy_s23") < width("galaxy_s24"), "8 Gen 2 is in the calibration data, 8 Gen 3 is not"


def test_operators_without_a_class_are_counted_and_named():
    class Odd(torch.nn.Module):
        def forward(self, value):
            return torch.linalg.matrix_exp(value).sum()

    table = record_operators(Odd(), [torch.zeros(4, 4)], Odd())
    assert table.unknown == {"linalg_matrix_exp": 1}
    assert any(op.kind == "other" for op in table.operators)


def test_recorded_operators_have_the_macs_and_weights_of_the_module():
    module = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1))
    table = record_operators(module, [torch.zeros(2, 4, 6, 6)], module, batch=2)
    assert table.macs == 36 * (8 * 36 + 8 * 8)
    assert table.parameters == sum(p.numel() for p in module.parameters())
    assert sorted(op.kind for op in table.operators) == ["conv", "pointwise"], "the ReLU goes with the convolution"


def test_units_imply_the_operators_that_are_recorded(pipe):
    inputs = family_of(pipe.denoiser).example_inputs(pipe.denoiser, pipe.sizes)
    exact = record_operators(pipe.denoiser, inputs, pipe.denoiser)
    assert graph_operators(pipe.graph).macs == pytest.approx(exact.macs, rel=0.02)
    device = open_device(load_target("galaxy_s24"), "onnxruntime", "fp16")
    assert device.price(graph_operators(pipe.graph)) == pytest.approx(device.price(exact), rel=0.25)


def test_the_fit_finds_what_made_the_times():
    graphs = {name: load_graphs()[name] for name in ("resnet50", "mobilenet_v2", "vit", "densenet121", "regnet")}
    chips = {name: Chip(name, "x", {"fp16": rate}, 50.0) for name, rate in (("slow", 5e3), ("fast", 2e4))}
    prior = Prior(1e4, 50.0)
    logs = start(prior) + 0.4
    rows = [
        Measurement(
            graph,
            graph,
            chip,
            "r",
            "fp16",
            float(
                np.exp(logs + (prior.slopes() @ spec_of(prior, chips[chip]))[PART_OF])
                @ scaled_design(graphs[graph], prior, "fp16")
            ),
        )
        for graph in graphs
        for chip in chips
    ]
    found = fit(rows, graphs, chips, prior)
    for row in rows:
        said = found.predict(graphs[row.graph], chips[row.chip], "r", "fp16")
        assert said == pytest.approx(row.ms, rel=0.2), "the prior alone is off by a third"
