"""A-SDM's assembly: shallow stages first, what is gone counts, and a layer stays in every stage."""

from __future__ import annotations

import pytest

from edgediff.documents.recipe import CalibrationTable, Recipe, SamplerTable
from edgediff.errors import MethodError
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.prune import assembly
from edgediff.sampling.trace import Trace, record_trace
from edgediff.variants import cut_network
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trace(pipeline: Pipeline) -> Trace:
    recipe = Recipe(name="t", sampler=SamplerTable(steps=3), calibration=CalibrationTable(prompts=2))
    return record_trace(pipeline, recipe)


def spec(share: float, keep: int = 1, kind: str = "macs") -> assembly.Spec:
    return assembly.Spec.model_validate({"budget": {kind: share}, "keep": keep, "timesteps": 2})


def test_shallow_stages_come_first():
    stages = assembly.spare_layers(load_pipeline("glyph").graph, 1)
    blocks = [names[0].partition(".layers")[0] for names, _ in stages]
    assert blocks == [
        "up_blocks.2",
        "down_blocks.0",
        "up_blocks.1",
        "down_blocks.1",
        "up_blocks.0",
        "mid_block",
        "down_blocks.2",
    ]
    assert [count for _, count in stages] == [2, 1, 2, 1, 2, 1, 1]


def test_the_budget_is_met_and_no_more_goes(pipeline, trace):
    for share in (0.9, 0.75):
        scores = assembly.score(spec(share), pipeline, trace)
        cuts = assembly.propose(spec(share), scores, pipeline.graph)
        names = [cut.unit for cut in cuts]
        whole = pipeline.graph.macs()
        assert pipeline.graph.with_cuts(names).macs() <= share * whole
        assert pipeline.graph.with_cuts(names[:-1]).macs() > share * whole
        network, graph = cut_network(pipeline.denoiser, pipeline.graph, names)
        assert sum(p.numel() for p in network.parameters()) == graph.parameters()


def test_every_stage_keeps_its_layers(pipeline, trace):
    least = assembly.spare_layers(pipeline.graph, 1)
    names = {cut for stage, _ in least for cut in stage}
    scores = assembly.score(spec(0.75), pipeline, trace)
    for stage, count in least:
        assert len([name for name in stage if name in scores.values]) <= count
    assert set(scores.values) <= names


def test_each_loss_is_that_of_all_gone_so_far(pipeline, trace):
    from edgediff.prune._measure import open_output_loss

    scores = assembly.score(spec(0.75), pipeline, trace)
    gone = list(scores.selection or ())
    loss, memo = open_output_loss(pipeline, trace, 2, 2.0)
    with memo:
        measured = loss.measure([gone[: index + 1] for index in range(len(gone))])
    assert [scores.values[name] for name in gone] == pytest.approx(measured, rel=1e-5)


def test_an_impossible_budget_says_the_most(pipeline, trace):
    with pytest.raises(MethodError, match="cannot be met: .* at most"):
        assembly.score(spec(0.05), pipeline, trace)
