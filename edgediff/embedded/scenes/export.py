"""Writes what has been trained so far as a diffusers pipeline in fp16, with a note of how far it has come."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.package import write_package
from edgediff.embedded.scenes.autoencoder import TEST_COUNT, TEST_SEED, draw_pictures
from edgediff.embedded.scenes.denoiser import PROGRESS, start_denoiser
from edgediff.embedded.scenes.schedule import find_stage
from edgediff.embedded.training_settings import Settings, TrainingError
from edgediff.embedded.vae_training import make_vae, measure_psnr

SCENES = Path(__file__).parent / "weights"


def read_progress(settings: Settings) -> dict[str, int | float | str]:
    """How far a work folder has come, from its checkpoint: samples over all sessions, steps of this folder."""
    steps, seconds, loss = torch.load(settings.checkpoint, map_location="cpu", weights_only=True)["counts"]
    begun = json.loads((settings.folder / "begun.json").read_text(encoding="utf-8"))
    samples = int(begun["samples"]) + steps * settings.batch
    return {
        "samples": samples,
        "steps": steps,
        "seconds": round(float(begun["seconds"]) + seconds),
        "loss": round(loss, 5),
        "stage": find_stage(samples).name,
        "seed": settings.seed,
        "batch": settings.batch,
    }


def export_vae(settings: Settings, folder: Path = SCENES) -> dict[str, int | float]:
    """Writes the averaged autoencoder in fp16 before there is a denoiser, with its progress; returns the progress."""
    state = torch.load(settings.checkpoint, map_location="cpu", weights_only=True)
    vae = make_vae()  # of glyph's sizes, and without a path in its config
    vae.load_state_dict(state["average"])
    vae.eval()
    progress = {
        "samples": 0,
        "seconds": 0,
        "vae_steps": state["counts"][0],
        "vae_samples": state["counts"][0] * settings.batch,
        "vae_seconds": round(state["counts"][1]),
        "vae_db": round(measure_psnr(vae, draw_pictures(TEST_SEED, 0, TEST_COUNT)), 2),
        "seed": settings.seed,
    }
    vae.half().save_pretrained(folder / "vae")
    (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    return progress


def export_model(vae: AutoencoderKL, settings: Settings, folder: Path = SCENES) -> int:
    """Writes the averaged denoiser, the text encoder and the frozen autoencoder; returns the bytes written.

    The autoencoder is left in fp16.
    """
    if not settings.checkpoint.is_file():
        raise TrainingError(
            "no checkpoint to export; run `python -m edgediff.embedded.scenes.train denoiser` first",
            where=str(settings.checkpoint),
        )
    model, progress = start_denoiser(), read_progress(settings)
    model.load_state_dict(torch.load(settings.checkpoint, map_location="cpu", weights_only=True)["average"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = write_package(vae, model.unet, model.text_encoder, GLYPH / "tokenizer", folder)
    (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    return size
