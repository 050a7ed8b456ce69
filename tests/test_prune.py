"""LAPTOP-Diff's one-shot selection, on a tiny model and against brute force."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from edgediff.documents.recipe import Recipe, StageTable
from edgediff.errors import ConfigError, MethodError
from edgediff.networks import evaluate
from edgediff.prune import laptop
from edgediff.prune._budget import select
from edgediff.prune._candidates import candidates
from edgediff.sampling.trace import record_trace
from edgediff.scoring.scores import Scores, StageScores, read_spec, score_trace
from edgediff.variants import cut_network
from tests.tiny import tiny_pipeline

RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "sampler": {"kind": "ddim", "steps": 6},
        "guidance": {"scale": 3.0},
        "calibration": {"prompts": 2},
        "prune": [{"kind": "laptop", "budget": {"parameters": 0.8}, "timesteps": 2, "subsets": 0}],
    }
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trace(pipeline):
    return record_trace(pipeline, RECIPE)


def test_a_trace_is_what_the_network_was_given(pipeline, trace):
    assert trace.inputs.shape == (2, 6, *pipeline.latent)
    assert trace.conditions["encoder_hidden_states"].shape[0] == 2 and trace.finals.shape == (2, *pipeline.latent)
    assert not torch.equal(trace.inputs[0, 0], trace.inputs[1, 0]), "each prompt has noise of its own"
    again = record_trace(pipeline, RECIPE)
    assert torch.equal(again.inputs, trace.inputs)


def test_selection_is_the_best_there_is():
    draw = random.Random(0)
    for _ in range(60):
        losses = [draw.random() for _ in range(8)]
        savings = [draw.randrange(1, 50) for _ in range(8)]
        needed = draw.uniform(0.2, 0.9) * sum(savings)
        chosen = select(losses, savings, needed)
        best = min(
            sum(itertools.compress(losses, taken))
            for taken in itertools.product((False, True), repeat=8)
            if sum(itertools.compress(savings, taken)) >= needed
        )
        assert sum(itertools.compress(savings, chosen)) >= needed * (1 - 1e-9)
        assert sum(itertools.compress(losses, chosen)) == pytest.approx(best, rel=1e-6)


def test_scores_are_the_output_loss_of_a_network_really_cut(pipeline, trace):
    spec = read_spec("prune", RECIPE.prune[0])
    scores = laptop.score(spec, pipeline, trace).values
    assert tuple(scores) == candidates(pipeline.graph, "layer")
    name = "mid_block.resnets.0"
    inputs = {
        "sample": trace.inputs[:, [0, 5]].flatten(0, 1),
        "timestep": trace.timesteps[[0, 5]].repeat(2),
        "encoder_hidden_states": trace.conditions["encoder_hidden_states"].repeat_interleave(2, 0),
    }
    whole = pipeline.denoiser(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]).sample
    small, cut = cut_network(pipeline.denoiser, pipeline.graph, [name])
    loss = ((evaluate(small, cut, cut.live(), inputs)[0] - whole) ** 2).mean()
    assert scores[name] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("budget", [{"parameters": 0.7}, {"macs": 0.7}])
def test_a_budget_is_met(pipeline, trace, budget):
    spec = laptop.Spec(budget=budget, timesteps=1, subsets=0)
    cuts = laptop.propose(spec, laptop.score(spec, pipeline, trace), pipeline.graph)
    cut = pipeline.graph.with_cuts(c.unit for c in cuts)
    count, share = next(iter(budget.items()))
    assert getattr(cut, count)() <= share * getattr(pipeline.graph, count)()


def test_a_share_of_one_cuts_nothing(pipeline):
    spec = laptop.Spec(budget={"parameters": 1.0})
    assert laptop.propose(spec, StageScores(values={"mid_block.resnets.0": 1.0}), pipeline.graph) == ()


def test_a_budget_that_no_selection_meets_says_how_far_it_goes(pipeline, trace):
    spec = laptop.Spec(budget={"parameters": 0.01}, timesteps=1)
    with pytest.raises(MethodError, match=r"cannot be met: removing all \d+ candidates leaves 0\.\d+ of the param"):
        laptop.score(spec, pipeline, trace)


def test_scores_that_are_not_finite_name_the_unit(pipeline, trace, monkeypatch):
    monkeypatch.setattr(laptop, "score", lambda *_: StageScores(values={"mid_block.resnets.0": float("nan")}))
    with pytest.raises(MethodError, match=r"score of unit 'mid_block\.resnets\.0' by 'laptop' is nan"):
        score_trace(pipeline, trace, RECIPE)


def test_pruning_without_a_trace_is_an_error(pipeline):
    with pytest.raises(MethodError, match="needs a trace"):
        score_trace(pipeline, None, RECIPE)
    assert score_trace(pipeline, None, RECIPE.model_copy(update={"prune": ()})) == Scores(pipeline.graph)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": {"parameters": 0.5}, "timestep": 3}, r"unknown key 'timestep'; did you mean 'timesteps'"),
        ({"budget": {"parameter": 0.5}}, r"unknown key 'budget\.parameter'; did you mean 'parameters'"),
        ({"budget": {"parameters": 0.5, "macs": 0.5}}, "a budget is exactly one of"),
        ({"budget": {"parameters": 1.5}}, r"'budget\.parameters' = 1\.5"),
    ],
)
def test_recipe_tables_of_the_method(options, text):
    with pytest.raises(ConfigError, match=text):
        read_spec("prune", StageTable(kind="laptop", **options))


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ConfigError, match=r"unknown prune kind 'labtop'; did you mean 'laptop'"):
        read_spec("prune", StageTable(kind="labtop"))
