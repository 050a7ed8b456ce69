"""Noise: torch's numbers, and the golden file that Kotlin and Swift read.

`EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_rng.py` writes tests/golden/rng.json anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from edgediff.config import dump_json
from edgediff.errors import ConfigError
from edgediff.runtime.rng import Rng, normal, philox_4x32

GOLDEN = Path(__file__).parent / "golden" / "rng.json"
SHAPES = [(1,), (15,), (16,), (17,), (1024,), (1, 4, 64, 64)]
STREAMS = {  # several draws from one stream: neither the spare value nor the tail of 16 may be lost
    "pixels": [(3,), (2,), (16,), (1,), (33,), (4,)],
    "latents": [(1, 4, 16, 16)] * 3,
}
SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 1, 2**64 - 1]

# torch.manual_seed(0); torch.randn(8, 8, device="cuda"), as printed in public notes on CUDA kernels.
CUDA_SEED_0 = """
-0.9247 -0.4253 -2.6438  0.1452 -0.1209 -0.5797 -0.6229 -0.3284
-1.0745 -0.3631 -1.6711  2.2655  0.3117 -0.1842  1.2866  1.1820
-0.1271  1.2169  1.4353  1.0605 -0.4941 -1.4244 -0.7244 -1.2973
 0.0697 -0.0074  1.8969  0.6878 -0.0779 -0.8373  1.3506 -0.2879
-0.5965 -0.3283 -0.9086 -0.8059 -0.7407 -0.0504  0.5435  1.5150
 0.0141  0.4532  1.6349  0.7124 -0.1806  1.0252 -1.4622 -0.7554
