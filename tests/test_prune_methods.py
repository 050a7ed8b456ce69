"""The kinds beside laptop: bk_sdm, random, magnitude and ld_pruner; budgets and tables of costs."""

from __future__ import annotations

import itertools
import random as lots

import numpy as np
import pytest
import torch

from edgediff.documents.recipe import CalibrationTable, Recipe, StageTable, list_recipes, load_recipe
from edgediff.errors import ConfigError, MethodError, PlanError
from edgediff.graph.units import Unit, UnitGraph
from edgediff.networks import evaluate
from edgediff.prune import bk_sdm, ld_pruner, magnitude, random
from edgediff.prune._budget import Budget, call_time, choose, select_greedily
from edgediff.prune._in_order import remove_in_order
from edgediff.prune._latent_shift import Halves, Moments, shift
from edgediff.prune._unit_costs import read_costs, time_units, write_costs
from edgediff.sampling.trace import calibration_prompts, record_trace, sample_latents
from edgediff.scoring.scores import StageScores, read_spec
from tests.tiny import tiny_pipeline

RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "sampler": {"kind": "ddim", "steps": 1},
        "guidance": {"scale": 1.0},
        "calibration": {"prompts": 2},
    }
)
FEW = ("up_blocks", "down_blocks.0", "down_blocks.1")  # kept, so that little is left to sample


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trace(pipeline):
    return record_trace(pipeline, RECIPE)


@pytest.fixture(scope="module")
def costs(pipeline):
    return {unit.name: (1.0 + index, 0.5) for index, unit in enumerate(pipeline.graph.units)}


def stages(layers: dict[str, int]) -> UnitGraph:
    """A U-Net's names without its wiring."""
    units = [
        Unit(f"{block}.resnets.{i}", "resnet", (), (), "identity", block, f"{block}.layers.{i}", role="resnet")
        for block, count in layers.items()
        for i in range(count)
    ]
    return UnitGraph("unet2d", tuple(units), (), units[-1].name)


SD15 = stages({f"down_blocks.{i}": 2 for i in range(4)} | {"mid_block": 2} | {f"up_blocks.{i}": 3 for i in range(4)})


def test_presets_take_what_the_paper_takes_from_stable_diffusion():
    base = [f"down_blocks.{i}.layers.1" for i in range(4)] + [f"up_blocks.{i}.layers.1" for i in range(4)]
    assert bk_sdm.preset_cuts(SD15, "base") == tuple(base)
    assert set(bk_sdm.preset_cuts(SD15, "small")) == {*base, "mid_block.layers.0", "mid_block.layers.1"}
    inner = {"down_blocks.3.layers.0", "up_blocks.0.layers.0", "up_blocks.0.layers.2"}
    assert set(bk_sdm.preset_cuts(SD15, "tiny")) == {*bk_sdm.preset_cuts(SD15, "small"), *inner}


def test_presets_fit_networks_of_other_sizes(pipeline):
    graph = pipeline.graph  # one pair a stage in the down path, two in the up path
    assert bk_sdm.preset_cuts(graph, "base") == tuple(f"up_blocks.{i}.layers.1" for i in range(3))
    sizes = [graph.with_cuts(bk_sdm.preset_cuts(graph, p)).parameters() for p in ("base", "small", "tiny")]
    assert graph.parameters() > sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(MethodError, match="takes nothing from a network with one pair a stage"):
        bk_sdm.preset_cuts(stages({"down_blocks.0": 1, "up_blocks.0": 1}), "base")
    with pytest.raises(MethodError, match="needs a U-Net"):
        bk_sdm.preset_cuts(stages({"transformer": 3}), "base")


def test_the_handcrafted_cut_proposes_its_preset(pipeline, trace):
    spec = bk_sdm.Spec(preset="small")
    cuts = bk_sdm.propose(spec, bk_sdm.score(spec, pipeline, trace), pipeline.graph)
    assert tuple(cut.unit for cut in cuts) == bk_sdm.preset_cuts(pipeline.graph, "small")


