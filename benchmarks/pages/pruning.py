"""A page about cuts and recovery: methods beside their baselines, before and after the same distillation.

`benchmarks/claims/pruning_table.py` measures and calls this. The runs are plain data; see `render_pruning`.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.pruning_scores import additivity, operators, selections
from edgediff.config import write_text_atomic
from edgediff.report.markup import NOT_MEASURED, Child, Html, figure, join, percent, table, tag
from edgediff.report.page import plain_page

Run = Mapping[str, Any]
MAIN, BASELINE = "laptop", "bk_sdm"
NAMES = {
    "laptop": "LAPTOP-Diff",
    "bk_sdm": "BK-SDM, handcrafted",
    "random": "random, best of 20",
    "magnitude": "magnitude",
    "assembly": "A-SDM assembly",
    "ld_pruner": "LD-Pruner",
}
FEATURES = {
    "normalised": "normalised features",
    "plain": "plain features",
    "none": "no feature loss",
    "normalised_root": "features over their root",
}
SIDES = {"normalised": "bundle", "plain": "equal", "none": "reference"}


def render_pruning(
    found: Mapping[str, Any], out: Path, *, scores: Mapping[str, Any] | None = None, sheet: bytes | None = None
) -> Path:
    """Writes the page to `out`, whole or not at all. `found`: `reference` (the untouched model's figures),
    `settings` (of all distillations) and `runs`, each with `size`, `method`, `features`, `feature`, `seed`, `before`,
    `after` (None: not drawn) and `curve` (empty: not distilled); perhaps `switch` and `check`, what the bench of
    these names found. `scores`: `quality`, `additivity`, `operators` as `pruning_scores` takes them. `sheet`: PNG.
    """
    sections: list[tuple[str, Child]] = [
        ("Verdicts", verdicts(found)),
        ("Before and after", _tables(found)),
        ("Losses", _curves(found)),
        ("Selections before recovery", selections((scores or {}).get("quality", ()))),
        ("Does the loss add up", additivity((scores or {}).get("additivity", ()))),
        ("Operators", operators((scores or {}).get("operators"))),
        ("Switching", _switching(found)),
        ("Pictures", _picture(sheet)),
        ("How", _how(found)),
    ]
    lede = (
        "Layers removed from the U-Net for good, chosen in several ways, at the sizes of BK-SDM's presets; then the "
        "same short distillation for all."
    )
    write_text_atomic(out, plain_page("Cuts and recovery", lede, sections))
    return out


def verdicts(found: Mapping[str, Any]) -> Html:
    """What the figures say about the two targets, met or missed."""
    lines: list[Html] = []
    for size in _sizes(found["runs"]):
        falls = {m: _falls(found, _select(found["runs"], size, m, "normalised")) for m in (MAIN, BASELINE)}
        if falls[MAIN] and falls[BASELINE]:
            ours, theirs = (statistics.mean(falls[m]) for m in (MAIN, BASELINE))
            met = ours <= theirs / 2
            text = (
                f"{_share(found, size)}: retrieval@1 falls by {percent(ours, 1)} ({NAMES[MAIN]}, n {len(falls[MAIN])}) "
                f"and by {percent(theirs, 1)} ({NAMES[BASELINE]}, n {len(falls[BASELINE])}). Target, at most half: "
                f"{'met' if met else 'missed'}."
            )
            lines.append(tag("li", text, class_="better" if met else "worse"))
        lines += [_loss_verdict(found, size, method) for method in _compared(found["runs"], size)]
        lines += _experts_verdict(found, size)
    return tag("ul", *lines, class_="verdicts") if lines else Html("")


def _loss_verdict(found: Mapping[str, Any], size: str, method: str) -> Html:
    """Normalised beside plain feature losses after the same steps, seed by seed."""
    plain = {run["seed"]: run for run in _select(found["runs"], size, method, "plain")}
    pairs = [(r, plain[r["seed"]]) for r in _select(found["runs"], size, method, "normalised") if r["seed"] in plain]
    gaps = [ours["curve"][-1]["probe"] / theirs["curve"][-1]["probe"] for ours, theirs in pairs]
    drawn = [(a["after"], b["after"]) for a, b in pairs if a["after"] and b["after"]]
    hits = [ours["retrieval_at_1"] - theirs["retrieval_at_1"] for ours, theirs in drawn]
    points = figure(100 * statistics.mean(hits), 1) if hits else ""
    beside = f"{points} points more retrieval@1" if hits else "retrieval@1 is not measured"
    wins = sum(gap < 1 for gap in gaps)
    text = (
        f"{NAMES.get(method, method)}, {_share(found, size)}: after the same steps, normalised distillation leaves "
        f"{percent(statistics.mean(gaps))} of the output loss that plain leaves (less in {wins} of {len(pairs)} seeds) "
        f"and {beside}. Target, better: {'met' if wins == len(pairs) and sum(hits) >= 0 else 'missed'}."
    )
    return tag("li", text, class_="better" if text.endswith("met.") else "worse")


def _experts_verdict(found: Mapping[str, Any], size: str) -> list[Html]:
    """Conditional convolutions beside plain ones after the same steps, seed by seed."""
    lines: list[Html] = []
    runs = [r for r in found["runs"] if r["size"] == size and r.get("phases", 1) > 1 and r["after"]]
    for method in dict.fromkeys(run["method"] for run in runs):
        plain = {r["seed"]: r for r in _select(found["runs"], size, method, "normalised") if r["after"]}
        pairs = [(r, plain[r["seed"]]) for r in runs if r["method"] == method and r["seed"] in plain]
        if not pairs:
            continue
        ratios = [ours["curve"][-1]["probe"] / theirs["curve"][-1]["probe"] for ours, theirs in pairs]
        hits = [ours["after"]["retrieval_at_1"] - theirs["after"]["retrieval_at_1"] for ours, theirs in pairs]
        text = (
            f"{NAMES.get(method, method)}, {_share(found, size)}: with experts in {pairs[0][0]['phases']} phases the "
            f"output loss is {percent(statistics.mean(ratios))} of that without (n {len(pairs)}) and retrieval@1 "
            f"{figure(100 * statistics.mean(hits), 1)} points higher."
        )
        lines.append(tag("li", text, class_="better" if statistics.mean(ratios) < 1 else "worse"))
    return lines


def _tables(found: Mapping[str, Any]) -> Html:
    head = (
        "method",
        "parameters",
        "MACs",
        "time of a call",
        "retrieval@1 after the cut",
        "after distillation",
        "fall",
        "Fr\u00e9chet, cut",
        "distilled",
        "PSNR, cut",
        "distilled",
        "seeds",
    )
    reference = found["reference"]
    parts: list[Child] = []
    for size in _sizes(found["runs"]):
        rows: list[list[Child]] = [
            [
                "untouched",
                "100 %",
                "100 %",
                "1",
                percent(reference["retrieval_at_1"], 1),
                "",
                "",
                figure(reference["frechet"], 3),
                "",
                "",
                "",
                "",
            ]
        ]
        rows += [_row(found, group) for group in _groups(found["runs"], size)]
        parts += [tag("h4", f"{_share(found, size)} (BK-SDM {size})"), table(head, rows, numbers=range(1, 12))]
    note = (
        "A value over several seeds is their mean, with the lowest and the highest below it. The time of a call is the "
        "cut network's over the untouched one's for one sample on a CPU, taken by turns: median and quartiles. The "
        "budget counts parameters, as the papers do: at the same parameters the cuts keep different MACs."
    )
    return join([*parts, tag("p", note, class_="note")])


def _row(found: Mapping[str, Any], runs: Sequence[Run]) -> list[Child]:
    first, before = runs[0], runs[0]["before"]
    time = before["time"]
    words = NAMES.get(first["method"], first["method"])
    if first.get("phases", 1) > 1:
        words = join([words, tag("small", f"with experts, {first['phases']} phases")])
    if first["features"] != "normalised":
        weight = f", weight {first['feature']:g}" if first["feature"] != 1.0 else ""
        words = join([words, tag("small", FEATURES[first["features"]] + weight)])
    span = tag("small", f"{figure(time['quartile_low'])} to {figure(time['quartile_high'])}")

    drawn = [run["after"] for run in runs if run["after"]]

    def over(key: str, written: Any) -> Child:
        return _spread([after[key] for after in drawn], written)

    return [
        words,
        percent(before["parameters"], 1),
        percent(before["macs"], 1),
        join([figure(time["median"]), span]),
        percent(before["retrieval_at_1"], 1),
        over("retrieval_at_1", lambda value: percent(value, 1)),
        percent(statistics.mean(_falls(found, runs)), 1) if drawn else "",
        figure(before["frechet"], 3),
        over("frechet", lambda value: figure(value, 3)),
        figure(before["psnr_db"], 1, "dB"),
        over("psnr_db", lambda value: figure(value, 1)),
        len(drawn),
    ]


def _spread(values: Sequence[float], written: Any) -> Child:
    if not values:
        return NOT_MEASURED
    if len(values) == 1:
        return str(written(values[0]))
    beside = f"{written(min(values))} to {written(max(values))}"
    return join([written(statistics.mean(values)), tag("small", beside)])


def _curves(found: Mapping[str, Any]) -> Html:
    """Output loss over steps, a line a seed."""
    parts: list[Child] = []
    for size in _sizes(found["runs"]):
        for method in _compared(found["runs"], size):
            runs = [r for r in found["runs"] if (r["size"], r["method"], r["feature"]) == (size, method, 1.0)]
            runs = [run for run in runs if run["curve"] and run.get("phases", 1) == 1]
            shown = [(SIDES[run["features"]], run["curve"]) for run in runs if run["features"] in SIDES]
            kinds = dict.fromkeys(run["features"] for run in runs if run["features"] in SIDES)
            legend = [tag("li", _line(SIDES[kind]), FEATURES[kind]) for kind in kinds]
            title = f"{NAMES.get(method, method)}, {_share(found, size)}"
            parts += [tag("h4", title), tag("ul", *legend, class_="key"), _chart(shown, "Output loss over steps")]
    if not parts:
        return Html("")
    words = (
        "Mean squared distance of the averaged network's output from the untouched network's, on 64 fixed noised "
        "samples that no step draws in that form. Both losses start from the same cut network and see the same samples."
    )
    return join([*parts, tag("p", words, class_="note")])


def _line(kind: str) -> Html:
    drawn = tag("path", d="M0 6H16", fill="none", class_=f"whisker {kind}")
    return tag("svg", drawn, width=16, height=12, aria_hidden="true")


def _chart(lines: Sequence[tuple[str, Sequence[Mapping[str, float]]]], label: str) -> Html:
    width, height, left, bottom = 640, 240, 48, 24
    top = max(row["probe"] for _, curve in lines for row in curve)
    last = max(row["step"] for _, curve in lines for row in curve)

    def x(step: float) -> float:
        return left + step / last * (width - left - 12)

    def y(value: float) -> float:
        return 10 + (1 - value / top) * (height - bottom - 10)

    drawn: list[Html] = [tag("path", d=f"M{left} 10V{y(0):.1f}H{width - 12}", fill="none", class_="axis")]
    for value in (0.0, top / 2, top):
        drawn.append(tag("text", figure(value, 2), x=left - 6, y=y(value) + 3, class_="tick-text end"))
    for step in (0, last / 2, last):
        drawn.append(tag("text", f"{step:g}", x=x(step), y=height - 8, class_="tick-text middle"))
    for kind, curve in lines:
        points = "L".join(f"{x(row['step']):.1f} {y(row['probe']):.1f}" for row in curve)
        drawn.append(tag("path", d=f"M{points}", fill="none", class_=f"whisker {kind}"))
    return tag("svg", *drawn, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=label)


def _switching(found: Mapping[str, Any]) -> Html:
    switch = found.get("switch")
    if not switch:
        return Html("")
    orders = {"first": "light, then untouched", "last": "untouched, then light", "alone": "light alone"}
    rows: list[list[Child]] = []
    for one in sorted(switch["rows"], key=lambda row: -row["macs"]):
        fewer = one["method"] == "untouched"
        name = f"{one['steps']} steps" if fewer else f"{NAMES.get(one['method'], one['method'])}, {one['size']}"
        rows.append(
            [
                join(["untouched, ", name]) if fewer else name,
                orders.get(one["order"], ""),
                "" if fewer else percent(one["share"]),
                percent(one["macs"], 1),
                percent(one["retrieval_at_1"], 1),
                figure(one["frechet"], 3),
                figure(one["psnr_db"], 1, "dB"),
            ]
        )
    head = ("light network", "order", "its share", "MACs of an image", "retrieval@1", "Fr\u00e9chet", "PSNR")
    words = (
        f"A-SDM's switching: the distilled network (seed 0) for one part of the {switch['steps']} calls, the untouched "
        f"one for the other; {switch['prompts']} captions, compared with the untouched network's {switch['steps']} "
        "steps. The untouched network by fewer steps is the baseline at equal compute."
    )
    return join([table(head, rows, numbers=range(2, 7)), tag("p", words, class_="note")])


def _picture(sheet: bytes | None) -> Html:
    if sheet is None:
        return Html("")
    source = "data:image/png;base64," + base64.b64encode(sheet).decode("ascii")
    words = (
        "Rows: untouched; then for each size LAPTOP-Diff's cut, that distilled, BK-SDM's cut, and that distilled. The "
        "first prompts of the evaluation, the same noise."
    )
    return join(
        [
            tag("img", src=source, alt=words, style="width:100%;height:auto;image-rendering:auto"),
            tag("p", words, class_="note"),
        ]
    )


def _how(found: Mapping[str, Any]) -> Html:
    settings = found["settings"]
    words = (
        f"glyph; {settings['prompts']} captions, {settings['sampler_steps']} DDIM steps without guidance, each from "
        f"noise of its own. Distillation: {settings['steps']} steps of {settings['batch']} samples, AdamW at "
        f"{settings['rate']:g} along a cosine, {settings['precision']} arithmetic, task, output and feature losses of "
        "weight 1 unless said otherwise. Cuts were chosen once on calibration prompts; seeds are of the distillation."
    )
    return join([tag("p", words, class_="note"), _steps_note(found), tag("p", tag("code", str(settings["command"])))])


def _steps_note(found: Mapping[str, Any]) -> Html:
    """Whether so few sampler steps judge the networks as more do."""
    check = found.get("check")
    if not check:
        return Html("")
    few, more = check["steps"]
    tau = check["tau"]
    words = (
        f"{few} steps rank {len(check['rows'])} distilled networks as {more} do up to Kendall's tau "
        f"{figure(tau['retrieval_at_1'])} (retrieval@1), {figure(tau['frechet'])} (Fr\u00e9chet) and "
        f"{figure(tau['psnr_db'])} (PSNR), on the same captions."
    )
    return tag("p", words, class_="note")


# -- selecting ------------------------------------------------------------------------------------


def _sizes(runs: Sequence[Run]) -> list[str]:
    return sorted({run["size"] for run in runs}, key=lambda size: -_kept(runs, size))


def _kept(runs: Sequence[Run], size: str) -> float:
    return max(float(run["before"]["parameters"]) for run in runs if run["size"] == size)


def _share(found: Mapping[str, Any], size: str) -> str:
    return f"{percent(1 - _kept(found['runs'], size))} of the parameters removed"


def _groups(runs: Sequence[Run], size: str) -> list[list[Run]]:
    """Runs that differ in the seed alone: the main method's first, then by name."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run["size"] == size:
            key = (run["method"] != MAIN, run["method"], run["features"], run["feature"], run.get("phases", 1))
            groups.setdefault(key, []).append(run)
    return [groups[key] for key in sorted(groups)]


def _select(runs: Sequence[Run], size: str, method: str, features: str) -> list[Run]:
    """Runs that were distilled, without experts."""
    wanted = (size, method, features, 1.0)
    keys = ("size", "method", "features", "feature")
    plain = [run for run in runs if run.get("phases", 1) == 1]
    return [run for run in plain if tuple(run[key] for key in keys) == wanted and run["curve"]]


def _compared(runs: Sequence[Run], size: str) -> list[str]:
    """Methods with normalised and plain runs of one seed."""
    seeds = {
        (run["method"], run["features"], run["seed"])
        for run in runs
        if (run["size"], run["feature"]) == (size, 1.0) and run["curve"]
    }
    return sorted({m for m, features, seed in seeds if features == "plain" and (m, "normalised", seed) in seeds})


def _falls(found: Mapping[str, Any], runs: Sequence[Run]) -> list[float]:
    """Retrieval@1 of the untouched model less that of each run that was drawn, in parts of the former."""
    whole = found["reference"]["retrieval_at_1"]
    return [(whole - run["after"]["retrieval_at_1"]) / whole for run in runs if run["after"]]
