"""The latency table's JSON, percentiles, and a comparison that neither misses nor invents a difference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgediff.config import parse_outside
from edgediff.errors import ConfigError, EdgeDiffError
from edgediff.runtime.latency import LatencyTable, compare_samples, graph_times, image_times, percentiles, throttling


def table(**changes: Any) -> LatencyTable:
    times = (100.0, 110.0, 105.0)
    values: dict[str, Any] = {
        "source": "measured",
        "device": {"name": "host", "backend": "onnxruntime", "cpu": "EPYC", "threads": 2},
        "load_ms": {"cold": 420.0, "warm": 90.0, "imports": 150.0, "cache_dropped": True},
        "graphs": {"full": graph_times([3.0, 4.0, 5.0]), "vae_decoder": graph_times([9.0])},
        "end_to_end_ms": image_times(times),
        "first_run_ms": 160.0,
        "warmup": 1,
        "overhead_fraction": 0.021,
        "peak_rss_mb": 310.0,
        "base_rss_mb": 95.0,
        "samples": {"end_to_end_ms": times},
    }
    return LatencyTable(**{**values, **changes})


def test_json_has_the_promised_keys_and_reads_back() -> None:
    text = table().to_json()
    data = json.loads(text)
    promised = {"source", "device", "load_ms", "graphs", "end_to_end_ms", "overhead_fraction", "peak_rss_mb"}
    assert promised <= set(data)
    assert {"cold", "warm"} <= set(data["load_ms"])
    assert set(data["graphs"]["full"]) == {"p50_ms", "p90_ms", "p95_ms", "n"}
    assert {"p50", "p90", "n"} <= set(data["end_to_end_ms"])
    assert parse_outside(text, LatencyTable, where="profile.json") == table()


def test_a_measured_table_keeps_its_samples_and_an_estimate_has_none() -> None:
    with pytest.raises(ValueError, match=r"end_to_end_ms.n = 3, and 0 are there"):
        table(samples={})
    assert table(source="estimated", samples={}).source == "estimated"


def test_unknown_keys_are_refused() -> None:
    text = table().to_json().replace("peak_rss_mb", "peak_rss_gb")
    with pytest.raises(ConfigError, match=r"unknown key 'peak_rss_gb'; did you mean 'peak_rss_mb'\?"):
        parse_outside(text, LatencyTable, where="profile.json")


def test_it_prints_within_80_columns() -> None:
    lines = str(table()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "end to end  p50 105.0 ms, p90 109.0 ms, n 3 after 1 warm-up" in lines
    assert "overhead    2.1% of the time outside the graphs" in lines
    assert "first run   not measured" in str(table(first_run_ms=None))


def test_percentiles_interpolate() -> None:
    assert percentiles([1.0, 2.0, 3.0]) == pytest.approx({"p50": 2.0, "p90": 2.8, "p95": 2.9})
    assert percentiles(range(101)) == {"p50": 50.0, "p90": 90.0, "p95": 95.0}
    with pytest.raises(EdgeDiffError, match="percentiles needs at least one sample, all of them finite"):
        percentiles([])
    with pytest.raises(EdgeDiffError, match="finite"):
        percentiles([1.0, float("nan")])


def times(count: int, factor: float = 1.0, seed: int = 0) -> tuple[list[float], list[float]]:
    """Pairs on a machine that drifts by half, with 2 % noise of their own."""
    rng = np.random.default_rng(seed)
    drift = np.linspace(100, 150, count)
    a, b = (drift * np.exp(rng.normal(0, 0.02, count)) for _ in "ab")
    return a.tolist(), (b * factor).tolist()


def test_a_real_difference_is_found_in_spite_of_drift() -> None:
    faster, slower = compare_samples(*times(12, 0.93)), compare_samples(*times(12, 1.08))
    assert faster["verdict"] == "faster"
    assert faster["ratio"]["high"] < 1
    assert faster["ratio"]["median"] == pytest.approx(0.93, abs=0.02)
    assert slower["verdict"] == "slower"
    assert slower["ratio"]["low"] > 1
    assert slower["n"] == 12


def test_swapping_the_sides_swaps_the_verdict() -> None:
    a, b = times(12, 0.9)
    assert compare_samples(b, a)["verdict"] == "slower"


def test_a_bundle_against_itself_is_inconclusive() -> None:
    verdicts = [compare_samples(*times(10, seed=seed), seed=seed)["verdict"] for seed in range(150)]
    assert verdicts.count("inconclusive") >= 0.85 * len(verdicts)


def test_few_pairs_decide_nothing_and_the_answer_repeats() -> None:
    assert compare_samples(*times(5, 0.5))["verdict"] == "inconclusive"
    assert compare_samples(*times(6, 0.5))["verdict"] == "faster"
    assert compare_samples(*times(9, 0.97)) == compare_samples(*times(9, 0.97))


def test_comparison_errors() -> None:
    with pytest.raises(EdgeDiffError, match="takes pairs: 3 times against 2"):
        compare_samples([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(EdgeDiffError, match="takes times above 0"):
        compare_samples([1.0, 0.0], [1.0, 2.0])


def test_sources_are_told_apart() -> None:
    for source in ("measured", "emulated", "vendor-estimate", "estimated"):
        assert table(source=source).source == source
    with pytest.raises(ValueError, match="measured"):
        table(source="guessed")


def test_a_machine_that_slows_down_shows() -> None:
    steady, slowing = [5.0] * 20, [5.0 + 0.1 * n for n in range(20)]
    assert throttling(steady) == 1.0
    assert throttling(slowing) == pytest.approx((5.0 + 0.1 * 17.5) / (5.0 + 0.1 * 1.5))
    assert throttling(steady[:14]) is None, "too few to say"
    shown = str(table(end_to_end_ms=image_times(slowing), samples={"end_to_end_ms": tuple(slowing)}))
    assert "sustained   the last fifth takes 1.31 of the first" in shown
