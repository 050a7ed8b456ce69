"""DeepCache by the PyPI helper and by ours, end to end on the same pipeline, alternating in one run.

    python -m benchmarks.peers.deepcache_speed [--model FOLDER] [--intervals 2 3 5] [--rounds 7] [--steps 50]

The helper runs in diffusers' StableDiffusionPipeline; ours runs the bundle, in eager PyTorch (`--backend eager`, what
is compared like with like) or in ONNX Runtime. Both draw one picture of one prompt, guided, from text to pixels; the
ratio is ours / theirs (below 1: ours is faster), its median and its spread over rounds. pip install "edgediff[bench]".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import edgediff as ed
from edgediff.documents.recipe import Recipe
from edgediff.pipeline import GLYPH
from edgediff.runtime import open_session

PROMPT, SCALE = "red heart", 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder in diffusers layout; default: glyph")
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["eager", "onnxruntime"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| N | backend | ours, ms | helper, ms | ours / helper (least to most) |\n|---|---|---|---|---|")
    for interval in args.intervals:
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(args, interval, Path(folder) / "one.edgediff")
            theirs = published(args, interval)
            for backend in args.backends:
                session = open_session(bundle, backend)
                compare(args, interval, backend, lambda s=session: draw(s), theirs)


def build(args: argparse.Namespace, interval: int, out: Path) -> Any:
    recipe = Recipe.model_validate(
        {
            "name": "deepcache",
            "sampler": {"kind": "ddim", "steps": args.steps},
            "guidance": {"scale": SCALE},
            "reuse": [{"kind": "deepcache", "interval": interval}],
        }
    )
    return ed.build(args.model or "glyph", recipe=recipe, out=out, backends=args.backends)


def draw(session: Any) -> None:
    latent: Any = None
    for step in session.steps(PROMPT, seed=0):
        latent = step.latent
    session.decode(latent)


def published(args: argparse.Namespace, interval: int) -> Callable[[], None]:
    from DeepCache import DeepCacheSDHelper
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(args.model or GLYPH, dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()

    def run() -> None:
        with torch.inference_mode():
            pipe(PROMPT, num_inference_steps=args.steps, guidance_scale=SCALE)

    return run


def compare(
    args: argparse.Namespace, interval: int, backend: str, ours: Callable[[], None], theirs: Callable[[], None]
) -> None:
    """Warm both up, then alternate; each round starts with the other one."""
    ours(), theirs()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(args.rounds):
        for own in (True, False) if turn % 2 == 0 else (False, True):
            start = time.perf_counter()
            (ours if own else theirs)()
            seconds[own].append(time.perf_counter() - start)
        print(f"N={interval} {backend} round {turn + 1}", file=sys.stderr)
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    mine, other = (1000 * statistics.median(seconds[own]) for own in (True, False))
    print(
        f"| {interval} | {backend} | {mine:.0f} | {other:.0f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )


if __name__ == "__main__":
    main()
