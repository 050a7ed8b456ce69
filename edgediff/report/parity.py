"""Conversion error of one program: each artifact against its own PyTorch graph, with floors and marks."""

from __future__ import annotations

from edgediff.report.charts import floor_bar
from edgediff.report.markup import Child, Html, code, figure, join, missing, table, tag
from edgediff.report.subject import Subject
from edgediff.runtime import used_graphs
from edgediff.runtime.evidence import BackendParity, GraphParity, ProgramParity, Reading

TOP_DB = 160.0  # where a bar ends; fp32 against fp32 comes to about 135


def parity_section(subject: Subject) -> Html:
    """One table per backend: the program's graphs, its trajectory, its image."""
    found = _verified(subject)
    if subject.parity is None or not found:
        return missing("Conversion error", f"edgediff verify {subject.quoted}")
    intro = tag(
        "p",
        "Each artifact against the PyTorch graph it was made from. This is the error of the conversion alone; "
        "what the compression costs is above.",
        class_="note",
    )
    reading = tag("p", _reading_words(subject.parity.reading), class_="note")
    return join([intro, reading, *(_backend(key, one, subject) for key, one in found.items())])


def parity_words(subject: Subject) -> tuple[str, str]:
    """(state, words) for the summary: passed, failed or missing, and the worst picture."""
    found = _verified(subject)
    if subject.parity is None or not found:
        return "missing", ""
    worst = min(one.programs[subject.program].image.psnr_db for one in found.values())
    own = all(_passed(one, subject) for one in found.values())
    reading = subject.parity.ok or not all(one.ok for one in subject.parity.backends.values())
    return ("passed" if own and reading else "failed"), f"picture {figure(worst, 1, 'dB')}"


def _verified(subject: Subject) -> dict[str, BackendParity]:
    """The backends on which this program was verified."""
    backends = {} if subject.parity is None else subject.parity.backends
    return {key: one for key, one in backends.items() if subject.program in one.programs}


def _passed(found: BackendParity, subject: Subject) -> bool:
    graphs = _graphs(found, subject)
    return found.programs[subject.program].ok and all(graph.ok for graph in graphs.values())


def _graphs(found: BackendParity, subject: Subject) -> dict[str, GraphParity]:
    """Those that this program runs."""
    used = {name for name, _ in used_graphs(subject.manifest, subject.program)}
    return {name: one for name, one in found.graphs.items() if name in used}


def _reading_words(reading: Reading) -> str:
    if reading.against is None:
        return f"Not compared with the model's own pipeline: {reading.why}."
    parted = f"; they part at {reading.first_deviation}" if reading.first_deviation else ""
    measured = f"latent {figure(reading.latent_db, 1, 'dB')}, picture {figure(reading.picture_db, 1, 'dB')}"
    return f"Our reading of the model against its own {reading.against}: {measured}{parted}."


def _backend(key: str, found: BackendParity, subject: Subject) -> Html:
    made = found.programs[subject.program]
    rows = [_graph_row(name, one) for name, one in _graphs(found, subject).items()]
    rows += [_trajectory_row(made), _picture_row(made)]
    head = ("", "", "PSNR", "floor", "", "largest error", "precision")
    said = made.trajectory.problem
    problem = tag("p", said, class_="caveat") if said else None
    words = f"Computed by {found.executed_by}, not by the device's own runtime."
    by = tag("p", words, class_="note") if found.stand_in else None
    title = tag("h4", key, " ", _mark(_passed(found, subject)))
    return join([title, by, problem, table(head, rows, numbers=(2, 3, 5))])


def _graph_row(name: str, one: GraphParity) -> list[Child]:
    largest = f"{one.max_abs:.2g}" if one.finite else figure(None)
    return [code(name), *_measured(one.psnr_db, one.floor_db, one.ok, one.finite), largest, one.precision]


def _trajectory_row(made: ProgramParity) -> list[Child]:
    """The latent has no floor of its own: its end, the picture, has."""
    one = made.trajectory
    title = join(["latent along the trajectory", tag("small", f"worst at call {one.worst_step + 1}")])
    return [title, *_measured(one.psnr_db, None, None if one.finite else False, one.finite), figure(None), ""]


def _picture_row(made: ProgramParity) -> list[Child]:
    one = made.image
    return ["picture, 8 bit", *_measured(one.psnr_db, one.floor_db, made.ok, True), figure(None), ""]


def _measured(value: float, floor: float | None, passed: bool | None, finite: bool) -> list[Child]:
    """Mark, figure, floor and bar."""
    state = {True: "passed", False: "failed", None: "plain"}[passed]
    bar = floor_bar(value, floor, TOP_DB, state, f"{value:.1f} dB")
    shown = figure(value, 1, "dB") if finite else "NaN or infinite"
    return [_mark(passed), shown, figure(floor, 0, "dB") if floor is not None else figure(None), bar]


def _mark(passed: bool | None) -> Html:
    """A sign and a word: colour is never alone."""
    if passed is None:
        return tag("span", "no floor", class_="quiet")
    sign, word, kind = ("\N{CHECK MARK}", "passed", "ok") if passed else ("\N{BALLOT X}", "failed", "bad")
    return tag("span", f"{sign} {word}", class_=f"mark {kind}")
