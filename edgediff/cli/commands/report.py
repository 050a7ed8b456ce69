"""`edgediff report`: an HTML page about bundles."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.cli.commands import Answer, Command, option

if TYPE_CHECKING:
    from edgediff.estimate import PlanEstimate


def execute(args: Namespace) -> Answer:
    """`report.render_report`."""
    from edgediff.bundle import open_bundle
    from edgediff.report import render_report

    bundles = [open_bundle(folder) for folder in args.bundles]
    evaluations = [None if file == "-" else Path(file) for file in args.evaluation]
    estimates = {Path(file).stem: _read_estimates(Path(file)) for file in args.estimates}
    render_report(bundles, args.out, evaluations=evaluations, estimates=estimates)
    return Answer({"report": args.out, "bundles": args.bundles}, f"wrote {args.out}")


def _read_estimates(file: Path) -> list[PlanEstimate]:
    """What `edgediff estimate --json` printed, for one target or several."""
    from edgediff.config import load_plain, parse, read_text
    from edgediff.estimate import PlanEstimate

    data = load_plain(read_text(file), where=str(file))
    found = data.get("estimates", [data]) if isinstance(data, dict) else [data]
    return [parse(one, PlanEstimate, where=str(file), strict=True) for one in found]


COMMAND = Command(
    execute,
    "one HTML page about one or more bundles",
    (
        option("bundles", nargs="+", metavar="BUNDLE", help="folders of bundles"),
        option("--out", required=True, metavar="FILE", help="HTML file, replaced if it is there"),
        option(
            "--evaluation",
            action="append",
            default=[],
            metavar="FILE",
            help="JSON of `edgediff evaluate --out`; once for each bundle, or each program, in their order; - for none",
        ),
        option(
            "--estimates",
            action="append",
            default=[],
            metavar="RECIPE.json",
            help="what `edgediff estimate --json` printed for a recipe; may be repeated; one drawing for all",
        ),
    ),
    place=90,
)
