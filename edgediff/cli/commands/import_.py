"""`edgediff import`: times that another tool measured."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from edgediff.cli.commands import Answer, Command, option
from edgediff.errors import ConfigError


def execute(args: Namespace) -> Answer:
    """`links._reading.read_measurements`; with --into the table is kept in a manifest, as `profile`'s is."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.links._reading import read_measurements

    tables = read_measurements(
        Path(args.file), graph=args.graph, device=args.device, runtime=args.runtime, precision=args.precision
    )
    data = {name: table.model_dump(mode="json", exclude_none=True) for name, table in tables.items()}
    if args.into:
        if len(data) != 1:
            raise ConfigError(
                f"a manifest keeps one table, and '{args.file}' has {len(data)}: {', '.join(data)}",
                code="several_tables",
            )
        bundle = open_bundle(args.into)
        update_manifest(bundle, profile={bundle.manifest.default: next(iter(tables.values()))})
    return Answer({"tables": data}, "\n\n".join(f"{name}\n{table}" for name, table in tables.items()))


COMMAND = Command(
    execute,
    "read times that another tool measured",
    (
        option(
            "file",
            metavar="FILE",
            help="ONNX Runtime trace, ExecuTorch ETDump, AI Hub perf.yaml, or the JSON of `edgediff profile`",
        ),
        option("--graph", metavar="NAME", help="name of the traced graph (default: the file's)"),
        option("--device", metavar="NAME", help="device of a perf.yaml to read; or where a trace was made"),
        option("--runtime", metavar="NAME", help="runtime of a perf.yaml to read"),
        option("--precision", default="float", metavar="P", help="precision of a perf.yaml (default float)"),
        option("--into", metavar="BUNDLE", help="keep the one table in this bundle's manifest, where report finds it"),
    ),
    place=70,
)
