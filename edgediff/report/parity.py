"""Conversion error: each artifact against its own PyTorch graph, with floors and marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgediff.report.charts import floor_bar
from edgediff.report.markup import Child, Html, code, figure, join, missing, table, tag
from edgediff.report.subject import Subject

TOP_DB = 160.0  # where a bar ends; fp32 against fp32 comes to about 135


def parity_section(subject: Subject) -> Html:
    """One table per backend: graphs, trajectory, image."""
    if not subject.parity:
        return missing("Conversion error", f"edgediff verify {subject.quoted}")
    intro = tag(
        "p",
        "Each artifact against the PyTorch graph it was made from. This is the error of the conversion alone; "
        "what the compression costs is above.",
        class_="note",
    )
    parts = [_backend(key, found) for key, found in (subject.parity.get("backends") or {}).items()]
    return join([intro, *parts])


def parity_words(subject: Subject) -> tuple[str, str]:
    """(state, words) for the summary: passed, failed or missing, and the worst picture."""
    if not subject.parity:
        return "missing", ""
    images = [(found.get("image") or {}).get("psnr_db") for found in (subject.parity.get("backends") or {}).values()]
    known = [value for value in images if value is not None]
    words = f"picture {figure(min(known), 1, 'dB')}" if known else ""
    return ("passed" if subject.parity.get("ok") else "failed"), words


def _backend(key: str, found: Mapping[str, Any]) -> Html:
    rows = [_row(code(graph), part, part.get("precision", "")) for graph, part in (found.get("graphs") or {}).items()]
    trajectory = found.get("trajectory")
    if trajectory:
        step = trajectory.get("worst_step")
        where = "" if step is None else f"worst at call {step + 1}"
        rows.append(_row(join(["latent along the trajectory", tag("small", where)]), trajectory, ""))
    if found.get("image"):
        rows.append(_row("picture, 8 bit", found["image"], ""))
    head = ("", "", "PSNR", "floor", "", "largest error", "precision")
    mark = _mark(found.get("ok"))
    said = (trajectory or {}).get("problem")
    problem = tag("p", str(said), class_="caveat") if said else None
    other = found.get("stand_in")
    by = tag("p", f"Computed by {other}, not by the device's own runtime.", class_="note") if other else None
    return join([tag("h4", key, " ", mark), by, problem, table(head, rows, numbers=(2, 3, 5))])


def _row(title: Child, part: Mapping[str, Any], precision: str) -> list[Child]:
    value, floor = part.get("psnr_db"), part.get("floor_db")
    passed = part.get("ok")
    finite = part.get("finite", True)
    if passed is None and floor is not None and value is not None:
        passed = value >= floor
    passed = passed if finite else False
    largest = f"{part['max_abs']:.2g}" if part.get("max_abs") is not None and finite else figure(None)
    bar: Child = ""
    if value is not None:
        state = {True: "passed", False: "failed", None: "plain"}[passed]
        bar = floor_bar(value, floor, TOP_DB, state, f"{value:.1f} dB")
    shown = figure(value, 1, "dB") if finite else "NaN or infinite"
    mark = _mark(passed)
    return [title, mark, shown, figure(floor, 0, "dB") if floor is not None else figure(None), bar, largest, precision]


def _mark(passed: bool | None) -> Html:
    """A sign and a word: colour is never alone."""
    if passed is None:
        return tag("span", "no floor", class_="quiet")
    sign, word, kind = ("\N{CHECK MARK}", "passed", "ok") if passed else ("\N{BALLOT X}", "failed", "bad")
    return tag("span", f"{sign} {word}", class_=f"mark {kind}")
