"""The noise: the numbers of `torch.randn`, defined exactly, so that every phone draws the desktop's picture.

Two streams. `mt19937` is torch's CPU generator; `philox` its CUDA generator, which Stable Diffusion UIs use
too. Both give float32. This file *is* the definition that Kotlin and Swift repeat bit for bit: integers are
exact; real numbers are IEEE float64, rounded to nearest, one operation at a time (no fused multiply-add), and
use only +, -, *, / and sqrt (`_log`, `_sin_cos` below), because libraries differ in the last bit of log and
cos. Where a value is rounded to float32 the code says so; the result is rounded once, at the end.

mt19937: MT19937 seeded by init_genrand with the low 32 bits of the seed, giving words w0, w1, ... of 32 bits.
  16 values or more: u_i = (w & 0xffffff) / 2^24, one word each. In every whole group of 16 and for j = 0..7:
    radius = sqrt(-2 log(1 - u_j)), angle = float32(u_{j+8} * float32(2 pi)),
    out_j = radius cos(angle), out_{j+8} = radius sin(angle).
    If the count is no multiple of 16, 16 more words are drawn, and the last 16 values become that group.
  Fewer: pairs (a, b) of (w * 2^32 + w') mod 2^53 / 2^53; radius = sqrt(-2 log(1 - b)), angle = 2 pi a; first
    radius cos(angle), then radius sin(angle), which is kept for the next short draw if it is not needed now.
philox: draw number d (0, 1, ...) takes for element i Philox-4x32-10 of the counter (d, i), both 64 bits low
  word first, under the seed as key. With the first two words of its output, f = float32:
    u = f(w0) / 2^32 + 2^-33 as float32, angle = f(w1) * c + c / 2 as float32, c = f(2 pi) / 2^32,
    out = sqrt(-2 log(u)) sin(angle).
  torch lays a draw out like this as long as it has no more values than the GPU holds threads (its SMs times
  their threads: over 100,000 on desktop cards; a 4x64x64 latent has 16,384).

Largest difference to torch.randn, version 2.13.0, on x86-64, in 2 million draws: 4.8e-7 (3 units in the last
place above 0.01; 62 % of the values equal) with its AVX2 kernels, 2.4e-6 with its plain ones, which round log
and cos to float32; draws of fewer than 16 values are equal. philox agrees with 64 values published for a
GPU to their four decimals; nothing closer was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgediff.errors import ConfigError, unknown

Words = npt.NDArray[np.uint32]
Reals = npt.NDArray[np.float64]
Normals = npt.NDArray[np.float32]

KINDS = ("mt19937", "philox")

_LOG_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_TWO_PI = 6.283185307179586
_TWO_PI_32 = 6.2831854820251465  # float32(2 pi)
_TWO_OVER_PI = 0.6366197723675814
_HALF_PI_HIGH = 1.5707963267341256  # the first 33 bits of pi / 2, so that n * high is exact for n <= 4
_HALF_PI_LOW = 6.077100506506192e-11  # the rest


class Rng:
    """One stream of standard normal draws; the same (seed, kind) and the same shapes give the same bits.

    `seed` is 0 .. 2^64 - 1, and 0 is a seed like any other; mt19937 reads its low 32 bits, as torch does.
    Raises ConfigError for any other seed and for an unknown kind.
    """

    def __init__(self, seed: int, kind: str = "mt19937") -> None:
        if kind not in KINDS:
            raise ConfigError(unknown("random stream", kind, KINDS), code="rng")
        self.seed, self.kind = _checked_seed(seed), kind
        self._mt19937 = np.random.RandomState(self.seed & 0xFFFFFFFF)
        self._spare: float | None = None
        self._draws = 0

    def normal(self, shape: int | Sequence[int]) -> Normals:
        """The next draw: float32, C order. Raises ConfigError for a negative or fractional size."""
        sizes = _checked_shape(shape)
        count = math.prod(sizes)
        if self.kind == "philox":
            values = self._philox(count)
        else:
            values = self._groups(count) if count >= 16 else self._pairs(count)
        return values.astype(np.float32).reshape(sizes)

    def _words(self, count: int) -> Words:
        return self._mt19937.randint(0, 1 << 32, size=count, dtype=np.uint32)

    def _groups(self, count: int) -> Reals:
        values = _box_muller_16(self._words(count))
        if count % 16:
            values[-16:] = _box_muller_16(self._words(16))
        return values

    def _pairs(self, count: int) -> Reals:
        kept = [] if self._spare is None or count == 0 else [self._spare]
        pairs = (count - len(kept) + 1) // 2
        words = self._words(4 * pairs).astype(np.uint64).reshape(pairs, 2, 2)
        uniform = (((words[..., 0] << np.uint64(32)) | words[..., 1]) & np.uint64((1 << 53) - 1)) * 2.0**-53
        radius = np.sqrt(-2.0 * _log(1.0 - uniform[:, 1]))
        sine, cosine = _sin_cos(_TWO_PI * uniform[:, 0])
        values: Reals = np.concatenate([kept, np.stack([radius * cosine, radius * sine], axis=1).ravel()])
        if count:
            self._spare = float(values[count]) if len(values) > count else None
        return values[:count]

    def _philox(self, count: int) -> Reals:
        index = np.arange(count, dtype=np.uint64)
        counter = [np.full(count, word, np.uint64) for word in _split(self._draws)]
        words = philox_4x32([*counter, index & _MASK, index >> _SHIFT], _split(self.seed))
        self._draws += 1
        first, second = (word.astype(np.float32).astype(np.float64) for word in words[:2])
        uniform = _round_32(first * 2.0**-32 + 2.0**-33)
        scale = _TWO_PI_32 * 2.0**-32
        sine, _ = _sin_cos(_round_32(second * scale + scale / 2.0))
        values: Reals = np.sqrt(-2.0 * _log(uniform)) * sine
        return values


def normal(seed: int, shape: int | Sequence[int], kind: str = "mt19937") -> Normals:
    """The first draw of `Rng(seed, kind)`: what `torch.randn(shape, generator=manual_seed(seed))` gives."""
    return Rng(seed, kind).normal(shape)


_MASK, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox_4x32(counter: Sequence[Any], key: tuple[int, int]) -> list[npt.NDArray[np.uint64]]:
    """Philox-4x32-10 (Salmon et al., 2011): four arrays of 32-bit words in uint64, in and out.

    The counter's words come first to last, as in Random123's known-answer file.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (b >> _SHIFT) ^ c1 ^ np.uint64(k0), b & _MASK
        c2, c3 = (a >> _SHIFT) ^ c3 ^ np.uint64(k1), a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def _box_muller_16(words: Words) -> Reals:
    """The normals of each whole group of 16 words; words after the last whole group give zeros."""
    whole = len(words) // 16 * 16
    uniform = ((words[:whole] & np.uint32(0xFFFFFF)) * 2.0**-24).reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * _log(1.0 - uniform[:, 0]))
    sine, cosine = _sin_cos(_round_32(uniform[:, 1] * _TWO_PI_32))
    values = np.zeros(len(words))
    values[:whole] = np.stack([radius * cosine, radius * sine], axis=1).ravel()
    return values


