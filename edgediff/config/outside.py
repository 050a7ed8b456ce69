"""The one door for what comes from outside: files that people or other tools wrote, answers of other programs.

    recipe = read_outside(Path("mine.toml"), Recipe)                  # TOML by its name, JSON otherwise
    answer = parse_outside(text, Devices, where="devicectl")          # a text that is no file
    for number, line in enumerate(read_lines(path), start=1):         # JSON lines
        row = parse_outside(line, Row, where=f"{path}:{number}")

Whatever comes through is bounded: a regular file (never a pipe or a device, which could keep us waiting) of at most
`Limits.bytes`, UTF-8, no key twice, no deeper than `Limits.depth`, numbers within `Limits.whole` and `Limits.real`, no
NaN, no half of a surrogate pair; then a strict model. Anything else is a ConfigError that names file and key, with code
`missing`, `file` (a pipe, a device), `size`, `syntax`, `value` or `unknown_key`. `load_plain` is for readers that
choose their model by what they find.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgediff.config.models import M, parse
from edgediff.errors import ConfigError

Form = Literal["json", "toml"]
DIGITS = 4300  # of a whole number in JSON, as Python's own int() and the Kotlin reader have it


@dataclass(frozen=True)
class Limits:
    """What a document may hold. A reader whose documents hold more says so where it reads them.

    `depth` counts lists and tables around a value; `whole` and `real` bound the absolute values of numbers: what 64
    bits and what single precision hold (a float is finite in any case).
    """

    bytes: int = 16 << 20
    depth: int = 64
    whole: float = 2**63 - 1
    real: float = 3.4028235e38


DEFAULT = Limits()
BY_HAND = Limits(bytes=256 << 10)  # TOML is written by people, and its parser is slow


def read_outside(path: Path, model: type[M], *, limits: Limits | None = None) -> M:
    """The file as `model`: TOML where its name ends in .toml, JSON otherwise. Raises ConfigError."""
    form: Form = "toml" if path.suffix.lower() == ".toml" else "json"
    limits = limits or (BY_HAND if form == "toml" else DEFAULT)
    return parse_outside(read_text(path, limits=limits), model, where=str(path), form=form, limits=limits)


def load_toml(path: Path) -> Any:
    """The plain data of a TOML file, for a reader that chooses its model by what it finds. Raises ConfigError."""
    return load_plain(read_text(path, limits=BY_HAND), where=str(path), form="toml", limits=BY_HAND)


def parse_outside(text: str, model: type[M], *, where: str, form: Form = "json", limits: Limits = DEFAULT) -> M:
    """The text of a document as `model`. Raises ConfigError."""
    return parse(load_plain(text, where=where, form=form, limits=limits), model, where=where, strict=True)


def read_lines(path: Path, *, limits: Limits = DEFAULT) -> list[str]:
    """The lines of a text file without their ends (LF or CRLF), and without the mark that some editors begin with."""
    text = read_text(path, limits=limits).removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    return text.split("\n") if text else []


def read_text(path: Path, *, limits: Limits = DEFAULT) -> str:
    """The file as UTF-8 text. Raises ConfigError."""
    data = _read_bytes(path, limits.bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", where=str(path), code="syntax") from error


def load_plain(text: str, *, where: str, form: Form = "json", limits: Limits = DEFAULT, values: bool = True) -> Any:
    """Plain data within its limits. Without `values` the caller has `check_plain` to do. Raises ConfigError."""
    name = form.upper()
    try:
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte-order mark; save it as UTF-8 without one")
        data = _PARSERS[form](text)
        if _is_deeper(data, limits.depth):
            raise RecursionError
    except RecursionError:
        message = f"is not {name}: lists and tables lie more than {limits.depth} deep in one another"
        raise ConfigError(message, where=where, code="syntax") from None
    except ValueError as error:
        raise ConfigError(f"is not {name}: {error}", where=where, code="syntax") from error
    if values:
        check_plain(data, where=where, limits=limits)
    return data


def check_plain(data: Any, *, where: str, limits: Limits = DEFAULT) -> None:
    """Raises ConfigError naming the first number or text that is out of bounds; TOML's dates are too."""
    waiting: list[tuple[_Place, Any]] = [((), data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += reversed([((place, name), item) for name, item in value.items()])
            reason = next((found for name in value if (found := _why_not_text(name))), "")
        elif isinstance(value, list):
            waiting += reversed([((place, index), item) for index, item in enumerate(value)])
            reason = ""
        else:
            reason = _why_not(value, limits)
        if reason:
            key = f"'{_key_at(place)}' = {_shown(value)}: " if place else ""
            raise ConfigError(f"{key}{reason}", where=where, code="value")


_Place = tuple[Any, ...]
"""`(place of the parent, key or index)`, `()` at the top: a long key is kept once, however many values it holds."""


def _key_at(place: _Place) -> str:
    names: list[str] = []
    while place:
        place, name = place
        names.append(_printable(str(name))[:60])
    return ".".join(reversed(names))


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    shown = _printable(repr(value))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _why_not(value: Any, limits: Limits) -> str:
    """Why a single value is refused; empty where it is not."""
    if isinstance(value, str):
        return _why_not_text(value)
    if isinstance(value, float):
        return "" if abs(value) <= limits.real else f"a number here lies within {limits.real:g} of 0"
    if isinstance(value, int):  # and bool
        return "" if abs(value) <= limits.whole else f"a whole number here lies within {limits.whole:g} of 0"
    return "" if value is None else "dates and times are not taken here; write a text in quotes"


def _why_not_text(text: str) -> str:
    return "" if text.isascii() or not _SURROGATE.search(text) else "half of a surrogate pair is no text"


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _is_deeper(data: Any, depth: int) -> bool:
    """Whether a value lies inside more than `depth` lists and tables. Level by level, so that depth costs no stack."""
    level = [data]
    for _ in range(depth + 1):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if not level:
            return False
    return True


def _read_bytes(path: Path, limit: int) -> bytes:
    """All of a regular file. The kind is that of the opened file, so that nothing can be put in its place."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
                raise ConfigError(f"is {kind}, not a file; give a file", where=str(path), code="file")
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError("there is no such file", where=_printable(str(path)), code="missing") from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), code="missing") from error
    if len(data) > limit:
        message = f"has more than {limit} bytes, which is the most that is read of such a file; is it the right one?"
        raise ConfigError(message, where=str(path), code="size")
    return data


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants, parse_int=_bounded_int)


def _parse_toml(text: str) -> Any:
    """tomllib keeps every prefix of a dotted key, so that a key of 100,000 parts takes gigabytes: those go first."""
    if _LONG_KEY.search(text):
        raise ValueError("a key has more than 64 parts")
    return tomllib.loads(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice}' is given twice")
    return result


def _no_constants(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


_PARSERS: dict[Form, Callable[[str], Any]] = {"json": _parse_json, "toml": _parse_toml}
_SURROGATE = re.compile("[\ud800-\udfff]")
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{64}}")