-0.1836  0.3824  0.3918 -0.0830  0.8971 -1.1123  0.1116  0.4863
-0.5499 -0.3231 -0.5469  0.9049  0.2837  0.1210  0.4730 -1.0823
"""
# Random123, tests/kat_vectors: philox4x32 10, counter, key, output.
PHILOX_KNOWN = [
    "00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1",
]


def describe(values: np.ndarray) -> dict:
    flat = values.ravel()
    record = {"shape": list(values.shape), "sha256": hashlib.sha256(flat.astype("<f4").tobytes()).hexdigest()}
    if flat.size <= 64:
        return {**record, "values": [float(v) for v in flat]}
    return {**record, "first": [float(v) for v in flat[:8]], "last": [float(v) for v in flat[-8:]]}


def golden() -> dict:
    streams = []
    for kind in ("mt19937", "philox"):
        for seed in SEEDS:
            plans = [[shape] for shape in SHAPES] if seed in (0, 2**64 - 1) else []
            for shapes in [*plans, *STREAMS.values()]:
                rng = Rng(seed, kind)
                draws = [describe(rng.normal(shape)) for shape in shapes]
                streams.append({"kind": kind, "seed": str(seed), "draws": draws})
    return {
        "about": "Each stream starts from its seed (decimal text: seeds have 64 bits) and makes its draws in "
        "order. sha256 is of the values as little-endian float32, C order; values are exact. Defined in "
        "edgediff/runtime/rng.py. Written by EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_rng.py",
        "mt19937_words": {
            "seed": "5489",
            "first": [3499211612, 581869302, 3890346734],
            "word_10000": 4123659995,
        },
        "philox_4x32_10": [
            {"counter": words[:4], "key": words[4:6], "output": words[6:]}
            for words in ([int(word, 16) for word in line.split()] for line in PHILOX_KNOWN)
        ],
        "streams": streams,
    }


def test_the_golden_file_holds_what_the_definition_gives():
    text = dump_json(golden())
    if os.environ.get("EDGEDIFF_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text


def test_the_words_are_those_of_the_published_mt19937():
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))["mt19937_words"]
    words = Rng(5489)._words(10_000)
    assert words[:3].tolist() == known["first"]
    assert int(words[9_999]) == known["word_10000"] == 4123659995


@pytest.mark.parametrize("seed", SEEDS)
def test_mt19937_draws_what_torch_draws(seed: int):
    generator, rng = torch.Generator().manual_seed(seed), Rng(seed)
    for shape in [*STREAMS["pixels"], *SHAPES, (7,), (100_003,), (3,)]:
        theirs, ours = torch.randn(shape, generator=generator).numpy(), rng.normal(shape)
        assert ours.dtype == np.float32
        assert ours.shape == shape
        if ours.size < 16:
            assert np.array_equal(ours, theirs), (seed, shape)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6, err_msg=str((seed, shape)))


def test_the_measured_bound_holds_on_avx2():
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch uses other kernels on this processor")
    generator = torch.Generator().manual_seed(7)
    theirs, ours = torch.randn(200_000, generator=generator).numpy(), normal(7, 200_000)
    difference = np.abs(ours - theirs)
    large = np.abs(theirs) > 0.01
    assert difference.max() <= 4.8e-7
    assert (difference[large] / np.spacing(np.abs(theirs[large]))).max() <= 4
    assert (difference == 0).mean() > 0.5


def test_log_sine_and_cosine_are_right_to_the_last_bits():
    from edgediff.runtime.rng import _log, _sin_cos

    x = np.concatenate([np.arange(1, 2**16) * 2.0**-24, np.random.RandomState(0).uniform(0, 1, 20_000)])
    np.testing.assert_allclose(_log(x), np.log(x), rtol=5e-16)
    assert _log(np.ones(1))[0] == 0.0
    angle = np.linspace(0.0, 6.9999, 50_001)
    sine, cosine = _sin_cos(angle)
    np.testing.assert_allclose(sine, np.sin(angle), rtol=0, atol=3e-16)
    np.testing.assert_allclose(cosine, np.cos(angle), rtol=0, atol=3e-16)


@pytest.mark.parametrize("line", PHILOX_KNOWN)
def test_philox_gives_the_published_words(line: str):
    words = [int(word, 16) for word in line.split()]
    assert [int(word) for word in philox_4x32(words[:4], (words[4], words[5]))] == words[6:]


def test_philox_draws_what_torch_draws_on_a_gpu():
    published = np.array(CUDA_SEED_0.split(), np.float64).reshape(8, 8)
    np.testing.assert_allclose(normal(0, (8, 8), "philox"), published, rtol=0, atol=6e-5)


@pytest.mark.parametrize("kind", ["mt19937", "philox"])
def test_draws_of_one_stream_differ_and_look_normal(kind: str):
    rng = Rng(3, kind)
    first, second = rng.normal(50_000), rng.normal(50_000)
    assert not np.array_equal(first, second)
    for draw in (first, second):
        assert abs(draw.mean()) < 0.02
        assert abs(draw.std() - 1.0) < 0.02
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_seed_zero_is_a_seed_and_only_low_bits_count_for_mt19937():
    assert not np.array_equal(normal(0, 16), normal(1, 16))
    assert np.array_equal(normal(5, 16), normal(2**32 + 5, 16))
    assert not np.array_equal(normal(5, 16, "philox"), normal(2**32 + 5, 16, "philox"))
    assert normal(0, (0, 3)).shape == (0, 3)
    assert normal(np.int64(4), 3).tolist() == normal(4, (3,)).tolist()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", True, None])
def test_a_wrong_seed_is_refused(seed: object):
    with pytest.raises(ConfigError) as error:
        Rng(seed)  # type: ignore[arg-type]
    assert str(error.value) == f"seed = {seed!r}; it must be a whole number from 0 to 2^64 - 1"
    assert error.value.code == "seed"


def test_a_wrong_kind_or_shape_is_refused():
    with pytest.raises(ConfigError, match=r"unknown random stream 'philo'; did you mean 'philox'\?"):
        Rng(0, "philo")
    with pytest.raises(ConfigError, match=r"noise of shape \(2, -1\); sizes must be whole numbers"):
        Rng(0).normal((2, -1))
