"""The fit: coefficients of the roofline from measurements, with priors, by maximum a posteriori in logarithms.

log t = log sum_j exp(theta_j + delta_gj + slope . (spec_s - reference) + shift_s) x_ij + graph_i + noise

over the terms j (a call; per kind its operators, MACs and activation values; the weights), groups g (runtime and
precision), chips s, and graphs i. `delta` are a group's own deviations, `shift` those of a chip from what its
specifications say (one for arithmetic, one for traffic, one for launches), `graph` what is peculiar to a
graph and cannot be known of a new one. All of them are drawn to zero, theta to rules of thumb. The slopes say
how far a figure of the specifications carries: 1 by itself, 0 not at all. Gauss-Newton with Student weights
(4 degrees of freedom), so that a few odd rows do not decide. Deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgediff.estimate.coefficients import TERM_NAMES, covariates, unit_prices
from edgediff.estimate.operators import OperatorTable
from edgediff.estimate.roofline import PART_OF, TERMS, design
from edgediff.estimate.rows import Chip, Measurement

Array = NDArray[np.float64]

# What rules of thumb know of single kinds, in logarithms: a depthwise convolution leaves a matrix unit idle ...
STRESS = {
    ("macs", "depthwise"): 2.5, ("macs", "matmul"): 0.7, ("macs", "linear"): 0.5,
    **{("launch", kind): 0.9 for kind in ("conv", "depthwise", "linear", "matmul", "norm", "softmax")},
}
THETA_SIZE = {"call": 0.5, "macs": 0.7, "weights": 0.7, "traffic": 0.5, "spill": 0.7, "launch": 0.5}
SIZES = {"delta": 0.3, "shift": 0.4, "graph": 0.35, "slope": 0.35}
NOISE = 0.15
FREEDOM = 4.0
ROUNDS = 60


@dataclass(frozen=True)
class Prior:
    """Rules of thumb that the terms start from, for one class of unit. `reference` is the chip that slopes are
    counted from: GFLOP/s at fp16, GB/s."""

    reference_gflops: float
    reference_bandwidth: float
    utilisation: float = 0.5
    bandwidth_share: float = 0.5
    operator_us: float = 1.0
    call_us: float = 150.0
    generations: bool = False
    sizes_free: bool = False  # operators measured one by one decide by themselves: the priors hardly draw

    def slopes(self) -> Array:
        """Arithmetic with the peak, traffic with the bandwidth, launches with the square root of the peak; where
        chips have generations, half of the peak's say goes to them: vendors' peaks of one generation are not
        alike."""
        found = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
        if self.generations:
            found = np.array([[0.6, 0.0, 0.5], [0.2, 0.4, 0.5], [0.3, 0.0, 0.5]])
        return found


@dataclass
class Fit:
    """What was found. `theta` per term; `delta[group]`, `shift[chip]` of three; `slopes` `[3, 3]`: of log
    gflops, log bandwidth and generation on arithmetic, traffic and launches; `spread` of a row's logarithm."""

    prior: Prior
    theta: Array
    delta: dict[tuple[str, str], Array]
    shift: dict[str, Array]
    slopes: Array
    graph: dict[str, float] = field(default_factory=dict)
    rows: dict[tuple[str, str], int] = field(default_factory=dict)

    def terms(self, table: OperatorTable, chip: Chip, runtime: str, precision: str) -> Array:
        """Milliseconds of each term for one graph."""
        logs = self.theta + self._delta(runtime, precision)
        logs = logs + (self.shift.get(chip.name, np.zeros(3)) + self.slopes @ spec_of(self.prior, chip))[PART_OF]
        found: Array = np.exp(logs) * scaled_design(table, self.prior, precision)
        return found

    def predict(self, table: OperatorTable, chip: Chip, runtime: str, precision: str) -> float:
        """Milliseconds of one graph on a chip; a chip that was not fitted has no shift."""
        return float(self.terms(table, chip, runtime, precision).sum())

    def _delta(self, runtime: str, precision: str) -> Array:
        if (known := self.delta.get((runtime, precision))) is not None:
            return known
        near = [d for (r, p), d in self.delta.items() if p == precision] or list(self.delta.values())
        mean: Array = np.mean(near, axis=0)
        return mean


def spec_of(prior: Prior, chip: Chip) -> Array:
    """What the slopes multiply."""
    peak = chip.gflops.get("fp16") or 2 * chip.gflops["fp32"]
    return covariates(prior.reference_gflops, prior.reference_bandwidth, peak, chip.bandwidth, chip.generation)


def named_terms(values: Array) -> dict[str, float]:
    """Values per term by the terms' names, to four digits."""
    return {name: round(float(value), 4) for name, value in zip(TERM_NAMES, values, strict=True)}


def scaled_design(table: OperatorTable, prior: Prior, precision: str) -> Array:
    """Milliseconds of each term on the reference chip at full efficiency, a call and a launch taking 1 us."""
    found: Array = design(table, precision) * unit_prices(prior.reference_gflops, prior.reference_bandwidth)
    return found


