"""The judge without training: normalised template matching, the second opinion that chooses no checkpoint.

A render is linear in what is unknown. With D the picture minus its background (3 channels), and the template
T = coverage luminance tint - coverage background of a noun, hue and size, the score at a place is the uncentred
normalised correlation <T, D> / (|T| |D|), D over the template's square, and the gain <T, D> / <T, T> says how strong
the object is there: 1 in a render, 1/16 for one of sixteen renders in their mean. Best matches are taken one by one,
each closing its own square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from edgediff.embedded.scenes.atlas import load_stamp
from edgediff.embedded.scenes.findings import Finding, Findings
from edgediff.embedded.scenes.vocabulary import BACKGROUNDS, HUES, LARGEST, NOUNS, SIDE, SMALLEST

SIZES = tuple(range(SMALLEST, LARGEST + 1, 2))
FOUND = 0.80  # least correlation of an object
GAIN = (0.6, 1.5)  # least and greatest strength of an object
MOST = 4  # objects looked for: one more than a picture with a duplicate and a stranger
_FRAME = 2  # pixels of the border in which the background is read

Planes = NDArray[np.float32]


@dataclass(frozen=True)
class Templates:
    """Spectra of luminance x coverage and of coverage, (nouns, sizes, 2, 64, 33); their inner products (..., 2, 2)."""

    spectra: NDArray[np.complex64]
    products: Planes


@lru_cache(maxsize=1)
def load_templates() -> Templates:
    planes = np.zeros((len(NOUNS), len(SIZES), 2, SIDE, SIDE), np.float32)
    for row, noun in enumerate(NOUNS):
        for column, size in enumerate(SIZES):
            planes[row, column, :, :size, :size] = load_stamp(noun, size).transpose(2, 0, 1)
    spectra = np.conj(fft.rfft2(planes))
    return Templates(spectra.astype(np.complex64), np.einsum("nsahw,nsbhw->nsab", planes, planes))


def read_background(picture: Planes) -> tuple[Planes, str]:
    """The median colour (3,) of the border, and the name of the nearest background; `picture` (64, 64, 3), 0 to 255."""
    edge = np.ones((SIDE, SIDE), bool)
    edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    colour: Planes = np.median(picture[edge], axis=0)
    distance = {name: float(np.abs(colour - np.array(value)).sum()) for name, value in BACKGROUNDS.items()}
    return colour, min(distance, key=lambda name: distance[name])


def find_things(picture: NDArray[np.uint8]) -> Findings:
    """What is in a picture (64, 64, 3) uint8."""
    signal = picture.astype(np.float32)
    colour, background = read_background(signal)
    rest, things = (signal - colour) / 255, []
    for _ in range(MOST):
        found = _find_best(rest, colour / 255)
        if found is None:
            break
        thing, (x, y, size) = found
        things.append(thing)
        rest[y : y + size, x : x + size] = 0
    return Findings(tuple(things), background)


def _find_best(rest: Planes, colour: Planes) -> tuple[Finding, tuple[int, int, int]] | None:
    """The best match in what is left of a picture, and its square (x, y, size)."""
    templates = load_templates()
    spectrum = fft.rfft2(rest.transpose(2, 0, 1)).astype(np.complex64)
    energy = _window_energy(rest)
    best: tuple[float, int, str, int, int] | None = None
    for column, size in enumerate(SIZES):
        last = SIDE - size + 1
        maps = fft.irfft2(templates.spectra[:, column, :, None] * spectrum, s=(SIDE, SIDE))[..., :last, :last]
        for hue, tint in HUES.items():
            weights = np.stack([np.array(tint, np.float32) / 255, -colour])  # of luminance x coverage, of coverage
            inner = np.einsum("ac,nachw->nhw", weights, maps)
            length = np.einsum("ac,bc,nab->n", weights, weights, templates.products[:, column])[:, None, None]
            gain = inner / length
            score = inner / np.sqrt(length * energy[column] + 1e-9)
            score[(gain < GAIN[0]) | (gain > GAIN[1])] = 0
            row, y, x = np.unravel_index(int(score.argmax()), score.shape)
            if score[row, y, x] >= max(FOUND, best[0] if best else 0):
                best = float(score[row, y, x]), int(row), hue, column, int(y) * SIDE + int(x)
    if best is None:
        return None
    score_, row_, hue_, column_, place = best
    y_, x_ = divmod(place, SIDE)
    size_ = SIZES[column_]
    centre = (x_ + size_ / 2, y_ + size_ / 2)
    return Finding(tuple(NOUNS)[row_], hue_, size_, centre, score_), (x_, y_, size_)


def _window_energy(rest: Planes) -> list[Planes]:
    """Per size, the sum of squares over the square whose left upper corner is at (y, x)."""
    total = np.zeros((SIDE + 1, SIDE + 1), np.float64)
    total[1:, 1:] = np.square(rest).sum(axis=2).cumsum(0).cumsum(1)
    return [
        (total[s:, s:] - total[:-s, s:] - total[s:, :-s] + total[:-s, :-s]).clip(0).astype(np.float32) for s in SIZES
    ]
