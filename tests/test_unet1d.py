"""Sound: UNet1DModel as a unit graph, from a folder to a WAV file, and on Core ML."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
import torch
from diffusers import IPNDMScheduler, UNet1DModel

from edgediff.cli.main import main
from edgediff.documents.plan import BackendPlan
from edgediff.documents.recipe import Recipe
from edgediff.errors import BundleError, ModelError, PlanError, SamplerError
from edgediff.networks import Sizes, evaluate, unit_graph
from edgediff.pipeline import load_pipeline
from edgediff.runtime import Session
from edgediff.sampling.trace import step_table
from edgediff.variants import build_variants, cut_network
from tests.tiny_families import SOUND, write_family

LENGTH = SOUND["sample_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("sound") / "model", "sound")


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_pipeline(folder)


def given(batch=2):
    return {
        "sample": torch.randn(batch, 2, LENGTH, generator=torch.Generator().manual_seed(3)),
        "timestep": torch.tensor([0.37]),
    }


def test_all_units_are_the_models_own_forward_bit_for_bit(pipeline):
    """The depthwise resampling too: a dense kernel with a filter on its diagonal adds zeros only."""
    inputs, graph = given(), pipeline.graph
    with torch.no_grad():
        own = pipeline.denoiser(inputs["sample"], inputs["timestep"].expand(2)).sample
        ours, _ = evaluate(pipeline.denoiser, graph, graph.live(), inputs)
    assert torch.equal(own, ours)


def test_costs_are_those_of_the_network(pipeline):
    graph = pipeline.graph
    assert graph.parameters() == sum(p.numel() for p in pipeline.denoiser.parameters())
    first = graph.by_name["down_blocks.0.resnets.0"]
    assert first.shape == (8, LENGTH)
    assert first.macs == LENGTH * (6 * 8 + 5 * 6 * 8 + 5 * 8 * 8)  # the skip, two convolutions of width 5
    assert graph.by_name["down_blocks.1.down"].macs == LENGTH // 2 * 8 * 8  # a filter of 8 taps per channel


def test_cutting_a_layer_leaves_its_shortcut_or_nothing(pipeline):
    inputs, graph = given(), pipeline.graph
    units = ["mid_block.attentions.2", "up_blocks.1.resnets.0", "down_blocks.1.resnets.1"]
    network, cut = cut_network(pipeline.denoiser, graph, units)
    assert sum(p.numel() for p in network.parameters()) == cut.parameters() < graph.parameters()
    with torch.no_grad():
        value, _ = evaluate(network, cut, cut.live(), inputs)
    assert value.shape == inputs["sample"].shape and torch.isfinite(value).all()


@pytest.mark.parametrize("unit", ["down_blocks.0.resnets.0", "up_blocks.2.resnets.2", "mid_block.up"])
def test_ends_and_samplers_are_protected(pipeline, unit):
    with pytest.raises(PlanError, match="is protected"):
        pipeline.graph.with_cuts([unit])


def test_a_held_feature_spares_all_below_it(pipeline):
    """DeepCache's branch 0: what the last block takes from below."""
    from edgediff.reuse.deepcache import deep_feature

    held = deep_feature(pipeline.graph, 0)
    assert held == "up_blocks.1.up"
    live = pipeline.graph.live({held: "hold"})
    assert {name.split(".")[0] for name in live.run} == {"time_embedding", "down_blocks", "up_blocks"}
    assert pipeline.graph.macs(live) < 0.5 * pipeline.graph.macs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra_in_channels": 16}, "takes 16 channels of time .* the time has 4; set time_embedding_dim"),
        ({"use_timestep_embedding": True, "act_fn": "silu"}, "option use_timestep_embedding = True is not described"),
        ({"down_block_types": ("DownBlock1D", "DownBlock1D", "AttnDownBlock1D")}, "DownBlock1DNoSkip first"),
        ({"up_block_types": ("AttnUpBlock1D", "UpResnetBlock1D", "UpBlock1DNoSkip")}, "is not described"),
    ],
)
def test_networks_for_other_things_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        unit_graph(UNet1DModel(**{**SOUND, **change}), Sizes(1, LENGTH))


def test_a_model_that_does_not_say_its_rate_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_rate": None}))
    with pytest.raises(ModelError, match="does not say its sample rate; write sample_rate into unet/config.json"):
        load_pipeline(tmp_path / "m")


def test_sound_has_a_sampler_of_its_own(pipeline):
    with pytest.raises(SamplerError, match="sampler 'ddim' does not fit .* the only one for it is 'ipndm'"):
        step_table(pipeline, "ddim", 4)
    with pytest.raises(SamplerError, match="which is text-to-image: 'ipndm' is for sound"):
        step_table(load_pipeline("glyph"), "ipndm", 4)


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    from edgediff import build
    from edgediff.documents.target import Target

    recipe = Recipe.model_validate(
        {
            "name": "r",
            "sampler": {"kind": "ipndm", "steps": 6},
            "reuse": [{"kind": "deepcache", "interval": 2}],
        }
    )
    target = Target.model_validate({"name": "t", "backends": ["onnxruntime"]})
    return build(str(folder), recipe=recipe, target=target, out=tmp_path_factory.mktemp("built") / "s.edgediff")


