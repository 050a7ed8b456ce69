"""Trains the denoiser of scenes, warm-started from glyph's U-Net and text encoder.

The loss is glyph's (v-prediction, clamped weights); what is ours is the curriculum, the pool, captions drawn anew each
time a scene is seen, and where the times lie.
"""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel

from edgediff.embedded.denoiser_training import Denoiser, denoiser_loss, make_scheduler
from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.captions import caption_scene, encode_caption
from edgediff.embedded.scenes.pool import CHUNK, Pool
from edgediff.embedded.scenes.scene import Scene
from edgediff.embedded.scenes.schedule import Stage, find_stage
from edgediff.embedded.training_loop import Training, Weights
from edgediff.embedded.training_settings import Settings

# Shares of the samples below each time. A thing of 24 pixels fills about 6x6x4 latent numbers, so it is decided where
# and what it is between 250 and 700; above, only the mean of the caption is to be learnt, below, only sharpness.
TIMES = ((0.0, 0), (0.15, 250), (0.75, 700), (1.0, 1000))
LOG_STEPS = 50
TEXT_RATE = 0.5  # of the U-Net's: glyph's text encoder knows nouns, but no relations
PROGRESS = "progress.json"


def start_denoiser(weights: Path = GLYPH) -> Denoiser:
    """The two networks of a model folder, glyph's by default, in fp32."""
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())  # plain matrix products: on a CPU their gradient is much the faster
    return Denoiser(unet, CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32)).train()


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

    def __init__(self, model: Denoiser, pool: Pool, settings: Settings, before: int = 0) -> None:
        """`before`: samples that the model's weights had seen when this work folder was begun."""
        self.supply, self.stage, self.before = pool, find_stage(before), before
        self.alphas = make_scheduler().alphas_cumprod
        groups: list[dict[str, Any]] = [
            {"params": list(model.unet.parameters())},
            {"params": list(model.text_encoder.parameters()), "scale": TEXT_RATE},
        ]
        super().__init__(model, self._scene_loss, settings, groups)

    @property
    def samples(self) -> int:
        return self.before + self.step * self.settings.batch

    def _scene_loss(self, generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(self.supply.scenes), (count,), generator=generator)
        ids = draw_ids([self.supply.scenes[row] for row in rows.tolist()], self.stage, generator)
        times = draw_times(count, generator)
        latents = self.supply.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        return denoiser_loss(self.module, latents, ids, times, noise, self.alphas)

    def _take_step(self, done: float) -> None:
        self.supply.advance(self.samples)
        self.stage = find_stage(self.samples)
        super()._take_step(done)
        if self.step % LOG_STEPS == 0:
            self._write_row()

    def _write_row(self) -> None:
        """A line of the learning curve: samples, seconds of training (waiting included), stage, running loss, Unix
        time, and processor seconds since this process began."""
        path = self.settings.folder / "curve.csv"
        begun = path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not begun:
                writer.writerow(["samples", "seconds", "stage", "loss", "unix_time", "processor_seconds"])
            row = [self.samples, round(self.seconds), self.stage.name, f"{self.recent:.5f}", round(time.time())]
            writer.writerow([*row, round(time.process_time())])


def train_scenes(vae: AutoencoderKL, settings: Settings, weights: Path | None = None, chunk: int = CHUNK) -> Weights:
    """Trains until the budget or Ctrl-C; returns the averaged weights of `Denoiser`.

    `weights`: a folder written by `export`, from which a new work folder begins; glyph where it is None. What had been
    trained then is noted in the work folder, which from then on goes on from its own checkpoint.
    """
    torch.manual_seed(settings.seed)
    settings.folder.mkdir(parents=True, exist_ok=True)
    begun = settings.folder / "begun.json"
    if not begun.is_file():
        text = (weights / PROGRESS).read_text(encoding="utf-8") if weights else json.dumps({"samples": 0, "seconds": 0})
        begun.write_text(text, encoding="utf-8")
    before = int(json.loads(begun.read_text(encoding="utf-8"))["samples"])
    pool = Pool(vae, settings.folder / "pool", settings.seed, chunk)
    return ScenesTraining(start_denoiser(weights or GLYPH), pool, settings, before).run()
