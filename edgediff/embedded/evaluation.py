"""Generates pictures for captions and scores them: `python -m edgediff.embedded.evaluation --guidance 2 3 5`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.glyphs import load_glyphs
from edgediff.embedded.judge import load_judge
from edgediff.embedded.package import MODEL
from edgediff.errors import EdgeDiffError

STEPS = 50
GUIDANCE = 3.0
BATCH = 32


def choose_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` primary captions without repetition: numpy.random.default_rng(seed).choice over the sorted captions."""
    names = sorted(glyph.primary for glyph in load_glyphs())
    if not 0 < count <= len(names):
        raise EdgeDiffError(
            f"--count {count}: choose 1 to {len(names)} captions", code="embedded.count", where="--count"
        )
    return [str(name) for name in np.random.default_rng(seed).choice(names, count, replace=False)]


def generate_pictures(prompts: Sequence[str], model: Path = MODEL, steps: int = STEPS, guidance: float = GUIDANCE,
                      seed: int = 0) -> NDArray[np.uint8]:  # fmt: skip
    """uint8 (n, 64, 64, 3) with the pipeline's own scheduler, in fp32. Prompt i starts from noise of seed + i."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        drawn = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="np"
        ).images
        pictures.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=256, help="how many captions")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first picture's noise; the captions are always the same"
    )
    options = parser.parse_args()
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
