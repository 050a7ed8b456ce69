"""From recipe to picture on a tiny random model, and what a build leaves behind when it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest

import edgediff as ed
from edgediff import flow
from edgediff.bundle import open_bundle
from edgediff.documents.recipe import Recipe
from edgediff.errors import ConfigError, OutputError
from edgediff.runtime import open_session
from edgediff.sampling.trace import guidance_calls, sample_latents, step_table
from tests.tiny import tiny_pipeline

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "sampler": {"kind": "ddim", "steps": 4},
        "guidance": {"scale": 3.0},
        "calibration": {"prompts": 1},
        "prune": [{"kind": "laptop", "budget": {"parameters": 0.9}, "timesteps": 1}],
        "reuse": [{"kind": "deepcache", "interval": 2}],
    }
)
UNTOUCHED = RECIPE.model_copy(update={"prune": (), "reuse": (), "name": "untouched"})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    told = []
    out = tmp_path_factory.mktemp("out") / "tiny.edgediff"
    built = ed.build(pipeline, recipe=RECIPE, out=out, progress=lambda *said: told.append(said))
    patch.undo()
    assert told[-1][0] == "writing the bundle" and all(done <= total for _, done, total in told)
    return built


def test_the_bundle_opens_strictly_and_holds_what_was_planned(bundle):
    again = open_bundle(bundle.folder)
    assert again.manifest == bundle.manifest
    assert str(again.plan.schedule) == "FsFs" and again.plan.cuts
    assert set(again.manifest.graphs) == {"full", "shallow", "text_encoder", "vae_decoder"}
    assert [row.graph for row in again.manifest.program().rows] == ["full", "shallow"] * 2
    golden = sorted(path.stem for path in (bundle.folder / "golden").iterdir())
    assert golden == sorted(again.manifest.graphs)


def test_it_makes_a_picture_that_depends_on_prompt_and_seed_only(bundle):
    first = np.asarray(bundle.generate("red heart", seed=0))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, np.asarray(bundle.generate("red heart", seed=0)))
    assert not np.array_equal(first, np.asarray(bundle.generate("red heart", seed=1)))
    assert not np.array_equal(first, np.asarray(bundle.generate("blue car", seed=0)))


def test_every_artifact_computes_what_pytorch_computes(bundle, pipeline):
    report = ed.verify_bundle(bundle, pipeline=pipeline)
    assert report.ok
    for graph in report.backends["onnxruntime"].graphs.values():
        assert graph.psnr_db >= 60.0
    assert report.backends["onnxruntime"].programs["main"].image.psnr_db >= 35.0


def test_the_untouched_bundle_is_the_reference_sampler(pipeline, tmp_path):
    bundle = ed.build(pipeline, recipe=UNTOUCHED, out=tmp_path / "none.edgediff")
    table = step_table(pipeline, "ddim", 4)
    expected = sample_latents(pipeline, table, guidance_calls(3.0, (0.0, 1.0), 4), ["red heart"], [5])
    *_, last = open_session(bundle).steps("red heart", seed=5)
    assert np.allclose(last.latent, expected.numpy(), atol=2e-4 * float(expected.abs().max()))


def test_an_output_that_exists_is_refused_before_any_work(bundle, monkeypatch):
    monkeypatch.setattr("edgediff.pipeline.load_pipeline", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(OutputError, match="exists"):
        flow.build("glyph", recipe=RECIPE, out=bundle.folder)


def test_a_wrong_recipe_or_target_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("edgediff.pipeline.load_pipeline", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"unknown target 'hosst'; did you mean 'host'"):
        flow.build("glyph", recipe=RECIPE, target="hosst", out=tmp_path / "a")
    wrong = Recipe.model_validate({"name": "x", "reuse": [{"kind": "deepcache", "intervall": 2}]})
    with pytest.raises(ConfigError, match=r"unknown key 'intervall'; did you mean 'interval'"):
        flow.build("glyph", recipe=wrong, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_build_that_was_broken_off(pipeline, tmp_path, monkeypatch, raised):
    def stop(variants, target, out):
        (out / "half").write_text("half a graph")
        raise raised

    monkeypatch.setattr("edgediff.backends.onnxruntime.lower", stop)
    with pytest.raises(raised):
        ed.build(pipeline, recipe=UNTOUCHED, out=tmp_path / "none.edgediff")
    assert not list(tmp_path.iterdir())