def test_random_keeps_the_best_of_its_draws(pipeline, trace):
    spec = random.Spec(budget={"parameters": 0.8}, best_of=4, timesteps=1)
    scores = random.score(spec, pipeline, trace)
    losses = scores.checks["losses"]
    assert len(losses) == 4 and set(scores.values.values()) == {min(losses)}
    assert scores == random.score(spec, pipeline, trace)
    cuts = random.propose(spec, scores, pipeline.graph)
    assert pipeline.graph.with_cuts(c.unit for c in cuts).parameters() <= 0.8 * pipeline.graph.parameters()
    assert random.score(spec.model_copy(update={"seed": 7}), pipeline, trace).checks["losses"] != losses


def test_magnitude_sums_what_goes(pipeline, trace):
    spec = magnitude.Spec(budget={"parameters": 0.8})
    scores = magnitude.score(spec, pipeline, trace)
    resnet = pipeline.denoiser.get_submodule("up_blocks.1.resnets.0")
    gone = [p for n, p in resnet.named_parameters() if not n.startswith("conv_shortcut")]
    assert scores.values["up_blocks.1.resnets.0"] == pytest.approx(float(sum(p.abs().sum() for p in gone)), rel=1e-5)
    cuts = magnitude.propose(spec, scores, pipeline.graph)
    assert pipeline.graph.with_cuts(c.unit for c in cuts).parameters() <= 0.8 * pipeline.graph.parameters()


# -- budgets --------------------------------------------------------------------------------------


def test_greedy_meets_the_budget_and_takes_nothing_superfluous():
    draw = lots.Random(1)
    for _ in range(50):
        losses, savings = [draw.random() for _ in range(7)], [float(draw.randrange(1, 30)) for _ in range(7)]
        needed = draw.uniform(0.1, 0.9) * sum(savings)
        taken = select_greedily(losses, savings, needed)
        saved = sum(itertools.compress(savings, taken))
        assert saved >= needed
        assert all(saved - one < needed for one in itertools.compress(savings, taken))


@pytest.mark.parametrize("solver", ["milp", "greedy"])
def test_a_budget_of_time_is_met_by_a_table_of_costs(pipeline, costs, solver):
    graph = pipeline.graph
    total = sum(costs[name][0] for name in graph.live().run)
    assert call_time(graph, costs) == total
    losses = dict.fromkeys(("mid_block.resnets.0", "up_blocks.2.resnets.1", "up_blocks.2.attentions.0"), 1.0)
    for budget in (Budget(latency=0.95), Budget(latency_ms=0.95 * total)):
        chosen = choose(budget, losses, graph, costs, solver)
        assert call_time(graph.with_cuts(chosen), costs) <= 0.95 * total
    with pytest.raises(MethodError, match=r"budget \{ latency_ms = 1 \} cannot be met: .* at most \d+\.\d% can be"):
        choose(Budget(latency_ms=1.0), losses, graph, costs)


def test_a_table_of_costs_from_a_file(pipeline, costs, tmp_path):
    file = tmp_path / "costs.json"
    file.write_text(write_costs(costs))
    assert read_costs(file, pipeline.graph) == costs
    file.write_text(write_costs({**costs, "mid_block.resnets.9": (1.0, 0.0)}))
    with pytest.raises(MethodError, match=r"costs.json: unknown unit 'mid_block\.resnets\.9'; did you mean"):
        read_costs(file, pipeline.graph)
    file.write_text(write_costs({"conv_in": (1.0, 0.0)}))
    with pytest.raises(MethodError, match=r"has no time for \d+ units, 'time_embedding' first"):
        read_costs(file, pipeline.graph)
    file.write_text('{"unit_ms": {"conv_in": [1]}}')
    with pytest.raises(ConfigError, match=r"costs.json: .*unit_ms\.conv_in"):
        read_costs(file, pipeline.graph)


