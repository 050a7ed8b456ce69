"""The data of the embedded model: what a glyph is, what it is called, how it is drawn.

The list (`captions.json`) is committed, so that reading names and captions needs neither the font nor the `emoji`
library. Pictures are drawn on demand from Noto Color Emoji (OFL 1.1), which holds 136x128 colour bitmaps at 109 px.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import EdgeDiffError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

HERE = Path(__file__).parent
CAPTIONS = HERE / "captions.json"
SIZE = 64  # pixels per side of a training picture
FONT_PIXELS = 109  # the only size at which the font holds bitmaps
CANVAS = 136  # a bitmap is 136 wide and 128 high; it is centred on a square of this side
FONT_VARIABLE = "EDGEDIFF_EMOJI_FONT"
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
)


@dataclass(frozen=True)
class Glyph:
    """One picture and its names. `primary` is unique over the set and is what evaluation prompts with."""

    id: int
    code_points: tuple[int, ...]
    primary: str
    alternatives: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(map(chr, self.code_points))


@lru_cache(maxsize=1)
def load_glyphs() -> tuple[Glyph, ...]:
    """The committed list, in id order."""
    rows = json.loads(CAPTIONS.read_text(encoding="utf-8"))["glyphs"]
    return tuple(
        Glyph(
            row["id"], tuple(int(c, 16) for c in row["code_points"].split()), row["primary"], tuple(row["alternatives"])
        )
        for row in rows
    )


def find_font() -> Path:
    """Where Noto Color Emoji lies: the variable EDGEDIFF_EMOJI_FONT, else the usual places."""
    named = os.environ.get(FONT_VARIABLE)
    for place in [named] if named else FONT_PLACES:
        if Path(place).is_file():
            return Path(place)
    tried = named or ", ".join(FONT_PLACES)
    raise EdgeDiffError(
        f"Noto Color Emoji was not found (looked at {tried}). Install it (Debian: apt install fonts-noto-color-emoji) "
        f"or set {FONT_VARIABLE} to NotoColorEmoji.ttf. Only training needs it.",
        code="embedded.font",
        where=FONT_VARIABLE,
    )


def draw_glyphs(texts: list[str], size: int = SIZE, font_path: Path | None = None) -> NDArray[np.uint8]:
    """Pictures (n, size, size, 3) uint8 on white; raises when the font does not draw a text as one bitmap."""
    from PIL import Image, ImageFont, features

    if not features.check("raqm"):
        raise EdgeDiffError(
            "Pillow lacks raqm, without which flags and sequences cannot be drawn; install Pillow's binary wheel.",
            code="embedded.font",
            where="Pillow",
        )
    font = ImageFont.truetype(str(font_path or find_font()), FONT_PIXELS)
    pictures = np.empty((len(texts), size, size, 3), np.uint8)
    for row, text in enumerate(texts):
        if not is_drawable(text, font):
            raise EdgeDiffError(
                f"the font does not draw {text!r} as one colour picture; it may be older than captions.json",
                code="embedded.font",
                where=" ".join(f"{ord(c):X}" for c in text),
            )
        pictures[row] = np.asarray(_draw(text, font).resize((size, size), Image.Resampling.LANCZOS))
    return pictures


def is_drawable(text: str, font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font draws the text as one bitmap: a sequence it does not know comes out wider, or empty."""
    left, top, right, bottom = font.getbbox(text)
    if not 100 <= right - left <= CANVAS or bottom - top < 100:
        return False
    return bool((np.asarray(_draw(text, font)) < 250).any(axis=-1).mean() > 0.02)


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One text, centred on a white square of CANVAS pixels."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
    origin = ((CANVAS - (right - left)) // 2 - left, (CANVAS - (bottom - top)) // 2 - top)
    ImageDraw.Draw(canvas).text(origin, text, font=font, embedded_color=True)
    return canvas
