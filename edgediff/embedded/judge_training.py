"""Trains the judge: every glyph is a class, and its pictures are the real one, worn and torn.

Generated pictures are soft and slightly off, so the judge sees shifted, scaled, blurred, noisy and recoloured glyphs,
and glyphs that went through the autoencoder with noise on their latents: the damage that a denoiser does.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import nn

from edgediff.embedded.judge import WIDTH, make_network
from edgediff.embedded.training_loop import Training
from edgediff.embedded.training_settings import Settings, half_precision
from edgediff.embedded.vae_training import encode_pictures, to_signal

SHARPNESS = 20.0  # of the softmax over cosines
LATENT_NOISE = (0.0, 0.2, 0.4, 0.6)  # deviations, in units of a latent channel's own deviation


class JudgeTraining(nn.Module):
    """The network and one direction per glyph, which are thrown away for the gallery at the end."""

    def __init__(self, glyphs: int) -> None:
        super().__init__()
        self.network = make_network()
        self.directions = nn.Parameter(torch.randn(glyphs, WIDTH))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return SHARPNESS * F.normalize(self.network(signal), dim=1) @ F.normalize(self.directions, dim=1).T


def train_judge(
    vae: AutoencoderKL, pictures: torch.Tensor, settings: Settings
) -> tuple[nn.Sequential, NDArray[np.float32]]:
    """pictures uint8 NHWC in glyph order; returns (network, gallery (n, WIDTH))."""
    torch.manual_seed(settings.seed)
    sources = make_sources(vae, pictures).to(settings.device)
    model = JudgeTraining(len(pictures))

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(pictures), (count,), generator=generator)
        source = torch.randint(len(sources), (count,), generator=generator)
        worn = wear(sources[source, rows].to(settings.device).float() / 127.5 - 1.0, generator)
        with half_precision(settings.device):
            scores = model(worn)
        return F.cross_entropy(scores.float(), rows.to(settings.device))

    model.load_state_dict(Training(model, loss, settings).run())
    network = model.network.cpu().eval()
    with torch.no_grad():
        gallery = torch.cat([F.normalize(network(to_signal(part)), dim=1) for part in pictures.cpu().split(256)])
    return network, gallery.numpy()


@torch.no_grad()
def make_sources(
    vae: AutoencoderKL, pictures: torch.Tensor, levels: Sequence[float] = LATENT_NOISE, seed: int = 0
) -> torch.Tensor:
    """uint8 (1 + levels, n, 3, 64, 64): the real pictures, then decoded latents with more and more noise."""
    generator = torch.Generator().manual_seed(seed)
    latents = encode_pictures(vae, pictures)
    sources = [pictures.permute(0, 3, 1, 2)]
    for level in levels:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = latents + level * noise * latents.std()
        decoded = torch.cat([vae.decode(part).sample for part in noisy.split(64)])
        sources.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.stack(sources)


def wear(signal: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift (6 %), scale (10 %), blur, colour jitter and noise, drawn per picture; (n, 3, 64, 64) in -1..1."""
    count, device = len(signal), signal.device
    draw = lambda *shape: (2 * torch.rand(count, *shape, generator=generator) - 1).to(device)  # noqa: E731
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + 0.1 * draw()
    matrix[:, :, 2] = 0.12 * draw(2)  # the side is 2 long in grid units
    grid = F.affine_grid(matrix, list(signal.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - signal, grid, align_corners=False)  # outside the picture is white
    soft = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2.0, mode="bilinear")
    mixed = moved + (soft - moved) * draw(1, 1, 1).clamp_min(0)
    coloured = mixed * (1 + 0.15 * draw(3, 1, 1)) + 0.1 * draw(3, 1, 1)
    noise = torch.randn(signal.shape, generator=generator).to(device)
    return (coloured + 0.15 * draw(1, 1, 1).clamp_min(0) * noise).clamp(-1, 1)
