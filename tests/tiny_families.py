"""Tiny models that take no text, in diffusers layout: a DiT in latents and in pixels, DDPM-like and LDM-like U-Nets,
and one for sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet1DModel, UNet2DModel, VQModel

from edgediff.pipeline import Pipeline, load_pipeline, quiet_libraries

SIZE, CLASSES = 8, 5
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": SIZE,
    "patch_size": 2,
    "num_embeds_ada_norm": CLASSES,
}
UNET: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
DECODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
LABELS = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane", "3": "goldfish", "4": "hen"}
SOUND: dict[str, Any] = {
    "sample_size": 64,
    "sample_rate": 8000,
    "extra_in_channels": 4,
    "time_embedding_dim": 4,
    "block_out_channels": (8, 32, 32),
}
SOUND_SCHEDULER = {"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000}
KINDS = ("dit", "dit-pixel", "ddpm", "ldm", "ldm-kl")


def write_family(folder: Path, kind: str) -> Path:
    """Writes one of `KINDS`, or `sound`, to `folder` with weights of a fixed seed, and returns it."""
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        parts = _parts(kind)
        for name, module in parts.items():
            _excite(module)
            module.save_pretrained(folder / name)
    index = {name: ["diffusers", type(module).__name__] for name, module in parts.items()}
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    named: dict[str, Any] = {"_class_name": PIPELINES[kind], **index}
    if kind == "dit":
        named.update(id2label=LABELS, transformer=["diffusers", "Transformer2DModel"])  # as the published ones are
    (folder / "scheduler").mkdir()
    clip = {"clip_sample": True} if "vae" not in parts and "vqvae" not in parts else {}
    scheduler = SOUND_SCHEDULER if kind == "sound" else {**SCHEDULER, **clip}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(named))
    return folder


def family_pipeline(folder: Path, kind: str) -> Pipeline:
    """The model of `write_family`, loaded."""
    return load_pipeline(write_family(folder, kind))


PIPELINES = {
    "dit": "DiTPipeline",
    "dit-pixel": "DiTPipeline",
    "ddpm": "DDPMPipeline",
    "ldm": "LDMPipeline",
    "ldm-kl": "LDMPipeline",
    "sound": "DanceDiffusionPipeline",
}


def _parts(kind: str) -> dict[str, Any]:
    vae = {**DECODER, "latent_channels": 4}
    match kind:
        case "dit":
            return {"transformer": DiTTransformer2DModel(**DIT), "vae": AutoencoderKL(**vae)}
        case "dit-pixel":
            pixels = {**DIT, "in_channels": 1, "out_channels": 1}
            return {"transformer": DiTTransformer2DModel(**pixels)}
        case "ddpm":
            return {"unet": UNet2DModel(**UNET)}
        case "sound":
            return {"unet": UNet1DModel(**SOUND)}
        case "ldm":
            return {"unet": UNet2DModel(**UNET), "vqvae": VQModel(**DECODER, latent_channels=3, num_vq_embeddings=32)}
    latents = {**UNET, "in_channels": 4, "out_channels": 4}
    return {"unet": UNet2DModel(**latents), "vae": AutoencoderKL(**vae)}


def _excite(module: torch.nn.Module) -> None:
    """Nothing stays at zero: gates of adaLN that do would hide what they multiply."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
