"""Trains the autoencoder: 64x64x3 pictures to 16x16x4 latents and back.

Loss: squared error (what PSNR measures) + absolute error + absolute error of the picture's differences (edges, which
a person sees first) + a small KL term, which keeps the latents smooth enough for a denoiser's errors to decode well.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor

from edgediff.embedded.training_loop import Training
from edgediff.embedded.training_settings import Settings, half_precision

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (24, 48, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "scaling_factor": 1.0,
}
KL_WEIGHT = 5e-4


def make_vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(**{**CONFIG, **changes})


def to_signal(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 NHWC to float NCHW in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def vae_loss(vae: AutoencoderKL, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """pictures (n, 3, 64, 64) in -1..1; noise (n, 4, 16, 16) draws the latents."""
    with half_precision(pictures.device.type):
        posterior = vae.encode(pictures).latent_dist
        drawn = vae.decode(posterior.mean + posterior.std * noise).sample
    error: torch.Tensor = drawn.float() - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss: torch.Tensor = 4 * error.square().mean() + 0.5 * error.abs().mean() + 0.5 * edges + KL_WEIGHT * divergence
    return loss


def train_vae(pictures: torch.Tensor, settings: Settings) -> AutoencoderKL:
    """pictures uint8 NHWC; returns the averaged network with its latents normalised."""
    torch.manual_seed(settings.seed)
    vae = make_vae()
    vae.set_attn_processor(AttnProcessor())  # plain matrix products: on a CPU their gradient is much the faster
    pictures = pictures.to(settings.device)

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        rows = torch.randint(len(pictures), (count,), generator=generator)
        noise = torch.randn(count, 4, 16, 16, generator=generator)
        return vae_loss(vae, to_signal(pictures[rows.to(pictures.device)]), noise.to(pictures.device))

    vae.load_state_dict(Training(vae, loss, settings).run())
    return normalise_latents(vae.eval(), pictures)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Posterior means (n, 4, 16, 16) float32 of uint8 NHWC pictures."""
    return torch.cat([vae.encode(to_signal(part)).latent_dist.mean for part in pictures.split(batch)])


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> AutoencoderKL:
    """Folds zero mean and unit deviation per channel into the 1x1 convolutions on both sides of the latents.

    quant_conv writes (mean, logvar): mean' = (mean - m) / s and logvar' = logvar - 2 log s. post_quant_conv reads z and
    gets z' s + m instead, hence W' = W diag(s), b' = b + W m. The pictures stay the same; scaling_factor is 1.
    """
    latents = encode_pictures(vae, pictures)
    m, s = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(m)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ m
    after.weight *= s[None, :, None, None]
    before.weight[:channels] /= s[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - m) / s
    before.bias[channels:] -= 2 * s.log()
    return vae


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, pictures: torch.Tensor, batch: int = 64) -> float:
    """Mean over the pictures of the peak signal-to-noise ratio in dB, on a 0..1 scale, outputs clipped."""
    scores = []
    for part in pictures.split(batch):
        signal = to_signal(part)
        drawn = vae.decode(vae.encode(signal).latent_dist.mean).sample.clamp(-1, 1)
        error = ((drawn - signal) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        scores.append(-10 * error.log10())
    return float(torch.cat(scores).mean())
