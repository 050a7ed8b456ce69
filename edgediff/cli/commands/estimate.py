"""`edgediff estimate`: how long an image takes on devices that are not here."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.text import format_table, show_progress

if TYPE_CHECKING:
    from edgediff.estimate import PlanEstimate

SHOWN_NAME = 20  # characters of a device, so that the table has 80 columns


def execute(args: Namespace) -> Answer:
    """`flow.estimate_model` on each target."""
    from edgediff import flow

    with show_progress(quiet=args.json) as progress:
        if args.calibrate:
            from edgediff.profiling.calibrate import calibrate_host

            calibrate_host(threads=args.threads or 1, progress=progress)
        found = flow.estimate_model(
            args.model, recipe=args.recipe, targets=args.target or ["host"], backend=args.backend, progress=progress
        )
    if args.plot:
        from edgediff.config import write_text_atomic
        from edgediff.report.devices import devices_plot

        write_text_atomic(Path(args.plot), devices_plot({args.recipe: found}))
    data = [one.model_dump(mode="json", exclude_none=True) for one in found]
    return Answer(data[0] if len(data) == 1 else {"estimates": data}, estimates_text(found))


def estimates_text(found: Sequence[PlanEstimate]) -> str:
    """A line per target; below it, what the figures stand on."""
    rows = []
    for one in found:
        time, fits = one.latency_ms, {True: "fits", False: "NO", None: "?"}[one.fits]
        room = f"{one.memory_mb / 1e3:.1f}" + (f"/{one.ceiling_mb / 1e3:.2g}" if one.ceiling_mb else "")
        spread = f"{_span(time.low)} to {_span(time.high)}"
        rows.append(
            (one.target[:SHOWN_NAME], f"{one.backend} {one.precision}", _span(time.p50), spread, f"{room} {fits}")
        )
    head = ("device", "runs on", "image", "4 times of 5", "memory, GB")
    notes = ["estimated, not measured"]
    for one in found:
        unsure = f"; unverified: {', '.join(one.unverified)}" if one.unverified else ""
        notes.append(f"{one.target}: {one.basis}{unsure}")
        if one.unknown_operators:
            named = ", ".join(f"{name} ({count})" for name, count in sorted(one.unknown_operators.items()))
            notes.append(f"{one.target}: operators without a class, priced by their traffic: {named}")
    body = "\n".join(textwrap.fill(note, 78, subsequent_indent="  ") for note in notes)
    return f"{format_table(head, rows)}\n\n{body}"


def _span(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


COMMAND = Command(
    execute,
    "how long an image takes on a device that is not here",
    (
        option("model", metavar="MODEL", help="as for build"),
        option("--recipe", default="balanced", metavar="R", help="name or .toml file (default balanced)"),
        option("--target", action="append", metavar="T", help="name or .toml file; may be repeated (default host)"),
        option("--backend", metavar="NAME", help="backend to estimate (default: the target's first)"),
        option(
            "--calibrate",
            action="store_true",
            help="first measure single operators on this machine, about a "
            "minute; estimates for host stand on it from then on",
        ),
        option("--threads", type=int, metavar="N", help="threads to calibrate for (default 1)"),
        option("--plot", metavar="FILE.svg", help="also draw the devices with their intervals"),
    ),
    place=60,
)
