"""A file here is a command: `export_layout.py` is `edgediff export-layout`, `import_.py` is `edgediff import`.

Its COMMAND says what it takes, what it is for and what it does, all in one place. Every file is loaded at every
start, so what is heavy is imported inside the function that needs it.
"""

from __future__ import annotations

import importlib
import pkgutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Option = tuple[tuple[str, ...], dict[str, Any]]
"""Names and settings of one `ArgumentParser.add_argument`."""


@dataclass(frozen=True)
class Answer:
    """`data` is what --json prints, `text` what a person reads, `code` the exit status."""

    data: Any
    text: str
    code: int = 0


@dataclass(frozen=True)
class Command:
    """`help` is its line in `edgediff --help`; commands stand there by `place`, in steps of ten."""

    run: Callable[[Namespace], Answer]
    help: str
    options: tuple[Option, ...] = ()
    place: int = 1000


def option(*flags: str, **settings: Any) -> Option:
    """One argument, as `ArgumentParser.add_argument` takes it."""
    return flags, settings


def load_commands() -> dict[str, Command]:
    """Every command of this folder by name, in the order of `edgediff --help`."""
    files = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    found: dict[str, Command] = {
        name.rstrip("_").replace("_", "-"): importlib.import_module(f"{__name__}.{name}").COMMAND for name in files
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))
