"""Metrics against independent implementations, closed forms and their own promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, ndimage

from edgediff.errors import EvaluationError
from edgediff.metrics import (
    PSNR_CAP,
    bootstrap_interval,
    frechet_distance,
    psnr,
    retrieval_at_1,
    retrieval_hits,
    ssim,
)

RNG = np.random.default_rng(5)


def picture(height: int = 40, width: int = 52) -> np.ndarray:
    """A smooth 8-bit colour picture with some texture."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (4 + c)) * np.cos(y / (6 - c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + RNG.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def test_psnr_of_a_known_error() -> None:
    a = np.zeros((8, 8, 3), np.uint8)
    assert psnr(a, a + 1, 255) == pytest.approx(20 * np.log10(255))
    assert psnr(a, a + 255, 255) == pytest.approx(0.0)
    assert psnr(np.zeros(4), np.full(4, 0.2), 2.0) == pytest.approx(20.0)


def test_psnr_does_not_wrap_8_bit_values() -> None:
    black, white = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    assert psnr(black, white, 255) == psnr(white, black, 255) == 0.0


def test_psnr_is_capped_and_the_cap_is_for_equal_pictures() -> None:
    a = picture(64, 64)
    b = a.copy()
    b[0, 0, 0] ^= 1
    assert psnr(a, a, 255) == PSNR_CAP == 100.0
    assert psnr(a, b, 255) < PSNR_CAP
    assert psnr(a, a, 255, cap=60.0) == 60.0


@pytest.mark.parametrize(
    ("a", "b", "peak", "text"),
    [
        (
            np.zeros((2, 2)),
            np.zeros((2, 3)),
            1.0,
            r"psnr compares arrays of one shape, not \[2, 2\] with \[2, 3\]",
        ),
        (np.zeros(0), np.zeros(0), 1.0, "psnr needs values, and the arrays are empty"),
        (np.zeros(2), np.array([0, np.nan]), 1.0, "psnr met values that are NaN or infinite"),
        (np.zeros(2), np.zeros(2), 0.0, "psnr needs a peak above 0, not 0.0; 8-bit pictures have 255"),
    ],
)
def test_psnr_errors(a: np.ndarray, b: np.ndarray, peak: float, text: str) -> None:
    with pytest.raises(EvaluationError, match=text):
        psnr(a, b, peak)


def wang_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel, by scipy's Gaussian filter cropped to whole windows; truncate 3.5 gives 11 taps."""

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    x, y = a.astype(float), b.astype(float)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
    return float((luminance * (2 * cov + 58.5225) / (vx + vy + 58.5225)).mean())


def test_ssim_agrees_with_an_independent_implementation() -> None:
    a = picture()
    for noise in (3, 20, 80):
        b = np.clip(a + RNG.normal(0, noise, a.shape), 0, 255).astype(np.uint8)
        expected = np.mean([wang_ssim(a[..., c], b[..., c]) for c in range(3)])
        assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
        assert ssim(a[..., 0], b[..., 0]) == pytest.approx(wang_ssim(a[..., 0], b[..., 0]), abs=1e-9)


def test_ssim_of_one_window_by_hand() -> None:
    """One 11 x 11 window: the definition with explicit weights, no filter at all."""
    a, b = RNG.uniform(0, 255, (11, 11)), RNG.uniform(0, 255, (11, 11))
    d = np.arange(11) - 5
    w = np.exp(-(d[:, None] ** 2 + d[None] ** 2) / 4.5)
    w /= w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    by_hand = (2 * ma * mb + 6.5025) * (2 * cov + 58.5225) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))
    assert ssim(a, b) == pytest.approx(by_hand, abs=1e-9)


def test_ssim_orders_pictures_and_is_1_for_equal_ones() -> None:
    a = picture()
    near, far = (np.clip(a + RNG.normal(0, s, a.shape), 0, 255) for s in (4, 40))
    assert ssim(a, a) == pytest.approx(1.0)
    assert 1.0 > ssim(a, near) > ssim(a, far)
    assert ssim(a, 255 - a) < 0.2


def test_ssim_refuses_small_pictures() -> None:
    with pytest.raises(EvaluationError, match=r"of at least 11 x 11 pixels, not \[8, 20, 3\]"):
        ssim(np.zeros((8, 20, 3)), np.zeros((8, 20, 3)))


