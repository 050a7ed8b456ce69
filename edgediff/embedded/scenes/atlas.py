"""The glyphs that scenes are drawn with: luminance and coverage, committed, so that no font is needed.

`atlas.png` is a row of square cells, one per noun in the order of NOUNS, in two channels: luminance (stretched to
LUMINANCE, 255 is 1) and coverage. A cell holds its glyph's tight box, centred, the longest side filling the cell.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.glyphs import FONT_PIXELS, find_font
from edgediff.embedded.scenes.vocabulary import LUMINANCE, NOUNS

ATLAS = Path(__file__).parent / "atlas.png"
CELL = 72  # pixels per side: twice the largest glyph
_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in luminance (Rec. 601)


@lru_cache(maxsize=1)
def load_atlas() -> NDArray[np.float32]:
    """(nouns, CELL, CELL, 2): luminance times coverage, and coverage; 0 to 1."""
    from PIL import Image

    sheet = np.asarray(Image.open(ATLAS).convert("LA"), np.float32) / 255
    cells: NDArray[np.float32] = sheet.reshape(CELL, len(NOUNS), CELL, 2).transpose(1, 0, 2, 3).copy()
    cells[..., 0] *= cells[..., 1]
    return cells


@cache
def load_stamp(noun: str, size: int) -> NDArray[np.float32]:
    """(size, size, 2): one glyph at its size, premultiplied luminance and coverage. Do not write into it."""
    from PIL import Image

    cell = load_atlas()[tuple(NOUNS).index(noun)]
    planes = [
        Image.fromarray(np.ascontiguousarray(cell[..., channel])).resize((size, size), Image.Resampling.LANCZOS)
        for channel in range(2)
    ]
    stamp: NDArray[np.float32] = np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 1)
    stamp.flags.writeable = False
    return stamp


def write_atlas(font_path: Path | None = None) -> None:
    """Draws every noun with the font and writes `atlas.png`."""
    from PIL import Image

    cells = [_draw_cell(point, font_path or find_font()) for point in NOUNS.values()]
    sheet = (np.concatenate(cells, axis=1) * 255).round().astype(np.uint8)
    Image.fromarray(sheet, "LA").save(ATLAS, optimize=True)


def _draw_cell(code_point: int, font_path: Path) -> NDArray[np.float64]:
    """(CELL, CELL, 2): luminance and coverage, 0 to 1, of one glyph."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(font_path), FONT_PIXELS)
    canvas = Image.new("RGBA", (2 * FONT_PIXELS, 2 * FONT_PIXELS))
    ImageDraw.Draw(canvas).text((20, 20), chr(code_point), font=font, embedded_color=True)
    glyph = canvas.crop(canvas.getbbox())
    scale = CELL / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    drawn = np.asarray(glyph.resize((width, height), Image.Resampling.LANCZOS), np.float64) / 255
    grey, coverage = drawn[..., :3] @ _WEIGHTS, drawn[..., 3]
    low, high = np.percentile(grey[coverage > 0.5], [3, 97])
    stretched = LUMINANCE[0] + (LUMINANCE[1] - LUMINANCE[0]) * ((grey - low) / max(high - low, 0.05)).clip(0, 1)
    cell = np.zeros((CELL, CELL, 2))
    top, left = (CELL - height) // 2, (CELL - width) // 2
    cell[top : top + height, left : left + width] = np.stack([stretched, coverage], axis=-1)
    return cell


if __name__ == "__main__":
    write_atlas()
    print(f"{ATLAS.name}: {len(NOUNS)} glyphs, {ATLAS.stat().st_size:,} bytes")
