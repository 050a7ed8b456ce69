"""`edgediff doctor`: what works on this machine."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command
from edgediff.cli.text import format_table, show_progress


def execute(args: Namespace) -> Answer:
    """`doctor.examine`. Exit status 1 when something that every command needs is missing."""
    from edgediff.cli.doctor import as_data, examine, is_healthy

    with show_progress(quiet=args.json) as progress:
        checks = examine(progress)
    rows = [(check.state, check.name, check.detail + (f" -> {check.fix}" if check.fix else "")) for check in checks]
    healthy = is_healthy(checks)
    verdict = "everything that is needed is here" if healthy else "something that every command needs is missing"
    return Answer(as_data(checks), f"{format_table(('', 'what', 'found'), rows)}\n\n{verdict}", 0 if healthy else 1)


COMMAND = Command(execute, "what works on this machine, and what would mend the rest", place=180)
