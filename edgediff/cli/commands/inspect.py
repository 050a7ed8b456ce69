"""`edgediff inspect`: what a bundle holds."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command
from edgediff.cli.commands._options import BUNDLE
from edgediff.cli.describe import describe_bundle, summary_text


def execute(args: Namespace) -> Answer:
    """What a bundle holds, without a runtime."""
    from edgediff.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    return Answer(describe_bundle(bundle.manifest), f"{bundle}\n\n{summary_text(bundle)}")


COMMAND = Command(execute, "what a bundle holds", (BUNDLE,), place=100)
