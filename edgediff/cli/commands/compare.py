"""`edgediff compare`: two bundles, timed in turns."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BACKEND, THREADS
from edgediff.cli.text import show_progress


def execute(args: Namespace) -> Answer:
    """`profiling.compare_bundles`: the time of B over the time of A, in pairs taken one after the other."""
    from edgediff.bundle import open_bundle
    from edgediff.profiling import compare_bundles

    with show_progress(quiet=args.json) as progress:
        found = compare_bundles(
            open_bundle(args.a),
            open_bundle(args.b),
            backend=args.backend,
            runs=args.runs,
            threads=args.threads,
            progress=progress,
        )
    ratio = found["ratio"]
    text = (
        f"{args.b} is {found['verdict']}: {ratio['median']:.3f} of the time of {args.a} "
        f"(95 % interval {ratio['low']:.3f} to {ratio['high']:.3f}, {found['n']} pairs)"
    )
    return Answer(found, text)


COMMAND = Command(
    execute,
    "is bundle B faster than bundle A here?",
    (
        option("a", metavar="A", help="folder of a bundle"),
        option("b", metavar="B", help="folder of a bundle"),
        option("--runs", type=int, default=10, metavar="N", help="pairs of pictures to time (default 10)"),
        BACKEND,
        THREADS,
    ),
    place=110,
)
