"""`edgediff run`: one picture, or one sound."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import BACKEND, BUNDLE, PROGRAM, THREADS
from edgediff.cli.text import show_progress
from edgediff.errors import OutputError

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime import GenerationStep


def execute(args: Namespace) -> Answer:
    """`runtime.generate_steps`, a step at a time, then the PNG, with what made it in its text chunk; or the WAV."""
    from edgediff.runtime import choose_backend, choose_program, find_stand_in

    out = Path(args.out)
    bundle = _open_for(out, args)
    steps, found = _generate(bundle, args)
    made = {"prompt": args.prompt, "negative_prompt": args.negative, "seed": args.seed, "bundle": bundle.manifest.name}
    made["program"] = choose_program(bundle.manifest, args.program, args.strength)
    seconds = sum(step.seconds_total for step in steps)
    if out.suffix.lower() == ".wav":
        found.save(out)
        what, size = "sound", f"{found.seconds:.2f} s at {found.rate} Hz"
    else:
        _save_png(found, out, made)
        what, size = "image", f"{found.width} x {found.height}"
    program = made["program"]
    by = find_stand_in(bundle.manifest, choose_backend(bundle.manifest, args.backend, program), program)
    data = {what: args.out, **made, "steps": len(steps), "seconds": seconds, "stand_in": by}
    flagged = " (flagged by the model's safety checker)" if getattr(found, "info", {}).get("flagged") else ""
    note = f"{flagged}\ncomputed by {by}, not by the device's own runtime" if by else flagged
    return Answer(data, f"{args.out}: {size}, {len(steps)} steps in {seconds:.2f} s{note}")


def _open_for(out: Path, args: Namespace) -> Bundle:
    """The bundle, if `out` is a place and a kind of file for what it makes; a bad place is said before it is read."""
    from edgediff.bundle import open_bundle

    if out.suffix.lower() not in (".png", ".wav"):
        raise OutputError("pictures are written as PNG; give a name that ends in .png (.wav for sound)", where=args.out)
    if not out.parent.is_dir():
        raise OutputError(f"the folder '{out.parent}' does not exist; create it", where=args.out)
    bundle = open_bundle(args.bundle)
    suffix = ".wav" if bundle.manifest.kind == "unconditional-audio" else ".png"
    if out.suffix.lower() != suffix:
        raise OutputError(f"the bundle is {bundle.manifest.kind}; give a name that ends in {suffix}", where=args.out)
    return bundle


def _generate(bundle: Bundle, args: Namespace) -> tuple[list[GenerationStep], Any]:
    """The steps that were taken, and the picture or sound at their end."""
    from edgediff.runtime import GenerationStep, generate_steps

    steps: list[GenerationStep] = []
    found: Any = None
    with show_progress(quiet=args.json) as progress:
        progress("loading", 0, len(bundle.manifest.program(args.program).rows))
        for item in generate_steps(
            bundle,
            args.prompt,
            negative_prompt=args.negative,
            seed=args.seed,
            program=args.program,
            strength=args.strength,
            guidance=args.guidance,
            picture=_read_picture(args.picture, "RGB"),
            mask=_read_picture(args.mask, "L"),
            backend=args.backend,
            threads=args.threads,
        ):
            if isinstance(item, GenerationStep):
                steps.append(item)
                what = item.graph or "held"
                progress(f"{what:<12}{item.seconds_total * 1e3:>7.1f} ms", item.index + 1, item.total)
            else:
                found = item
    return steps, found


def _read_picture(path: str | None, mode: str) -> Any:
    """A picture file in 8 bits; one with an alpha channel stays as it is, and is refused. Raises ConfigError."""
    if path is None:
        return None
    from PIL import Image, UnidentifiedImageError

    from edgediff.errors import ConfigError

    try:
        with Image.open(path) as file:
            return file.copy() if "A" in file.getbands() else file.convert(mode)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"is no picture that can be read: {error}", where=path, code="picture") from error


def _save_png(image: Any, path: Path, made: dict[str, Any]) -> None:
    """Writes the picture whole or not at all; how it was made stands in its text chunk `edgediff`."""
    from PIL.PngImagePlugin import PngInfo

    from edgediff.config import dump_json, write_bytes_atomic

    info = PngInfo()
    info.add_itxt("edgediff", dump_json(made))
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info)
    write_bytes_atomic(path, data.getvalue())


COMMAND = Command(
    execute,
    "make a picture",
    (
        BUNDLE,
        option("prompt", metavar="PROMPT", help="what to draw"),
        option("out", metavar="OUT.png", help="PNG file, replaced if it is there"),
        option("--seed", type=int, default=0, metavar="N", help="default 0, which is a seed like any other"),
        option("--negative", default="", metavar="TEXT", help="negative prompt"),
        PROGRAM,
        option("--strength", type=float, metavar="S", help="the program that starts from a picture by so much"),
        option("--guidance", type=float, metavar="S", help="guidance scale, within the range that the program states"),
        option("--picture", metavar="FILE", help="picture that the program starts from, of exactly the bundle's size"),
        option("--mask", metavar="FILE", help="grey picture of that size; white is painted anew"),
        BACKEND,
        THREADS,
    ),
    place=40,
)
