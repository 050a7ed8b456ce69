"""Generates pictures for captions and lets a judge read them.

`python -m edgediff.embedded.scenes.evaluation MODEL --count 32 --steps 20 --guidance 3 --sheet sheet.png`: the captions
are of held-out scenes (--trained: of others) with two things, and always state the relation.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.evaluation import generate_pictures
from edgediff.embedded.scenes.captions import Caption, caption_scene
from edgediff.embedded.scenes.export import SCENES
from edgediff.embedded.scenes.findings import Findings, judge_caption, sum_up
from edgediff.embedded.scenes.render import render_scenes
from edgediff.embedded.scenes.scene import Scene, draw_scene
from edgediff.embedded.scenes.template_judge import find_things
from edgediff.embedded.scenes.vocabulary import SIDE

if TYPE_CHECKING:
    from PIL import Image

SEED = 2_000  # of the scenes whose captions are the prompts; no training draws from it
COLUMNS = 8
CELL = (2 * SIDE + 12, SIDE + 42)  # pixels: a pair of pictures, and three lines of text below


def draw_prompts(count: int, held_out: bool = True, seed: int = SEED) -> list[tuple[Scene, Caption]]:
    """Scenes of two things, and a caption of each that states the relation and half of the attributes.

    A held-out scene whose caption leaves out what is held out is passed over.
    """
    prompts: list[tuple[Scene, Caption]] = []
    for index in count_up():
        if len(prompts) == count:
            break
        scene = draw_scene(seed, index, pairs=1.0, held_out=held_out)
        caption = caption_scene(scene, np.random.default_rng((seed, index, 1)), relations=1.0)
        if caption.held_out == held_out:
            prompts.append((scene, caption))
    return prompts


def read_pictures(pictures: NDArray[np.uint8], judge: str = "templates") -> list[Findings]:
    """The findings per picture, of the judge "templates" (no training) or "detector"."""
    if judge == "templates":
        return [find_things(picture) for picture in pictures]
    from edgediff.embedded.scenes.detector import detect, load_detector

    return detect(load_detector(), pictures)


def draw_sheet(real: NDArray[np.uint8], made: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """A grid of pairs, a real render left, the generated picture right; both uint8 (n, 64, 64, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * CELL[1]), "grey")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, caption in enumerate(captions):
        x, y = (i % COLUMNS) * CELL[0] + 4, (i // COLUMNS) * CELL[1] + 4
        sheet.paste(Image.fromarray(real[i]), (x, y))
        sheet.paste(Image.fromarray(made[i]), (x + SIDE + 2, y))
        pen.multiline_text((x, y + SIDE + 2), textwrap.fill(caption, 25), fill="white", font=font, spacing=1)
    return sheet


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=SCENES)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise")
    parser.add_argument("--trained", action="store_true", help="captions of scenes that are not held out")
    parser.add_argument("--judge", choices=["templates", "detector"], nargs="+", default=["templates"])
    parser.add_argument("--sheet", type=Path, help="a PNG of real and generated pictures")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    prompts = draw_prompts(options.count, held_out=not options.trained)
    captions = [caption for _, caption in prompts]
    for guidance in options.guidance:
        start = time.monotonic()
        made = generate_pictures([str(c) for c in captions], options.model, options.steps, guidance, options.seed)
        for judge in options.judge:
            verdicts = [judge_caption(c, f) for c, f in zip(captions, read_pictures(made, judge), strict=True)]
            print(f"{options.steps} steps, guidance {guidance:g}, {judge}, {sum_up(verdicts)}", flush=True)
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        if options.sheet:
            real = render_scenes([scene for scene, _ in prompts])
            draw_sheet(real, made, [str(c) for c in captions]).save(options.sheet)


if __name__ == "__main__":
    main()
