"""The judge without training: normalised template matching, the second opinion that chooses no checkpoint.

A render is linear in what is unknown. With D the picture minus its background (3 channels), and the template
T = coverage luminance tint - coverage background of a noun, hue and size, both a little smoothed, the score at a place
is the normalised correlation of gradients <dT, dD> / (|dT| |dD|), dD over the template's square, and the gain
<dT, dD> / <dT, dT> says how strong the object is there: 1 in a render, 1/16 for one of sixteen renders in their mean.
Without the gradients, round things and blurred ones pass for each other. By Parseval <dT, dD> = <T, -laplacian D>, so
a Fourier transform gives the scores of all places. Matches are taken from the best on, where they overlap no better
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from edgediff.embedded.scenes.atlas import load_stamp
from edgediff.embedded.scenes.findings import Finding, Findings
from edgediff.embedded.scenes.vocabulary import BACKGROUNDS, HUES, LARGEST, NOUNS, SIDE, SMALLEST

SIZES = tuple(range(SMALLEST, LARGEST + 1, 2))
FOUND = 0.60  # least correlation of an object
GAIN = (0.5, 1.6)  # least and greatest strength of an object
OVERLAP = 0.2  # of the smaller square: more, and the weaker match is the same object or its neighbour's edge
SMOOTH = 0.7  # pixels: deviation of the Gaussian before the gradient
_EDGE = 4  # pixels of nothing around pictures and templates, so that they do not wrap around
_NOUNS = tuple(NOUNS)
_GRID = SIDE + 2 * _EDGE
_REACH = 2  # pixels around its square in which a template's gradients lie
_FRAME = 2  # pixels of the border in which the background is read

Planes = NDArray[np.float32]


@dataclass(frozen=True)
class Templates:
    """Spectra of luminance x coverage and of coverage, (nouns, sizes, 2, _GRID, _GRID / 2 + 1), conjugated, and the
    inner products of their gradients (nouns, sizes, 2, 2)."""

    spectra: NDArray[np.complex64]
    products: Planes


def _prepare(planes: Planes) -> Planes:
    """Planes (..., h, w) smoothed, on a larger grid (..., _GRID, _GRID), their corner at (_EDGE, _EDGE)."""
    grid = np.zeros((*planes.shape[:-2], _GRID, _GRID), np.float32)
    grid[..., _EDGE : _EDGE + planes.shape[-2], _EDGE : _EDGE + planes.shape[-1]] = planes
    smooth: Planes = ndimage.gaussian_filter(grid, SMOOTH, axes=(-2, -1), truncate=3)
    return smooth


def _steepen(spectrum: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The spectrum of minus the discrete Laplacian: |2 sin(f / 2)|^2 summed over both directions."""
    rows, columns = fft.fftfreq(_GRID), fft.rfftfreq(_GRID)
    symbol = 4 * np.sin(np.pi * rows)[:, None] ** 2 + 4 * np.sin(np.pi * columns) ** 2
    steep: NDArray[np.complex64] = (spectrum * symbol).astype(np.complex64)
    return steep


@lru_cache(maxsize=1)
def load_templates() -> Templates:
    planes = np.zeros((len(NOUNS), len(SIZES), 2, SIDE, SIDE), np.float32)
    for row, noun in enumerate(NOUNS):
        for column, size in enumerate(SIZES):
            planes[row, column, :, :size, :size] = load_stamp(noun, size).transpose(2, 0, 1)
    smooth = _prepare(planes)
    spectra = fft.rfft2(smooth)
    steep = fft.irfft2(_steepen(spectra), s=(_GRID, _GRID))
    products = np.einsum("nsahw,nsbhw->nsab", smooth, steep, optimize=True)
    return Templates(np.conj(spectra).astype(np.complex64), products.astype(np.float32))


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
    things: list[Finding] = []
    for match in sorted(_list_matches((signal - colour) / 255, colour / 255), key=lambda m: -m.score):
        if all(_shared(match, thing) <= OVERLAP for thing in things):
            things.append(match)
    return Findings(tuple(things), background)


def _list_matches(rest: Planes, colour: Planes) -> list[Finding]:
    """Every place, size, noun and hue whose score reaches FOUND with a gain within GAIN."""
    templates = load_templates()
    smooth = _prepare(rest.transpose(2, 0, 1))
    spectrum = _steepen(fft.rfft2(smooth).astype(np.complex64))
    matches: list[Finding] = []
    for column, (size, energy) in enumerate(zip(SIZES, _window_energy(smooth), strict=True)):
        last = SIDE - size + 1
        maps = fft.irfft2(templates.spectra[:, column, :, None] * spectrum, s=(_GRID, _GRID))[..., :last, :last]
        for hue, tint in HUES.items():
            weights = np.stack([np.array(tint, np.float32) / 255, -colour])  # of luminance x coverage, of coverage
            inner = np.einsum("ac,nachw->nhw", weights, maps)
            length = np.einsum("ac,bc,nab->n", weights, weights, templates.products[:, column])[:, None, None]
            score, gain = inner / np.sqrt(length * energy + 1e-6), inner / length
            good = (score >= FOUND) & (gain >= GAIN[0]) & (gain <= GAIN[1])
            for row, y, x in np.argwhere(good).tolist():
                centre = (x + size / 2, y + size / 2)
                matches.append(Finding(_NOUNS[row], hue, size, centre, float(score[row, y, x])))
    return matches


def _shared(a: Finding, b: Finding) -> float:
    """The area that two squares share, as a share of the smaller one."""
    sides = [
        min(p + a.size / 2, q + b.size / 2) - max(p - a.size / 2, q - b.size / 2)
        for p, q in zip(a.centre, b.centre, strict=True)
    ]
    return max(0.0, sides[0]) * max(0.0, sides[1]) / min(a.size, b.size) ** 2


def _window_energy(smooth: Planes) -> list[Planes]:
    """Per size, the squared gradients in the square whose left upper corner is at (y, x), and _REACH pixels around."""
    total = np.zeros((_GRID + 1, _GRID + 1), np.float64)
    for axis in (1, 2):
        total[1:, 1:] += np.square(np.diff(smooth, axis=axis, append=0)).sum(axis=0)
    total = total.cumsum(0).cumsum(1)
    first = _EDGE - _REACH
    energies = []
    for size in SIZES:
        low, high = slice(first, first + SIDE - size + 1), slice(first + size + 2 * _REACH, _GRID - first + 1)
        energies.append((total[high, high] - total[low, high] - total[high, low] + total[low, low]).clip(0))
    return [energy.astype(np.float32) for energy in energies]
