"""Loading models: from folders, hub ids and architectures, and every way in which that goes wrong."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import torch

from edgediff.errors import ModelError
from edgediff.pipeline import architecture_names, load_pipeline
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_a_folder_loads_in_fp32_without_gradients(folder):
    pipeline = load_pipeline(folder)
    assert pipeline.kind == "text-to-image" and pipeline.latent == (4, 16, 16)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in pipeline.denoiser.parameters())
    assert load_pipeline(folder).weights == pipeline.weights
    assert load_pipeline(pipeline) is pipeline


def test_the_weights_hash_sees_one_changed_byte(copied):
    before = load_pipeline(copied).weights
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert load_pipeline(copied).weights != before


def test_encoding_and_decoding_have_the_right_shapes(folder):
    pipeline = load_pipeline(folder)
    embeddings = pipeline.encode(["red heart", ""])
    assert embeddings.shape == (2, pipeline.tokens, 16)
    assert pipeline.decode(torch.zeros(1, 4, 16, 16)).shape == (1, 3, 32, 32)


def change_index(folder, part, value):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    if value is None:
        del index[part]
    else:
        index[part] = value
    path.write_text(json.dumps(index))


def test_no_index(copied):
    (copied / "model_index.json").unlink()
    with pytest.raises(ModelError, match="is no diffusers folder: model_index.json is missing"):
        load_pipeline(copied)


def test_a_part_missing_in_the_index_or_on_disk(copied):
    shutil.rmtree(copied / "vae")
    with pytest.raises(ModelError, match="the folder 'vae/' is missing"):
        load_pipeline(copied)
    change_index(copied, "vae", None)
    with pytest.raises(ModelError, match="model_index.json has no 'vae'"):
        load_pipeline(copied)


def test_a_part_of_the_wrong_class(copied):
    change_index(copied, "unet", ["diffusers", "FluxTransformer2DModel"])
    with pytest.raises(ModelError, match="'unet' is a FluxTransformer2DModel; edgediff takes .*UNet2DConditionModel"):
        load_pipeline(copied)


def test_pickles_are_refused_and_weights_missing_are_said(copied):
    for path in (copied / "unet").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match=r"weights as \.safetensors are missing"):
        load_pipeline(copied)
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(ModelError, match=r"'diffusion_pytorch_model\.bin' is a pickle") as caught:
        load_pipeline(copied)
    assert caught.value.code == "pickle"


def test_damaged_weights_name_the_part(copied):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="'unet' cannot be loaded as UNet2DConditionModel"):
        load_pipeline(copied)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glyhp", "there is no model 'glyhp'; did you mean 'glyph'"),
        ("random:sd51", "unknown architecture 'sd51'; did you mean 'sd15'"),
    ],
)
def test_names_of_nothing(name, text):
    with pytest.raises(ModelError, match=text):
        load_pipeline(name)


def test_a_single_file_is_no_model(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="a model is a folder in diffusers layout"):
        load_pipeline(path)


def test_a_hub_id_is_fetched_and_goes_down_the_same_path(folder, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pipeline = load_pipeline("owner/name", revision="abc")
    assert pipeline.id == "owner/name" and pipeline.revision == "abc"
    assert asked["revision"] == "abc" and not any("bin" in pattern for pattern in asked["allow_patterns"])
    assert pipeline.weights == load_pipeline(folder).weights


def test_a_hub_that_does_not_answer(monkeypatch):
    def download(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match="hub model 'owner/name' cannot be had: no route to host; check the name"):
        load_pipeline("owner/name")


def test_architectures():
    assert {"sd15", "dit-xl-2", "ddpm-cifar10", "ldm-uncond"} <= set(architecture_names())
