"""Sections of the page about cuts: what selections cost before any recovery, whether losses add up, and operators.

`benchmarks/claims/pruning_scores.py` measures the first two (`quality` and `additivity`, with `--json`),
`benchmarks/claims/operators_recovered.py` the third. Plain data in, HTML out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgediff.report.markup import Child, Html, figure, join, percent, table, tag

BASELINE, ONE_SHOT, RESCORED = "bk_sdm", "laptop, one shot", "laptop, re-scored"
ADDITIVE = 0.9  # R2 from which the sum of single losses is believed
FASTER, NEAR = 0.7, 1.05  # of the untouched: at most this time of a call, at most this Frechet distance


def selections(quality: Sequence[Mapping[str, Any]]) -> Html:
    """`quality`: rows of `size`, `method` and `seeds`, each with `output_loss`, `parameters` and `macs`: the method's
    selection on one seed's calibration prompts, measured on prompts and noise that it did not see."""
    if not quality:
        return Html("")
    head = ("method", "parameters", "MACs", "output loss", "of BK-SDM's", "below BK-SDM's", "seeds")
    parts: list[Child] = []
    for size in dict.fromkeys(row["size"] for row in quality):
        of_size = {row["method"]: row["seeds"] for row in quality if row["size"] == size}
        handmade = next(seeds for method, seeds in of_size.items() if method.startswith(BASELINE))
        rows = [_selection(method, seeds, handmade) for method, seeds in of_size.items()]
        title = f"{percent(1 - handmade[0]['parameters'])} of the parameters removed (BK-SDM {size})"
        parts += [tag("h4", title), table(head, rows, numbers=range(1, 7))]
    words = (
        "Mean squared change of the network's output, all layers of a selection removed together, before any training: "
        "median over seeds, with the lowest and the highest below it. One seed is one set of calibration prompts."
    )
    return join([_rescoring_verdict(quality), *parts, tag("p", words, class_="note")])


def _selection(
    method: str, seeds: Sequence[Mapping[str, float]], handmade: Sequence[Mapping[str, float]]
) -> list[Child]:
    losses = [row["output_loss"] for row in seeds]
    ratios = [ours["output_loss"] / theirs["output_loss"] for ours, theirs in zip(seeds, handmade, strict=False)]
    return [
        method,
        percent(statistics.median(row["parameters"] for row in seeds), 1),
        percent(statistics.median(row["macs"] for row in seeds), 1),
        join([_small(statistics.median(losses)), tag("small", f"{_small(min(losses))} to {_small(max(losses))}")]),
        _small(statistics.median(ratios)),
        f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}",
        len(seeds),
    ]


def _rescoring_verdict(quality: Sequence[Mapping[str, Any]]) -> Html:
    """Scoring again after each tenth of the budget, beside scoring once, at the same budget and on the same seeds."""
    lines: list[Html] = []
    for size in dict.fromkeys(row["size"] for row in quality):
        once, again = (
            next((row["seeds"] for row in quality if (row["size"], row["method"]) == (size, name)), ())
            for name in (ONE_SHOT, RESCORED)
        )
        pairs = [(b["output_loss"], a["output_loss"]) for a, b in zip(once, again, strict=False)]
        if pairs:
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            wins = sum(ours < theirs for ours, theirs in pairs)
            text = (
                f"At BK-SDM {size}'s size, re-scored selections have {_small(ratio)} of the output loss of those "
                f"scored once (median; less in {wins} of {len(pairs)} seeds)."
            )
            lines.append(tag("li", text, class_="better" if ratio < 1 else "worse"))
    return tag("ul", *lines, class_="verdicts") if lines else Html("")


