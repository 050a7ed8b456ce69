"""`edgediff pack`: a bundle as one zip file."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BUNDLE, OVERWRITE
from edgediff.cli.text import format_bytes


def execute(args: Namespace) -> Answer:
    """`bundle.pack_bundle`."""
    from edgediff.bundle import open_bundle, pack_bundle

    file = pack_bundle(open_bundle(args.bundle, verify=False), args.file, overwrite=args.overwrite)
    size = file.stat().st_size
    return Answer({"file": args.file, "bytes": size}, f"wrote {args.file}, {format_bytes(size)}")


COMMAND = Command(
    execute,
    "write a bundle as one zip file",
    (BUNDLE, option("file", metavar="FILE", help="zip file to write"), OVERWRITE),
    place=130,
)
