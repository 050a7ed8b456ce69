"""`edgediff verify`: every graph and a whole picture beside PyTorch."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from typing import Any

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BUNDLE, MODEL
from edgediff.cli.text import format_table, show_progress


def execute(args: Namespace) -> Answer:
    """`verify.verify_bundle`; the result is kept in the manifest. Exit status 1 when a floor is missed."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.pipeline import load_pipeline
    from edgediff.verify import verify_bundle

    bundle = open_bundle(args.bundle)
    with show_progress(quiet=args.json) as progress:
        found = verify_bundle(
            bundle,
            backends=[args.backend] if args.backend else None,
            pipeline=load_pipeline(args.model) if args.model else None,
            progress=progress,
        )
    update_manifest(bundle, parity=found)
    report = found.report(bundle.manifest.default)
    return Answer(report, _parity_text(report), 0 if found.ok else 1)


def _parity_text(found: dict[str, Any]) -> str:
    """Conversion error of every graph, of the trajectory at its worst step and of the picture, per backend."""
    rows: list[tuple[str, ...]] = []
    for backend, result in found["backends"].items():
        parts = {f"graph {name}": graph for name, graph in result["graphs"].items()}
        for program, made in result["programs"].items():
            title = f"{program}: " if len(result["programs"]) > 1 else ""
            parts[f"{title}latent, worst at step {made['trajectory']['worst_step'] + 1}"] = made["trajectory"]
            parts[f"{title}picture"] = made["image"]
        for name, part in parts.items():
            floor = f"{part['floor_db']:g}" if "floor_db" in part else ""
            state = "" if part.get("ok", True) else "MISSED"
            rows.append((backend, name, f"{part['psnr_db']:.1f}", floor, state))
    floors = all(result["ok"] for result in found["backends"].values())
    verdict = "every floor holds" if floors else "a floor was missed"
    verdict += ", but our reading of the model is not its own" if floors and not found["ok"] else ""
    notes = [_reading_text(found["reading"])]
    notes += [
        f"{backend}: computed by {said}, not by the device's own runtime"
        for backend, result in found["backends"].items()
        if (said := result.get("stand_in"))
    ]
    table = format_table(("backend", "against PyTorch", "PSNR dB", "floor", ""), rows)
    return "\n".join([table, "", *notes, verdict])


def _reading_text(reading: dict[str, Any]) -> str:
    """Whether PyTorch's side, our own reading of the model, was compared with the model's pipeline."""
    if "against" not in reading:
        said = f"our reading of the model is not compared with its own pipeline: {reading['why']}"
        return textwrap.fill(said, 80)
    parted = f", parting at {reading['first_deviation']}" if "first_deviation" in reading else ""
    figures = f"latent {reading['latent_db']:.1f} dB, picture {reading['picture_db']:.1f} dB"
    return textwrap.fill(f"our reading of the model against its own {reading['against']}: {figures}{parted}", 80)


COMMAND = Command(
    execute,
    "compare every graph and a whole picture with PyTorch",
    (BUNDLE, option("--backend", metavar="NAME", help="check this backend only"), MODEL),
    place=30,
)