def start(prior: Prior) -> Array:
    """The prior's middle for every term, in logarithms."""
    of = {"call": prior.call_us, "macs": 1 / prior.utilisation, "weights": 1 / prior.bandwidth_share,
          "traffic": 0.2 / prior.bandwidth_share, "spill": 0.5 / prior.bandwidth_share, "launch": prior.operator_us}
    found = [np.log(of[name]) + STRESS.get((name, kind), 0.0) for name, kind in TERMS]
    return np.array(found)


def fit(
    rows: Sequence[Measurement], graphs: dict[str, OperatorTable], chips: dict[str, Chip], prior: Prior
) -> Fit:
    """The maximum a posteriori for the rows."""
    names = sorted({row.graph for row in rows})
    groups = sorted({(row.runtime, row.precision) for row in rows})
    used = sorted({chips[row.chip].name for row in rows})
    width = len(TERMS)
    base = {key: scaled_design(graphs[key[0]].scaled(key[2]), prior, key[1]) for key in
            {(row.graph, row.precision, row.batch) for row in rows}}
    x = np.stack([base[row.graph, row.precision, row.batch] for row in rows])
    spec = np.stack([spec_of(prior, chips[row.chip]) for row in rows])
    at_group = np.array([groups.index((row.runtime, row.precision)) for row in rows])
    at_chip = np.array([used.index(chips[row.chip].name) for row in rows])
    at_graph = np.array([names.index(row.graph) for row in rows])
    observed = np.log([row.ms for row in rows])
    o_delta = width
    o_shift = o_delta + width * len(groups)
    o_slope = o_shift + 3 * len(used)
    o_graph = o_slope + 9
    size = o_graph + len(names)
    middle = np.zeros(size)
    middle[:width] = start(prior)
    middle[o_slope:o_graph] = prior.slopes().ravel()
    scale = np.concatenate((
        np.array([THETA_SIZE[name] for name, _ in TERMS]), np.full(width * len(groups), SIZES["delta"]),
        np.full(3 * len(used), SIZES["shift"]), np.full(9, SIZES["slope"]), np.full(len(names), SIZES["graph"]),
    ))
    if prior.sizes_free:
        scale[:width], scale[width:] = 3.0, 1e-3
    params = middle.copy()
    damping, best = 1e-2, np.inf
    index = np.arange(len(rows))

    def predict(p: Array) -> tuple[Array, Array]:
        delta = p[o_delta:o_shift].reshape(len(groups), width)[at_group]
        parts = p[o_shift:o_slope].reshape(len(used), 3)[at_chip] + spec @ p[o_slope:o_graph].reshape(3, 3).T
        terms = x * np.exp(p[:width] + delta + parts[:, PART_OF])
        total = terms.sum(1)
        return np.log(total) + p[o_graph:][at_graph] - observed, terms / total[:, None]

    def loss(p: Array, residual: Array) -> float:
        robust = (FREEDOM + 1) / 2 * np.log1p((residual / NOISE) ** 2 / FREEDOM)
        return float(robust.sum() + 0.5 * (((p - middle) / scale) ** 2).sum())

    residual, share = predict(params)
    best = loss(params, residual)
    for _ in range(ROUNDS):
        weight = (FREEDOM + 1) / (FREEDOM + (residual / NOISE) ** 2) / NOISE**2
        jacobian = np.zeros((len(rows), size))
        jacobian[:, :width] = share
        jacobian[index[:, None], o_delta + at_group[:, None] * width + np.arange(width)] = share
        by_part = np.stack([share[:, part == PART_OF].sum(1) for part in range(3)], 1)
        jacobian[index[:, None], o_shift + at_chip[:, None] * 3 + np.arange(3)] = by_part
        jacobian[:, o_slope:o_graph] = (by_part[:, :, None] * spec[:, None, :]).reshape(len(rows), 9)
        jacobian[index, o_graph + at_graph] = 1.0
        gradient = jacobian.T @ (weight * residual) + (params - middle) / scale**2
        normal = jacobian.T @ (weight[:, None] * jacobian) + np.diag(scale**-2)
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            tried = params - np.clip(step, -1.0, 1.0)
            tried_residual, tried_share = predict(tried)
            if (value := loss(tried, tried_residual)) < best:
                break
            damping *= 4
        else:
            break
        gain, best = best - value, value
        params, residual, share, damping = tried, tried_residual, tried_share, max(damping / 3, 1e-6)
        if gain < 1e-4 * abs(best):
            break
    delta = params[o_delta:o_shift].reshape(len(groups), width)
    shift = params[o_shift:o_slope].reshape(len(used), 3)
    return Fit(
        prior, params[:width], {g: delta[k] for k, g in enumerate(groups)}, {c: shift[k] for k, c in enumerate(used)},
        params[o_slope:o_graph].reshape(3, 3), dict(zip(names, params[o_graph:].tolist(), strict=True)),
        {g: int((at_group == k).sum()) for k, g in enumerate(groups)},
    )
