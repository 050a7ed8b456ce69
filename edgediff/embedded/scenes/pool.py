"""The pool of encoded scenes that the denoiser is trained on: a sliding window of chunks.

Chunk c of a seed holds the scenes c * CHUNK to (c + 1) * CHUNK - 1, drawn for the stage in which it is needed, and
their latents. A new chunk is encoded after REUSE * CHUNK samples, so a scene is seen about REUSE times; the oldest
leaves. Which chunks are in the window follows from the number of samples alone, so a run that continues has the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from edgediff.embedded.scenes.render import render_scenes
from edgediff.embedded.scenes.scene import Scene, draw_scene
from edgediff.embedded.scenes.schedule import find_stage
from edgediff.embedded.training_settings import half_precision
from edgediff.embedded.vae_training import to_signal

CHUNK = 3_000
REUSE = 3
WINDOW = 6  # chunks


class Pool:
    """`scenes[i]` has the latents `latents[i]` (4, 16, 16)."""

    scenes: list[Scene]
    latents: torch.Tensor

    def __init__(self, vae: AutoencoderKL, folder: Path, seed: int, chunk: int = CHUNK) -> None:
        self.vae, self.folder, self.seed, self.chunk = vae, folder, seed, chunk
        self._chunks: dict[int, tuple[list[Scene], torch.Tensor]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def advance(self, samples: int) -> None:
        """Makes the window what it is after `samples`; encodes what is new and forgets what is old."""
        wanted = list(wanted_chunks(samples, self.chunk))
        if wanted == list(self._chunks):
            return
        self._chunks = {c: self._chunks.get(c) or self._load(c) for c in wanted}
        self.scenes = [scene for scenes, _ in self._chunks.values() for scene in scenes]
        self.latents = torch.cat([latents for _, latents in self._chunks.values()])
        for path in self.folder.glob("chunk-*.npy"):
            if path not in map(self._path, wanted):
                path.unlink()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.npy"

    def _load(self, chunk: int) -> tuple[list[Scene], torch.Tensor]:
        stage = find_stage(chunk * self.chunk * REUSE)
        scenes = [draw_scene(self.seed, chunk * self.chunk + i, stage.pairs) for i in range(self.chunk)]
        path = self._path(chunk)
        if not path.is_file():
            np.save(path.with_suffix(".tmp.npy"), encode_scenes(self.vae, scenes).half().numpy())
            os.replace(path.with_suffix(".tmp.npy"), path)
        return scenes, torch.from_numpy(np.load(path)).float()


def wanted_chunks(samples: int, chunk: int = CHUNK) -> Iterator[int]:
    """The chunks in the window, ascending: at first one, later WINDOW of them."""
    newest = samples // (REUSE * chunk)
    return iter(range(max(0, newest - WINDOW + 1), newest + 1))


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], batch: int = 50) -> torch.Tensor:
    """Posterior means (n, 4, 16, 16), fp32."""
    parts = []
    for start in range(0, len(scenes), batch):
        signal = to_signal(torch.from_numpy(render_scenes(scenes[start : start + batch])))
        with half_precision("cpu"):
            parts.append(vae.encode(signal).latent_dist.mean.float())
    return torch.cat(parts)
