"""A-SDM's switching: two networks in one schedule, from the recipe to a bundle that runs both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgediff.backends.eager import eager_runners
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import Recipe, SamplerTable, StageTable
from edgediff.documents.target import load_target
from edgediff.errors import MethodError, PlanError
from edgediff.estimate import estimate_plan
from edgediff.flow import build, plan_build
from edgediff.graph.schedule import Row, Schedule, merge_rows, wire_schedule
from edgediff.networks import evaluate
from edgediff.pipeline import load_pipeline
from edgediff.reuse import Setting
from edgediff.reuse.switch import Spec, propose
from edgediff.runtime import open_session
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import step_table
from edgediff.variants import build_variants, load_network
from edgediff.verify import verify_bundle
from tests.test_variants_distilled import CUTS, write_distilled
from tests.tiny import cached_exports, write_tiny_model

CALLS = 4
SWITCH = StageTable.model_validate({"kind": "switch", "light": "first", "share": 0.5})
PRUNE = StageTable.model_validate({"kind": "bk_sdm", "preset": "small"})
ALONE = Recipe(name="alone", sampler=SamplerTable(steps=CALLS), reuse=(SWITCH,))
CUT = ALONE.model_copy(update={"name": "cut", "prune": (PRUNE,)})
PROMPT = "a"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def distilled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_distilled(base, tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="module")
def pipeline(base):
    return load_pipeline(base)


def setting(pipeline, calls: int = 5) -> Setting:
    table = step_table(pipeline, "ddim", calls)
    return Setting(pipeline.graph.with_cuts(CUTS), table, (None,) * calls)


@pytest.mark.parametrize(
    ("light", "share", "letters"),
    [("first", 0.5, "LLWWW"), ("last", 0.6, "WWLLL"), ("first", 0.01, "LWWWW"), ("last", 0.99, "WLLLL")],
)
def test_each_network_has_its_phase(pipeline, light, share, letters):
    assert str(propose(Spec(light=light, share=share), setting(pipeline))) == letters


def test_a_switch_without_two_networks_is_refused(pipeline, base):
    one = Setting(pipeline.graph, step_table(pipeline, "ddim", 5), (None,) * 5)
    with pytest.raises(MethodError, match=r"nothing is cut: give the recipe a \[\[prune\]\], or MODEL a folder"):
        propose(Spec(), one)
    with pytest.raises(MethodError, match="switch needs two network calls"):
        propose(Spec(), setting(pipeline, 1))
    with pytest.raises(MethodError, match="nothing is cut"):
        plan_build(base, recipe=ALONE, target="host")


def test_rows_compute_their_own_network(pipeline):
    schedule = propose(Spec(), setting(pipeline))
    cut = pipeline.graph.with_cuts(CUTS)
    wirings = wire_schedule(schedule, cut)
    assert wirings["whole"].live == pipeline.graph.live()
    assert wirings["light"].live == cut.live()


def test_what_one_network_computed_the_other_may_hold(pipeline):
    """A unit that the cut took has no value in the light rows: whoever holds it needs a row that ran it."""
    held = CUTS[0].replace("layers", "resnets")
    rows = {"whole": Row(network="untouched"), "light": Row(), "held": Row(network="untouched", hold=(held,))}
    cut = pipeline.graph.with_cuts(CUTS)
    wired = wire_schedule(Schedule(rows=rows, calls=("whole", "light", "held")), cut)
    assert wired["held"].reads == (held,)
    assert wired["whole"].writes == (held,)
    with pytest.raises(PlanError, match=f"reads '{held}', which no earlier call has computed"):
        wire_schedule(Schedule(rows=rows, calls=("light", "held", "whole")), cut)


def test_rows_of_two_networks_are_never_merged(pipeline):
    cut = pipeline.graph.with_cuts(CUTS)
    rows = {"light": Row(), "half": Row(hold=("up_blocks.1",)), "whole": Row(network="untouched")}
    merged = merge_rows(Schedule(rows=rows, calls=("light", "half", "whole")), cut, 2)
    assert merged.rows == {"light": Row(), "whole": Row(network="untouched")}
    with pytest.raises(PlanError, match="max_graphs = 1, but the schedule runs 2 networks"):
        merge_rows(merged, cut, 1)


def test_a_plan_counts_both_networks(pipeline, base, distilled):
    plan = plan_build(base, recipe=CUT, target="host")
    assert plan.schedule.calls == ("light", "light", "whole", "whole")
    light, whole = plan.graphs["light"], plan.graphs["whole"]
    assert (whole.macs, whole.parameters) == (pipeline.graph.macs(), pipeline.graph.parameters())
    cut = pipeline.graph.with_cuts(one.unit for one in plan.cuts)
    assert (light.macs, light.parameters) == (cut.macs(), cut.parameters())
    passes = sum(1 if scale is None else 2 for scale in plan.guidance.calls) // CALLS
    assert plan.cost.macs == 2 * passes * (light.macs + whole.macs)
    shared = estimate_plan(plan, pipeline.graph, load_target("host")).memory_mb
    own = estimate_plan(plan_build(distilled, recipe=ALONE, target="host"), pipeline.graph, load_target("host"))
    assert own.memory_mb - shared > 4e-6 * 0.9 * pipeline.graph.with_cuts(CUTS).parameters(), "weights of its own"


def test_a_cut_alone_shares_all_weights(base, pipeline, tmp_path):
    with cached_exports():
        bundle = build(base, recipe=CUT, target="host", out=tmp_path / "both", backends=["onnxruntime"])
    size = bundle.folder.joinpath("onnxruntime/unet/weights.bin").stat().st_size
    tensors = [p.nbytes for p in pipeline.denoiser.parameters()]
    padding = sum(4096 if size >= 1 << 16 else 64 for size in tensors)
    assert size < sum(tensors) + padding, "a second set would double it"
    assert verify_bundle(bundle).ok


def test_a_distilled_network_brings_its_own_and_the_untouched_one_is_there(base, distilled, tmp_path):
    with cached_exports():
        bundle = build(distilled, recipe=ALONE, target="host", out=tmp_path / "b", backends=["eager"])
    report = verify_bundle(bundle)
    assert report.ok, report
    untouched = load_pipeline(base).denoiser.state_dict()
    found, graph = load_network(bundle.folder / "eager/unet_untouched")
    assert not graph.cuts
    assert all(torch.equal(value, untouched[name]) for name, value in found.state_dict().items())
    assert load_network(bundle.folder / "eager/unet")[1].cuts == graph.expand(CUTS)


def test_the_light_calls_are_those_of_the_distilled_network(distilled, tmp_path):
    pipeline = load_pipeline(distilled)
    plan = plan_build(pipeline, recipe=ALONE, target="host")
    variants = build_variants(pipeline, plan)
    light, cut = variants.networks["own"]
    assert variants.networks["untouched"][0] is pipeline.denoiser
    example = variants.graphs["light"].example
    inputs = dict(zip(pipeline.graph.inputs, example, strict=True))
    runners = eager_runners(variants)
    for name, network, graph in (("light", light, cut), ("whole", pipeline.denoiser, pipeline.graph)):
        with torch.inference_mode():
            wanted, _ = evaluate(network, graph, graph.live(), inputs)
        got = runners[name].run({key: value.numpy() for key, value in inputs.items()})["noise_pred"]
        assert torch.equal(torch.from_numpy(got), wanted)


def test_methods_measure_on_both_networks(distilled, tmp_path):
    """A rollout draws what the bundle draws."""
    pipeline = load_pipeline(distilled)
    with cached_exports():
        bundle = build(distilled, recipe=ALONE, target="host", out=tmp_path / "b", backends=["eager"])
    plan = bundle.plan
    network, cut = load_network(distilled / "unet", pipeline.graph)
    rollout = Rollout(pipeline, [PROMPT], [3], graph=cut, network=network)
    ours = rollout.run(step_table(pipeline, "ddim", CALLS), plan.schedule, plan.guidance)[0]
    *_, last = open_session(bundle, backend="eager").steps(PROMPT, seed=3)
    assert torch.allclose(ours, torch.from_numpy(last.latent), atol=1e-4, rtol=1e-4)


def test_a_rollout_leaves_out_cut_operators(pipeline):
    name = next(iter(pipeline.graph.operators))
    table = step_table(pipeline, "ddim", 2)
    ours, whole = (
        Rollout(pipeline, [PROMPT], [3], graph=graph).run(table)
        for graph in (pipeline.graph.with_cuts([name]), pipeline.graph)
    )
    assert not torch.allclose(ours, whole)


def test_a_plan_for_other_cuts_is_refused(distilled):
    pipeline = load_pipeline(distilled)
    plan = plan_build(pipeline, recipe=ALONE, target="host")
    other = plan.model_copy(update={"cuts": (Cut(unit=CUTS[0], by="hand", score=0.0),)})
    with pytest.raises(PlanError, match="does not cut what the distilled network lacks"):
        build_variants(pipeline, other)
