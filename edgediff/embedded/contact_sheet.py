"""Real glyphs and generated ones side by side: `python -m edgediff.embedded.contact_sheet OUT.png [--model FOLDER]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.evaluation import GUIDANCE, STEPS, choose_prompts, generate_pictures
from edgediff.embedded.glyphs import SIZE, draw_glyphs, load_glyphs
from edgediff.embedded.package import MODEL

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 8
CELL = (2 * SIZE + 12, SIZE + 22)  # pixels: a pair of pictures, and a line of text below


def draw_sheet(real: NDArray[np.uint8], made: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """A grid of pairs, the real glyph left, as a PIL image; both arrays uint8 (n, 64, 64, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * CELL[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, caption in enumerate(captions):
        x, y = (i % COLUMNS) * CELL[0] + 4, (i // COLUMNS) * CELL[1] + 4
        sheet.paste(Image.fromarray(real[i]), (x, y))
        sheet.paste(Image.fromarray(made[i]), (x + SIZE + 2, y))
        pen.text((x, y + SIZE + 2), caption[:26], fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    prompts = choose_prompts(options.count)
    texts = {glyph.primary: glyph.text for glyph in load_glyphs()}
    real = draw_glyphs([texts[prompt] for prompt in prompts])
    made = generate_pictures(prompts, options.model, options.steps, options.guidance)
    draw_sheet(real, made, prompts).save(options.out)
    print(f"{options.out}: {len(prompts)} captions, {options.steps} DDIM steps, guidance {options.guidance:g}")


if __name__ == "__main__":
    main()
