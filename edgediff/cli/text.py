"""What a person sees: tables of 80 columns, a progress bar that leaves no trace, one line for an error."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgediff.plugins import Progress

WIDTH = 80
GAP = "  "


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = WIDTH) -> str:
    """Columns as wide as their longest value; the last one takes what is left of `width` and wraps."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    sizes = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    indent = sum(sizes[:-1]) + len(GAP) * (len(sizes) - 1)
    lines: list[str] = []
    for row in cells:
        first = GAP.join(cell.ljust(size) for cell, size in zip(row[:-1], sizes[:-1], strict=True))
        wrapped = textwrap.wrap(row[-1], max(20, width - indent), break_on_hyphens=False) or [""]
        start = f"{first}{GAP}" if first else ""
        lines.append((start + wrapped[0]).rstrip())
        lines += [" " * indent + more for more in wrapped[1:]]
    return "\n".join(lines)


def format_bytes(count: int) -> str:
    """Decimal units, three digits: 1.23 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def one_line(text: str) -> str:
    """Text from a file or a library on one line; control characters, which could steer a terminal, are shown."""
    joined = " ".join(text.split())
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", joined)


def print_error(text: str) -> None:
    """`edgediff: error: ...` on standard error, red where a person reads it."""
    line = f"edgediff: error: {one_line(text)}"
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    print(f"\x1b[31m{line}\x1b[0m" if colour else line, file=sys.stderr)


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """How far the work is, on standard error: a bar where a person watches, one line per stage into a file or
    a pipe, nothing when `quiet`."""
    if quiet:
        yield lambda text, done, total: None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _plain_lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def progress(text: str, done: int, total: int) -> None:
            bar.update(task, description=f"{one_line(text)[:36]:<36}", completed=done, total=total)

        yield progress


def _plain_lines() -> Progress:
    """Every stage once: `scoring layers (3/40)` and `PyTorch, step 3 of 50` are stages that count."""
    said: set[str] = set()

    def progress(text: str, done: int, total: int) -> None:
        stage = re.sub(r"[ ,(]*(step )?\d+( of |/)\d+\)?", "", one_line(text))
        if (kind := re.sub(r"[\d.]+", "#", stage)) not in said:
            said.add(kind)
            print(f"edgediff: {stage}", file=sys.stderr, flush=True)

    return progress
