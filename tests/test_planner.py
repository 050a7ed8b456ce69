"""DeepCache's schedule, and the plan as a decision record."""

from __future__ import annotations

import pytest

from edgediff.documents.plan import Plan
from edgediff.documents.recipe import Recipe, load_recipe
from edgediff.documents.target import load_target
from edgediff.errors import ConfigError, MethodError, PlanError
from edgediff.flow import plan_pipeline
from edgediff.graph.schedule import Row, Schedule, merge_rows, wire_schedule
from edgediff.reuse import Setting, deepcache
from edgediff.runtime.steps import StepRow, StepTable, Update
from edgediff.variants import build_variants
from tests.tiny import tiny_pipeline

HOST = load_target("host")


def make_recipe(**changes) -> Recipe:
    base = {
        "name": "t",
        "sampler": {"kind": "ddim", "steps": 10},
        "guidance": {"scale": 3.0},
        "reuse": [{"kind": "deepcache", "interval": 2, "branch": 0}],
    }
    return Recipe.model_validate({**base, **changes})


def setting_of(graph, calls: int) -> Setting:
    row = StepRow(timestep=0.0, update=Update(x=(1.0,), e=(1.0,)))
    return Setting(graph, StepTable(sampler="hand", steps=calls, init_scale=1.0, rows=(row,) * calls), (None,) * calls)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


def test_branch_0_runs_the_first_convolution_and_the_last_layer_only(pipeline):
    graph = pipeline.graph
    schedule = deepcache.propose(deepcache.Spec(interval=3), setting_of(graph, 7))
    assert str(schedule) == "FssFssF"
    shallow = wire_schedule(schedule, graph)["shallow"]
    blocks = {graph.by_name[name].layer or name for name in shallow.live.run}
    last = [unit for unit in graph.units if unit.block.startswith("up_blocks")][-1].layer
    assert blocks == {"conv_in", "time_embedding", last, "conv_out"}
    assert len(shallow.reads) == 1


def test_deeper_branches_cost_more_and_a_branch_too_deep_is_an_error(pipeline):
    graph = pipeline.graph
    costs = []
    for branch in range(4):
        schedule = deepcache.propose(deepcache.Spec(interval=2, branch=branch), setting_of(graph, 4))
        costs.append(graph.macs(wire_schedule(schedule, graph)["shallow"].live))
    assert costs == sorted(costs) and len(set(costs)) == 4
    with pytest.raises(MethodError, match=r"branch = 99 is deeper than the network: it has branches 0 to \d"):
        deepcache.propose(deepcache.Spec(branch=99), setting_of(graph, 4))
    assert str(deepcache.propose(deepcache.Spec(interval=1), setting_of(graph, 4))) == "FFFF"


def test_a_plan_is_deterministic_and_reads_back(pipeline):
    first = plan_pipeline(pipeline, make_recipe(), HOST)
    second = plan_pipeline(pipeline, make_recipe(), HOST)
    assert first.to_json() == second.to_json()
    assert Plan.model_validate_json(first.to_json()) == first
    assert all(len(line) <= 80 for line in str(first).splitlines())
    assert "FsFsFsFsFs" in str(first)


def test_the_equal_compute_baseline_is_never_cheaper_than_the_plan(pipeline):
    for interval in (1, 2, 3, 5):
        recipe = make_recipe(reuse=[{"kind": "deepcache", "interval": interval}])
        cost = plan_pipeline(pipeline, recipe, HOST).cost
        assert cost.equal_compute.macs >= cost.macs
        assert 1 <= cost.equal_compute.steps <= 10
    assert cost.macs < cost.reference_macs


def test_guidance_interval_is_priced_and_written_down(pipeline):
    recipe = make_recipe(guidance={"scale": 3.0, "interval": [0.0, 0.5]}, reuse=[])
    plan = plan_pipeline(pipeline, recipe, HOST)
    assert plan.guidance.calls == (3.0,) * 5 + (None,) * 5
    assert plan.cost.macs == pipeline.graph.macs() * 15


def test_samplers_with_more_calls_than_steps(pipeline):
    plan = plan_pipeline(pipeline, make_recipe(sampler={"kind": "heun", "steps": 5}), HOST)
    assert plan.sampler.calls == 9 == len(plan.schedule.calls)


def test_cuts_from_a_recipe_reach_the_plan(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
    stages = [{"kind": "laptop", "budget": {"parameters": 0.9}, "timesteps": 1}]
    recipe = make_recipe(prune=stages, calibration={"prompts": 1})
    plan = plan_pipeline(pipeline, recipe, HOST)
    assert plan.cuts and plan.graphs["full"].parameters <= 0.9 * pipeline.graph.parameters()
    assert len(list((tmp_path / "scores").glob("*.json"))) == 1
    assert plan_pipeline(pipeline, recipe, HOST) == plan, "cached scores give the same plan"


def test_rows_are_merged_until_they_fit_at_the_least_added_cost(pipeline):
    one = plan_pipeline(pipeline, make_recipe(max_graphs=1), HOST)
    assert list(one.graphs) == ["full"]
    assert one.cost.macs == one.cost.reference_macs
    graph = pipeline.graph
    joins = [unit.stream[0] for unit in graph.units if unit.kind == "resnet" and unit.block.startswith("up_blocks")]
    rows = {"full": Row(), "a": Row(hold=(joins[-1],)), "b": Row(hold=(joins[-2],)), "c": Row(hold=(joins[-3],))}
    schedule = Schedule(rows=rows, calls=("full", "a", "b", "c", "a"))
    merged = merge_rows(schedule, graph, 2)
    assert len(set(merged.calls)) == 2
    best = min(
        _partition_cost(graph, rows, schedule.calls, parts)
        for parts in ([("full",), ("a", "b", "c")], [("full", "c"), ("a", "b")], [("full", "b", "c"), ("a",)])
    )
    found = sum(graph.macs(graph.live(merged.rows[name].actions(graph))) for name in merged.calls)
    assert found <= best
    with pytest.raises(PlanError, match="max_graphs = 0"):
        merge_rows(schedule, graph, 0)


def _partition_cost(graph, rows, calls, parts) -> int:
    total = 0
    for part in parts:
        held = frozenset.intersection(*(graph.expand(rows[name].hold) for name in part))
        total += graph.macs(graph.live(dict.fromkeys(held, "hold"))) * sum(name in part for name in calls)
    return total


def test_plans_that_cannot_be(pipeline):
    with pytest.raises(ConfigError, match=r"unknown backend 'onnxruntim'; did you mean 'onnxruntime'"):
        plan_pipeline(pipeline, make_recipe(), HOST, backends=["onnxruntim"])
    plan = plan_pipeline(pipeline, make_recipe(), HOST)
    shorter = plan.model_copy(update={"sampler": plan.sampler.model_copy(update={"calls": 9})})
    with pytest.raises(PlanError, match=r"has 10 calls, but sampler 'ddim' with 10 steps makes 9"):
        build_variants(pipeline, shorter)
    other = plan.model_copy(update={"model": plan.model.model_copy(update={"weights": "0" * 64})})
    with pytest.raises(PlanError, match="plan again for this model"):
        build_variants(pipeline, other)


@pytest.mark.parametrize("name", ["none", "balanced", "deepcache"])
def test_recipes_of_the_package_read(name):
    assert load_recipe(name).name == name
