"""What the roofline reaches on each class of compute unit: fitted figures, kept as data with where they are from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgediff.config import Model, cache_folder, read_outside
from edgediff.estimate.roofline import PART_OF, TERMS

Array = NDArray[np.float64]
FILE = Path(__file__).parent / "coefficients.json"
# Added to the variance of the logarithm for each step that an answer is away from what was measured.
OTHER_GROUP, OTHER_CLASS, UNVERIFIED = 0.25**2, 0.6**2, 0.15**2
REFERENCE_GENERATION = 73.0
# GFLOP/s at fp16 of the phones' flagships of each Hexagon version: half of the peaks in calibration/chips.csv.
LARGEST = ((68.0, 13_000.0), (69.0, 13_500.0), (73.0, 17_000.0), (75.0, 22_500.0), (79.0, 24_500.0), (81.0, 30_000.0))
FAMILIES = ("hexagon", "ethos-u")  # architectures of one family share coefficients: hexagon-v73, ethos-u55-256
KIN = {
    "apple-cpu": "arm",
    "x86": "x86",
    "xclipse": "gpu",
    "adreno": "gpu",
    "mali": "gpu",
    "powervr": "gpu",
    "videocore": "gpu",
    "apple-gpu": "gpu",
    "rknpu": "npu",
    "ethos-u": "npu",
    "other-npu": "npu",
}
ALIASES = {"executorch/qnn": "qnn", "executorch/coreml": "coreml", "eager": "onnxruntime"}


class UnitClass(Model):
    """Coefficients of one class of compute unit.

    `theta` is the logarithm of what each term of `roofline.TERMS` costs on a device with the reference figures,
    over what the figures promise (a call and an operator's launch: in microseconds). `delta` adds to it per group
    `runtime|precision`, `shift` per measured chip (on arithmetic, traffic, launches), `slopes` per logarithm of how
    much slower a chip's figures are than the reference, and per generation. `spread` is the standard deviation of
    log(measured / estimated) on graphs that were not fitted, per group, such that 80 in 100 lie within 1.28 of it;
    `new_chip` is the same for a chip that was not fitted, `rows` how many measurements are behind a group.
    """

    reference_gflops: float = Field(gt=0)
    reference_bandwidth: float = Field(gt=0)
    theta: dict[str, float]
    delta: dict[str, dict[str, float]] = {}
    shift: dict[str, tuple[float, float, float]] = {}
    slopes: tuple[tuple[float, float, float], ...]
    spread: dict[str, float] = {}
    default_spread: float = Field(gt=0)
    new_chip: float = Field(ge=0)
    rows: dict[str, int] = {}
    source: str = ""

    def prices(self, group: str, chip: str, gflops: float, bandwidth: float, generation: float) -> Array:
        """`[len(TERMS)]`: milliseconds per unit of `roofline.design`."""
        slower = covariates(self.reference_gflops, self.reference_bandwidth, gflops, bandwidth, generation)
        parts = np.array(self.shift.get(chip, (0.0, 0.0, 0.0))) + np.array(self.slopes) @ slower
        logs = np.array([self.theta[name] for name in TERM_NAMES]) + self._delta(group) + parts[PART_OF]
        found: Array = np.exp(logs) * unit_prices(self.reference_gflops, self.reference_bandwidth)
        return found

    def _delta(self, group: str) -> Array:
        found = self.delta.get(group)
        return np.array([found[name] for name in TERM_NAMES]) if found else np.zeros(len(TERM_NAMES))


class Coefficients(Model):
    """Classes of compute units by name, and the errors of the fit as they were measured."""

    classes: dict[str, UnitClass]


class Found(NamedTuple):
    """A class, the group in it that is nearest, the standard deviation of the logarithm, and how, in words."""

    unit: UnitClass
    group: str
    spread: float
    how: str


TERM_NAMES = tuple(f"{name} {kind}".strip() for name, kind in TERMS)


def unit_prices(gflops: float, bandwidth: float) -> Array:
    """Milliseconds per unit of `roofline.design` at full efficiency; a call and a launch take 1 us."""
    found: Array = np.array([1 / gflops, 1 / bandwidth, 1e-3])[PART_OF]
    return found


def covariates(
    reference_gflops: float, reference_bandwidth: float, gflops: float, bandwidth: float, generation: float
) -> Array:
    """What slopes multiply: logarithms of how much slower a chip's figures are, and how much older it is.

    A chip with a `generation` (Hexagon's version; 0: none) is compared with the largest of its generation: a wider
    one does not run one network at batch 1 faster, and vendors count their peaks differently every year, so that
    only what falls short of the largest is a figure, and the rest is the generation's.
    """
    if not generation:
        return np.array([np.log(reference_gflops / gflops), np.log(reference_bandwidth / bandwidth), 0.0])
    versions, peaks = zip(*LARGEST, strict=True)
    largest = float(np.interp(generation, versions, peaks))
    return np.array(
        [
            max(0.0, float(np.log(largest / gflops))),
            max(0.0, float(np.log(reference_bandwidth / bandwidth))),
            (REFERENCE_GENERATION - generation) / 8.0,
        ]
    )


@lru_cache(maxsize=1)
def load_coefficients() -> Coefficients:
    """The fitted coefficients that come with the package (`python -m edgediff.estimate.fit` writes them)."""
    return read_outside(FILE, Coefficients)


def host_file() -> Path:
    """Where `edgediff estimate --calibrate` keeps this machine's coefficients."""
    return cache_folder() / "host_latency.json"


def load_host() -> UnitClass | None:
    """This machine's coefficients, if it was calibrated."""
    return read_outside(host_file(), UnitClass) if host_file().is_file() else None


def family_of(architecture: str) -> str:
    """`hexagon-v75` -> `hexagon`; most architectures are their own family."""
    return next((name for name in FAMILIES if architecture.startswith(name)), architecture)


def find_class(architecture: str, runtime: str, precision: str, chip: str) -> Found:
    """The nearest coefficients and how far away they are."""
    classes, family, runtime = load_coefficients().classes, family_of(architecture), ALIASES.get(runtime, runtime)
    name = family if family in classes else KIN.get(family, "npu")
    unit = classes[name]
    variance = 0.0 if name == family or KIN.get(family) == "gpu" else OTHER_CLASS / 4
    group = f"{runtime}|{precision}"
    if group in unit.spread:
        how = f"fitted to {unit.rows.get(group, 0)} measurements with this runtime and precision"
    else:
        near = [key for key in unit.spread if key.endswith(f"|{precision}")] or list(unit.spread)
        how = "rules of thumb, no measurement of such a unit"
        if near:
            group = max(near, key=lambda key: (unit.rows.get(key, 0), key))
            how = f"taken from {group.replace('|', ', ')}, {unit.rows.get(group, 0)} measurements"
            variance += OTHER_GROUP
    variance += unit.spread.get(group, unit.default_spread) ** 2
    if unit.rows and chip not in unit.shift:
        variance += unit.new_chip**2
        how += "; this chip was not measured"
    return Found(unit, group, float(variance**0.5), how)
