"""A target as the estimator sees it: one compute unit, its rates at a precision, and the coefficients for them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import ConfigError
from edgediff.estimate.coefficients import NEW_SILICON, Group, find_group, load_coefficients
from edgediff.estimate.operators import KINDS, OperatorTable
from edgediff.target import ComputeUnit, Target

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
GUESSED_BANDWIDTH = {"npu": 34.0, "gpu": 34.0, "cpu": 20.0}
DESKTOP_GFLOPS_PER_CORE = 80.0  # 2 FMA units of 8 floats at 2.5 GHz


@dataclass(frozen=True)
class Device:
    """Prices in milliseconds, `[len(KINDS), 4]`: of one operator, one MAC, one weight and one activation value of
    each kind; `call_ms` for a call; `spread` of the logarithm; `guesses` are what was assumed, in words."""

    target: Target
    backend: str
    precision: str
    prices: NDArray[np.float64]
    call_ms: float
    spread: float
    bias: float
    how: str
    guesses: tuple[str, ...]

    def price(self, table: OperatorTable) -> float:
        """Milliseconds of one call, the middle estimate."""
        return float((self.prices * table.features).sum() + self.call_ms) * float(np.exp(self.bias))


def open_device(target: Target, backend: str | None = None, precision: str | None = None) -> Device:
    """The device as `backend` uses it (default: the target's first), at `precision` (default: what the target
    says for that backend). Raises ConfigError for a precision that does not exist."""
    backend = backend or target.backends[0]
    table = target.backend(backend)
    chosen = precision or ("fp32" if table.weights == "auto" else table.weights)
    if chosen not in BYTES:
        raise ConfigError(f"precision '{chosen}' is not one of {', '.join(BYTES)}", code="precision")
    unit = target.unit(table.unit) or _guessed_unit(target, table.unit)
    guesses = list(target.unverified_figures())
    runtime = f"{backend}/{table.delegate}" if table.delegate else backend
    group, extra, how = find_group(unit.architecture, runtime, chosen)
    gflops, guessed = peak_gflops(unit, chosen)
    guesses += [guessed] if guessed else []
    bandwidth = target.bandwidth_gbps
    if bandwidth is None:
        bandwidth = GUESSED_BANDWIDTH[table.unit]
        guesses.append(f"bandwidth {bandwidth:g} GB/s is a guess")
    spread = group.spread + extra + (0.15 if guesses else 0.0)
    factor = load_coefficients().silicon.get(f"{target.silicon}|{runtime}")
    spread += 0.0 if factor or not group.rows else NEW_SILICON
    prices = _prices(group, gflops, bandwidth, BYTES[chosen]) * (factor or 1.0)
    call = group.call_us * 1e-3 * (group.reference_gflops / gflops) ** 0.5 * (factor or 1.0)
    return Device(target, backend, chosen, prices, call, spread, group.bias, how, tuple(guesses))


def peak_gflops(unit: ComputeUnit, precision: str) -> tuple[float, str]:
    """The peak at a precision in 10^9 operations a second, and what was assumed for it ('' for nothing).

    A precision that the file does not give runs at the rate of the nearest one that it does: NPUs do fp16 at
    half of int8, and compute fp32 in fp16; CPUs and GPUs do fp32 at half of fp16.
    """
    rates = {"fp32": unit.fp32_gflops, "fp16": unit.fp16_gflops, "int8": unit.int8_gops}
    if (known := rates[precision]) is not None:
        return known, ""
    if precision == "fp32" and rates["fp16"]:
        return rates["fp16"], ""
    for other, factor in (("int8", 0.5), ("fp16", 1.0), ("fp32", 1.0)):
        if (rate := rates[other]) is not None:
            return rate * factor, f"{precision} rate taken from {other}"
    assumed = {"hexagon": 10000.0, "npu": 8000.0, "mali": 1500.0}.get(unit.architecture.partition("-")[0], 3000.0)
    return assumed, f"no peak is known: {assumed:g} GFLOP/s assumed"


def _guessed_unit(target: Target, name: str) -> ComputeUnit:
    """This machine's CPU when the target is any machine; nothing known otherwise."""
    if name == "cpu" and target.form_factor == "any":
        cores = max(1, (os.cpu_count() or 2) // 2)
        architecture = "arm" if platform.machine() in ("aarch64", "arm64") else "x86"
        rate = DESKTOP_GFLOPS_PER_CORE * cores
        return ComputeUnit(architecture=architecture, fp32_gflops=rate, fp16_gflops=rate, int8_gops=2 * rate)
    return ComputeUnit(architecture=f"other-{name}")


def _prices(group: Group, gflops: float, bandwidth: float, size: int) -> NDArray[np.float64]:
    slower = (group.reference_gflops / gflops) ** 0.5
    found = np.zeros((len(KINDS), 4))
    for row, kind in enumerate(KINDS):
        found[row] = (
            group.operator_us[kind] * 1e-3 * slower,
            group.macs[kind] * 2e-6 / gflops,
            group.weights * size * 1e-6 / bandwidth,
            group.traffic[kind] * size * 1e-6 / bandwidth,
        )
    return found
