"""`edgediff unpack`: a packed bundle, checked, as a folder."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import OVERWRITE
from edgediff.cli.describe import describe_bundle


def execute(args: Namespace) -> Answer:
    """`bundle.unpack_bundle`."""
    from edgediff.bundle import unpack_bundle

    bundle = unpack_bundle(args.file, args.out, overwrite=args.overwrite)
    return Answer({"bundle": args.out, **describe_bundle(bundle.manifest)}, f"{bundle}\n\nwrote {args.out}")


COMMAND = Command(
    execute,
    "check a packed bundle and unpack it",
    (
        option("file", metavar="FILE", help="zip file of `edgediff pack`"),
        option("out", metavar="DIR", help="new folder"),
        OVERWRITE,
    ),
    place=140,
)
