"""How near two pictures are, and how good a set of pictures is. numpy; scipy where a function needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import EvaluationError

Array = NDArray[Any]

# dB; 8-bit pictures that differ come near it only when they do so by one level in 150,000 values.
PSNR_CAP = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(a: Array, b: Array, peak: float, *, cap: float = PSNR_CAP) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(peak^2 / mean squared error).

    `peak` is the range of the values: 255 for 8-bit pictures, 2 for [-1, 1]. Equal arrays give `cap`, not
    infinity, and nothing exceeds it, so that means over pictures and JSON stay finite. Raises EvaluationError
    for different shapes, empty arrays, values that are not finite, and a peak that is not above 0.
    """
    x, y = _pair("psnr", a, b)
    if not (np.isfinite(peak) and peak > 0):
        raise EvaluationError(f"psnr needs a peak above 0, not {peak}; 8-bit pictures have 255", code="peak")
    error = float(np.mean((x - y) ** 2))
    return cap if error == 0.0 else min(cap, float(10.0 * np.log10(peak * peak / error)))


def ssim(a: Array, b: Array, peak: float = 255.0) -> float:
    """Mean structural similarity of two pictures `[height, width]` or `[height, width, channels]`.

    Wang, Bovik, Sheikh and Simoncelli 2004 as in their own program: an 11 x 11 Gaussian of sigma 1.5,
    weighted (not sample) variances, K1 = 0.01, K2 = 0.03, only windows that lie inside the picture. Channels
    count alike. 1 for equal pictures. Raises EvaluationError for different or too small shapes, and for
    values that are not finite.
    """
    x, y = _pair("ssim", a, b)
    if x.ndim not in (2, 3) or min(x.shape[:2]) < SSIM_WINDOW:
        raise EvaluationError(
            f"ssim needs pictures [height, width] or [height, width, channels] of at least "
            f"{SSIM_WINDOW} x {SSIM_WINDOW} pixels, not {list(x.shape)}",
            code="shape",
        )
    c1, c2 = (SSIM_K1 * peak) ** 2, (SSIM_K2 * peak) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(above / below))


def frechet_distance(features: Array, reference: Array) -> float:
    """Frechet distance of Gaussians fitted to two sets of features `[n, d]`, `[m, d]` (Heusel et al. 2017):

        |mu_f - mu_r|^2 + tr(C_f + C_r - 2 (C_r^1/2 C_f C_r^1/2)^1/2)

    The square roots are taken of symmetric matrices by their eigenvalues (those below 0 are rounding), which
    stays real where the usual root of C_f C_r turns complex. Covariances divide by n - 1.

    The figure is biased upwards for small samples, the more so the larger d is beside n: two samples of one
    distribution are not at 0. Compare only figures of equal n against the same reference, and never with a
    published FID, whose features are another network's. Raises EvaluationError for fewer than two rows,
    widths that differ, and values that are not finite.
    """
    f, r = _matrix("features", features), _matrix("reference", reference)
    for name, rows in (("features", f), ("reference", r)):
        if len(rows) < 2:
            raise EvaluationError(f"frechet_distance needs at least 2 rows of {name}, not {len(rows)}", code="too_few")
    if f.shape[1] != r.shape[1]:
        raise EvaluationError(
            f"frechet_distance compares features of one network: widths {f.shape[1]} and {r.shape[1]} differ",
            code="shape",
        )
    gap = f.mean(axis=0) - r.mean(axis=0)
    cov_f, cov_r = np.atleast_2d(np.cov(f, rowvar=False)), np.atleast_2d(np.cov(r, rowvar=False))
    root = _root(cov_r)
    middle = root @ cov_f @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0.0, None)).sum()
    return max(0.0, float(gap @ gap + np.trace(cov_f) + np.trace(cov_r) - 2.0 * cross))


def retrieval_hits(
    embeddings: Array, gallery: Array, targets: Array, *, alike: float | None = None
) -> NDArray[np.bool_]:
    """`[n]`: whether the nearest row of `gallery` `[g, d]` by cosine to each of `embeddings` `[n, d]` is its
    target, an index into the gallery; or, with `alike`, a row whose cosine to the target is above it (Norway's
    flag and Bouvet Island's are the same picture). A zero embedding is near nothing: a miss.

    Raises EvaluationError for widths or counts that differ, targets outside the gallery, and values that are
    not finite.
    """
    e, g = _matrix("embeddings", embeddings), _matrix("gallery", gallery)
    wanted = np.asarray(targets)
    if e.shape[1] != g.shape[1]:
        raise EvaluationError(
            f"embeddings and gallery come from one judge: widths {e.shape[1]} and {g.shape[1]} differ",
            code="shape",
        )
    if wanted.shape != (len(e),):
        raise EvaluationError(f"one target per picture: {len(e)} pictures, targets {list(wanted.shape)}", code="shape")
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(g)):
        raise EvaluationError(
            f"targets are rows of the gallery, 0 to {len(g) - 1}; found {wanted.min()} to {wanted.max()}",
            code="target",
        )
    unit = _unit_rows(g)
    found = np.argmax(_unit_rows(e) @ unit.T, axis=1)
    right = found == wanted
    if alike is not None:
        right |= (unit[found] * unit[wanted]).sum(axis=1) > alike
    hits: NDArray[np.bool_] = right & e.any(axis=1)
    return hits


def retrieval_at_1(embeddings: Array, gallery: Array, targets: Array, *, alike: float | None = None) -> float:
    """The fraction of `retrieval_hits`: the judge names the picture by its own prompt before all others.

    Raises EvaluationError as `retrieval_hits` does, and for no pictures.
    """
    hits = retrieval_hits(embeddings, gallery, targets, alike=alike)
    if not len(hits):
        raise EvaluationError("retrieval_at_1 needs at least one picture", code="too_few")
    return float(hits.mean())


def bootstrap_interval(values: Array, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval for the mean of `values` `[n]`: percentile bootstrap, seeded, the same every time.

    With equal values (every picture a hit) it has no width; the sample then says nothing about rarer cases.
    Raises EvaluationError for no values and for values that are not finite.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x) or not np.isfinite(x).all():
        raise EvaluationError("a bootstrap interval needs at least one value, all of them finite", code="too_few")
    picks = np.random.default_rng(seed).integers(0, len(x), size=(draws, len(x)))
    low, high = np.quantile(x[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _pair(what: str, a: Array, b: Array) -> tuple[Array, Array]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise EvaluationError(
            f"{what} compares arrays of one shape, not {list(x.shape)} with {list(y.shape)}", code="shape"
        )
    if not x.size:
        raise EvaluationError(f"{what} needs values, and the arrays are empty", code="shape")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EvaluationError(f"{what} met values that are NaN or infinite", code="not_finite")
    return x, y


def _matrix(name: str, rows: Array) -> Array:
    matrix = np.asarray(rows, dtype=np.float64)
    if matrix.ndim != 2:
        raise EvaluationError(f"{name} must be [n, d], not {list(matrix.shape)}", code="shape")
    if not np.isfinite(matrix).all():
        raise EvaluationError(f"{name} has values that are NaN or infinite", code="not_finite")
    return matrix


def _unit_rows(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Array = rows / np.where(length == 0.0, 1.0, length)
    return result


def _root(covariance: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    result: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return result


def _blur(picture: Array) -> Array:
    """The Gaussian-weighted mean of every window inside the picture, along rows, then along columns."""
    places = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(places**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(picture, SSIM_WINDOW, axis=axis)
        picture = windows @ weights
    return picture
