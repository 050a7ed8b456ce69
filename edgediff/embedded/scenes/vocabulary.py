"""What a scene is made of, and the words for it. Every word is one token of glyph's tokenizer.

The nouns are the code points of Noto Color Emoji that a person still tells apart at 24 pixels in one tint: each has an
outline of its own. Their luminance is stretched to LUMINANCE, so that every glyph is seen on every background.
"""

from __future__ import annotations

SIDE = 64  # pixels per side of a picture
SMALLEST, LARGEST = 20, 36  # pixels of a glyph's longest side
SMALL_TO, LARGE_FROM = 25, 31  # "small" is 20 to 25 pixels, "large" 31 to 36; between them no word fits
LUMINANCE = (0.35, 1.0)  # a glyph's darkest and brightest pixels (3rd and 97th percentile), times the tint
MARGIN = 8  # pixels by which the dominant axis of a pair leads, so that its relation is never in doubt

NOUNS: dict[str, int] = {
    "sun": 0x2600,
    "moon": 0x1F319,
    "cloud": 0x2601,
    "umbrella": 0x2602,
    "airplane": 0x2708,
    "star": 0x2B50,
    "house": 0x1F3E0,
    "cat": 0x1F431,
    "fish": 0x1F41F,
    "key": 0x1F511,
    "bell": 0x1F514,
    "hammer": 0x1F528,
    "car": 0x1F697,
    "tree": 0x1F332,
    "boat": 0x26F5,
    "heart": 0x2764,
    "flower": 0x1F337,
    "clock": 0x1F550,
    "hand": 0x270B,
    "boot": 0x1F462,
    "hat": 0x1F3A9,
    "chair": 0x1FA91,
    "envelope": 0x2709,
    "hourglass": 0x231B,
}
# sRGB, 0 to 255. A glyph's pixel is luminance times its hue.
HUES: dict[str, tuple[int, int, int]] = {
    "red": (228, 40, 40),
    "orange": (250, 140, 25),
    "yellow": (250, 220, 40),
    "green": (45, 170, 65),
    "blue": (45, 100, 230),
    "purple": (155, 60, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (24, 24, 28),
    "blue": (190, 214, 246),
    "green": (196, 236, 200),
    "yellow": (252, 242, 196),
}
# From the first object to the second; y grows downwards. Words, and the unit step from the second to the first.
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "under": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "under", "under": "above"}