def _log(x: Reals) -> Reals:
    """log(x), 0 < x <= 1: x = m 2^k, m in [sqrt(1/2), sqrt(2)), then k log 2 + 2 atanh((m - 1) / (m + 1))."""
    m, k = np.frexp(x)
    small = m < _SQRT_HALF
    m, k = np.where(small, 2.0 * m, m), np.where(small, k - 1, k).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    return k * _LOG_2 + 2.0 * (s * _horner(s * s, _ATANH))


def _sin_cos(angle: Reals) -> tuple[Reals, Reals]:
    """sin and cos, 0 <= angle < 7: n quarter turns off, Taylor series, n quarter turns back."""
    n = np.floor(angle * _TWO_OVER_PI + 0.5)
    y = (angle - n * _HALF_PI_HIGH) - n * _HALF_PI_LOW
    sine, cosine = y * _horner(y * y, _SIN), _horner(y * y, _COS)
    odd = n % 2 == 1
    sine, cosine = np.where(odd, cosine, sine), np.where(odd, sine, cosine)
    return np.where(n % 4 >= 2, -sine, sine), np.where((n + 1) % 4 >= 2, -cosine, cosine)


# Coefficients of z = s^2 or y^2, highest power first; each is one division of integers below 2^53.
_ATANH = [1.0 / (2 * n + 1) for n in range(10, -1, -1)]
_SIN = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(8, -1, -1)]
_COS = [(-1.0) ** n / math.factorial(2 * n) for n in range(9, -1, -1)]


def _horner(z: Reals, coefficients: Sequence[float]) -> Reals:
    total = np.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * z + coefficient
    return total


def _round_32(x: Reals) -> Reals:
    return x.astype(np.float32).astype(np.float64)


def _split(value: int) -> tuple[int, int]:
    return value & 0xFFFFFFFF, value >> 32


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= int(seed) < 1 << 64:
        return int(seed)
    raise ConfigError(f"seed = {seed!r}; it must be a whole number from 0 to 2^64 - 1", code="seed")


def _checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if all(isinstance(size, (int, np.integer)) and size >= 0 for size in sizes):
        return tuple(int(size) for size in sizes)
    raise ConfigError(f"noise of shape {shape!r}; sizes must be whole numbers of at least 0", code="shape")
