"""LoRA weights: read in three formats, fused before the cut, and what the cut loses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgediff.errors import ModelError
from edgediff.pipeline import Pipeline
from edgediff.pipeline.lora import fuse_lora, fuse_pipeline, load_lora, read_lora
from edgediff.variants import kept_modules
from tests.tiny import tiny_pipeline

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
RANK = 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("model"))


def factors(pipeline: Pipeline, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    weight = pipeline.denoiser.get_submodule(name).weight
    generator = torch.Generator().manual_seed(len(name))
    tail = (1, 1) if weight.dim() == 4 else ()
    down = torch.randn(RANK, *weight.shape[1:], generator=generator)
    return down, torch.randn(weight.shape[0], RANK, *tail, generator=generator)


def diffusers_state(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """As `StableDiffusionPipeline.save_lora_weights` writes it."""
    state = {}
    for name in (LINEAR, CONV):
        down, up = factors(pipeline, name)
        state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    return state


def test_fused_weights_answer_as_weights_and_lora_would(pipeline):
    state = diffusers_state(pipeline)
    fused = fuse_lora(pipeline.denoiser, read_lora(state, pipeline.denoiser), 0.5)
    for name, shape in ((LINEAR, (3, 16)), (CONV, (2, 16, 8, 8))):
        before, after = pipeline.denoiser.get_submodule(name), fused.get_submodule(name)
        value = torch.randn(shape)
        down, up = state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"]
        if value.dim() == 4:
            change = torch.nn.functional.conv2d(torch.nn.functional.conv2d(value, down, padding=1), up)
        else:
            change = value @ down.T @ up.T
        with torch.no_grad():
            torch.testing.assert_close(after(value), before(value) + 0.5 * change, rtol=1e-4, atol=1e-4)
    ours, theirs = dict(pipeline.denoiser.named_parameters()), dict(fused.named_parameters())
    changed = {name for name, tensor in ours.items() if tensor is not theirs[name]}
    assert changed == {f"{LINEAR}.weight", f"{CONV}.weight"}, "what no LoRA touches is shared, not copied"


@pytest.mark.parametrize("form", ["peft", "old", "processor", "kohya"])
def test_every_format_means_the_same(pipeline, form):
    down, up = factors(pipeline, LINEAR)
    head, _, tail = LINEAR.rpartition(".")
    keys = {
        "peft": (f"unet.{LINEAR}.lora_A.default.weight", f"unet.{LINEAR}.lora_B.default.weight"),
        "old": (f"unet.{LINEAR}.lora.down.weight", f"unet.{LINEAR}.lora.up.weight"),
        "processor": (f"unet.{head}.processor.{tail}_lora.down.weight", f"unet.{head}.processor.{tail}_lora.up.weight"),
        "kohya": tuple(f"lora_unet_{LINEAR.replace('.', '_')}.lora_{part}.weight" for part in ("down", "up")),
    }[form]
    found = read_lora(dict(zip(keys, (down, up), strict=True)), pipeline.denoiser)
    assert list(found) == [LINEAR]
    assert found[LINEAR].down is down
    assert found[LINEAR].up is up


def test_alpha_scales(pipeline, tmp_path):
    state = diffusers_state(pipeline)
    plain = fuse_lora(pipeline.denoiser, read_lora(state, pipeline.denoiser), 2.0).get_submodule(LINEAR).weight
    kohya = {**state, f"unet.{LINEAR}.alpha": torch.tensor(4.0)}
    half = fuse_lora(pipeline.denoiser, read_lora(kohya, pipeline.denoiser), 1.0).get_submodule(LINEAR).weight
    torch.testing.assert_close(plain, half)
    about = json.dumps({"unet.lora_alpha": 4})
    save_file(state, tmp_path / "l.safetensors", {"lora_adapter_metadata": about})
    listed = fuse_lora(pipeline.denoiser, load_lora(tmp_path / "l.safetensors", pipeline.denoiser), 1.0)
    torch.testing.assert_close(listed.get_submodule(LINEAR).weight, plain)


def test_lost_targets_are_those_that_are_cut(pipeline, tmp_path):
    save_file(diffusers_state(pipeline), tmp_path / "mine.safetensors")
    for cuts, lost in ((["down_blocks.0.attentions.0"], (LINEAR,)), ([], ())):
        kept = kept_modules(pipeline.denoiser, pipeline.graph, cuts)
        assert fuse_pipeline(pipeline, tmp_path / "mine.safetensors", 1.0, kept)[1].lost == lost
    kept = kept_modules(pipeline.denoiser, pipeline.graph, ["down_blocks.0.attentions.0"])
    fused, record = fuse_pipeline(pipeline, tmp_path / "mine.safetensors", 1.0, kept)
    assert (record.file, record.targets, record.lost) == ("mine.safetensors", 2, (LINEAR,))
    assert fused.weights == pipeline.weights
    assert fused.denoiser is not pipeline.denoiser


def test_what_is_distilled_is_the_fused_model(pipeline, tmp_path):
    """The teacher has the LoRA too, so at step 0 the uncut part of the student is that of the fused network."""
    from PIL import Image

    from edgediff.documents.recipe import CalibrationTable, DistillTable, Recipe, SamplerTable, StageTable
    from edgediff.flow import distill_model
    from edgediff.variants import load_network

    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("red", encoding="utf-8")
    save_file(diffusers_state(pipeline), tmp_path / "mine.safetensors")
    recipe = Recipe(
        name="l",
        sampler=SamplerTable(steps=2),
        calibration=CalibrationTable(prompts=1),
        prune=(StageTable.model_validate({"kind": "bk_sdm", "preset": "small"}),),
        distill=DistillTable(steps=1, batch=2, rate=1e-9, warm_up=0),
    )
    out = tmp_path / "out"
    record = distill_model(
        pipeline,
        recipe=recipe,
        out=out,
        data=tmp_path / "data",
        lora=tmp_path / "mine.safetensors",
        lora_scale=0.5,
        device="cpu",
    )
    assert record.lora is not None
    assert (record.lora.scale, record.lora.targets) == (0.5, 2)
    fused = fuse_lora(pipeline.denoiser, read_lora(diffusers_state(pipeline), pipeline.denoiser), 0.5)
    network, _ = load_network(out / "unet", pipeline.graph)
    kept = [name for name in (LINEAR, CONV) if name not in record.lora.lost]
    assert kept
    for name in kept:
        torch.testing.assert_close(
            network.get_submodule(name).weight, fused.get_submodule(name).weight, rtol=0, atol=1e-6
        )


def changed(state: dict[str, torch.Tensor], old: str, new: str | None, value: torch.Tensor | None = None) -> dict:
    made = dict(state)
    tensor = made.pop(old)
    if new is not None:
        made[new] = tensor if value is None else value
    return made


def test_bad_files_are_named(pipeline, tmp_path):
    state = diffusers_state(pipeline)
    key = f"unet.{LINEAR}.lora_A.weight"
    cases = [
        (changed(state, key, key.replace("to_q", "to_x")), r"unknown LoRA target '.*to_x'; did you mean '.*'"),
        (changed(state, key, None), "has one factor of two"),
        (changed(state, key, key, torch.zeros(RANK, 5)), r"do not make its weight \[16, 16\]"),
        (changed(state, key, "text_encoder.a.lora_A.weight"), "is a target in the text encoder"),
        (changed(state, key, f"unet.{LINEAR}.lora_magnitude_vector"), "is not of a LoRA format"),
    ]
    for case, message in cases:
        with pytest.raises(ModelError, match=message):
            read_lora(case, pipeline.denoiser)
    (tmp_path / "x").write_bytes(b"pickle")
    for path in (tmp_path / "x", Path("nowhere")):
        with pytest.raises(ModelError, match="is not a safetensors file of LoRA weights"):
            load_lora(path, pipeline.denoiser)