def test_units_and_operators_are_timed(pipeline):
    graph = pipeline.graph
    found = time_units(pipeline, operators=True)
    assert set(found) == {*graph.by_name, *graph.operators}
    assert all(whole > 0 and left >= 0 for whole, left in found.values())
    assert found["mid_block.resnets.0"][1] == 0 < found["up_blocks.0.resnets.0"][1]
    cut = graph.with_cuts(["mid_block.resnets.0.conv1"])
    whole, left = found["mid_block.resnets.0.conv1"]
    assert call_time(cut, found) == pytest.approx(call_time(graph, found) - (whole - left))


def test_without_times_of_operators_a_unit_lends_them_by_its_macs(pipeline, costs):
    graph = pipeline.graph
    operator, unit = graph.operators["mid_block.resnets.0.conv1"], graph.by_name["mid_block.resnets.0"]
    cut = graph.with_cuts([operator.name])
    saved = costs[unit.name][0] * operator.macs / unit.macs
    assert call_time(cut, costs) == pytest.approx(call_time(graph, costs) - saved)


# -- LD-Pruner ------------------------------------------------------------------------------------


def test_the_shift_is_that_of_mean_and_standard_deviation():
    one, other = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3) * 2
    a, b = one.double().numpy().reshape(6, -1), other.double().numpy().reshape(6, -1)
    expected = np.linalg.norm(a.mean(0) - b.mean(0)) + np.linalg.norm(a.std(0) - b.std(0))
    assert shift(Moments.of(one), Moments.of(other)) == pytest.approx(expected)
    halves = Halves.of(one[:4]) + Halves.of(one[4:])
    assert halves.shifts(Halves.of(other))[0] == pytest.approx(expected)
    assert halves.shifts(Halves.of(one)) == pytest.approx((0, 0, 0), abs=1e-6)


def test_operators_are_removed_in_order_until_the_budget_is_met(pipeline):
    graph = pipeline.graph
    conv, resnet = "mid_block.resnets.0.conv1", "mid_block.resnets.0"
    order = ("up_blocks.1.resnets.0.norm1", conv, resnet, f"{resnet}.conv2", "mid_block.resnets.1")
    budget = Budget(parameters=graph.with_cuts([resnet, "mid_block.resnets.1"]).parameters() / graph.parameters())
    assert remove_in_order(budget, order, graph, {}) == (resnet, "mid_block.resnets.1")
    assert remove_in_order(Budget(parameters=0.99), order, graph, {}) == (conv,)
    with pytest.raises(MethodError, match=r"cannot be met: removing operators .* leaves 0\.\d+ of the parameters"):
        remove_in_order(Budget(parameters=0.1), order, graph, {})


