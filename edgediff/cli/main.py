"""The command line: one subcommand per verb. Only the parser and the errors are here; `commands` does the work.

Exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted. Nothing heavy is imported before a command
needs it, so that `edgediff recipes` and `edgediff --help` answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any, NoReturn

from edgediff import __version__
from edgediff.cli import commands
from edgediff.cli.commands import Answer
from edgediff.cli.text import one_line, print_error
from edgediff.errors import EdgeDiffError, unknown

DONE, FAILED, BAD_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141
EPILOG = """exit status: 0 done, 1 a check failed, 2 bad input, 70 a bug, 130 interrupted
EDGEDIFF_DEBUG=1  shows the traceback of an error
EDGEDIFF_CACHE    is where measured scores are kept (default ~/.cache/edgediff)"""

Option = tuple[tuple[str, ...], dict[str, Any]]


class UsageError(EdgeDiffError):
    """A command line that does not parse."""

    code = "usage"


@dataclass(frozen=True)
class Command:
    """A subcommand: what it runs, its help, its arguments."""

    run: Callable[[argparse.Namespace], Answer]
    help: str
    options: tuple[Option, ...] = ()


def _option(*flags: str, **settings: Any) -> Option:
    return flags, settings


BUNDLE = _option("bundle", metavar="BUNDLE", help="folder of a bundle")
OVERWRITE = _option("--overwrite", action="store_true", help="replace what is there")
BACKEND = _option("--backend", metavar="NAME", help="backend to run on (default: the bundle's first)")
THREADS = _option("--threads", type=int, metavar="N", help="threads of the backend (default: its own choice)")
MODEL = _option("--model", metavar="MODEL", help="the untouched model, if it is no longer where the bundle says")
SEED = _option("--seed", type=int, default=0, metavar="N", help="default 0, which is a seed like any other")

COMMANDS = {
    "build": Command(
        commands.build,
        "compress a model for a device and write a bundle",
        (
            _option(
                "model",
                metavar="MODEL",
                help="glyph (embedded), random:sd15 (random weights, for costs), a folder "
                "in diffusers layout, or a hub id",
            ),
            _option("--recipe", default="balanced", metavar="R", help="name or .toml file (default balanced)"),
            _option("--target", default="host", metavar="T", help="name or .toml file (default host)"),
            _option(
                "--budget",
                metavar="TIME",
                help="what an image may take on the target, as 2.0s or 800ms: the planner "
                "then chooses sampler, steps, guidance and schedule",
            ),
            _option("--device", default="cpu", metavar="D", help="where reuse is calibrated: cpu (default), cuda"),
            _option("--out", metavar="DIR", help="folder of the new bundle"),
            _option(
                "--backend",
                action="append",
                metavar="NAME",
                help="lower for this backend only; may be repeated (default: all that the target names)",
            ),
            _option("--dry-run", action="store_true", help="print the plan and write no bundle"),
            OVERWRITE,
        ),
    ),
    "distill": Command(
        commands.distill,
        "cut a model and let it learn again; the folder is a MODEL for build",
        (
            _option("model", metavar="MODEL", help="as for build"),
            _option("--recipe", required=True, metavar="R", help="name or .toml file with [[prune]] and [distill]"),
            _option("--out", required=True, metavar="FOLDER", help="folder of the distilled network"),
            _option(
                "--data",
                metavar="FOLDER",
                help="pictures with captions: name.png beside name.txt, metadata.jsonl, or "
                ".tar shards (default: what the embedded model was trained on)",
            ),
            _option("--steps", type=int, metavar="N", help="instead of the recipe's"),
            _option("--batch", type=int, metavar="N", help="samples per step, instead of the recipe's"),
            _option("--accumulate", type=int, metavar="N", help="parts of a step, instead of the recipe's"),
            _option("--rate", type=float, metavar="X", help="learning rate, instead of the recipe's"),
            _option("--precision", metavar="P", help="fp32 or bf16, instead of the recipe's"),
            _option("--seed", type=int, metavar="N", help="instead of the recipe's"),
            _option("--lora", metavar="FILE", help="safetensors of LoRA weights, fused before the cut"),
            _option("--lora-scale", type=float, default=1.0, metavar="X", help="default 1"),
            _option("--device", default="auto", metavar="NAME", help="auto or cpu (default auto)"),
            _option("--checkpoint-every", type=int, default=200, metavar="N", help="steps (default 200)"),
            _option("--resume", action="store_true", help="go on with the distillation in FOLDER after it was stopped"),
            OVERWRITE,
        ),
    ),
    "verify": Command(
        commands.verify,
        "compare every graph and a whole picture with PyTorch",
        (
            BUNDLE,
            _option("--backend", metavar="NAME", help="check this backend only"),
            MODEL,
        ),
    ),
    "run": Command(
        commands.run,
        "make a picture",
        (
            BUNDLE,
            _option("prompt", metavar="PROMPT", help="what to draw"),
            _option("out", metavar="OUT.png", help="PNG file, replaced if it is there"),
            SEED,
            _option("--negative", default="", metavar="TEXT", help="negative prompt"),
            BACKEND,
            THREADS,
        ),
    ),
    "profile": Command(
        commands.profile,
        "measure load, every graph and whole pictures",
        (
            BUNDLE,
            _option(
                "--device",
                action="append",
                metavar="NAME",
                help="host (default), adb, or adb:SERIAL; may be repeated for several devices at once",
            ),
            _option(
                "--runner",
                metavar="PATH",
                help="what makes the pictures on a device (default: the one of python -m edgediff.links._build_runner)",
            ),
            _option("--runs", type=int, default=5, metavar="N", help="pictures to time (default 5)"),
            _option("--warmup", type=int, default=1, metavar="N", help="pictures before them (default 1)"),
            _option(
                "--sustained",
                type=float,
                metavar="SECONDS",
                help="pictures for so long in place of --runs: does it slow down when it is warm?",
            ),
            _option(
                "--per-op",
                action="store_true",
                help="also trace the operators of every graph, in pictures of their own",
            ),
            BACKEND,
            THREADS,
        ),
    ),
    "estimate": Command(
        commands.estimate,
        "how long an image takes on a device that is not here",
        (
            _option("model", metavar="MODEL", help="as for build"),
            _option("--recipe", default="balanced", metavar="R", help="name or .toml file (default balanced)"),
            _option(
                "--target", action="append", metavar="T", help="name or .toml file; may be repeated (default host)"
            ),
            _option("--backend", metavar="NAME", help="backend to estimate (default: the target's first)"),
            _option(
                "--calibrate",
                action="store_true",
                help="first measure single operators on this machine, about a "
                "minute; estimates for host stand on it from then on",
            ),
            _option("--threads", type=int, metavar="N", help="threads to calibrate for (default 1)"),
            _option("--plot", metavar="FILE.svg", help="also draw the devices with their intervals"),
        ),
    ),
    "import": Command(
        commands.import_measurements,
        "read times that another tool measured",
        (
            _option(
                "file",
                metavar="FILE",
                help="ONNX Runtime trace, ExecuTorch ETDump, AI Hub perf.yaml, or the JSON of `edgediff profile`",
            ),
            _option("--graph", metavar="NAME", help="name of the traced graph (default: the file's)"),
            _option("--device", metavar="NAME", help="device of a perf.yaml to read; or where a trace was made"),
            _option("--runtime", metavar="NAME", help="runtime of a perf.yaml to read"),
            _option("--precision", default="float", metavar="P", help="precision of a perf.yaml (default float)"),
            _option(
                "--into", metavar="BUNDLE", help="keep the one table in this bundle's manifest, where report finds it"
            ),
        ),
    ),
    "evaluate": Command(
        commands.evaluate,
        "measure quality beside the untouched model",
        (
            BUNDLE,
            _option(
                "--prompts",
                default="256",
                metavar="N|FILE",
                help="how many of the embedded model's captions, or a file with one prompt a line (default 256)",
            ),
            _option("--seeds", type=int, default=1, metavar="N", help="pictures of each prompt (default 1)"),
            MODEL,
            _option("--out", metavar="FILE", help="also write the figures as JSON, for `edgediff report --evaluation`"),
            BACKEND,
        ),
    ),
    "report": Command(
        commands.report,
        "one HTML page about one or more bundles",
        (
            _option("bundles", nargs="+", metavar="BUNDLE", help="folders of bundles"),
            _option("--out", required=True, metavar="FILE", help="HTML file, replaced if it is there"),
            _option(
                "--evaluation",
                action="append",
                default=[],
                metavar="FILE",
                help="JSON of `edgediff evaluate --out`; once for each bundle in their order, - for none",
            ),
            _option(
                "--estimates",
                action="append",
                default=[],
                metavar="RECIPE.json",
                help="what `edgediff estimate --json` printed for a recipe; may be repeated; one drawing for all",
            ),
        ),
    ),
    "inspect": Command(commands.inspect, "what a bundle holds", (BUNDLE,)),
    "compare": Command(
        commands.compare,
        "is bundle B faster than bundle A here?",
        (
            _option("a", metavar="A", help="folder of a bundle"),
            _option("b", metavar="B", help="folder of a bundle"),
            _option("--runs", type=int, default=10, metavar="N", help="pairs of pictures to time (default 10)"),
            BACKEND,
            THREADS,
        ),
    ),
    "export-layout": Command(
        commands.export_layout,
        "write the bundle as another tool expects it",
        (
            BUNDLE,
            _option("layout", metavar="LAYOUT", help="name of the layout; a wrong one lists them"),
            _option("out", metavar="DIR", help="new folder"),
        ),
    ),
    "pack": Command(
        commands.pack,
        "write a bundle as one zip file",
        (
            BUNDLE,
            _option("file", metavar="FILE", help="zip file to write"),
            OVERWRITE,
        ),
    ),
    "unpack": Command(
        commands.unpack,
        "check a packed bundle and unpack it",
        (
            _option("file", metavar="FILE", help="zip file of `edgediff pack`"),
            _option("out", metavar="DIR", help="new folder"),
            OVERWRITE,
        ),
    ),
    "devices": Command(
        commands.devices,
        "the targets that come with edgediff",
        (
            _option("name", nargs="?", metavar="TARGET", help="one target, with the source of every figure"),
            _option("--backend", metavar="NAME", help="those with this backend only"),
            _option(
                "--form", metavar="FORM", help="phone, tablet, laptop, desktop, board, microcontroller or server only"
            ),
        ),
    ),
    "recipes": Command(commands.recipes, "the recipes that come with edgediff"),
    "methods": Command(commands.methods, "the pruning and reuse methods, with their settings"),
    "doctor": Command(commands.doctor, "what works on this machine, and what would mend the rest"),
}


# What these say while they are imported is about torchao, which comes with the extra `executorch`, and nothing that a
# user can mend.
NOISY = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _prepare_output(as_json)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        args = make_parser().parse_args(words)
        answer = COMMANDS[args.command].run(args)
        _print_answer(answer, as_json)
        return answer.code
    except KeyboardInterrupt:
        print("edgediff: interrupted, nothing was left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (EdgeDiffError, OSError, MemoryError) as error:
        _print_failure(_explained(error), error, as_json)
        return BAD_INPUT
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(str(error))} (a bug: please report what EDGEDIFF_DEBUG=1 shows)"
        _print_failure(EdgeDiffError(text, code="internal"), error, as_json)
        return BUG


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(
        prog="edgediff",
        description="Takes diffusion models to phones: one recipe and one target in, one bundle out.",
        epilog=EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgediff {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            allow_abbrev=False,
        )
        for flags, settings in command.options:
            sub.add_argument(*flags, **settings)
        sub.add_argument("--json", action="store_true", help="JSON on standard output, errors too")
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Room for the longest command's name, `export-layout`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(100, shutil.get_terminal_size().columns - 2))
        self._action_max_length = 18


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if action.dest == "command" else str(action.metavar or action.dest)
            raise UsageError(unknown(what, str(value), map(str, action.choices)))


def _prepare_output(as_json: bool) -> None:
    """JSON is UTF-8 whatever the locale; text never fails for want of a letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8" if as_json else None, errors="backslashreplace")


def _print_answer(answer: Answer, as_json: bool) -> None:
    if as_json:
        from edgediff.config import dump_json

        sys.stdout.write(dump_json(answer.data))
    else:
        print(answer.text)
    sys.stdout.flush()


def _print_failure(shown: EdgeDiffError, error: BaseException, as_json: bool) -> None:
    if os.environ.get("EDGEDIFF_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if as_json:
        from edgediff.config import dump_json

        body = {"code": shown.code, "message": shown.message, "where": shown.where}
        sys.stdout.write(dump_json({"error": body}))
        sys.stdout.flush()
    else:
        print_error(str(shown))


def _explained(error: BaseException) -> EdgeDiffError:
    """What the system refuses, as an error that finishes the sentence."""
    if isinstance(error, EdgeDiffError):
        return error
    if isinstance(error, MemoryError):
        text = "there is not enough memory; close other programs, or use a smaller model or fewer prompts"
        return EdgeDiffError(text, code="memory")
    assert isinstance(error, OSError)
    return EdgeDiffError(error.strerror or str(error), code="system", where=error.filename and str(error.filename))
