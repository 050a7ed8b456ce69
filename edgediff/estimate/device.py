"""A target as the estimator sees it: one compute unit, its rates at a precision, and the coefficients for them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediff.documents.target import ComputeUnit, Target
from edgediff.errors import ConfigError, unknown
from edgediff.estimate.coefficients import OTHER_GROUP, UNVERIFIED, find_class, load_host
from edgediff.estimate.operators import Operator, OperatorTable
from edgediff.estimate.roofline import PORT_BYTES, SPEED, design, operator_terms
from edgediff.runtime.precision import Word

GUESSED_BANDWIDTH = {"npu": 34.0, "gpu": 34.0, "cpu": 20.0}
GUESSED_GFLOPS = {"hexagon": 8000.0, "npu": 6000.0, "gpu": 1500.0}
# What a precision computes, in the words that coefficients are fitted for. Weights that are scaled back before they are
# multiplied save traffic, not arithmetic. Where convolutions stay fp32, so does the price.
PRICED_AS: dict[Word, str] = {
    "fp32": "fp32",
    "tf32": "fp32",
    "fp16": "fp16",
    "bf16": "fp16",
    "w8": "w8a16",
    "w8a8": "w8a8",
    "w8a16": "w8a16",
    "w4": "w8a16",
    "w4a8": "fp32",
}
PRICED_OTHERWISE = {("onnxruntime", "w8a8"): "fp32"}  # by the runtime: on its CPU, products alone are integers
DESKTOP_GFLOPS_PER_CORE = 80.0  # 2 FMA units of 8 floats at 2.5 GHz


@dataclass(frozen=True)
class Device:
    """Prices in milliseconds, `[len(TERMS)]`, of what `roofline.design` counts; `spread` is the standard deviation
    of the logarithm; `priced_as` is `precision` in the words of the coefficients; `guesses` are what was assumed or
    has no source, in words; `how` says what stands behind."""

    target: Target
    backend: str
    precision: Word
    priced_as: str
    prices: NDArray[np.float64]
    spread: float
    how: str
    guesses: tuple[str, ...]

    @property
    def call_ms(self) -> float:
        """What every call costs, whatever it computes."""
        return float(self.prices[0])

    @property
    def value_ms(self) -> float:
        """What a value costs that enters or leaves a graph."""
        return float(PORT_BYTES * self.prices[1])

    def price(self, table: OperatorTable) -> float:
        """Milliseconds of one call, the middle estimate."""
        return float(self.prices @ design(table, self.priced_as))

    def price_operators(self, operators: Iterable[Operator]) -> float:
        """Milliseconds that operators add to a call."""
        return float(
            sum(
                op.count * sum(self.prices[index] * amount for index, amount in operator_terms(op, self.priced_as))
                for op in operators
            )
        )


def open_device(target: Target, backend: str | None = None, precision: str | None = None) -> Device:
    """The device as `backend` uses it (default: the target's first), at `precision` (default: what the target
    says for that backend). Raises ConfigError for a precision that does not exist."""
    backend = backend or target.backends[0]
    table = target.backend(backend)
    if precision is not None and precision not in PRICED_AS:
        raise ConfigError(unknown("precision", precision, PRICED_AS), code="precision")
    chosen = precision or table.precision
    runtime = f"{backend}/{table.delegate}" if table.delegate else backend
    priced_as = PRICED_OTHERWISE.get((runtime, chosen), PRICED_AS[chosen])
    unit = target.unit(table.unit) or _guessed_unit(target, table.unit)
    if target.form_factor == "any" and table.unit == "cpu" and not target.cpu and (own := load_host()) is not None:
        prices = own.prices("", "", own.reference_gflops, own.reference_bandwidth, 0.0)
        away = OTHER_GROUP if f"{backend}|{priced_as}" not in own.spread else 0.0
        return Device(target, backend, chosen, priced_as, prices, (own.default_spread**2 + away) ** 0.5, own.source, ())
    found = find_class(unit.architecture, runtime, priced_as, target.silicon)
    guesses = list(target.unverified_figures())
    gflops, guessed = peak_gflops(unit)
    guesses += [guessed] if guessed else []
    bandwidth = target.bandwidth_gbps
    if bandwidth is None:
        bandwidth = GUESSED_BANDWIDTH[table.unit]
        guesses.append(f"bandwidth: {bandwidth:g} GB/s assumed")
    version = re.search(r"-v(\d+)", unit.architecture)
    generation = float(version[1]) if version else 0.0
    prices = found.unit.prices(found.group, target.silicon, gflops, bandwidth, generation)
    unsure = UNVERIFIED if guesses and target.silicon not in found.unit.shift else 0.0
    spread = float((found.spread**2 + unsure) ** 0.5)
    return Device(target, backend, chosen, priced_as, prices, spread, found.how, tuple(guesses))


def peak_gflops(unit: ComputeUnit) -> tuple[float, str]:
    """The peak at fp16 in 10^9 operations a second, and what was assumed for it ('' for nothing). NPUs do fp16 at
    half of int8 where nothing else is said; a unit with fp32 alone is taken to do fp16 at twice that."""
    for rate, factor, words in (
        (unit.fp16_gflops, 1.0, ""),
        (unit.int8_gops, 1 / SPEED["w8a8"], "fp16 peak: half of int8 assumed"),
        (unit.fp32_gflops, 1 / SPEED["fp32"], ""),
    ):
        if rate is not None:
            return rate * factor, words
    kind = unit.architecture.partition("-")[0]
    assumed = GUESSED_GFLOPS.get(kind, GUESSED_GFLOPS["npu" if "npu" in unit.architecture else "gpu"])
    return assumed, f"peak: {assumed:g} GFLOP/s assumed"


def _guessed_unit(target: Target, name: str) -> ComputeUnit:
    """This machine's CPU when the target is any machine; nothing known otherwise."""
    if name == "cpu" and target.form_factor == "any":
        cores = max(1, (os.cpu_count() or 2) // 2)
        architecture = "arm" if platform.machine() in ("aarch64", "arm64") else "x86"
        return ComputeUnit(architecture=architecture, fp32_gflops=DESKTOP_GFLOPS_PER_CORE * cores)
    return ComputeUnit(architecture=f"other-{name}")
