"""`edgediff evaluate`: a bundle's quality beside the untouched model's."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BACKEND, BUNDLE, MODEL, PROGRAM
from edgediff.cli.text import format_table, show_progress

QUALITY_KEYS = ("retrieval_at_1", "frechet", "psnr_db", "ssim")


def execute(args: Namespace) -> Answer:
    """`evaluation.evaluate_bundle`; with --out the figures are written for the report."""
    from edgediff.bundle import open_bundle
    from edgediff.config import dump_json, write_text_atomic
    from edgediff.evaluation import evaluate_bundle

    bundle = open_bundle(args.bundle).as_program(args.program)
    with show_progress(quiet=args.json) as progress:
        found = evaluate_bundle(
            bundle,
            prompts=args.prompts,
            seeds=range(args.seeds),
            backend=args.backend,
            pipeline=args.model,
            progress=progress,
        )
    if args.out:
        write_text_atomic(Path(args.out), dump_json(found))
    return Answer(found, _quality_text(found))


def _quality_text(found: dict[str, Any]) -> str:
    """The bundle beside the untouched model and beside the untouched model with fewer steps at equal compute."""
    equal = found["equal_compute"]
    columns = (found, found["reference"], equal)
    rows = []
    for key in QUALITY_KEYS:
        values = [column.get(key) for column in columns]
        rows.append((key, *("-" if value is None else f"{value:.4g}" for value in values)))
    headers = ("", "this bundle", "untouched", f"untouched, {equal['sampler']} {equal['steps']}")
    words = {True: "better", False: "worse", None: "no clear difference"}
    gaps = [
        (key, f"{gap['difference']:+.3g}", f"{gap['low']:+.3g} to {gap['high']:+.3g}", words[gap["better"]])
        for key, gap in found["against_equal_compute"].items()
    ]
    against = format_table(("at equal compute", "difference", "95 % interval", "this bundle is"), gaps)
    title = f"{found['n']} pictures of {found['prompts']} prompts"
    return "\n".join([title, "", format_table(headers, rows), "", against, *found["reasons"].values()])


COMMAND = Command(
    execute,
    "measure quality beside the untouched model",
    (
        BUNDLE,
        option(
            "--prompts",
            default="256",
            metavar="N|FILE",
            help="how many of the embedded model's captions, or a file with one prompt a line (default 256)",
        ),
        option("--seeds", type=int, default=1, metavar="N", help="pictures of each prompt (default 1)"),
        MODEL,
        option("--out", metavar="FILE", help="also write the figures as JSON, for `edgediff report --evaluation`"),
        PROGRAM,
        BACKEND,
    ),
    place=80,
)
