"""Trains the denoiser of scenes, warm-started from glyph's U-Net and text encoder.

The loss is glyph's (v-prediction, clamped weights); what is ours is the curriculum, the pool, captions drawn anew each
time a scene is seen, and where the times lie.
"""

from __future__ import annotations

import csv
import time
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel

from edgediff.embedded.denoiser_training import TEXT_RATE, Denoiser, denoiser_loss, make_scheduler
from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.captions import caption_scene, encode_caption
from edgediff.embedded.scenes.pool import Pool
from edgediff.embedded.scenes.scene import Scene
from edgediff.embedded.scenes.schedule import Stage, find_stage
from edgediff.embedded.training_loop import Training, Weights
from edgediff.embedded.training_settings import Settings

# Shares of the samples below each time. A thing of 24 pixels fills about 6x6x4 latent numbers, so it is decided where
# and what it is between 250 and 700; above, only the mean of the caption is to be learnt, below, only sharpness.
TIMES = ((0.0, 0), (0.15, 250), (0.75, 700), (1.0, 1000))
LOG_STEPS = 50


def start_denoiser() -> Denoiser:
    """Glyph's two networks, in fp32."""
    unet = UNet2DConditionModel.from_pretrained(GLYPH / "unet", dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())  # plain matrix products: on a CPU their gradient is much the faster
    return Denoiser(unet, CLIPTextModel.from_pretrained(GLYPH / "text_encoder", dtype=torch.float32)).train()


def draw_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64 from one of `count` equally likely intervals each, spread by TIMES."""
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    shares, ends = zip(*TIMES, strict=True)
    return torch.from_numpy(np.interp(place.numpy(), shares, ends)).long().clamp(max=999)


def draw_ids(scenes: list[Scene], stage: Stage, generator: torch.Generator) -> torch.Tensor:
    """Token ids (n, LENGTH): a caption per scene, or the empty one."""
    rng = np.random.default_rng(int(torch.randint(2**40, (1,), generator=generator)))
    texts = [
        "" if rng.random() < stage.empty else str(caption_scene(scene, rng, relations=stage.relations))
        for scene in scenes
    ]
    return torch.tensor([encode_caption(text) for text in texts])


class ScenesTraining(Training):
    """Glyph's loop, which before each step moves the pool and the stage to where the count of samples stands."""

    def __init__(self, model: Denoiser, pool: Pool, settings: Settings) -> None:
        self.pool, self.stage = pool, find_stage(0)
        self.alphas = make_scheduler().alphas_cumprod
        groups: list[dict[str, Any]] = [
            {"params": list(model.unet.parameters())},
            {"params": list(model.text_encoder.parameters()), "scale": TEXT_RATE},
        ]
        super().__init__(model, self._scene_loss, settings, groups)

    @property
    def samples(self) -> int:
        return self.step * self.settings.batch

    def _scene_loss(self, generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(self.pool.scenes), (count,), generator=generator)
        ids = draw_ids([self.pool.scenes[row] for row in rows.tolist()], self.stage, generator)
        times = draw_times(count, generator)
        latents = self.pool.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        return denoiser_loss(self.module, latents, ids, times, noise, self.alphas)

    def _take_step(self, done: float) -> None:
        self.pool.advance(self.samples)
        self.stage = find_stage(self.samples)
        super()._take_step(done)
        if self.step % LOG_STEPS == 0:
            self._write_row()

    def _write_row(self) -> None:
        """A line of the learning curve: samples, seconds of training, stage, running loss, time of day."""
        with (self.settings.folder / "curve.csv").open("a", newline="", encoding="utf-8") as file:
            row = [self.samples, round(self.seconds), self.stage.name, f"{self.recent:.5f}", round(time.time())]
            csv.writer(file).writerow(row)


def train_scenes(vae: AutoencoderKL, settings: Settings) -> Weights:
    """Trains until the budget or Ctrl-C; returns the averaged weights of `Denoiser`."""
    torch.manual_seed(settings.seed)
    pool = Pool(vae, settings.folder / "pool", settings.seed)
    return ScenesTraining(start_denoiser(), pool, settings).run()