def additivity(found: Sequence[Mapping[str, Any]]) -> Html:
    """`found`: one mapping a seed, with `seed`, and for each kind of subsets `r2`, `r2_line`, `spearman`, `n`."""
    if not found:
        return Html("")
    head = ("random subsets", "R\N{SUPERSCRIPT TWO} of the sum itself", "of a line", "Spearman", "subsets", "seeds")
    labels = [label for label in found[0] if label != "seed"]
    rows: list[list[Child]] = [
        [
            label,
            *(_span([seed[label][key] for seed in found]) for key in ("r2", "r2_line", "spearman")),
            found[0][label]["n"],
            len(found),
        ]
        for label in labels
    ]
    values = [seed[label]["r2"] for seed in found for label in labels]
    met = all(value is not None and value >= ADDITIVE for value in values)
    text = f"Target, R\N{SUPERSCRIPT TWO} of at least {ADDITIVE:g} everywhere: {'met' if met else 'missed'}."
    words = (
        "The measured loss of removing several layers together against the sum of their single losses, on random "
        "subsets; median over seeds, lowest and highest below it. Where the sum explains too little, LAPTOP-Diff is "
        "scored again after each tenth of the budget and the selection of least measured loss is kept."
    )
    verdict = tag("ul", tag("li", text, class_="better" if met else "worse"), class_="verdicts")
    return join([verdict, table(head, rows, numbers=range(1, 6)), tag("p", words, class_="note")])


def operators(found: Mapping[str, Any] | None) -> Html:
    """`found`: `cut` (what was chosen), `time` (cut over untouched), `before` and `runs` (figures of the pictures)."""
    if not found:
        return Html("")
    cut, time, before, runs = found["cut"], found["time"], found["before"], found["runs"]
    whole = runs[0]["reference"]
    span = tag("small", f"{figure(time['quartile_low'])} to {figure(time['quartile_high'])}")
    rows: list[list[Child]] = [
        ["untouched", "1", figure(whole["frechet"], 4), percent(whole["retrieval_at_1"], 1), "", ""],
        [
            f"{len(cut['cuts'])} of {cut['scored']} operators cut",
            join([figure(time["median"]), span]),
            figure(before["frechet"], 4),
            percent(before["retrieval_at_1"], 1),
            figure(before["psnr_db"], 1, "dB"),
            "",
        ],
    ]
    for run in runs:
        after, settings = run["after"], run["settings"]
        rows.append(
            [
                f"distilled, {settings['steps']} steps",
                "",
                figure(after["frechet"], 4),
                percent(after["retrieval_at_1"], 1),
                figure(after["psnr_db"], 1, "dB"),
                settings["seed"],
            ]
        )
    worst = max(run["after"]["frechet"] / run["reference"]["frechet"] for run in runs)
    met = time["median"] <= FASTER and worst <= NEAR
    text = (
        f"{percent(1 - time['median'], 1)} less time of a call on ONNX Runtime at {percent(worst - 1, 1)} more "
        f"Fr\u00e9chet distance after recovery (the worst of {len(runs)} seeds). Target, 30 % less at 5 % more: "
        f"{'met' if met else 'missed'}."
    )
    head = ("LD-Pruner", "time of a call", "Fr\u00e9chet", "retrieval@1", "PSNR", "seed")
    words = (
        f"Parameters {percent(cut['parameters'], 1)}, MACs {percent(cut['macs'], 1)}. CPU time of the U-Net's graph, "
        f"one sample, one thread, by turns with the untouched one's: median and quartiles of {time['pairs']} pairs. "
        f"Kendall's tau of the scores between seed halves: {figure(cut['checks']['tau']['first_rung'])}."
    )
    verdict = tag("ul", tag("li", text, class_="better" if met else "worse"), class_="verdicts")
    return join([verdict, table(head, rows, numbers=range(1, 6)), tag("p", words, class_="note")])


def _span(values: Sequence[float | None]) -> Child:
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    beside = f"{figure(min(known))} to {figure(max(known))}"
    return join([figure(statistics.median(known)), tag("small", beside)])


def _small(value: float) -> str:
    return f"{value:.2g}"
