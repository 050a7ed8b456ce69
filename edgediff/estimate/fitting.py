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
    ("macs", "depthwise"): 2.5,
    ("macs", "matmul"): 0.7,
    ("macs", "linear"): 0.5,
    **{("launch", kind): 0.9 for kind in ("conv", "depthwise", "linear", "matmul", "norm", "softmax")},
}
THETA_SIZE = {"call": 0.5, "ports": 0.7, "macs": 0.7, "weights": 0.7, "traffic": 0.5, "spill": 0.7, "launch": 0.5}
SIZES = {"delta": 0.1, "precision": 0.5, "runtime": 0.1, "chip": 0.25, "shift": 0.1, "graph": 0.15, "slope": 0.35}
# Terms of one number share a factor: arithmetic, traffic, launches, and each by itself the call and the ports.
FACTOR_OF = np.array(
    [{"call": 3, "ports": 4}.get(name, int(part)) for (name, _), part in zip(TERMS, PART_OF, strict=True)]
)
PORT_FREEDOM = 3.0  # runtimes differ more in how they are called and fed than in how they compute
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
    cores: bool = False
    matrix: bool = True  # a matrix unit, which some kinds of operator leave idle (STRESS)
    factor: float = 0.0  # deviation of what all arithmetic, all traffic, all launches share
    closeness: float = 1.0  # of each term to the centre: a share of THETA_SIZE
    centre: tuple[float, ...] = ()  # what another class of unit was found to reach, in place of the rules
    sizes_free: bool = False  # operators measured one by one decide by themselves: the priors hardly draw

    def slopes(self) -> Array:
        """Arithmetic with the peak, traffic with the bandwidth, launches with the square root of the peak. Where
        chips have generations, nearly all is the generation's, and a smaller unit of it is slower at everything.
        Each of several cores brings a cache of its own, so that most traffic goes with the peak too."""
        if self.cores:
            return np.array([[1.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.5, 0.0, 0.0]])
        if self.generations:
            return np.array([[1.0, 0.0, 0.7], [0.7, 0.3, 0.7], [0.7, 0.0, 0.7]])
        return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])


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

    def predict(self, table: OperatorTable, chip: Chip, runtime: str, precision: str) -> float:
        """Milliseconds of one graph on a chip; a chip that was not fitted has no shift."""
        logs = self.theta + self._delta(runtime, precision)
        logs = logs + (self.shift.get(chip.name, np.zeros(3)) + self.slopes @ spec_of(self.prior, chip))[PART_OF]
        return float(np.exp(logs) @ scaled_design(table, self.prior, precision))

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
    if prior.centre:
        return np.array(prior.centre)
    of = {
        "call": prior.call_us,
        "ports": 3 / prior.bandwidth_share,
        "macs": 1 / prior.utilisation,
        "weights": 1 / prior.bandwidth_share,
        "traffic": 0.2 / prior.bandwidth_share,
        "spill": 0.5 / prior.bandwidth_share,
        "launch": prior.operator_us,
    }
    found = [np.log(of[name]) + (STRESS if prior.matrix else {}).get((name, kind), 0.0) for name, kind in TERMS]
    return np.array(found)


def fit(rows: Sequence[Measurement], graphs: dict[str, OperatorTable], chips: dict[str, Chip], prior: Prior) -> Fit:
    """The maximum a posteriori for the rows."""
    return _Problem(rows, graphs, chips, prior).solve()


