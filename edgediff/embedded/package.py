"""The embedded model on disk: diffusers' own layout, fp16, written beside the old folder and swapped in by renaming."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.embedded.glyphs import HERE
from edgediff.errors import EdgeDiffError

if TYPE_CHECKING:
    from torch import nn

MODEL = HERE / "glyph"
LICENCE = HERE / "OFL.txt"  # the font's: weights trained on its pictures travel with it
LARGEST = 25_000_000  # bytes of all files together


def write_package(
    vae: nn.Module, unet: nn.Module, text_encoder: nn.Module, tokenizer_folder: Path, folder: Path = MODEL
) -> int:
    """Writes a StableDiffusionPipeline; returns its bytes. The networks are left in fp16."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from edgediff.embedded.denoiser_training import make_scheduler

    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder),
        unet=unet.half(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    beside = folder.with_name(folder.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside, safe_serialization=True)
    shutil.rmtree(beside / "tokenizer")  # transformers 5 writes tokenizer.json; phones read vocab.json and merges.txt
    shutil.copytree(tokenizer_folder, beside / "tokenizer")
    _forget_paths(beside)
    shutil.copy2(LICENCE, beside / LICENCE.name)
    size = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
    if size > LARGEST:
        raise EdgeDiffError(
            f"the package has {size:,} bytes; {LARGEST:,} are allowed", code="embedded.size", where=str(beside)
        )
    swap_in(beside, folder)
    return size


def _forget_paths(folder: Path) -> None:
    """diffusers notes where a network was loaded from: a path of the machine that packed it."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def swap_in(beside: Path, folder: Path) -> None:
    """Replaces `folder` by `beside`; a reader sees the old or the new, never half of one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)