def test_operators_are_scored_by_the_latents_they_move(pipeline, trace, monkeypatch):
    spec = ld_pruner.Spec(
        budget={"macs": 0.98},
        by="per_mac",
        kinds=("conv", "resnet"),
        seeds=8,
        steps=1,
        keep=FEW,
    )
    names = ld_pruner.operators(pipeline.graph, spec)
    assert "mid_block.resnets.0" in names and "mid_block.resnets.0.conv1" in names
    assert not any(name.startswith(FEW) for name in names)
    sampled: list[int] = []
    sample = ld_pruner._sampler(spec, pipeline, trace).__class__.sample

    def counted(self, cuts, start, stop):
        sampled.append(stop - start)
        return sample(self, cuts, start, stop)

    monkeypatch.setattr(ld_pruner._sampler(spec, pipeline, trace).__class__, "sample", counted)
    scores = ld_pruner.score(spec, pipeline, trace)
    count, half = len(names), -(-len(names) // 2)
    quarter = -(-half // 2)
    assert [rung["operators"] for rung in scores.checks["rungs"]] == [count, half, quarter]
    assert sum(sampled) == 8 + 2 * count + 2 * half + 4 * quarter + 8  # the original, the rungs, all chosen together
    assert scores.checks["share_of_full_cost"] < 0.6
    cuts = ld_pruner.propose(spec, scores, pipeline.graph)
    cut = pipeline.graph.with_cuts(c.unit for c in cuts)
    assert cut.macs() <= 0.98 * pipeline.graph.macs()
    full = ld_pruner.score(spec.model_copy(update={"halving": False}), pipeline, trace)
    survivor = next(name for name in names if scores.values[name] == full.values[name])
    assert survivor  # those that reached the last rung have the score of all seeds
    assert -1 <= full.checks["tau"]["last_rung"] <= 1
    sampled.clear()
    assert ld_pruner.score(spec, pipeline, trace) == scores and not sampled


def test_the_score_is_of_a_network_really_without_the_operator(pipeline, trace):
    spec = ld_pruner.Spec(budget={"macs": 0.98}, seeds=8, steps=1)
    sampler = ld_pruner._sampler(spec, pipeline, trace)
    name = "mid_block.resnets.0"
    [row] = sampler.table.rows
    halves = sampler.sample([name], 0, 2)
    cut = pipeline.graph.with_cuts([name])

    def predict(sample, time, given):
        return evaluate(pipeline.denoiser, cut, cut.live(), {"sample": sample, "timestep": time, **given})[0]

    latents = sample_latents(pipeline, sampler.table, (None,), trace.prompts, trace.seeds, denoiser=predict)
    assert np.allclose((halves.even + halves.odd).mean, Moments.of(latents).mean) and row.timestep > 0


# -- what a user may get wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("bk_sdm", {"preset": "smal"}, "'preset' = 'smal': input should be 'base', 'small' or 'tiny'"),
        ("random", {"budget": {"parameters": 0.5}, "best": 3}, "unknown key 'best'; did you mean 'best_of'"),
        ("magnitude", {}, "key 'budget' is missing"),
        ("ld_pruner", {"budget": {"latency": 0.7}, "seeds": 9}, "'seeds' = 9"),
        ("ld_pruner", {"budget": {"latency": 0.7}, "kinds": ["convs"]}, r"'kinds\.0' = 'convs'"),
        ("laptop", {"budget": {"latency": 0.7, "macs": 0.5}}, "a budget is exactly one of"),
    ],
)
def test_tables_that_do_not_say_what_they_must(kind, options, text):
    with pytest.raises(ConfigError, match=text):
        read_spec("prune", StageTable(kind=kind, **options))


def test_names_that_are_not_there_or_protected(pipeline, trace):
    with pytest.raises(PlanError, match=r"unknown unit 'mid_block\.resnets\.7'; did you mean 'mid_block\.resnets"):
        magnitude.score(magnitude.Spec(budget={"macs": 0.5}, keep=("mid_block.resnets.7",)), pipeline, trace)
    with pytest.raises(PlanError, match=r"unit 'conv_in' \(conv_in\) is protected and cannot be cut"):
        pipeline.graph.with_cuts(["conv_in"])
    with pytest.raises(MethodError, match=r"the scores are not of this network: unknown unit 'transformer\.3'"):
        magnitude.propose(
            magnitude.Spec(budget={"macs": 0.5}), StageScores(values={"transformer.3": 1.0}), pipeline.graph
        )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\n  \n", r"prompts.txt: has no prompts; write one a line"),
        (b"a fox\n\xff\n", r"prompts.txt: is not UTF-8 \(byte 6\)"),
        (b"a fox\n", r"prompts.txt: has 1 prompts, and the recipe asks for 2"),
    ],
)
def test_calibration_prompts_that_cannot_be_read(pipeline, tmp_path, content, text):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        calibration_prompts(pipeline, CalibrationTable(prompts=2, file=str(tmp_path / "prompts.txt")))


def test_recipes_of_the_methods_name_methods_that_exist():
    for name in ("laptop", "ld-pruner", "bk-sdm", "switched", "routed"):
        assert name in list_recipes()
        for stage in load_recipe(name).prune:
            read_spec("prune", stage)
