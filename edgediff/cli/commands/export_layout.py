"""`edgediff export-layout`: a bundle as another tool expects it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BUNDLE


def execute(args: Namespace) -> Answer:
    """`layouts.export_layout`."""
    from edgediff.bundle import open_bundle
    from edgediff.layouts import export_layout

    export_layout(open_bundle(args.bundle), args.layout, Path(args.out))
    return Answer({"layout": args.layout, "out": args.out}, f"wrote {args.out} in the layout '{args.layout}'")


COMMAND = Command(
    execute,
    "write the bundle as another tool expects it",
    (
        BUNDLE,
        option("layout", metavar="LAYOUT", help="name of the layout; a wrong one lists them"),
        option("out", metavar="DIR", help="new folder"),
    ),
    place=120,
)
