"""The folder for optimum: read by ONNX Runtime here, by optimum itself in the environment it needs."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest

from edgediff.documents.plan import BackendPlan
from edgediff.errors import BackendError, ConfigError, OutputError
from edgediff.layouts import export_layout
from edgediff.metrics import psnr
from edgediff.runtime import open_session
from tests.tiny import tiny_bundle, tiny_pipeline

STEPS = 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    """With a shallow graph besides, so that the full one writes a carry that optimum must not see."""
    out = tmp_path_factory.mktemp("bundle") / "tiny.edgediff"
    return tiny_bundle(out, pipeline, {"onnxruntime": BackendPlan(precision="fp32")})


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    return export_layout(bundle, "optimum", tmp_path_factory.mktemp("layout") / "optimum")


def open_onnx(folder, part):
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / part / "model.onnx"), providers=["CPUExecutionProvider"])


def ends(values):
    return {value.name: (value.type, value.shape) for value in values}


def test_names_types_and_shapes_are_optimums(folder):
    text, unet, decoder = (open_onnx(folder, part) for part in ("text_encoder", "unet", "vae_decoder"))
    assert ends(unet.get_inputs()) == {
        "sample": ("tensor(float)", ["batch", 4, 16, 16]),
        "timestep": ("tensor(int64)", []),
        "encoder_hidden_states": ("tensor(float)", ["batch", 16, 16]),
    }
    assert ends(unet.get_outputs()) == {"out_sample": ("tensor(float)", ["batch", 4, 16, 16])}
    assert ends(text.get_inputs()) == {"input_ids": ("tensor(int64)", ["batch", 16])}
    assert ends(text.get_outputs()) == {
        "last_hidden_state": ("tensor(float)", ["batch", 16, 16]),
        "pooler_output": ("tensor(float)", ["batch", 16]),
    }
    assert ends(decoder.get_inputs()) == {"latent_sample": ("tensor(float)", ["batch", 4, 16, 16])}
    assert ends(decoder.get_outputs()) == {"sample": ("tensor(float)", ["batch", 3, 32, 32])}


def test_graphs_compute_what_pytorch_does_at_any_batch(folder, pipeline):
    import torch

    generator = np.random.default_rng(0)
    ids = generator.integers(0, 500, (3, 16))
    ids[0, 4:] = ids[1, 9:] = ids[2, 15:] = 513
    with torch.no_grad():
        wanted = pipeline.text_encoder(torch.from_numpy(ids))
    found = open_onnx(folder, "text_encoder").run(["last_hidden_state", "pooler_output"], {"input_ids": ids})
    np.testing.assert_allclose(found[0], wanted.last_hidden_state.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], wanted.pooler_output.numpy(), atol=1e-5)
    latent = generator.standard_normal((3, 4, 16, 16)).astype(np.float32)
    with torch.no_grad():
        image = pipeline.vae.decode(torch.from_numpy(latent), return_dict=False)[0].numpy()
        noise = pipeline.denoiser(torch.from_numpy(latent), 401, torch.from_numpy(found[0]), return_dict=False)[0]
    (decoded,) = open_onnx(folder, "vae_decoder").run(None, {"latent_sample": latent})
    np.testing.assert_allclose(decoded, image, atol=1e-4)
    inputs = {"sample": latent, "timestep": np.array(401), "encoder_hidden_states": found[0]}
    np.testing.assert_allclose(open_onnx(folder, "unet").run(None, inputs)[0], noise.numpy(), atol=1e-5)


def test_the_folder_is_complete_and_costs_the_disk_no_more(folder, bundle):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    for part in ("unet", "text_encoder", "vae_decoder"):
        assert {path.name for path in (folder / part).iterdir()} == {"config.json", "model.onnx", "weights.bin"}
        original = bundle.path(f"onnxruntime/{part}/weights.bin")
        assert (folder / part / "weights.bin").stat().st_size == original.stat().st_size
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 16


def test_what_cannot_be_written_leaves_nothing(bundle, pipeline, tmp_path):
    words = r"unknown layout 'optimun'; did you mean 'optimum'\? \(allowed: apple, optimum\)"
    with pytest.raises(ConfigError, match=words):
        export_layout(bundle, "optimun", tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        export_layout(bundle, "optimum", tmp_path / "b", pipeline=pipeline)
    with pytest.raises(OutputError, match="does not exist; create it"):
        export_layout(bundle, "optimum", tmp_path / "none" / "c", pipeline=pipeline)
    eager = tiny_bundle(tmp_path / "e.edgediff", pipeline, {"eager": BackendPlan(precision="fp32")})
    with pytest.raises(BackendError, match=r"no ONNX file of graph 'full', .*; build it with --backend onnxruntime"):
        export_layout(eager, "optimum", tmp_path / "d", pipeline=pipeline)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "e.edgediff"]


OPTIMUM = """
import sys
import numpy as np, torch
from optimum.onnxruntime import ORTStableDiffusionPipeline
folder, noise, steps, count = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
pipe = ORTStableDiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
latents = torch.from_numpy(np.concatenate([noise] * count))
made = pipe(["a red fox"] * count, latents=latents, num_inference_steps=steps, guidance_scale=4.0, output_type="np")
np.save(sys.argv[5], made.images)
"""


@pytest.mark.optimum
@pytest.mark.parametrize("count", [1, 2])
def test_optimum_draws_the_bundles_picture(pipeline, tmp_path, count):
    python = os.environ.get("EDGEDIFF_OPTIMUM_PYTHON")
    assert python, "set EDGEDIFF_OPTIMUM_PYTHON to the python of an environment with optimum-onnx"
    backends = {"onnxruntime": BackendPlan(precision="fp32")}
    bundle = tiny_bundle(tmp_path / "t.edgediff", pipeline, backends, calls=("full",) * STEPS)
    folder = export_layout(bundle, "optimum", tmp_path / "optimum", pipeline=pipeline)
    noise = np.random.default_rng(0).standard_normal((1, *pipeline.latent)).astype(np.float32)
    session = open_session(bundle, "onnxruntime", threads=1)
    *_, last = session.steps("a red fox", latent=noise)
    ours = session.decode(last.latent)
    np.save(tmp_path / "noise.npy", noise)
    script = tmp_path / "run.py"
    script.write_text(OPTIMUM)
    arguments = [str(folder), str(tmp_path / "noise.npy"), str(STEPS), str(count), str(tmp_path / "images.npy")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "images.npy")
    assert images.shape == (count, 32, 32, 3)
    for image in images:
        assert psnr(ours.astype(np.float64), image * 255.0, 255.0) >= 50  # rounding to 8 bit alone comes to 59
