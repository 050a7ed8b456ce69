"""Trains the embedded model: `python -m edgediff.embedded.train {vae,denoiser,judge,package,all}`.

Every part continues from its checkpoint in --work, or starts where there is none; Ctrl-C saves. A part ends when its
budget is used up: --hours of training counted over all its runs, or --steps, with which two runs agree byte for byte.
--from-package starts from the shipped fp16 weights instead of random ones, to make them better.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not take the workers' cores

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from edgediff.embedded import judge_training, vae_training
from edgediff.embedded.denoiser_training import (
    Captions,
    Denoiser,
    make_text_encoder,
    make_unet,
    train_captions,
    train_denoiser,
)
from edgediff.embedded.glyphs import draw_glyphs, load_glyphs
from edgediff.embedded.judge import JUDGE, save_judge
from edgediff.embedded.package import MODEL, write_package
from edgediff.embedded.tokenizer_training import write_tokenizer
from edgediff.embedded.training_loop import load_average
from edgediff.embedded.training_settings import Budget, Settings, TrainingError, pick_device
from edgediff.errors import EdgeDiffError

# part: share of --hours under `all`, samples per step, learning rate
PARTS = {
    "vae": (0.15, 16, 3e-3),
    "captions": (0.03, 64, 1e-3),
    "denoiser": (0.75, 32, 1.2e-3),
    "judge": (0.07, 64, 2e-3),
}


class Workshop:
    """The work folder and what the parts share: pictures, tokenizer, settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work
        self.device = pick_device(options.device)
        self.glyphs = load_glyphs()

    def settings(self, part: str) -> Settings:
        options, (share, batch, rate) = self.options, PARTS[part]
        hours = options.hours if options.part != "all" and part != "captions" else share * options.hours
        workers = 1 if self.device == "cuda" else options.workers
        return Settings(
            part,
            self.work,
            Budget(hours, options.steps),
            options.batch or batch,
            rate,
            self.device,
            options.seed,
            workers,
        )

    def pictures(self) -> torch.Tensor:
        path = self.work / "pictures.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, draw_glyphs([glyph.text for glyph in self.glyphs]))
        return torch.from_numpy(np.load(path))

    def tokenizer(self) -> CLIPTokenizer:
        folder = self.work / "tokenizer"
        if not folder.is_dir():
            write_tokenizer([name for g in self.glyphs for name in (g.primary, *g.alternatives)], folder)
        return CLIPTokenizer.from_pretrained(folder)

    def vae(self) -> AutoencoderKL:
        """The finished autoencoder: the work folder's, else (with --from-package) the shipped one."""
        if self.options.from_package and not (self.work / "vae.pt").is_file():
            return AutoencoderKL.from_pretrained(MODEL / "vae", dtype=torch.float32).eval()
        vae = vae_training.make_vae()
        vae.load_state_dict(load_average(self.settings("vae")))
        return vae_training.normalise_latents(vae.eval(), self.pictures())

    def denoiser(self) -> Denoiser:
        torch.manual_seed(self.options.seed)
        model = Denoiser(make_unet(), make_text_encoder(self.tokenizer()))
        if self.options.from_package:
            load_shipped(model)
        return model


def load_shipped(model: Denoiser) -> None:
    shipped = UNet2DConditionModel.from_pretrained(MODEL / "unet", dtype=torch.float32)
    model.unet.load_state_dict(shipped.state_dict())
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
    model.text_encoder.load_state_dict(text.state_dict())


def run_vae(shop: Workshop) -> None:
    vae = vae_training.train_vae(shop.pictures(), shop.settings("vae"))
    print(f"vae: {vae_training.measure_psnr(vae.cpu(), shop.pictures()):.2f} dB over {len(shop.glyphs)} glyphs")


def run_denoiser(shop: Workshop) -> None:
    latents = vae_training.encode_pictures(shop.vae(), shop.pictures())
    captions, model, settings = Captions(shop.tokenizer(), shop.glyphs), shop.denoiser(), shop.settings("denoiser")
    if not settings.checkpoint.is_file() and not shop.options.from_package:
        train_captions(model.text_encoder, latents, captions, shop.settings("captions"))
    train_denoiser(model, latents, captions, settings)


def run_judge(shop: Workshop) -> None:
    network, gallery = judge_training.train_judge(shop.vae(), shop.pictures(), shop.settings("judge"))
    save_judge(network, gallery, JUDGE)
    print(f"judge: wrote {JUDGE}")


def run_package(shop: Workshop) -> None:
    model = shop.denoiser()
    model.load_state_dict(load_average(shop.settings("denoiser")))
    size = write_package(shop.vae(), model.unet, model.text_encoder, shop.work / "tokenizer")
    print(f"package: {size:,} bytes in {MODEL}")


RUNS = {"vae": run_vae, "denoiser": run_denoiser, "judge": run_judge, "package": run_package}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edgediff.embedded.train", description=__doc__)
    parser.add_argument("part", choices=[*RUNS, "all"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--hours", type=float, default=2.0, help="of training; under `all` shared among the parts")
    parser.add_argument("--steps", type=int, help="instead of --hours: a run that can be repeated exactly")
    parser.add_argument("--work", type=Path, default=Path("glyph_work"), help="checkpoints, pictures, tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="samples per step")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="threads that share a step, on a CPU"
    )
    parser.add_argument("--from-package", action="store_true", help="start from the shipped weights")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    if options.from_package and options.part in ("vae", "all"):
        raise TrainingError(
            "continues the shipped denoiser, which knows only the shipped autoencoder; use it with denoiser, package "
            "or judge",
            where="--from-package",
        )
    shop = Workshop(options)
    for part in RUNS if shop.options.part == "all" else [shop.options.part]:
        RUNS[part](shop)


if __name__ == "__main__":
    try:
        main()
    except EdgeDiffError as error:
        sys.exit(str(error))
