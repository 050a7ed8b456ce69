"""Prefix reuse, the memo on disk, additivity and re-scoring, on a tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from edgediff import networks
from edgediff.config import cache_folder
from edgediff.documents.recipe import Recipe
from edgediff.errors import ConfigError, MethodError, PlanError
from edgediff.prune import _prefix, laptop
from edgediff.prune._additivity import compare_sums, draw_subsets
from edgediff.prune._budget import Budget
from edgediff.prune._candidates import candidates, close_selection
from edgediff.prune._memo import Memo
from edgediff.prune._prefix import OutputLoss, calibration_batch
from edgediff.sampling.trace import record_trace
from edgediff.scoring.scores import Scores, score_trace
from tests.tiny import tiny_pipeline

RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "sampler": {"kind": "ddim", "steps": 3},
        "guidance": {"scale": 1.0},
        "calibration": {"prompts": 2},
    }
)
RESNETS = ("down_blocks.0.resnets.0", "mid_block.resnets.0", "up_blocks.1.resnets.0", "up_blocks.2.resnets.1")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trace(pipeline):
    return record_trace(pipeline, RECIPE)


@pytest.fixture
def loss(pipeline, trace):
    return OutputLoss(pipeline.denoiser, pipeline.graph, calibration_batch(trace, 2))


@pytest.fixture
def computed(monkeypatch):
    """Names of the units that were run, in order."""
    seen: list[str] = []
    run = networks.evaluate

    def watched(network, graph, live, *rest, **options):
        seen.extend(graph.computed(live))
        return run(network, graph, live, *rest, **options)

    monkeypatch.setattr(networks, "evaluate", watched)
    return seen


@pytest.mark.parametrize("base", [(), ("down_blocks.0.attentions.0",), ("up_blocks.1.resnets.1", "mid_block")])
def test_losses_are_those_of_running_everything(loss, pipeline, trace, base):
    naive = OutputLoss(pipeline.denoiser, pipeline.graph, loss.inputs, reuse=False)
    sets = [[name] for name in RESNETS] + [[RESNETS[2], RESNETS[3]], []]
    ours, theirs = loss.measure(sets, base=base), naive.measure(sets, base=base)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-12)
    assert ours[0] > 0 and (ours[-1] == 0) == (base == ())


def test_what_lies_before_the_cut_is_not_computed_again(loss, pipeline, computed):
    names = [unit.name for unit in pipeline.graph.units]
    loss.measure([[]])
    computed.clear()
    loss.measure([["up_blocks.1.resnets.0"]])
    after = names[names.index("up_blocks.1.resnets.0") + 1 :]
    assert computed == after


def test_chunks_that_fit_the_memory_give_the_same_loss(loss, pipeline):
    one = sum(unit.output_values for unit in pipeline.graph.units) * 4 / 1e9
    small = OutputLoss(pipeline.denoiser, pipeline.graph, loss.inputs, memory_gb=1.5 * one)
    assert small._chunks() == [(0, 1), (1, 2), (2, 3), (3, 4)] and loss._chunks() == [(0, 4)]
    sets = [[name] for name in RESNETS]
    assert small.measure(sets) == pytest.approx(loss.measure(sets), rel=1e-5)


def test_scoring_that_was_killed_goes_on_where_it_stopped(loss, computed):
    def stop(text, done, total):
        if done == 2:
            raise KeyboardInterrupt

    sets = [[name] for name in RESNETS]
    whole = loss.measure(sets)
    with pytest.raises(KeyboardInterrupt), Memo({"test": "killed"}) as loss.memo:
        loss.measure(sets, progress=stop)
    with Memo({"test": "killed"}) as loss.memo:
        assert len(loss.memo) == 2
        computed.clear()
        assert loss.measure(sets) == whole
    assert not any(name.startswith("down_blocks.0.resnets") for name in computed)
    with Memo({"test": "killed"}) as loss.memo:
        computed.clear()
        assert loss.measure(sets) == whole and not computed


def test_a_memo_is_whole_or_not_there(monkeypatch):
    with Memo({"test": "whole"}, interval=0) as memo:
        memo.put("a", 1.0)
        assert json.loads(memo.path.read_text())["values"] == {"a": [1.0]}
        memo.put("b", float("nan"))
    assert Memo({"test": "whole"}).get("b") is None and Memo({"test": "else"}).get("a") is None
    assert [path.name for path in memo.path.parent.glob(".*")] == []
    memo.path.write_text("{ half")
    assert len(Memo({"test": "whole"})) == 0
    assert memo.path.is_relative_to(cache_folder())


def test_two_processes_share_a_memo():
    one, other = Memo({"test": "shared"}), Memo({"test": "shared"})
    one.put("a", 1.0)
    other.put("b", 2.0)
    one.write()
    other.write()
    assert len(Memo({"test": "shared"})) == 2


def test_additivity_figures():
    singles = {"a": 1.0, "b": 2.0, "c": 4.0}
    subsets = [("a", "b"), ("b", "c"), ("a", "c"), ("a", "b", "c")]
    exact = compare_sums(subsets, singles, [3.0, 6.0, 5.0, 7.0], [0.1] * 4)
    assert (exact.r2, exact.r2_line, exact.spearman) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    twice = compare_sums(subsets, singles, [6.0, 12.0, 10.0, 14.0], [0.1] * 4)
    assert twice.r2 < 0 and twice.r2_line == pytest.approx(1) and twice.spearman == pytest.approx(1)
    assert compare_sums(subsets[:2], singles, [3.0, 6.0], [0.1] * 2).r2 is None


def test_subsets_stay_within_the_share(pipeline):
    graph, budget = pipeline.graph, Budget(parameters=0.5)
    names = candidates(graph, "layer")
    subsets = draw_subsets(names, graph, budget, {}, 0.3, 20)
    assert len(subsets) == 20 and all(len(subset) > 1 for subset in subsets)
    assert all(graph.with_cuts(subset).parameters() >= 0.7 * graph.parameters() for subset in subsets)
    assert subsets == draw_subsets(names, graph, budget, {}, 0.3, 20)
    assert draw_subsets(names, graph, budget, {}, 1e-9, 20) == []


def test_re_scoring_keeps_the_better_selection_and_says_what_both_cost(pipeline, trace):
    loss = OutputLoss(pipeline.denoiser, pipeline.graph, calibration_batch(trace, 1))
    spec = laptop.Spec(budget={"macs": 0.75}, granularity="pair", timesteps=1, subsets=4, rescore="always")
    scores = laptop.score(spec, pipeline, trace)
    tried = scores.checks["selections"]
    assert set(tried) == {"one_shot", "rescored"}
    assert scores.checks["additivity"]["r2"] <= 1 and len(scores.checks["additivity"]["measured"]) == 4
    for selection in tried.values():
        assert selection["macs"] <= 0.75 * pipeline.graph.macs()
        assert loss.measure([selection["units"]]) == pytest.approx([selection["output_loss"]], rel=1e-5)
    best = min(tried.values(), key=lambda selection: selection["output_loss"])
    assert list(scores.selection) == best["units"]
    cuts = laptop.propose(spec, scores, pipeline.graph)
    assert [cut.unit for cut in cuts] == best["units"] and {cut.by for cut in cuts} == {"laptop"}


def test_scores_come_back_from_their_file(pipeline, trace):
    stage = {"kind": "laptop", "budget": {"macs": 0.9}, "granularity": "pair", "timesteps": 1, "subsets": 3}
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "prune": [stage]})
    scores = score_trace(pipeline, trace, recipe)
    assert Scores.from_json(pipeline.graph, scores.to_json(), where="x") == scores
    with pytest.raises(ConfigError, match=r"x: key 'stages' is missing"):
        Scores.from_json(pipeline.graph, '{"stage": []}', where="x")


def test_a_loss_that_is_not_finite_names_its_unit(pipeline, trace, monkeypatch):
    monkeypatch.setattr(_prefix.OutputLoss, "measure", lambda self, sets, **_: [float("inf") for _ in sets])
    names = candidates(pipeline.graph, "layer", keep=["up_blocks", "down_blocks.2"])
    with pytest.raises(MethodError, match=rf"score of unit '{names[0]}' by 'laptop' is inf"):
        laptop.score(laptop.Spec(budget={"parameters": 0.9}, keep=("up_blocks", "down_blocks.2")), pipeline, trace)


def test_what_is_kept_is_not_cut(pipeline, trace):
    graph = pipeline.graph
    assert not any(name.startswith("up_blocks") for name in candidates(graph, "layer", keep=["up_blocks"]))
    with pytest.raises(PlanError, match=r"unknown unit 'mid_blok'; did you mean 'mid_block'"):
        laptop.score(laptop.Spec(budget={"parameters": 0.9}, keep=("mid_blok",)), pipeline, trace)
    with pytest.raises(MethodError, match="nothing of this unet2d may be cut"):
        candidates(graph, "unit", keep=[unit.block for unit in graph.units])


def test_granularities_cut_the_same_units_in_other_pieces(pipeline):
    graph = pipeline.graph
    pieces = {g: candidates(graph, g) for g in ("pair", "layer", "unit")}
    assert len(pieces["pair"]) < len(pieces["layer"]) < len(pieces["unit"])
    expanded = {g: graph.expand(close_selection(graph, names)) for g, names in pieces.items()}
    assert expanded["pair"] == expanded["layer"] == expanded["unit"]


def test_a_transformer_that_lost_everything_goes_as_a_whole(pipeline):
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    parts = [f"{block}.{part}" for part in ("attn1", "attn2", "ff")]
    assert close_selection(pipeline.graph, parts) == (*parts, "down_blocks.0.attentions.0")
    assert close_selection(pipeline.graph, parts[:2]) == tuple(parts[:2])


def test_measuring_stays_on_the_device_of_the_network(pipeline, trace):
    """Shapes only: no machine with an accelerator is needed to see that no tensor is left behind."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        network = type(pipeline.denoiser).from_config(pipeline.denoiser.config)
    loss = OutputLoss(network.eval(), pipeline.graph, calibration_batch(trace, 2))
    assert {tensor.device.type for tensor in loss._inputs((0, 2)).values()} == {"meta"}
