"""A denoiser that diffusers does not have: residual layers over the pixels of a small picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """x + out(silu(norm(x) + time)), `[batch, width]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, value: Tensor, time: Tensor) -> Tensor:
        return value + self.out(nn.functional.silu(self.norm(value) + time))


class MixerDenoiser(nn.Module):
    """`config` holds `in_channels`, `sample_size`, `width` and `layers`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        pixels, width = config["in_channels"] * config["sample_size"] ** 2, config["width"]
        self.time, self.entry = nn.Linear(2, width), nn.Linear(pixels, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(config["layers"]))
        self.exit = nn.Linear(width, pixels)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        time, value = self.embed(timestep, len(sample)), self.entry(sample.flatten(1))
        for layer in self.layers:
            value = layer(value, time)
        return self.exit(value).reshape(sample.shape)

    def embed(self, timestep: Tensor, count: int) -> Tensor:
        """`[count, width]` of one timestep."""
        angle = timestep.expand(count) / 1000.0
        return self.time(torch.stack([angle.sin(), angle.cos()], dim=1))
