"""Trains the denoiser: Stable Diffusion 1.5's U-Net in small, with its text encoder, on the cached latents.

First the text encoder alone learns to predict the latent that a caption stands for (`train_captions`): at pure noise
that is all a denoiser can say, and a text encoder learns it over ten times faster without the U-Net. Then both are
trained together on v-prediction (Salimans & Ho 2022): v = a eps - s x0 for a noised latent a x0 + s eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgediff.embedded.glyphs import Glyph
from edgediff.embedded.tokenizer_training import LENGTH
from edgediff.embedded.training_loop import Training, Weights
from edgediff.embedded.training_settings import Settings, half_precision

WIDTH = 160  # of the text encoder
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (48, 96, 192),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 3,  # diffusers reads this as the number of heads: 16, 32 and 64 channels each
    "norm_num_groups": 16,
}
PRIMARY_SHARE, EMPTY_SHARE = 0.86, 0.08  # of the captions drawn; the rest are alternatives
EARLY, EARLY_SHARE = 250, 0.1  # times below EARLY show the glyph plainly and are learnt first: few samples go there
HIGHEST_SNR = 5.0  # above it, the error of x0 (not of v) keeps a constant weight
TEXT_RATE = 0.3  # the text encoder's rate over the U-Net's


def make_unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{**UNET, **changes})


def make_text_encoder(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextModel:
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "projection_dim": WIDTH,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextModel(CLIPTextConfig(**{**config, **changes}))


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class Captions:
    """Token ids of every caption: row 0 is the empty prompt, then each glyph's primary and alternatives."""

    def __init__(self, tokenizer: CLIPTokenizer, glyphs: Sequence[Glyph]) -> None:
        texts, first = [""], []
        for glyph in glyphs:
            first.append(len(texts))
            texts += [glyph.primary, *glyph.alternatives]
        self.first, self.count = torch.tensor(first), torch.tensor([1 + len(g.alternatives) for g in glyphs])
        self.ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Ids (n, LENGTH) for the glyphs `rows`: mostly the primary caption, sometimes another, sometimes none."""
        chance, pick = torch.rand(2, len(rows), generator=generator)
        other = 1 + (pick * (self.count[rows] - 1)).long()
        offset = torch.where(chance < PRIMARY_SHARE, 0, other) % self.count[rows]
        chosen: torch.Tensor = self.ids[torch.where(chance > 1 - EMPTY_SHARE, 0, self.first[rows] + offset)]
        return chosen


class Denoiser(nn.Module):
    """The two networks that are trained together."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        context = self.text_encoder(ids).last_hidden_state
        predicted: torch.Tensor = self.unet(noisy, times, context, return_dict=False)[0]
        return predicted


def spread_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """One time per sample, one from each of `count` equally likely intervals: less noise in the gradient."""
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    late = EARLY + (place - EARLY_SHARE) / (1 - EARLY_SHARE) * (1000 - EARLY)
    return torch.where(place < EARLY_SHARE, place / EARLY_SHARE * EARLY, late).long().clamp(max=999)


def denoiser_loss(
    model: nn.Module,
    latents: torch.Tensor,
    ids: torch.Tensor,
    times: torch.Tensor,
    noise: torch.Tensor,
    alphas: torch.Tensor,
) -> torch.Tensor:
    """latents and noise (n, 4, 16, 16); `alphas` is the scheduler's alphas_cumprod (1000,)."""
    kept = alphas[times].view(-1, 1, 1, 1)
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    with half_precision(latents.device.type):
        predicted = model(signal * latents + spread * noise, times, ids)
    error: torch.Tensor = (predicted.float() - (signal * noise - spread * latents)).square().mean((1, 2, 3))
    snr = (kept / (1 - kept)).flatten()
    return (error * (snr.clamp(max=HIGHEST_SNR) + 1) / (snr + 1)).mean()


def train_denoiser(model: Denoiser, latents: torch.Tensor, captions: Captions, settings: Settings) -> Weights:
    """Returns the averaged weights of `Denoiser`."""
    latents = latents.to(settings.device)
    model.unet.set_attn_processor(AttnProcessor())  # plain matrix products: on a CPU their gradient is much the faster
    alphas = make_scheduler().alphas_cumprod.to(settings.device)

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (count,), generator=generator)
        ids, times = captions.draw(rows, generator), spread_times(count, generator)
        noise = torch.randn(count, *latents.shape[1:], generator=generator)
        rows, ids, times, noise = (drawn.to(latents.device) for drawn in (rows, ids, times, noise))
        return denoiser_loss(model, latents[rows], ids, times, noise, alphas)

    groups: list[dict[str, Any]] = [
        {"params": list(model.unet.parameters())},
        {"params": list(model.text_encoder.parameters()), "scale": TEXT_RATE},
    ]
    return Training(model, loss, settings, groups).run()


def train_captions(text_encoder: CLIPTextModel, latents: torch.Tensor, captions: Captions, settings: Settings) -> None:
    """Trains the text encoder in place to predict a glyph's latent from its caption; the head is thrown away."""
    width: int = text_encoder.config.hidden_size
    head = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, latents[0].numel()))
    both = nn.ModuleDict({"text_encoder": text_encoder, "head": head})
    latents = latents.to(settings.device)

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (count,), generator=generator)
        ids = captions.draw(rows, generator).to(latents.device)
        named = head(text_encoder(ids).last_hidden_state.mean(dim=1))
        return F.mse_loss(named, latents[rows.to(latents.device)].flatten(1))

    both.load_state_dict(Training(both, loss, settings).run())
