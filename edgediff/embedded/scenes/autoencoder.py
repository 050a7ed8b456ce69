"""Tunes glyph's autoencoder on scenes, and freezes it: latents must not move once the denoiser learns them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.render import render_scenes
from edgediff.embedded.scenes.scene import draw_scene
from edgediff.embedded.training_loop import Training, load_average
from edgediff.embedded.training_settings import Settings
from edgediff.embedded.vae_training import measure_psnr, normalise_latents, to_signal, vae_loss

PAIRS = 0.85  # share of the scenes with two things
NORMAL_COUNT = 2048  # scenes over which the latents get mean 0 and deviation 1
TEST_SEED, TEST_COUNT = 999, 256  # the scenes on which dB are measured; nothing is trained on this seed


def draw_pictures(seed: int, first: int, count: int, pairs: float = PAIRS) -> torch.Tensor:
    """uint8 (count, 64, 64, 3): scenes first, first + 1, ... of a seed."""
    return torch.from_numpy(render_scenes([draw_scene(seed, first + i, pairs) for i in range(count)]))


def start_vae(weights: Path = GLYPH) -> AutoencoderKL:
    """The autoencoder of a model folder, glyph's by default, in fp32, ready to be trained."""
    vae = AutoencoderKL.from_pretrained(weights / "vae", dtype=torch.float32)
    vae.set_attn_processor(AttnProcessor())  # plain matrix products: on a CPU their gradient is much the faster
    return vae


def tune_vae(settings: Settings, weights: Path = GLYPH) -> None:
    """Trains from those of `weights` until the budget ends; `load_vae` reads what it leaves in its checkpoint."""
    vae = start_vae(weights)

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        first = int(torch.randint(2**40, (1,), generator=generator))
        noise = torch.randn(count, 4, 16, 16, generator=generator)
        return vae_loss(vae, to_signal(draw_pictures(settings.seed, first, count)), noise)

    Training(vae, loss, settings).run()


def finish_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """Normalises the latents over scenes and prints what the autoencoder keeps of scenes it was not trained on."""
    vae = normalise_latents(vae.eval().requires_grad_(False), draw_pictures(TEST_SEED, TEST_COUNT, NORMAL_COUNT))
    psnr = measure_psnr(vae, draw_pictures(TEST_SEED, 0, TEST_COUNT))
    print(f"vae: {psnr:.2f} dB over {TEST_COUNT} scenes", flush=True)
    return vae


def load_vae(folder: Path, settings: Settings, weights: Path | None = None) -> AutoencoderKL:
    """The frozen autoencoder: that of `weights`, or a work folder's, normalised once and kept as `vae-frozen.pt`.

    It is rounded to fp16 when it is frozen, so that the shipped one has the same latents.
    """
    frozen, vae = folder / "vae-frozen.pt", start_vae()
    if not frozen.is_file():
        if weights is not None:
            vae = AutoencoderKL.from_pretrained(weights / "vae", dtype=torch.float32)
        else:
            vae.load_state_dict(load_average(settings))
            vae = finish_vae(vae)
        torch.save(vae.half().state_dict(), frozen)
    vae.float().load_state_dict(torch.load(frozen, weights_only=True))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) of latents (n, 4, 16, 16)."""
    signal = torch.cat([vae.decode(part).sample for part in latents.split(batch)])
    return ((signal.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
