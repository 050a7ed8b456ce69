"""`edgediff build`: a model, a recipe and a target into a bundle."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import OVERWRITE
from edgediff.cli.describe import describe_bundle, summary_text
from edgediff.cli.text import show_progress
from edgediff.errors import ConfigError


def execute(args: Namespace) -> Answer:
    """`flow.build`, or with --dry-run `flow.plan_build`."""
    from edgediff import flow

    if not args.out and not args.dry_run:
        raise ConfigError("build needs --out DIR, or --dry-run to see the plan only", code="usage")
    choices = {
        "recipe": args.recipe,
        "target": args.target,
        "backends": args.backend,
        "budget": args.budget,
        "device": args.device,
    }
    with show_progress(quiet=args.json) as progress:
        if args.dry_run:
            plan = flow.plan_build(args.model, **choices, progress=progress)
            return Answer(plan.model_dump(mode="json", by_alias=True, exclude_none=True), str(plan))
        bundle = flow.build(args.model, **choices, out=args.out, overwrite=args.overwrite, progress=progress)
    text = f"{bundle.plan}\n\n{summary_text(bundle)}\nwrote {args.out}"
    return Answer({"bundle": args.out, **describe_bundle(bundle.manifest)}, text)


COMMAND = Command(
    execute,
    "compress a model for a device and write a bundle",
    (
        option(
            "model",
            metavar="MODEL",
            help="glyph (embedded), random:sd15 (random weights, for costs), a folder in diffusers layout, or a hub id",
        ),
        option("--recipe", default="balanced", metavar="R", help="name or .toml file (default balanced)"),
        option("--target", default="host", metavar="T", help="name or .toml file (default host)"),
        option(
            "--budget",
            metavar="TIME",
            help="what an image may take on the target, as 2.0s or 800ms: the planner "
            "then chooses sampler, steps, guidance and schedule",
        ),
        option("--device", default="cpu", metavar="D", help="where reuse is calibrated: cpu (default), cuda"),
        option("--out", metavar="DIR", help="folder of the new bundle"),
        option(
            "--backend",
            action="append",
            metavar="NAME",
            help="lower for this backend only; may be repeated (default: all that the target names)",
        ),
        option("--dry-run", action="store_true", help="print the plan and write no bundle"),
        OVERWRITE,
    ),
    place=10,
)
