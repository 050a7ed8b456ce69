"""`edgediff distill`: a model is cut and learns again."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.commands._options import OVERWRITE
from edgediff.cli.text import show_progress
from edgediff.errors import ConfigError

if TYPE_CHECKING:
    from edgediff.documents.recipe import Recipe

SETTINGS = ("steps", "batch", "accumulate", "rate", "precision", "seed")  # given here in place of the recipe's own


def execute(args: Namespace) -> Answer:
    """`flow.distill_model`."""
    from edgediff import flow

    if args.device not in ("auto", "cpu") or args.checkpoint_every < 1:
        raise ConfigError("--device is auto or cpu, --checkpoint-every 1 or more", code="usage")
    recipe = _read_recipe(args)
    with show_progress(quiet=args.json) as progress:
        record = flow.distill_model(
            args.model,
            recipe=recipe,
            out=args.out,
            data=args.data,
            lora=args.lora,
            lora_scale=args.lora_scale,
            resume=args.resume,
            overwrite=args.overwrite,
            device=args.device,
            checkpoint_every=args.checkpoint_every,
            progress=progress,
        )
    data = {"folder": args.out, **record.model_dump(mode="json", exclude_none=True)}
    lost = record.lora.lost if record.lora else ()
    text = f"wrote {args.out}: {len(record.cuts)} cuts, {record.settings.steps} steps on {record.samples}"
    if record.probe is not None:
        before, after = record.probe
        said = "less" if after < before else "more: the cut alone was better, distil longer or at a lower rate"
        text += f"\noutput loss {before:.4g} after the cut, {after:.4g} at the end ({said})"
    return Answer(data, text + (f"\nLoRA targets lost to the cuts: {', '.join(lost)}" if lost else ""))


def _read_recipe(args: Namespace) -> Recipe:
    from edgediff.config import parse
    from edgediff.documents.recipe import DistillTable, load_recipe

    recipe = load_recipe(args.recipe)
    given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    if recipe.distill is None or not given:
        return recipe
    table = parse({**recipe.distill.model_dump(), **given}, DistillTable, where="[distill]")
    return recipe.model_copy(update={"distill": table})


COMMAND = Command(
    execute,
    "cut a model and let it learn again; the folder is a MODEL for build",
    (
        option("model", metavar="MODEL", help="as for build"),
        option("--recipe", required=True, metavar="R", help="name or .toml file with [[prune]] and [distill]"),
        option("--out", required=True, metavar="FOLDER", help="folder of the distilled network"),
        option(
            "--data",
            metavar="FOLDER",
            help="pictures with captions: name.png beside name.txt, metadata.jsonl, or "
            ".tar shards (default: what the embedded model was trained on)",
        ),
        option("--steps", type=int, metavar="N", help="instead of the recipe's"),
        option("--batch", type=int, metavar="N", help="samples per step, instead of the recipe's"),
        option("--accumulate", type=int, metavar="N", help="parts of a step, instead of the recipe's"),
        option("--rate", type=float, metavar="X", help="learning rate, instead of the recipe's"),
        option("--precision", metavar="P", help="fp32 or bf16, instead of the recipe's"),
        option("--seed", type=int, metavar="N", help="instead of the recipe's"),
        option("--lora", metavar="FILE", help="safetensors of LoRA weights, fused before the cut"),
        option("--lora-scale", type=float, default=1.0, metavar="X", help="default 1"),
        option("--device", default="auto", metavar="NAME", help="auto or cpu (default auto)"),
        option("--checkpoint-every", type=int, default=200, metavar="N", help="steps (default 200)"),
        option("--resume", action="store_true", help="go on with the distillation in FOLDER after it was stopped"),
        OVERWRITE,
    ),
    place=20,
)
