"""What a bundle takes on a device: the latency table, percentiles, and a fair comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import EdgeDiffError

# measured: on the device itself; emulated: run on another machine in its stead, never that device's time;
# vendor-estimate: a vendor's tool predicts it; estimated: edgediff.estimate does.
Source = Literal["measured", "emulated", "vendor-estimate", "estimated"]
Verdict = Literal["faster", "slower", "inconclusive"]

MIN_PAIRS = 6  # all on one side by luck alone: 2 x 0.5^6 = 3 %, so that 95 % can be claimed at all
BOOTSTRAP_DRAWS = 4000
SHOWN_OPERATORS = 12


class DeviceFacts(Model):
    """The device and its state before the run. None: not readable there, or does not apply."""

    name: str
    backend: str
    cpu: str | None = None
    cores: int | None = None
    affinity: tuple[int, ...] | None = None
    threads: int | None = None
    os: str | None = None
    governor: str | None = None
    load_average: float | None = None
    memory_gb: float | None = None
    runtime: str | None = None
    serial: str | None = None
    os_build: str | None = None

    @property
    def is_busy(self) -> bool:
        """Whether other work held a quarter of the cores or more before the run: times are then upper bounds."""
        return bool(self.load_average and self.cores and self.load_average >= 0.25 * self.cores)


class LoadTimes(Model):
    """Milliseconds to open the bundle (hashes included) and make it ready to run.

    `cold`: first time in a fresh process; `cache_dropped` says whether the files had left the system's page
    cache before (None: could not be told). Of it, `hashing` goes to reading and checking the files, `graphs`
    to readying each graph. `warm`: opened again in the same process. Libraries are loaded before, in
    `imports`. None: not measured (an estimate).
    """

    cold: float | None = Field(default=None, ge=0)
    warm: float | None = Field(default=None, ge=0)
    hashing: float | None = Field(default=None, ge=0)
    imports: float | None = Field(default=None, ge=0)
    graphs: dict[str, float] = {}
    cache_dropped: bool | None = None


class GraphTimes(Model):
    """Milliseconds of one call of one graph, warm-up left out."""

    p50_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)
    p95_ms: float = Field(ge=0)
    n: int = Field(ge=1)


class ImageTimes(Model):
    """Milliseconds from prompt to picture, warm-up left out."""

    p50: float = Field(ge=0)
    p90: float = Field(ge=0)
    p95: float = Field(ge=0)
    n: int = Field(ge=1)


class Samples(Model):
    """Every measured value in milliseconds, in order, for a comparison later."""

    end_to_end_ms: tuple[float, ...] = ()
    graphs: dict[str, tuple[float, ...]] = {}


class Thermal(Model):
    """The device before or after a run: degrees Celsius by sensor, battery charge in percent."""

    celsius: dict[str, float] = {}
    battery_percent: float | None = None
    charging: bool | None = None

    def __str__(self) -> str:
        """`battery 87 %, 31.2 C`: the battery, or else the hottest sensor."""
        battery = None if self.battery_percent is None else f"battery {self.battery_percent:.0f} %"
        hottest = self.celsius.get("battery", max(self.celsius.values(), default=None))
        return ", ".join(filter(None, [battery, None if hottest is None else f"{hottest:.1f} C"])) or "not readable"


class NpuEstimate(Model):
    """What the vendor's compiler says of one call of a graph: cycles at its clock, multiply-accumulates, into how many
    pieces the graph fell, and KiB (1024 bytes) used in each memory. A model's figures, measured on no chip."""

    cycles: int = Field(ge=0)
    clock_mhz: float = Field(gt=0)
    macs: int = Field(ge=0)
    pieces: int = Field(ge=1)
    memory_kib: dict[str, float] = {}


