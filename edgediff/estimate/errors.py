"""How wrong the estimates are: leave-one-out errors beside two baselines, and intervals that keep their word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgediff.estimate.fitting import Fit, Prior, fit
from edgediff.estimate.operators import OperatorTable
from edgediff.estimate.roofline import SPEED
from edgediff.estimate.rows import Chip, Measurement

Array = NDArray[np.float64]
Z80 = 1.2816


@dataclass(frozen=True)
class Held:
    """Rows with the estimate of a fit that had not seen their fold."""

    rows: tuple[Measurement, ...]
    folds: tuple[str, ...]
    predicted: Array

    @property
    def logs(self) -> Array:
        """log(measured / estimated)."""
        found: Array = np.log([row.ms for row in self.rows]) - np.log(self.predicted)
        return found


def leave_out(
    rows: Sequence[Measurement],
    graphs: dict[str, OperatorTable],
    chips: dict[str, Chip],
    prior: Prior,
    fold_of: Callable[[Measurement], str],
) -> Held:
    """Every row estimated by a fit to the rows of all other folds."""
    ordered: list[Measurement] = []
    folds: list[str] = []
    predicted: list[float] = []
    for fold in sorted({fold_of(row) for row in rows}):
        found = fit([row for row in rows if fold_of(row) != fold], graphs, chips, prior)
        for row in (row for row in rows if fold_of(row) == fold):
            ordered.append(row)
            folds.append(fold)
            predicted.append(price(found, row, graphs, chips))
    return Held(tuple(ordered), tuple(folds), np.array(predicted))


def price(found: Fit, row: Measurement, graphs: dict[str, OperatorTable], chips: dict[str, Chip]) -> float:
    """What the fit says of one row."""
    return found.predict(graphs[row.graph].scaled(row.batch), chips[row.chip], row.runtime, row.precision)


def peak_baseline(rows: Sequence[Measurement], graphs: dict[str, OperatorTable], chips: dict[str, Chip]) -> Array:
    """MACs over the peak rate, at the median utilisation over all rows: the first baseline."""
    raw = np.array([_work(row, graphs) / _peak(row, chips) for row in rows])
    scale = np.median(np.log([row.ms for row in rows]) - np.log(raw))
    found: Array = raw * np.exp(scale)
    return found


def linear_baseline(
    rows: Sequence[Measurement], graphs: dict[str, OperatorTable], folds: Sequence[str], chips: dict[str, Chip]
) -> Array:
    """a + b MACs / peak, both positive, fitted to the other folds by relative error: the second baseline."""
    raw = np.array([_work(row, graphs) / _peak(row, chips) for row in rows])
    times, at = np.array([row.ms for row in rows]), np.array(folds)
    found = np.zeros(len(rows))
    for fold in sorted(set(folds)):
        other = at != fold
        design = np.stack([np.ones(other.sum()), raw[other]], 1) / times[other][:, None]
        answer = np.maximum(np.linalg.lstsq(design, np.ones(other.sum()), rcond=None)[0], 1e-9)
        found[~other] = answer[0] + answer[1] * raw[~other]
    return found


def score(rows: Sequence[Measurement], predicted: Array) -> dict[str, float]:
    """Median and 90th percentile of the absolute percentage error, and the median over devices of Spearman's rank
    correlation of their graphs (8 or more)."""
    times = np.array([row.ms for row in rows])
    wrong = np.abs(predicted / times - 1)
    ranks = []
    for key in sorted({(row.chip, row.runtime, row.precision) for row in rows}):
        mine = [k for k, row in enumerate(rows) if (row.chip, row.runtime, row.precision) == key]
        if len({rows[k].graph for k in mine}) >= 8:
            ranks.append(spearmanr(times[mine], predicted[mine])[0])
    return {
        "rows": len(rows),
        "median_percent": round(100 * float(np.median(wrong)), 1),
        "p90_percent": round(100 * float(np.quantile(wrong, 0.9)), 1),
        "spearman": round(float(np.median(ranks)), 3) if ranks else float("nan"),
    }


def spreads(held: Held) -> dict[str, float]:
    """Per group the standard deviation such that 80 in 100 held-out rows lie in the interval, drawn towards that
    of all groups where rows are few."""
    logs = np.abs(held.logs)
    everything = float(np.quantile(logs, 0.8)) / Z80
    found: dict[str, float] = {}
    for group in sorted({f"{row.runtime}|{row.precision}" for row in held.rows}):
        mine = logs[[f"{row.runtime}|{row.precision}" == group for row in held.rows]]
        own = float(np.quantile(mine, 0.8)) / Z80
        found[group] = (own * len(mine) + everything * 100) / (len(mine) + 100)
    return found


def coverage(held: Held) -> float:
    """Share of rows inside their 80 % interval when the width is taken from all other folds."""
    inside: list[bool] = []
    logs, at = held.logs, np.array(held.folds)
    for fold in sorted(set(held.folds)):
        width = np.quantile(np.abs(logs[at != fold]), 0.8)
        inside += (np.abs(logs[at == fold]) <= width).tolist()
    return float(np.mean(inside))


def _work(row: Measurement, graphs: dict[str, OperatorTable]) -> float:
    return 2e-6 * graphs[row.graph].macs * row.batch


def _peak(row: Measurement, chips: dict[str, Chip]) -> float:
    chip = chips[row.chip]
    return (chip.gflops.get("fp16") or 2 * chip.gflops["fp32"]) * SPEED[row.precision]
