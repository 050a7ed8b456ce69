"""Generates pictures for captions and scores them: `python -m edgediff.embedded.evaluation --guidance 2 3 5`."""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.glyphs import draw_glyphs, load_glyphs
from edgediff.embedded.judge import load_judge
from edgediff.embedded.package import MODEL
from edgediff.errors import EdgeDiffError

STEPS = 50
GUIDANCE = 2.0  # 1 to 2 score alike, more harms: see MODEL_CARD.md
BATCH = 32


def choose_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` primary captions without repetition: numpy.random.default_rng(seed).choice over the sorted captions."""
    names = sorted(glyph.primary for glyph in load_glyphs())
    if not 0 < count <= len(names):
        raise EdgeDiffError(
            f"--count {count}: choose 1 to {len(names)} captions", code="embedded.count", where="--count"
        )
    return [str(name) for name in np.random.default_rng(seed).choice(names, count, replace=False)]


def generate_pictures(
    prompts: Sequence[str], model: Path = MODEL, steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0
) -> NDArray[np.uint8]:
    """uint8 (n, 64, 64, 3) with the pipeline's own scheduler, in fp32. Prompt i starts from noise of seed + i.

    Batches run side by side, one core each: that is faster than two cores inside every small operator.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)

    def draw(start: int) -> NDArray[np.uint8]:
        part = list(prompts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)  # it has state; networks have none
        own = StableDiffusionPipeline(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
        own.set_progress_bar_config(disable=True)
        drawn = own(part, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="np").images
        return np.asarray((drawn * 255).round().astype(np.uint8))

    with ThreadPoolExecutor(os.cpu_count(), "draw", torch.set_num_threads, (1,)) as pool:
        return np.concatenate(list(pool.map(draw, range(0, len(prompts), BATCH))))


def measure_parts(model: Path = MODEL) -> str:
    """What the autoencoder and the judge do to real glyphs: the ceiling of every other figure. Needs the font."""
    import torch
    from diffusers import AutoencoderKL

    from edgediff.embedded.judge_training import make_sources, wear
    from edgediff.embedded.vae_training import measure_psnr

    judge, real = load_judge(), torch.from_numpy(draw_glyphs([glyph.text for glyph in load_glyphs()]))
    vae = AutoencoderKL.from_pretrained(model / "vae", dtype=torch.float32).eval()
    decoded = make_sources(vae, real, levels=(0.0,), seed=1)[1].float() / 127.5 - 1
    worn = wear(decoded, torch.Generator().manual_seed(1))
    found = [judge.retrieval_at_1(images, judge.names) for images in (real, decoded, worn)]
    return (
        f"autoencoder {measure_psnr(vae, real):.2f} dB over {len(real)} glyphs; judge: retrieval@1 of real glyphs "
        f"{found[0]:.4f}, decoded {found[1]:.4f}, decoded and worn {found[2]:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=256, help="how many captions")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first picture's noise; the captions are always the same"
    )
    parser.add_argument("--parts", action="store_true", help="the autoencoder and the judge on real glyphs instead")
    options = parser.parse_args()
    if options.parts:
        print(measure_parts(options.model))
        return
    judge, prompts = load_judge(), choose_prompts(options.count)
    for guidance in options.guidance:
        start = time.monotonic()
        pictures = generate_pictures(prompts, options.model, options.steps, guidance, options.seed)
        print(
            f"{len(prompts)} prompts, {options.steps} DDIM steps, guidance {guidance:g}: "
            f"retrieval@1 {judge.retrieval_at_1(pictures, prompts):.3f} frechet {judge.frechet(pictures):.4f} "
            f"({time.monotonic() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
