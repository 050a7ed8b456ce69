"""A scene: one or two objects on a background, drawn at random from a seed.

Scene i of a seed is the same on every machine: numpy's PCG64 from (seed, i), and no floating-point comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgediff.embedded.scenes.split import is_held_out_kind, is_held_out_pair
from edgediff.embedded.scenes.vocabulary import (
    BACKGROUNDS,
    HUES,
    LARGE_FROM,
    LARGEST,
    MARGIN,
    NOUNS,
    RELATIONS,
    SIDE,
    SMALL_TO,
    SMALLEST,
)

TRIES = 64  # places drawn at once for a pair; about one in eighty is good
_NOUNS, _HUES, _BACKGROUNDS, _RELATIONS = tuple(NOUNS), tuple(HUES), tuple(BACKGROUNDS), tuple(RELATIONS)


@dataclass(frozen=True)
class Thing:
    """A tinted glyph in a square of `size` pixels with its left upper corner at (x, y), all of it in the picture."""

    noun: str
    hue: str
    size: int
    x: int
    y: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.size / 2, self.y + self.size / 2

    @property
    def size_word(self) -> str | None:
        return "small" if self.size <= SMALL_TO else "large" if self.size >= LARGE_FROM else None


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str

    @property
    def relation(self) -> str | None:
        """Of the first thing to the second; None for one thing."""
        return relate(self.things[0].centre, self.things[1].centre) if len(self.things) == 2 else None

    @property
    def held_out(self) -> bool:
        """Whether the pair, or a thing's noun with its hue, is kept from training."""
        nouns = [thing.noun for thing in self.things]
        return any(is_held_out_kind(t.noun, t.hue) for t in self.things) or (
            len(nouns) == 2 and is_held_out_pair(nouns[0], nouns[1])
        )


def relate(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The relation along the dominant axis, from two centres in pixels; a tie counts as horizontal."""
    across, down = first[0] - second[0], first[1] - second[1]
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "under"


def draw_scene(seed: int, index: int, pairs: float = 1.0, held_out: bool = False) -> Scene:
    """Scene `index` of `seed`: two things with probability `pairs`, else one; held out, or never held out."""
    rng = np.random.default_rng((seed, index))
    while True:
        count = 2 if rng.random() < pairs else 1
        nouns = [_NOUNS[i] for i in rng.choice(len(_NOUNS), count, replace=False)]
        hues = [_HUES[i] for i in rng.integers(len(_HUES), size=count)]
        squares = _place_pair(rng) if count == 2 else (_place_one(rng),)
        things = tuple(Thing(noun, hue, *square) for noun, hue, square in zip(nouns, hues, squares, strict=True))
        scene = Scene(things, _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))])
        if scene.held_out == held_out:
            return scene


def _place_one(rng: np.random.Generator) -> tuple[int, int, int]:
    """(size, x, y), uniform over the sizes, then over the places."""
    size = int(rng.integers(SMALLEST, LARGEST + 1))
    x, y = (int(v) for v in rng.integers(0, SIDE - size + 1, size=2))
    return size, x, y


def _place_pair(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two squares that do not overlap along the dominant axis; the four relations are equally likely."""
    wanted = _RELATIONS[rng.integers(len(_RELATIONS))]
    sizes = rng.integers(SMALLEST, LARGEST + 1, size=2)
    while sizes.sum() > SIDE - 2:
        sizes = rng.integers(SMALLEST, LARGEST + 1, size=2)
    along, other = (0, 1) if RELATIONS[wanted][0] else (1, 0)
    while True:
        corners = rng.integers(0, SIDE - sizes[:, None] + 1, size=(TRIES, 2, 2))  # try, thing, (x, y)
        twice = 2 * (corners[:, 0] - corners[:, 1]) + (sizes[0] - sizes[1])  # between the centres, times two
        lead = twice[:, along] * RELATIONS[wanted][along]
        good = (lead >= sizes.sum()) & (lead - abs(twice[:, other]) >= 2 * MARGIN)
        if good.any():
            first, second = ([int(v) for v in corner] for corner in corners[good.argmax()])
            return (int(sizes[0]), first[0], first[1]), (int(sizes[1]), second[0], second[1])