def test_a_bundle_of_sound_verifies(bundle):
    from edgediff.verify import verify_bundle

    found = verify_bundle(bundle).backends["onnxruntime"]
    assert found.ok and min(graph.psnr_db for graph in found.graphs.values()) >= 120
    assert found.programs["main"].image.psnr_db >= 90


def test_the_untouched_program_makes_what_dance_diffusion_does(pipeline):
    """The same noise through diffusers' own model, scheduler and loop, as its pipeline runs them."""
    from edgediff.backends.eager import eager_runners
    from edgediff.bundle.assemble import make_manifest
    from edgediff.documents.target import Target
    from edgediff.flow import plan_pipeline

    recipe = Recipe.model_validate({"name": "r", "sampler": {"kind": "ipndm", "steps": 6}})
    plan = plan_pipeline(pipeline, recipe, Target.model_validate({"name": "t", "backends": ["eager"]}))
    variants = build_variants(pipeline, plan)
    manifest = make_manifest(pipeline, plan, variants, [], name="t")
    session = Session(manifest, {}, eager_runners(variants))
    sound = torch.randn(1, 2, LENGTH, generator=torch.Generator().manual_seed(5))
    *_, last = session.steps(latent=sound.numpy())
    scheduler = IPNDMScheduler.from_config(pipeline.scheduler)
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for time in scheduler.timesteps:
            sound = scheduler.step(pipeline.denoiser(sound, time).sample, time, sound).prev_sample
    np.testing.assert_allclose(last.latent, sound.numpy(), rtol=2e-4, atol=2e-4 * float(sound.abs().max()))


def test_run_writes_a_wav_file_of_16_bit(bundle, tmp_path, capsys):
    out = tmp_path / "a.wav"
    assert main(["run", str(bundle.folder), "", str(out), "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] == str(out)
    with wave.open(str(out)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        samples = np.frombuffer(file.readframes(LENGTH), "<i2").reshape(LENGTH, 2)
    np.testing.assert_array_equal(samples, bundle.generate(seed=3).samples)
    assert samples.any()


def test_sound_is_written_as_wav_only(bundle, tmp_path, capsys):
    assert main(["run", str(bundle.folder), "", str(tmp_path / "a.png")]) == 2
    assert "the bundle is unconditional-audio; give a name that ends in .wav" in capsys.readouterr().err


def test_samples_are_rounded_and_clamped():
    from edgediff.runtime.sound import to_samples

    found = to_samples(np.array([[0.0, 1.0, -1.0, 1.5], [0.5, -2.0, 1e-6, -0.5]]))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, [[0, 16384], [32767, -32767], [-32767, 0], [32767, -16384]])


def test_a_manifest_says_the_rate_of_sound_and_of_nothing_else(bundle):
    manifest = bundle.manifest
    manifest.check()
    silent = manifest.decoder.model_copy(update={"sample_rate": None})
    for changed in ({"decoder": silent}, {"makes": "image"}):
        with pytest.raises(BundleError, match="sample_rate") as refused:
            manifest.model_copy(update=changed).check()
        assert refused.value.code == "decoder"


@pytest.mark.parametrize(("precision", "floor"), [("fp16", 60.0), ("fp32", 120.0)])
def test_core_ml_s_programs_are_pytorch(pipeline, tmp_path, precision, floor):
    """Kernels of the resampling are constants there, and the evaluator computes what was converted."""
    pytest.importorskip("coremltools")
    from edgediff import mil
    from edgediff.backends import coreml, eager
    from edgediff.documents.target import Target
    from tests.test_coreml import example, near, typed
    from tests.tiny import tiny_plan

    backends = {"coreml": BackendPlan(precision=precision, format="mlpackage")}
    plan = tiny_plan(pipeline, backends, scale=None, calls=("full",))
    variants = build_variants(pipeline, plan)
    artifacts = coreml.lower(variants, Target.model_validate({"name": "t", "backends": ["coreml"]}), tmp_path)
    for name, variant in variants.graphs.items():
        inputs = {**example(variant, 1), "timestep": np.array([0.7], np.float32)}
        runner = coreml.open_runner(tmp_path, typed(variant), artifacts.graphs[name], batch=1, threads=1)
        reference, found = eager.eager_runners(variants)[name].run(inputs), runner.run(inputs)
        assert min(near(reference[key], found[key]) for key in found) >= floor
    kinds = {step.kind for step in mil.load(tmp_path / artifacts.graphs["full"].file).function().steps}
    assert "conv_transpose" in kinds and not kinds & {"scatter", "scatter_nd", "range_1d", "fill"}
