"""JSON as strictly as the format reads it: step 2 of reading (`docs/format.md`, section 2). Every fault is `syntax`."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from edgediff.errors import BundleError

DEPTH, NUMBER_LENGTH, TEXT_LENGTH = 32, 40, 65_536
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # a text, or what is left where its end is missing
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(r"[\[\]{}]")
_BOM = b"\xef\xbb\xbf"


def read_document(data: bytes, where: str) -> Any:
    """The JSON value of `data`. Raises BundleError (`syntax`) for what is no JSON, and beyond the format's limits."""
    if data.startswith(_BOM):
        _refuse(where, "begins with a byte-order mark; save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(where, f"is not UTF-8 (byte {error.start})")
    _check_depth(text, where)
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, where),
            parse_constant=lambda word: _refuse(where, f"{word} is not a JSON number"),
            parse_int=lambda word: _integer(word, where),
            parse_float=lambda word: _number(word, where),
        )
    except ValueError as error:
        _refuse(where, f"is not JSON: {error}")
    if len(text) > TEXT_LENGTH or _ESCAPED_SURROGATE.search(text):  # else no text can break its rules
        _check_texts(value, where)
    return value


def _refuse(where: str, message: str) -> NoReturn:
    raise BundleError(message, where=where, code="syntax")


def _check_depth(text: str, where: str) -> None:
    """Counts brackets outside of texts, before a parser recurses into them."""
    depth = 0
    for bracket in _BRACKET.findall(_QUOTED.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            _refuse(where, f"is not JSON of a bundle: nested more than {DEPTH} deep")


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _refuse(where, f"key '{key:.60}' is given twice")
            seen.add(key)
    return result


def _integer(word: str, where: str) -> int:
    if len(word) > NUMBER_LENGTH:
        _refuse(where, f"is not JSON of a bundle: a number of {len(word)} characters; at most {NUMBER_LENGTH}")
    return int(word)


def _number(word: str, where: str) -> float:
    if len(word) > NUMBER_LENGTH:
        _refuse(where, f"is not JSON of a bundle: a number of {len(word)} characters; at most {NUMBER_LENGTH}")
    value = float(word)
    if not math.isfinite(value):
        _refuse(where, f"{word} is beyond what JSON can hold as a number")
    return value


def _check_texts(value: Any, where: str) -> None:
    """Lengths and surrogates of every text, keys included."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            if len(current) > TEXT_LENGTH:
                _refuse(where, f"holds a text of {len(current)} characters; at most {TEXT_LENGTH}")
            if _SURROGATE.search(current):
                _refuse(where, f"holds half a surrogate pair in {current!r:.60}, which JSON cannot hold")
        elif isinstance(current, dict):
            waiting += [*current.keys(), *current.values()]
        elif isinstance(current, list):
            waiting += current