class LatencyTable(Model):
    """`profile`'s JSON. `overhead_fraction` is the part of an image's time spent outside the graphs.
    `warmup` counts images thrown away, `first_run_ms` is the first of them. Memory in MB (10^6 bytes):
    `peak_rss_mb` is the high-water mark of the process, libraries included; `base_rss_mb` what it held before
    the bundle was opened; `pss_mb` its proportional share after the last image; `weights_in_memory` says whether
    weights count in them (a mapped context binary does not). `operators_ms` is what each kind of operator takes of one
    call (`<graph>/<kind>` where there are several graphs) and `placement` the compute unit of each operator, where a
    trace says so. `complete` is False when the run ended early: what had been measured is here. `npu` is what a
    vendor's compiler says of its part of each graph."""

    source: Source
    device: DeviceFacts
    load_ms: LoadTimes = LoadTimes()
    graphs: dict[str, GraphTimes]
    end_to_end_ms: ImageTimes
    first_run_ms: float | None = Field(default=None, ge=0)
    warmup: int = Field(default=0, ge=0)
    overhead_fraction: float | None = Field(default=None, ge=0, le=1)
    peak_rss_mb: float | None = Field(default=None, ge=0)
    base_rss_mb: float | None = Field(default=None, ge=0)
    pss_mb: float | None = Field(default=None, ge=0)
    measured_at: str | None = None
    bundle: str | None = None
    samples: Samples = Samples()
    compile_ms: float | None = Field(default=None, ge=0)
    placement: dict[str, str] | None = None
    operators_ms: dict[str, float] | None = None
    weights_in_memory: bool | None = None
    thermal_before: Thermal | None = None
    thermal_after: Thermal | None = None
    complete: bool | None = None
    npu: dict[str, NpuEstimate] | None = None

    @model_validator(mode="after")
    def _measured_has_samples(self) -> LatencyTable:
        if self.source == "measured" and len(self.samples.end_to_end_ms) != self.end_to_end_ms.n:
            raise ValueError(
                f"a measured table keeps its samples: end_to_end_ms.n = {self.end_to_end_ms.n}, and "
                f"{len(self.samples.end_to_end_ms)} are there"
            )
        return self

    def __str__(self) -> str:
        """The table as text, 80 columns."""
        e2e, facts = self.end_to_end_ms, self.device
        cold = "cold, from disk" if self.load_ms.cache_dropped else "cold, files perhaps cached"
        lines = [
            f"{self.source} on {facts.name} ({facts.cpu or 'CPU unknown'}), {facts.backend}",
            f"end to end  p50 {e2e.p50:.1f} ms, p90 {e2e.p90:.1f} ms, n {e2e.n} after {self.warmup} warm-up",
            f"load        {_ms(self.load_ms.cold)} {cold}; {_ms(self.load_ms.warm)} warm",
            f"first run   {_ms(self.first_run_ms)}",
            f"overhead    {_share(self.overhead_fraction)} of the time outside the graphs",
            f"memory      peak {_mb(self.peak_rss_mb)}, of which {_mb(self.base_rss_mb)} before the bundle",
            f"            {_mb(self.pss_mb)} in the end, shared pages divided among their users",
            f"threads     {facts.threads or 'the backend chooses'}; cores {_cores(facts)}",
            *(
                []
                if self.thermal_before is None
                else [f"state       {self.thermal_before} before; {self.thermal_after or 'not readable'} after"]
            ),
            *(
                []
                if (slower := throttling(self.samples.end_to_end_ms)) is None
                else [
                    f"sustained   the last fifth takes {slower:.2f} of the first: {_curve(self.samples.end_to_end_ms)}"
                ]
            ),
            *(
                [f"beware      load average {facts.load_average:g} on {facts.cores} cores before the run: upper bounds"]
                if facts.is_busy
                else []
            ),
            *(["beware      the run ended early: these are the images made by then"] if self.complete is False else []),
            "",
            f"{'graph':<16}{'p50 ms':>10}{'p90 ms':>10}{'p95 ms':>10}{'n':>7}",
        ]
        for name, times in self.graphs.items():
            lines.append(f"{name:<16}{times.p50_ms:>10.3f}{times.p90_ms:>10.3f}{times.p95_ms:>10.3f}{times.n:>7}")
        if self.npu:
            lines += ["", "the NPU's part alone: what the CPU does beside it is in nobody's estimate"]
        for name, one in (self.npu or {}).items():
            used = ", ".join(f"{memory} {kib:.0f} KiB" for memory, kib in one.memory_kib.items())
            lines.append(f"{name:<16}{one.cycles} cycles at {one.clock_mhz:g} MHz, {one.pieces} pieces; {used}")
        if self.operators_ms:
            largest = sorted(self.operators_ms.items(), key=lambda item: -item[1])[:SHOWN_OPERATORS]
            lines += ["", f"{'operators, the largest':<40}{'ms a call':>10}"]
            lines += [f"{kind:<40}{took:>10.3f}" for kind, took in largest]
        return "\n".join(lines)


