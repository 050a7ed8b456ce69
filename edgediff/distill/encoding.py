"""Texts as token ids and pictures as latents, as the pipeline's own parts make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


def encode_texts(pipeline: Pipeline, texts: list[str]) -> Tensor:
    """Token ids `[n, tokens]`."""
    from edgediff.pipeline.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(pipeline.tokenizer_folder)
    return torch.tensor([tokenizer.encode(text, pipeline.tokens) for text in texts])


def encode_pictures(vae: Any, pixels: Tensor) -> Tensor:
    """Scaled latents of `[n, 3, height, width]` in [-1, 1]: the posterior's means, nothing drawn."""
    with torch.no_grad():
        means: Tensor = vae.encode(pixels).latent_dist.mean
    return (means - float(getattr(vae.config, "shift_factor", None) or 0.0)) * float(vae.config.scaling_factor)
