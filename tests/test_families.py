"""Models without text from folder to bundle to picture: class-conditional DiTs, unconditional U-Nets."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline

import edgediff as ed
from edgediff.documents.recipe import CalibrationTable, GuidanceTable, Recipe
from edgediff.errors import BackendError, ConfigError, EvaluationError, MethodError, ModelError
from edgediff.flow import distill_model, plan_build
from edgediff.layouts import export_layout
from edgediff.pipeline import load_pipeline
from edgediff.profiling.worker import time_image
from edgediff.runtime import open_session
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import (
    asked_guidance,
    calibration_prompts,
    guidance_calls,
    record_trace,
    sample_latents,
    step_table,
)
from tests.tiny import cached_exports
from tests.tiny_families import KINDS, write_family

RECIPE = Recipe.model_validate(
    {"name": "tiny", "sampler": {"kind": "ddim", "steps": 4}, "guidance": {"scale": 3.0}, "calibration": {"prompts": 2}}
)


def reusing(kind, **options):
    return Recipe.model_validate({**RECIPE.model_dump(), "name": kind, "reuse": [{"kind": kind, **options}]})


BUILDS = {
    "dit": (reusing("fora", interval=2), "onnxruntime"),
    "dit-pixel": (RECIPE, "eager"),
    "ddpm": (reusing("deepcache", interval=2), "onnxruntime"),
    "ldm": (RECIPE, "onnxruntime"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {kind: write_family(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def pipelines(folders):
    return {kind: load_pipeline(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def bundles(pipelines, tmp_path_factory):
    root, made = tmp_path_factory.mktemp("bundles"), {}
    with cached_exports():
        for kind, (recipe, backend) in BUILDS.items():
            out = root / f"{kind}.edgediff"
            made[kind] = ed.build(pipelines[kind], recipe=recipe, out=out, backends=[backend])
    return made


# -- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "what", "latent", "picture"),
    [
        ("dit", "class-to-image", (4, 8, 8), (3, 16, 16)),
        ("dit-pixel", "class-to-image", (1, 8, 8), (1, 8, 8)),
        ("ddpm", "unconditional-image", (3, 8, 8), (3, 8, 8)),
        ("ldm", "unconditional-image", (3, 8, 8), (3, 16, 16)),
        ("ldm-kl", "unconditional-image", (4, 8, 8), (3, 16, 16)),
    ],
)
def test_a_folder_loads_as_what_it_is(pipelines, kind, what, latent, picture):
    pipeline = pipelines[kind]
    assert (pipeline.kind, pipeline.latent) == (what, latent)
    assert pipeline.decode(torch.zeros(1, *latent)).shape == (1, *picture)
    assert pipeline.denoiser_name == ("transformer" if what == "class-to-image" else "unet")
    assert pipeline.graph.by_name[pipeline.graph.output].shape == latent


def test_classes_have_names_and_a_class_of_no_class(pipelines):
    classes = pipelines["dit"].classes
    assert classes.names == ("tench", "crane 1", "crane 2", "goldfish", "hen")  # both cranes of ImageNet are "crane"
    assert classes.count == classes.null == 5
    given, null = pipelines["dit"].conditions(["crane 2", " 4 "])
    assert given["class_labels"].tolist() == [2, 4] and null["class_labels"].tolist() == [5]
    with pytest.raises(ConfigError, match=r"'crain' is no class: give a number from 0 to 4, or a name; did you mean"):
        pipelines["dit"].conditions(["crain"])
    with pytest.raises(ConfigError, match=r"'5' is no class: give a number from 0 to 4$"):
        pipelines["dit-pixel"].conditions(["5"])
    assert pipelines["ddpm"].conditions(["", ""]) == ({}, {})


def test_what_is_asked_of_a_model_follows_its_kind(pipelines):
    table = CalibrationTable(prompts=7)
    classes = calibration_prompts(pipelines["dit"], table)
    assert sorted(classes[:5]) == ["0", "1", "2", "3", "4"] and classes[5:] == classes[:2]
    assert calibration_prompts(pipelines["ddpm"], table) == ("",) * 7
    guidance = GuidanceTable(scale=3.0)
    assert asked_guidance(pipelines["dit"], guidance, 2) == (3.0, 3.0)
    assert asked_guidance(pipelines["ddpm"], guidance, 2) == (None, None)


def test_a_trace_holds_the_classes(pipelines):
    trace = record_trace(pipelines["dit"], RECIPE)
    assert trace.inputs.shape == (2, 4, 4, 8, 8) and trace.conditions["class_labels"].shape == (2,)
    assert record_trace(pipelines["ddpm"], RECIPE).conditions == {}


# -- sampling -------------------------------------------------------------------------------------


def test_pictures_are_those_of_diffusers_own_pipeline(pipelines, monkeypatch):
    """Learned variances: the first half of the channels is the noise, there and here."""
    pipeline = pipelines["dit"]
    table = step_table(pipeline, "ddim", 4)
    rollout = Rollout(pipeline, ["3"], [7])
    start = rollout.starts(slice(0, 1)).float()
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **given: start)
    theirs = DiTPipeline(pipeline.denoiser, pipeline.vae, DDIMScheduler.from_config(pipeline.scheduler))
    theirs.set_progress_bar_config(disable=True)
    expected = theirs([3], guidance_scale=1.0, num_inference_steps=4, output_type="np").images[0]
    found = rollout.pictures(rollout.run(table))[0].numpy()
    assert np.abs(found / 255.0 - expected).max() < 0.51 / 255


@pytest.mark.parametrize(("kind", "prompt"), [("dit", "goldfish"), ("ddpm", "")])
def test_a_rollout_of_the_whole_network_is_the_reference(pipelines, kind, prompt):
    pipeline = pipelines[kind]
    table = step_table(pipeline, "ddim", 4)
    guidance = asked_guidance(pipeline, RECIPE.guidance, 4)
    found = Rollout(pipeline, [prompt, prompt], [5, 6]).run(table, None, guidance)
    expected = sample_latents(pipeline, table, guidance, [prompt, prompt], [5, 6])
    assert torch.allclose(found, expected.float(), atol=1e-5)
    if kind == "dit":
        alone = sample_latents(pipeline, table, guidance_calls(1.0, (0.0, 1.0), 4), [prompt] * 2, [5, 6])
        assert not torch.allclose(alone, expected, atol=1e-3)


# -- bundles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILDS)
def test_a_bundle_keeps_what_pytorch_makes(bundles, pipelines, kind):
    report = ed.verify_bundle(bundles[kind], pipeline=pipelines[kind])
    assert report.ok, report


def test_a_dit_bundle_says_what_it_holds(bundles):
    manifest = bundles["dit"].manifest
    assert manifest.kind == "class-to-image" and not manifest.encoders and not manifest.tokenizers
    assert set(manifest.graphs) == {"full", "reuse", "vae_decoder"}
    assert [row.graph for row in manifest.program().rows] == ["full", "full", "reuse", "full"]
    labels = next(spec for spec in manifest.graphs["full"].inputs if spec.name == "class_labels")
    assert (labels.dtype, labels.shape) == ("int64", ("batch",))
    assert len(manifest.graphs["reuse"].carries_in) == 6
    assert manifest.graphs["reuse"].macs < 0.2 * manifest.graphs["full"].macs
    assert not (bundles["dit"].folder / "tokenizer").exists() and "  prompt" in str(bundles["dit"])


def test_a_class_is_asked_for_by_name_or_number(bundles):
    session = open_session(bundles["dit"])
    pictures = {}
    for prompt in ("goldfish", "3", "0"):
        *_, last = session.steps(prompt, seed=1)
        pictures[prompt] = session.decode(last.latent)
    assert pictures["3"].shape == (16, 16, 3)
    assert np.array_equal(pictures["goldfish"], pictures["3"]) and not np.array_equal(pictures["0"], pictures["3"])
    with pytest.raises(ConfigError, match=r"'gold fish' is no class: .* did you mean 'goldfish'"):
        session.steps("gold fish")
    with pytest.raises(ConfigError, match=r"a negative prompt has no effect .* \(its guidance reads no text\)"):
        session.steps("3", "ugly")
    assert time_image(session, 0) > 0


def test_an_unconditional_bundle_takes_no_prompt(bundles):
    manifest = bundles["ddpm"].manifest
    assert manifest.decoder.graph is None and set(manifest.graphs) == {"full", "shallow"}
    assert all(row.guidance is None for row in manifest.program().rows) and manifest.program().rows[0].update.clip
    picture = np.asarray(bundles["ddpm"].generate(seed=3))
    assert picture.shape == (8, 8, 3) and not np.array_equal(picture, np.asarray(bundles["ddpm"].generate(seed=4)))
    with pytest.raises(ConfigError, match="this program takes no prompt; leave it empty"):
        bundles["ddpm"].generate("a dog")
    assert time_image(open_session(bundles["ddpm"]), 0) > 0


def test_grey_pixels_make_a_grey_picture(bundles):
    picture = bundles["dit-pixel"].generate("4", seed=0)
    assert (picture.size, picture.mode) == ((8, 8), "L")


# -- what goes wrong ------------------------------------------------------------------------------


def test_what_needs_text_says_so(bundles, pipelines, tmp_path):
    with pytest.raises(EvaluationError, match="is class-to-image; evaluation compares text-to-image bundles"):
        ed.evaluate_bundle(bundles["dit"])
    recipe = Recipe.model_validate(
        {"name": "d", "prune": [{"kind": "laptop", "budget": {"parameters": 0.9}}], "distill": {"steps": 1}}
    )
    with pytest.raises(ModelError, match="distillation needs a text-to-image model; .* is unconditional-image"):
        distill_model(pipelines["ddpm"], recipe=recipe, out=tmp_path / "d")
    with pytest.raises(BackendError, match="the layout 'optimum' covers"):
        export_layout(bundles["dit"], "optimum", tmp_path / "o")


@pytest.mark.parametrize(
    ("kind", "method", "text"),
    [
        (
            "ddpm",
            "tgate",
            "tgate works on units of role cross-attention, and this unet2d network has none; .* can have some: unet2d",
        ),
        ("ddpm", "fora", "fora works on units of role stream, and this unet2d network has none; .* can have some: dit"),
        (
            "dit",
            "deepcache",
            "deepcache works on units of role resnet, and this dit network has none; .*: unet1d, unet2d",
        ),
    ],
)
def test_methods_refuse_families_that_they_do_not_serve(pipelines, kind, method, text):
    with pytest.raises(MethodError, match=text):
        plan_build(pipelines[kind], recipe=reusing(method))


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders["dit"], tmp_path / "model")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_transformer_of_another_class(copied):
    change_json(copied / "model_index.json", transformer=["diffusers", "PixArtTransformer2DModel"])
    with pytest.raises(ModelError, match="'transformer' is a PixArtTransformer2DModel; edgediff takes DiTTransformer"):
        load_pipeline(copied)


def test_published_dits_are_pickles(copied):
    for path in (copied / "transformer").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"'diffusion_pytorch_model\.bin' is a pickle"):
        load_pipeline(copied)


def test_a_decoder_of_other_latents(copied, folders):
    shutil.rmtree(copied / "vae")
    shutil.copytree(folders["ldm"] / "vqvae", copied / "vae")
    change_json(copied / "model_index.json", vae=["diffusers", "VQModel"])
    with pytest.raises(ModelError, match="makes latents of 4 channels, its decoder takes 3"):
        load_pipeline(copied)


def test_a_size_that_is_not_said(folders, tmp_path):
    copied = shutil.copytree(folders["ddpm"], tmp_path / "model")
    change_json(copied / "unet" / "config.json", sample_size=None)
    with pytest.raises(ModelError, match=r"does not say its size; write sample_size into unet/config\.json"):
        load_pipeline(copied)


def test_a_scheduler_that_is_missing(copied):
    shutil.rmtree(copied / "scheduler")
    with pytest.raises(ModelError, match="scheduler/scheduler_config.json is missing"):
        load_pipeline(copied)
