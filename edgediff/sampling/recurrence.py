"""Coefficients over the basis X_0.., E_0.., Z_0.., C_0.., and the shortest recurrence that they hold.

An array (4, rows) float64: what multiplies each latent X, output E, noise draw Z and clamp C.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

X, E, Z, C = range(4)  # the rows of a basis vector: latents, outputs, noises, clamps
MAX_DEPTH = 16  # PNDM with Runge-Kutta warm-up reads 12 calls back; nothing known reads further
_ZERO = 1e-12  # a coefficient this small beside the row's largest is rounding
Coefficients = npt.NDArray[np.float64]


def find_shortest(now: Coefficients, before: Coefficients | None, index: int) -> Coefficients:
    """The smallest exact recurrence for x_{i+1}: `now`, or `now` with the row before it solved for x_i.

    UniPC corrects a latent that it never returns, so `now` reaches back to the start; adding the right
    multiple of 0 = x_i - before cancels that tail.
    """
    candidates = [now]
    if before is not None and (multiple := _tail_ratio(now, before, index)) is not None:
        other = now - multiple * before
        other[np.abs(other) < _ZERO * max(np.abs(now).max(), np.abs(multiple * before).max())] = 0.0
        other[X, index] += multiple
        candidates.append(other)
    return min(candidates, key=lambda rows: (read_depth(rows, index) > MAX_DEPTH, np.count_nonzero(rows)))


def _oldest(rows: Coefficients, index: int) -> npt.NDArray[np.bool_]:
    """A mask (4, rows) of the oldest column read; of all past noises and clamps where there are any."""
    past: npt.NDArray[np.bool_] = rows != 0
    past[:, index:] = False
    if past[Z:].any():
        past[:Z] = False
    elif past.any():
        past[:, int(past.any(axis=0).argmax()) + 1 :] = False
    return past


def read_depth(rows: Coefficients, index: int) -> int:
    """How many calls back the oldest latent or output lies; past noises and clamps cannot be read at all."""
    oldest = _oldest(rows, index)
    if oldest[Z:].any():
        return sys.maxsize
    return index - int(oldest.any(axis=0).argmax()) if oldest.any() else 0


def _tail_ratio(now: Coefficients, before: Coefficients, index: int) -> float | None:
    """The multiple of the row before that cancels the oldest thing `now` reads; None when it cannot."""
    shared = np.where(_oldest(now, index), np.abs(before), 0.0)
    if not shared.any():
        return None
    at = np.unravel_index(int(shared.argmax()), shared.shape)
    return float(now[at] / before[at])


def newest_first(coefficients: Coefficients, index: int) -> tuple[float, ...]:
    values = coefficients[: index + 1][::-1]
    last = np.flatnonzero(values)
    return tuple(float(v) for v in values[: last[-1] + 1]) if last.size else ()
