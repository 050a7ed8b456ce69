"""Writes what has been trained so far as a diffusers pipeline in fp16, with a note of how far it has come."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.package import write_package
from edgediff.embedded.scenes.denoiser import PROGRESS, start_denoiser
from edgediff.embedded.scenes.schedule import find_stage
from edgediff.embedded.training_settings import Settings, TrainingError

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
