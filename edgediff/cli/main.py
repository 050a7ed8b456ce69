"""The command line: parser, errors and exit status. A file in `commands` is a command.

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
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from edgediff import __version__
from edgediff.cli.commands import Answer, Command, load_commands
from edgediff.cli.text import one_line, print_error
from edgediff.errors import EdgeDiffError, unknown

DONE, FAILED, BAD_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141
EPILOG = """exit status: 0 done, 1 a check failed, 2 bad input, 70 a bug, 130 interrupted
EDGEDIFF_DEBUG=1  shows the traceback of an error
EDGEDIFF_CACHE    is where measured scores are kept (default ~/.cache/edgediff)"""


class UsageError(EdgeDiffError):
    """A command line that does not parse."""

    code = "usage"


COMMANDS: dict[str, Command] = load_commands()

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
