"""`python -m edgediff.estimate.fit`: fits the coefficients, measures their error, writes both. Deterministic.

Options: `--errors FILE` also writes the leave-one-out tables as JSON, `--plot FILE.svg` the estimates of held-out
families against what was measured. Without `--check` the coefficients that come with the package are replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.config import dump_json, write_text_atomic
from edgediff.estimate import errors
from edgediff.estimate.coefficients import FILE, Coefficients, UnitClass
from edgediff.estimate.fitting import Fit, Prior, fit, named_terms, start
from edgediff.estimate.plot import scatter
from edgediff.estimate.rows import (
    Chip,
    Measurement,
    coreml_rows,
    cpu_rows,
    hexagon_rows,
    left_out,
    load_chips,
    load_graphs,
)

GUESS = 0.5  # spread of a class without measurements: four in five within a factor of 1.9


@dataclass(frozen=True)
class Source:
    """Measurements of one class of unit."""

    name: str
    rows: Sequence[Measurement]
    chips: dict[str, Chip]
    prior: Prior
    says: str


# Classes for which nothing in the calibration data can be built: the rules of thumb themselves.
RULES = {
    "cuda": Prior(100_000.0, 1000.0, 0.4, 0.7, 5.0, 30.0),
    "gpu": Prior(2000.0, 51.2, 0.25, 0.5, 15.0, 400.0),
    "x86": Prior(320.0, 20.0, 0.6, 0.6, 4.0, 30.0),
}
HEXAGON = Prior(17_000.0, 67.2, generations=True)
# Little is published of the neural engine: how its kinds of operator compare is taken from the other NPU, and its
# own rows move all arithmetic, all traffic, all launches rather than one kind of them.
ANE = Prior(15_800.0, 34.1, factor=1.0, closeness=0.35)
NPU = Prior(3000.0, 34.0)
ARM = Prior(150.0, 12.8, 0.5, 0.5, 5.0, 20.0, matrix=False, cores=True, factor=0.7)


def sources() -> list[Source]:
    """Every class that has measurements."""
    chips = load_chips()
    arm, cores = cpu_rows()
    hexagon = hexagon_rows()
    return [
        Source("hexagon", hexagon, chips, HEXAGON, "Qualcomm AI Hub models v0.47.0 (BSD-3-Clause)"),
        Source(
            "ane",
            coreml_rows(),
            chips,
            replace(ANE, centre=centre_of(hexagon, chips)),
            "apple/ml-stable-diffusion, apple/coremltools docs, papers: calibration/published.csv.gz names each",
        ),
        Source("arm", arm, cores, ARM, "Tencent/ncnn benchmark/README.md"),
    ]


def centre_of(rows: Sequence[Measurement], chips: dict[str, Chip]) -> tuple[float, ...]:
    """What Hexagon reaches on every term, its groups averaged: where other NPUs start from."""
    found = fit(rows, load_graphs(), chips, HEXAGON)
    return tuple((found.theta + np.mean(list(found.delta.values()), axis=0)).tolist())


def evaluate(source: Source) -> tuple[dict[str, Any], errors.Held, errors.Held]:
    """Leave-one-family-out and leave-one-chip-out, beside the baselines."""
    graphs = load_graphs()
    names: dict[str, Callable[[Measurement], str]] = {
        "family": lambda row: row.family,
        "chip": lambda row: source.chips[row.chip].name,
    }
    found: dict[str, Any] = {}
    held: list[errors.Held] = []
    for what, fold_of in names.items():
        one = errors.leave_out(source.rows, graphs, source.chips, source.prior, fold_of)
        held.append(one)
        groups = sorted({_group(row) for row in one.rows})
        found[what] = {
            "ours": errors.score(one.rows, one.predicted),
            "macs_over_peak": errors.score(one.rows, errors.peak_baseline(one.rows, graphs, source.chips)),
            "linear_on_macs": errors.score(one.rows, errors.linear_baseline(one.rows, graphs, one.folds, source.chips)),
            "coverage_80": round(errors.coverage(one), 3),
            "groups": {group: _part(one, [_group(row) == group for row in one.rows]) for group in groups},
            "folds": {fold: _part(one, [other == fold for other in one.folds]) for fold in sorted(set(one.folds))},
        }
    return found, held[0], held[1]


def fit_class(source: Source, families: errors.Held, chips: errors.Held) -> UnitClass:
    """The coefficients of one class, with spreads from its held-out errors."""
    found = fit(source.rows, load_graphs(), source.chips, source.prior)
    spread = errors.spreads(families)
    wide = float(np.quantile(np.abs(chips.logs), 0.8)) / errors.Z80
    seen = float(np.quantile(np.abs(_in_sample(found, source)), 0.8)) / errors.Z80
    return UnitClass(
        reference_gflops=source.prior.reference_gflops,
        reference_bandwidth=source.prior.reference_bandwidth,
        theta=named_terms(found.theta),
        delta={f"{r}|{p}": named_terms(delta) for (r, p), delta in found.delta.items()},
        shift={name: tuple(round(float(v), 4) for v in shift) for name, shift in found.shift.items()},  # type: ignore[misc]
        slopes=tuple(tuple(round(float(v), 4) for v in row) for row in found.slopes),  # type: ignore[misc]
        spread={group: round(value, 4) for group, value in spread.items()},
        default_spread=round(max(spread.values()), 4),
        new_chip=round(max(0.0, wide**2 - seen**2) ** 0.5, 4),
        rows={f"{r}|{p}": count for (r, p), count in found.rows.items()},
        source=source.says,
    )


def rule_class(prior: Prior, source: str = "rules of thumb") -> UnitClass:
    """A class without measurements."""
    slopes = prior.slopes()
    return UnitClass(
        reference_gflops=prior.reference_gflops,
        reference_bandwidth=prior.reference_bandwidth,
        theta=named_terms(start(prior)),
        slopes=tuple(tuple(row) for row in slopes.tolist()),
        default_spread=GUESS,
        new_chip=0.0,
        source=source,
    )


def _in_sample(found: Fit, source: Source) -> Any:
    graphs = load_graphs()
    predicted = [errors.price(found, row, graphs, source.chips) for row in source.rows]
    return np.log([row.ms for row in source.rows]) - np.log(predicted)


def _group(row: Measurement) -> str:
    return f"{row.runtime}|{row.precision}"


def _part(held: errors.Held, wanted: Sequence[bool]) -> dict[str, float]:
    at = np.flatnonzero(wanted)
    return errors.score([held.rows[index] for index in at], held.predicted[at])


def _told(name: str, found: dict[str, Any]) -> str:
    lines = [f"{name}: leave one out             rows  median %   p90 %  Spearman"]
    for what, tables in found.items():
        for which, label in (
            ("ours", f"{what}, this estimator"),
            ("macs_over_peak", "  MACs / peak"),
            ("linear_on_macs", "  linear in MACs"),
        ):
            row = tables[which]
            lines.append(
                f"  {label:<30}{row['rows']:>6}{row['median_percent']:>10}{row['p90_percent']:>8}{row['spearman']:>10}"
            )
        lines.append(f"  80 % intervals hold {100 * tables['coverage_80']:.0f} % of the rows")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write no coefficients")
    parser.add_argument("--errors", type=Path, help="JSON file of the error tables")
    parser.add_argument("--plot", type=Path, help="SVG file, estimated against measured")
    args = parser.parse_args()
    classes = {name: rule_class(prior) for name, prior in RULES.items()}
    tables: dict[str, Any] = {}
    points: dict[str, errors.Held] = {}
    found = sources()
    classes["npu"] = rule_class(replace(NPU, centre=found[1].prior.centre), "what Hexagon reaches")
    for source in found:
        tables[source.name], families, chips = evaluate(source)
        classes[source.name] = fit_class(source, families, chips)
        points[source.name] = families
        print(_told(source.name, tables[source.name]), flush=True)
    if not args.check:
        old = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"classes": {}}
        for name, kept in old["classes"].items():
            if name not in classes:
                classes[name] = UnitClass(**kept)
        write_text_atomic(FILE, Coefficients(classes=classes).to_json())
    tables["left_out"] = left_out()
    print("left out:", "; ".join(f"{count} {why}" for why, count in tables["left_out"].items()))
    if args.errors:
        write_text_atomic(args.errors, dump_json(json.loads(json.dumps(tables).replace("NaN", "null"))))
    if args.plot:
        write_text_atomic(
            args.plot,
            scatter(
                {
                    name: [(row.ms, float(value)) for row, value in zip(held.rows, held.predicted, strict=True)]
                    for name, held in points.items()
                }
            ),
        )


if __name__ == "__main__":
    main()
