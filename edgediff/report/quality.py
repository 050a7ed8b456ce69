"""Pictures side by side, and cost and quality beside the two baselines."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgediff.report.charts import Mark, dot_strip, key
from edgediff.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    figure,
    join,
    macs,
    milliseconds,
    missing,
    name,
    percent,
    table,
    tag,
)
from edgediff.report.subject import Subject, read_pictures, twin

SIDES = (("reference", "untouched model"), ("bundle", "this bundle"), ("equal", "same compute, fewer steps"))
SHOWN_PIXELS = 256
FRACTIONS = ("retrieval_at_1", "ssim")  # figures that end at 1
# Key, title, what it is and which direction is better, how a value is written.
QUALITY: tuple[tuple[str, str, str, Callable[[float | None], str]], ...] = (
    ("retrieval_at_1", "Retrieval@1", "judge names the prompt; higher is better", lambda value: percent(value, 1)),
    ("frechet", "Fr\u00e9chet distance", "to real pictures; lower is better", lambda value: figure(value, 3)),
    ("psnr_db", "PSNR", "to the untouched pictures; higher is better", lambda value: figure(value, 1, "dB")),
    ("ssim", "SSIM", "to the untouched pictures; higher is better", lambda value: figure(value, 3)),
)
SEPARATE_RUNS = (
    "Latencies of different bundles come from separate runs, perhaps under different load; "
    "edgediff compare A B measures two of them in turns."
)
GAP = {"retrieval_at_1": "Retrieval@1", "psnr_db": "PSNR", "ssim": "SSIM"}


def pictures_section(subject: Subject) -> Html:
    """A row per prompt: untouched, this bundle, same compute."""
    rows = read_pictures(subject)
    if not rows:
        return missing("Pictures side by side", evaluate_command(subject))
    first = join(_triple(row, subject) for row in rows if row.get("why") != "worst")
    worst = join(_triple(row, subject) for row in rows if row.get("why") == "worst")
    parts: list[Child] = [
        tag(
            "p",
            "The same prompt and the same noise, three times. These are the first prompts of the evaluation; "
            "nobody picked them.",
            class_="note",
        ),
        tag("div", first, class_="triples"),
    ]
    if worst:
        parts += [tag("h4", "Least like the untouched model"), tag("div", worst, class_="triples")]
    return join(parts)


def quality_section(subject: Subject, others: Sequence[Subject]) -> Html:
    """The table of costs and figures, with a strip for each figure that is there."""
    cost, equal = subject.plan.cost, subject.plan.cost.equal_compute
    steps = subject.plan.sampler.steps
    head = ["", *(words for _, words in SIDES), "from 0"]
    rows: list[list[Child]] = [
        _cost_row("Arithmetic", "multiply-accumulates per image", (cost.reference_macs, cost.macs, equal.macs), macs),
        _cost_row("Sampler steps", "", (steps, steps, equal.steps), lambda value: figure(value, 0)),
        _cost_row("Latency", "p50 per image; lower is better", _latencies(subject, others), milliseconds),
    ]
    rows += [_quality_row(subject, *entry) for entry in QUALITY]
    parts: list[Child] = [key(SIDES), table(head, rows, numbers=(1, 2, 3), kind="versus")]
    if sum(value is not None for value in _latencies(subject, others)) > 1:
        parts.append(tag("p", SEPARATE_RUNS, class_="note"))
    if subject.evaluation is None:
        parts.append(missing("Quality", evaluate_command(subject)))
        return join(parts)
    parts += [_verdict(subject), _method(subject)]
    return join(parts)


def evaluate_command(subject: Subject) -> str:
    return f"edgediff evaluate {subject.quoted}{subject.option} --out {subject.evaluation_file}"


def verdict_words(subject: Subject) -> list[tuple[str, str]]:
    """(state, sentence) for each figure compared with equal compute; state: better, worse, open."""
    found = []
    gaps = subject.figures().get("against_equal_compute") or {}
    for what, gap in ((what, gaps[what]) for what in GAP if what in gaps):
        state = {True: "better", False: "worse"}.get(gap["better"], "open")
        scale, digits, unit = {"retrieval_at_1": (100, 1, "points"), "psnr_db": (1, 1, "dB")}.get(what, (1, 3, ""))
        words = {"better": "better", "worse": "worse", "open": "no clear difference"}[state]
        middle, low, high = (_signed(gap[part] * scale, digits) for part in ("difference", "low", "high"))
        shown = f"{middle} {unit}".strip()
        found.append((state, f"{GAP[what]}: {words} ({shown}, 95 % interval {low} to {high})"))
    return found


def _verdict(subject: Subject) -> Html:
    lines = [tag("li", sentence, class_=state) for state, sentence in verdict_words(subject)]
    title = tag("h4", "Against the same compute spent on fewer steps")
    return join([title, tag("ul", *lines, class_="verdicts")]) if lines else Html("")


def _method(subject: Subject) -> Html:
    """How the figures came about, and why one is missing."""
    found = subject.figures()
    guidance = found.get("guidance") or {}
    seeds = found.get("seeds") or []
    words = (
        f"{found.get('n')} pictures: {found.get('prompt_source')}, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; guidance {guidance.get('scale')} on {guidance.get('guided_calls')} of "
        f"{guidance.get('calls')} calls; made by {found.get('backend')}. Intervals are 95 %, by bootstrap over "
        "prompts. Fr\u00e9chet distances are biased upwards for few pictures: compare them only within this table."
    )
    reasons = [tag("p", f"No {name_}: {why}.", class_="note") for name_, why in (found.get("reasons") or {}).items()]
    return join([tag("p", words, class_="note"), *reasons])


def _cost_row(title: str, about: str, values: tuple[float | None, ...], write: Callable[[float], str]) -> list[Child]:
    """One cost of the three sides; a strip where there is something to say about it."""
    shown = [tag("span", NOT_MEASURED, class_="quiet") if value is None else write(value) for value in values]
    marks = [Mark(kind, value) for (kind, _), value in zip(SIDES, values, strict=True) if value is not None]
    top = max((mark.value for mark in marks), default=0.0)
    drawn = dot_strip(marks, f"{title}, from 0", top) if about and len(marks) > 1 else Html("")
    return [_measure(title, about), *shown, drawn]


def _quality_row(
    subject: Subject, what: str, title: str, about: str, write: Callable[[float | None], str]
) -> list[Child]:
    """One figure of the three sides, the worst picture or the interval beneath it."""
    columns = [subject.figures("reference"), subject.figures(), subject.figures("equal_compute")]
    cells: list[Child] = []
    marks: list[Mark] = []
    for (kind, _), column in zip(SIDES, columns, strict=True):
        value = column.get(what)
        if value is None:
            own = kind == "reference" and what in ("psnr_db", "ssim") and bool(column)
            cells.append(tag("span", "is the reference" if own else NOT_MEASURED, class_="quiet"))
            continue
        interval = column.get("retrieval_interval") if what == "retrieval_at_1" else None
        cells.append(join([write(value), _beneath(column, what, interval, write)]))
        marks.append(Mark(kind, value, tuple(interval) if interval else None))
    top = 1.0 if what in FRACTIONS else max((mark.value for mark in marks), default=0.0)
    drawn = dot_strip(marks, f"{title}, from 0", top) if len(marks) > 1 else Html("")
    return [_measure(title, about), *cells, drawn]


def _beneath(
    column: Mapping[str, Any], what: str, interval: Sequence[float] | None, write: Callable[[float | None], str]
) -> Html | None:
    if interval:
        low, high = (percent(value, 1).removesuffix("\u00a0%") for value in interval)
        return tag("small", f"{low} to {high}")
    worst = column.get(f"{what}_worst")
    return None if worst is None else tag("small", f"worst {write(worst)}")


def _measure(title: str, about: str) -> Html:
    return join([title, tag("small", about) if about else None])


def _latencies(subject: Subject, others: Sequence[Subject]) -> tuple[float | None, float | None, float | None]:
    """p50 of the untouched model, the bundle, equal compute. Baselines come from bundles of this report."""

    def p50(found: Subject | None) -> float | None:
        return found.profile.end_to_end_ms.p50 if found is not None and found.profile is not None else None

    whole = twin(others, subject, subject.plan.sampler.steps)
    fewer = twin(others, subject, subject.plan.cost.equal_compute.steps)
    return p50(whole), p50(subject), p50(fewer)


def _triple(row: Mapping[str, Any], subject: Subject) -> Html:
    images = zip(SIDES, ("reference", "compressed", "equal_compute"), strict=True)
    prompt = str(row["prompt"])
    shown = [
        tag(
            "figure",
            _image(row["images"][part], f"{prompt}: {words}"),
            tag(
                "figcaption",
                {
                    "equal": f"{subject.figures('equal_compute').get('sampler', '')} "
                    f"{subject.plan.cost.equal_compute.steps} steps".strip(),
                    "reference": "untouched",
                }.get(kind, words),
            ),
            class_=kind,
        )
        for (kind, words), part in images
    ]
    caption = tag("p", name(prompt), tag("small", f"seed {row['seed']}"), class_="prompt")
    return tag("div", caption, tag("div", *shown, class_="three"), class_="triple")


def _image(picture: Any, words: str) -> Html:
    from PIL import Image

    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return tag("img", src=source, alt=words, width=image.width, height=image.height)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