def test_frechet_of_gaussians_with_a_closed_form() -> None:
    """Samples made to have exactly these moments: diagonal covariances s, t, and means 3 apart."""
    raw = RNG.normal(size=(500, 4))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    s, t = np.array([1.0, 4.0, 9.0, 0.25]), np.array([4.0, 4.0, 1.0, 1.0])
    shift = np.array([3.0, 0, 0, 0])
    expected = 9.0 + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert frechet_distance(white * np.sqrt(s), white * np.sqrt(t) + shift) == pytest.approx(expected, rel=1e-9)


def test_frechet_agrees_with_the_matrix_square_root_of_the_paper() -> None:
    f, r = RNG.normal(size=(300, 8)) @ RNG.normal(size=(8, 8)), RNG.normal(size=(200, 8)) + 0.3
    cf, cr = np.cov(f, rowvar=False), np.cov(r, rowvar=False)
    root = linalg.sqrtm(cf @ cr).real
    expected = ((f.mean(0) - r.mean(0)) ** 2).sum() + np.trace(cf + cr - 2 * root)
    assert frechet_distance(f, r) == pytest.approx(expected, rel=1e-8)


def test_frechet_with_fewer_samples_than_features() -> None:
    """Singular covariances: finite, symmetric, 0 for the same set; and biased upwards, as documented."""
    f, r = RNG.normal(size=(10, 64)), RNG.normal(size=(12, 64))
    assert frechet_distance(f, r) == pytest.approx(frechet_distance(r, f), rel=1e-6)
    assert frechet_distance(f, f) == pytest.approx(0.0, abs=1e-5)
    many = frechet_distance(RNG.normal(size=(4000, 64)), RNG.normal(size=(4000, 64)))
    assert frechet_distance(f, r) > 20 * many > 0


def test_frechet_errors() -> None:
    with pytest.raises(EvaluationError, match="needs at least 2 rows of features, not 1"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(EvaluationError, match="widths 3 and 4 differ"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(EvaluationError, match="features has values that are NaN or infinite"):
        frechet_distance(np.full((5, 3), np.inf), np.zeros((5, 3)))


def test_retrieval_uses_the_cosine_and_counts_hits() -> None:
    gallery = np.array([[10.0, 0.0], [0.0, 0.1], [-1.0, 0.0]])
    pictures = np.array([[0.2, 0.1], [0.3, 0.4], [-5.0, 1.0], [1.0, -0.1]])
    hits = retrieval_hits(pictures, gallery, np.array([0, 1, 2, 1]))
    assert hits.tolist() == [True, True, True, False]
    assert retrieval_at_1(pictures, gallery, np.array([0, 1, 2, 1])) == 0.75


def test_names_of_the_same_picture_count_as_one() -> None:
    gallery = np.array([[1.0, 0.0], [0.999, 0.02], [0.0, 1.0]])
    picture, target = np.array([[2.0, 0.0]]), np.array([1])
    assert retrieval_at_1(picture, gallery, target) == 0.0
    assert retrieval_at_1(picture, gallery, target, alike=0.995) == 1.0
    assert retrieval_at_1(picture, gallery, np.array([2]), alike=0.995) == 0.0


def test_a_picture_without_content_is_a_miss() -> None:
    assert not retrieval_hits(np.zeros((1, 2)), np.eye(2), np.array([0])).any()


def test_retrieval_errors() -> None:
    with pytest.raises(EvaluationError, match=r"targets are rows of the gallery, 0 to 1; found 0 to 2"):
        retrieval_at_1(np.eye(2), np.eye(2), np.array([0, 2]))
    with pytest.raises(EvaluationError, match=r"one target per picture: 2 pictures, targets \[1\]"):
        retrieval_at_1(np.eye(2), np.eye(2), np.array([0]))
    with pytest.raises(EvaluationError, match="at least one picture"):
        retrieval_at_1(np.zeros((0, 2)), np.eye(2), np.zeros(0, int))


def test_bootstrap_interval_has_its_coverage_and_repeats_itself() -> None:
    hits = RNG.random((200, 100)) < 0.7
    intervals = [bootstrap_interval(row, draws=500) for row in hits]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.99
    assert bootstrap_interval(hits[0]) == bootstrap_interval(hits[0])
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    with pytest.raises(EvaluationError, match="at least one value"):
        bootstrap_interval(np.array([]))
