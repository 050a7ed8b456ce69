"""`edgediff profile`: how long a bundle takes, here or on devices."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BACKEND, BUNDLE, PROGRAM, THREADS
from edgediff.cli.text import show_progress
from edgediff.errors import LinkError

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime.latency import LatencyTable


def execute(args: Namespace) -> Answer:
    """`profiling.profile_bundle`; the table is kept in the manifest. With several devices `profiling.profile_devices`,
    of which the first table is kept; exit status 1 when a device has none."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.profiling import profile_bundle, profile_devices

    bundle = open_bundle(args.bundle).as_program(args.program)
    options = {
        "backend": args.backend,
        "runs": args.runs,
        "warmup": args.warmup,
        "threads": args.threads,
        "sustained": args.sustained,
        "per_op": args.per_op,
        "runner": args.runner and Path(args.runner),
    }
    devices = args.device or ["host"]
    with show_progress(quiet=args.json) as progress:
        if len(devices) == 1:
            table = profile_bundle(bundle, device=devices[0], **options, progress=progress)
            update_manifest(bundle, profile={bundle.manifest.default: table})
            return Answer(table.model_dump(mode="json", exclude_none=True), str(table))
        found = profile_devices(bundle, devices, **options, progress=progress)
    return _device_profiles(bundle, found)


def _device_profiles(bundle: Bundle, found: dict[str, LatencyTable | LinkError]) -> Answer:
    """A table of every device, and what went wrong with the others."""
    from edgediff.bundle import update_manifest

    tables = {serial: one for serial, one in found.items() if not isinstance(one, LinkError)}
    errors = {serial: one for serial, one in found.items() if isinstance(one, LinkError)}
    plain = {serial: table.model_dump(mode="json", exclude_none=True) for serial, table in tables.items()}
    if plain:
        update_manifest(bundle, profile={bundle.manifest.default: next(iter(tables.values()))})
    data = {"profiles": plain, "errors": {serial: {"code": e.code, "message": str(e)} for serial, e in errors.items()}}
    texts = [f"{serial}\n{table}" for serial, table in tables.items()] + [f"{s}\n{e}" for s, e in errors.items()]
    return Answer(data, "\n\n".join(texts), 1 if errors else 0)


COMMAND = Command(
    execute,
    "measure load, every graph and whole pictures",
    (
        BUNDLE,
        option(
            "--device",
            action="append",
            metavar="NAME",
            help="host (default), adb, or adb:SERIAL; may be repeated for several devices at once",
        ),
        option(
            "--runner",
            metavar="PATH",
            help="what makes the pictures on a device (default: the one of python -m edgediff.links._build_runner)",
        ),
        option("--runs", type=int, default=5, metavar="N", help="pictures to time (default 5)"),
        option("--warmup", type=int, default=1, metavar="N", help="pictures before them (default 1)"),
        option(
            "--sustained",
            type=float,
            metavar="SECONDS",
            help="pictures for so long in place of --runs: does it slow down when it is warm?",
        ),
        option(
            "--per-op",
            action="store_true",
            help="also trace the operators of every graph, in pictures of their own",
        ),
        PROGRAM,
        BACKEND,
        THREADS,
    ),
    place=50,
)