def throttling(samples: Sequence[float]) -> float | None:
    """How much longer the last fifth of a sustained run takes than the first, by their medians, in order of time:
    above 1 the device slows down. None for fewer than 15 samples, which cannot tell."""
    if len(samples) < 15:
        return None
    fifth = len(samples) // 5
    return float(np.median(samples[-fifth:]) / np.median(samples[:fifth]))


def throttling_curve(samples: Sequence[float], points: int = 10) -> tuple[tuple[float, float], ...]:
    """`(seconds, milliseconds)`: the median image of each of `points` equal stretches of a sustained run, at the time
    since its start when the stretch ends. Fewer points where there are fewer images."""
    parts = np.array_split(_finite("throttling_curve", samples), min(points, len(samples)))
    ends = np.cumsum([part.sum() for part in parts]) / 1e3
    medians = [float(np.median(part)) for part in parts]
    return tuple((round(float(end), 3), round(took, 3)) for end, took in zip(ends, medians, strict=True))


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """`p50`, `p90` and `p95` to 4 digits, interpolated linearly between order statistics (with few samples
    p95 is close to the largest). Raises EdgeDiffError for none, and for values that are not finite."""
    values = _finite("percentiles", samples)
    found = np.percentile(values, [50, 90, 95]).round(4)
    return {name: float(value) for name, value in zip(("p50", "p90", "p95"), found, strict=True)}


def graph_times(samples: Sequence[float]) -> GraphTimes:
    """The row of one graph from its samples in milliseconds."""
    found = percentiles(samples)
    return GraphTimes(p50_ms=found["p50"], p90_ms=found["p90"], p95_ms=found["p95"], n=len(samples))


def image_times(samples: Sequence[float]) -> ImageTimes:
    """The end-to-end row from its samples in milliseconds."""
    return ImageTimes(**percentiles(samples), n=len(samples))


def compare_samples(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Is `b` faster than `a`? Pair i is two times taken one right after the other, so that what slows the
    machine slows both.

    `{"ratio": {"median", "low", "high"}, "n", "verdict"}`: the median of b[i] / a[i] with a 95 % interval by
    bootstrap over pairs (seeded: the same answer every time). `faster` when the whole interval is below 1,
    `slower` when above, else, and with fewer than 6 pairs, `inconclusive`. A bundle against itself is called
    inconclusive about 93 times in 100 (simulated, 6 to 20 pairs, drifting machine, normal and heavy-tailed
    noise). Raises EdgeDiffError for lengths that differ, and for times that are not finite and above 0.
    """
    first, second = _finite("compare_samples", a), _finite("compare_samples", b)
    if len(first) != len(second):
        raise EdgeDiffError(f"compare_samples takes pairs: {len(first)} times against {len(second)}", code="pairs")
    if min(first.min(), second.min()) <= 0:
        raise EdgeDiffError("compare_samples takes times above 0", code="pairs")
    ratios = second / first
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(BOOTSTRAP_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    verdict = _verdict(float(low), float(high), len(ratios))
    middle = float(np.median(ratios))
    return {
        "ratio": {"median": middle, "low": float(low), "high": float(high)},
        "n": len(ratios),
        "verdict": verdict,
    }


def _verdict(low: float, high: float, pairs: int) -> Verdict:
    if pairs < MIN_PAIRS or low <= 1.0 <= high:
        return "inconclusive"
    return "faster" if high < 1.0 else "slower"


def _finite(what: str, samples: Sequence[float]) -> Any:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise EdgeDiffError(f"{what} needs at least one sample, all of them finite numbers", code="samples")
    return values


def _cores(facts: DeviceFacts) -> str:
    """Which of its cores the process may use, where that is known."""
    if facts.affinity is None:
        return f"{facts.cores or 'not known'}"
    allowed = ", ".join(map(str, facts.affinity))
    return f"{allowed} of {facts.cores}" if facts.cores else allowed


def _curve(samples: Sequence[float]) -> str:
    """Four points: enough to see whether it bends."""
    return ", ".join(f"{_ms(took)} at {seconds:.0f} s" for seconds, took in throttling_curve(samples, 4))


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f} ms"


def _mb(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f} MB"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"
