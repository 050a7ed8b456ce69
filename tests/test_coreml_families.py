"""Networks of other families, each in another form of attention and for another release: converted and evaluated.

Sound (UNet1DModel) is in tests/test_unet1d.py. A whole DiT bundle's programs are checked at every run, the rest with
`-m slow`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiTTransformer2DModel, UNet2DModel
from torch import nn

pytest.importorskip("coremltools")

from edgediff import mil
from edgediff.backends import coreml, eager
from edgediff.backends._attention import rewrite_attention
from edgediff.backends._capture import capture_program
from edgediff.backends.coreml.convert import convert_program
from edgediff.documents.plan import BackendPlan
from edgediff.documents.target import parse_target
from edgediff.metrics import psnr
from edgediff.runtime.manifest import TensorSpec
from edgediff.variants import Variant, build_variants
from tests.test_coreml import example, near, typed
from tests.tiny import tiny_plan
from tests.tiny_families import family_pipeline

MODELS = {
    "dit": lambda: DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ),
    "unet2d": lambda: UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "vae tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ),
}
SHAPES = {"dit": (2, 4, 8, 8), "unet2d": (1, 3, 16, 16), "vae tiny": (1, 4, 8, 8)}
FORMS = [("sdpa", "iOS18"), ("original", "iOS17"), ("split_einsum", "iOS16")]
FLOORS = {"fp16": 60.0, "fp32": 120.0}


class Called(nn.Module):
    """A model as a graph of tensors."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, sample, *rest):
        if self.name == "vae tiny":
            return (self.model.decode(sample, return_dict=False)[0],)
        time = rest[0].expand(sample.shape[0])
        labels = {"class_labels": rest[1]} if len(rest) > 1 else {}
        return (self.model(sample, time, **labels, return_dict=False)[0],)


def make(name):
    torch.manual_seed(0)
    module = Called(MODELS[name]().eval().requires_grad_(False), name)
    for parameter in module.parameters():  # norms that start at 0 would hide what is behind them
        if float(parameter.abs().max()) == 0:
            nn.init.normal_(parameter, std=0.05)
    inputs = {"sample": torch.randn(SHAPES[name])}
    if name != "vae tiny":
        inputs["timestep"] = torch.tensor([801.0])
    if name == "dit":
        inputs["class_labels"] = torch.tensor([3, 7])
    specs = tuple(
        TensorSpec(name=key, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape))
        for key, value in inputs.items()
    )
    with torch.no_grad():
        output = module(*inputs.values())[0]
    out = TensorSpec(name="output", dtype="float32", shape=tuple(output.shape))
    variant = Variant(name, name, module, tuple(inputs.values()), specs, (out,), {}, {})
    return variant, {key: value.numpy() for key, value in inputs.items()}, output.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("precision", FLOORS)
@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_every_family_is_pytorch(name, precision, tmp_path):
    form, deployment = FORMS[list(MODELS).index(name) % 3]
    variant, inputs, reference = make(name)
    program = capture_program(variant, 1)
    rewrite_attention(program, form)
    path = tmp_path / "model.mlpackage"
    convert_program(program, variant, 1, path, precision=precision, deployment=deployment, islands=("time",))
    found = mil.load(path, precision=precision).run(**inputs)["output"]
    db = psnr(reference, found, float(np.abs(reference).max()), cap=200)
    print(f"{name}, {form} for {deployment}, {precision}: {db:.1f} dB")
    assert db >= FLOORS[precision]


@pytest.mark.parametrize("precision", FLOORS)
def test_the_programs_of_a_dit_are_pytorch(precision, tmp_path):
    """The denoiser by our own units, guided, classes as int32; as the backend lowers it."""
    pipeline = family_pipeline(tmp_path / "dit", "dit")
    backends = {"coreml": BackendPlan(precision=precision, format="mlpackage")}
    variants = build_variants(pipeline, tiny_plan(pipeline, backends, calls=("full",)))
    variant = variants.graphs["full"]
    table = {"islands": ["time"]}
    target = parse_target({"name": "t", "backends": ["coreml"], "coreml": table}, where="t")
    one = replace(variants, graphs={"full": variant})
    artifact = coreml.lower(one, target, tmp_path / "out").graphs["full"]
    inputs = {**example(variant, 2), "class_labels": np.array([5, 3])}
    runner = coreml.open_runner(tmp_path / "out", typed(variant), artifact, batch=2, threads=1)
    reference, found = eager.eager_runners(variants)["full"].run(inputs), runner.run(inputs)
    assert near(reference["noise_pred"], found["noise_pred"]) >= FLOORS[precision]