class _Problem:
    """One fit's rows as arrays, and its parameters as one vector: theta, delta per group, shift per chip, slopes,
    graph."""

    def __init__(
        self, rows: Sequence[Measurement], graphs: dict[str, OperatorTable], chips: dict[str, Chip], prior: Prior
    ) -> None:
        self.prior = prior
        self.names = sorted({row.graph for row in rows})
        self.groups = sorted({(row.runtime, row.precision) for row in rows})
        self.used = sorted({chips[row.chip].name for row in rows})
        base = {
            key: scaled_design(graphs[key[0]].scaled(key[2]), prior, key[1])
            for key in {(row.graph, row.precision, row.batch) for row in rows}
        }
        self.x = np.stack([base[row.graph, row.precision, row.batch] for row in rows])
        self.spec = np.stack([spec_of(prior, chips[row.chip]) for row in rows])
        self.group = np.array([self.groups.index((row.runtime, row.precision)) for row in rows])
        self.chip = np.array([self.used.index(chips[row.chip].name) for row in rows])
        self.graph = np.array([self.names.index(row.graph) for row in rows])
        self.observed = np.log([row.ms for row in rows])
        width = len(TERMS)
        ends = np.cumsum([width, width * len(self.groups), 3 * len(self.used), 9, len(self.names)])
        self.o_delta, self.o_shift, self.o_slope, self.o_graph, self.size = (int(end) for end in ends)
        self.middle = np.zeros(self.size)
        self.middle[:width] = start(prior)
        self.middle[self.o_slope : self.o_graph] = prior.slopes().ravel()
        self.tightness = self._tightness()

    def _tightness(self) -> Array:
        """`[size, size]`: the inverse of the prior's covariance."""
        found = np.zeros((self.size, self.size))
        width = len(TERMS)
        if self.prior.sizes_free:
            return np.diag(np.concatenate((np.full(width, 3.0**-2), np.full(self.size - width, 1e6))))
        alone = self.prior.closeness * np.array([THETA_SIZE[name] for name, _ in TERMS])
        shared = self.prior.factor**2 * (FACTOR_OF[:, None] == FACTOR_OF)
        found[:width, :width] = np.linalg.inv(shared + np.diag(alone**2))
        same = np.array(
            [
                [
                    SIZES["precision"] ** 2 * (a[1] == b[1])
                    + SIZES["runtime"] ** 2 * (a[0] == b[0])
                    + SIZES["delta"] ** 2 * (a == b)
                    for b in self.groups
                ]
                for a in self.groups
            ]
        )
        loose = [PORT_FREEDOM**-2 if name in ("call", "ports") else 1.0 for name, _ in TERMS]
        found[width : self.o_shift, width : self.o_shift] = np.kron(np.linalg.inv(same), np.diag(loose))
        alike = SIZES["chip"] ** 2 * np.ones((3, 3)) + SIZES["shift"] ** 2 * np.eye(3)
        found[self.o_shift : self.o_slope, self.o_shift : self.o_slope] = np.kron(
            np.eye(len(self.used)), np.linalg.inv(alike)
        )
        found[range(self.o_slope, self.o_graph), range(self.o_slope, self.o_graph)] = SIZES["slope"] ** -2
        found[range(self.o_graph, self.size), range(self.o_graph, self.size)] = SIZES["graph"] ** -2
        return found

    def predict(self, p: Array) -> tuple[Array, Array]:
        """log(estimated / measured), and the share of every term in the estimate."""
        width = len(TERMS)
        delta = p[width : self.o_shift].reshape(-1, width)[self.group]
        parts = p[self.o_shift : self.o_slope].reshape(-1, 3)[self.chip]
        parts = parts + self.spec @ p[self.o_slope : self.o_graph].reshape(3, 3).T
        terms = self.x * np.exp(p[:width] + delta + parts[:, PART_OF])
        total = terms.sum(1)
        return np.log(total) + p[self.o_graph :][self.graph] - self.observed, terms / total[:, None]

    def jacobian(self, share: Array) -> Array:
        """`[rows, size]`: of `predict`'s logarithm."""
        width, index = len(TERMS), np.arange(len(share))
        found = np.zeros((len(share), self.size))
        found[:, :width] = share
        found[index[:, None], width + self.group[:, None] * width + np.arange(width)] = share
        by_part = np.stack([share[:, part == PART_OF].sum(1) for part in range(3)], 1)
        found[index[:, None], self.o_shift + self.chip[:, None] * 3 + np.arange(3)] = by_part
        found[:, self.o_slope : self.o_graph] = (by_part[:, :, None] * self.spec[:, None, :]).reshape(len(share), 9)
        found[index, self.o_graph + self.graph] = 1.0
        return found

    def loss(self, p: Array, residual: Array) -> float:
        off = p - self.middle
        robust = (FREEDOM + 1) / 2 * np.log1p((residual / NOISE) ** 2 / FREEDOM)
        return float(robust.sum() + 0.5 * (off @ self.tightness @ off))

    def solve(self) -> Fit:
        params, damping = self.middle.copy(), 1e-2
        residual, share = self.predict(params)
        best = self.loss(params, residual)
        for _ in range(ROUNDS):
            gradient, normal = self._normal(params, residual, share)
            for _ in range(8):
                step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
                tried = params - np.clip(step, -1.0, 1.0)
                tried_residual, tried_share = self.predict(tried)
                if (value := self.loss(tried, tried_residual)) < best:
                    break
                damping *= 4
            else:
                break
            gain, best = best - value, value
            params, residual, share, damping = tried, tried_residual, tried_share, max(damping / 3, 1e-6)
            if gain < 1e-4 * abs(best):
                break
        return self._fit(params)

    def _normal(self, params: Array, residual: Array, share: Array) -> tuple[Array, Array]:
        """Gradient and Gauss-Newton matrix."""
        weight = (FREEDOM + 1) / (FREEDOM + (residual / NOISE) ** 2) / NOISE**2
        jacobian = self.jacobian(share)
        weighted = weight[:, None] * jacobian
        gradient = weighted.T @ residual + self.tightness @ (params - self.middle)
        return gradient, jacobian.T @ weighted + self.tightness

    def _fit(self, params: Array) -> Fit:
        width = len(TERMS)
        delta = params[width : self.o_shift].reshape(-1, width)
        shift = params[self.o_shift : self.o_slope].reshape(-1, 3)
        return Fit(
            self.prior,
            params[:width],
            {g: delta[k] for k, g in enumerate(self.groups)},
            {c: shift[k] for k, c in enumerate(self.used)},
            params[self.o_slope : self.o_graph].reshape(3, 3),
            dict(zip(self.names, params[self.o_graph :].tolist(), strict=True)),
            {g: int((self.group == k).sum()) for k, g in enumerate(self.groups)},
        )
