"""Strict TOML and JSON into typed models, and typed models into canonical JSON.

An unknown key is an error that names the file, the key and the nearest key that exists. Whatever is
written is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from edgediff.errors import ConfigError, EdgeDiffError, OutputError, did_you_mean


class Model(BaseModel):
    """A frozen record in which an unknown key is an error and no value is NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, one newline at the end; the same value, the same bytes."""
        return dump_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


M = TypeVar("M", bound=BaseModel)


def dump_json(value: Any) -> str:
    """Canonical JSON of plain values. Raises ValueError for NaN and infinity, which JSON has not."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_toml(path: Path, model: type[M]) -> M:
    """Reads `path` into `model`. Raises ConfigError for missing files, bad TOML and bad values."""
    try:
        data = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", where=str(path), code="syntax") from error
    return parse(data, model, where=str(path))


def read_json(path: Path, model: type[M]) -> M:
    """Reads `path` into `model`. Raises ConfigError for missing files, bad JSON and bad values."""
    return parse_json(read_text(path), model, where=str(path))


def parse_json(text: str, model: type[M], *, where: str) -> M:
    """Parses JSON text into `model`; duplicate keys, NaN and infinity are errors too."""
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}", where=where, code="syntax") from error
    except EdgeDiffError as error:
        raise ConfigError(error.message, where=where, code="syntax") from error
    return parse(data, model, where=where)


def parse(data: Any, model: type[M], *, where: str) -> M:
    """Validates plain data. Raises ConfigError naming the first offending key and what it may be."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise describe_error(error, model, where=where) from None


def describe_error(error: ValidationError, model: type[BaseModel], *, where: str, data: Any = None) -> ConfigError:
    """The first fault as a sentence: the key, its value, what is allowed. `data` is what was validated: with it the key
    is named as it stands there, without pydantic's names for the members of a union."""
    first = error.errors(include_url=False)[0]
    parts = first["loc"] if data is None else _parts_in(data, first["loc"], first["type"] == "missing")
    key = ".".join(str(part) for part in parts)
    own = getattr(first.get("ctx", {}).get("error"), "code", "value")  # a validator's error may bring its code
    code = "unknown_key" if first["type"] == "extra_forbidden" else own
    return ConfigError(_sentence(first, key, model), where=where, code=code)


def read_text(path: Path) -> str:
    """The file as UTF-8 text. Raises ConfigError when it is missing, a folder, or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(path), code="missing") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), code="missing") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", where=str(path), code="syntax") from error


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of text in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, flushes it to the disk, then renames: never a half-written file.

    Raises OutputError when the folder is missing, read-only or full; `path` then is as it was.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ConfigError(f"key '{twice}' is given twice")
    return result


def _no_constants(word: str) -> float:
    raise ConfigError(f"{word} is not a JSON number")


def _parts_in(data: Any, location: tuple[int | str, ...], missing: bool) -> tuple[int | str, ...]:
    """The parts of a location that are keys and indices of `data`, and its last one where that key is missing."""
    found: list[int | str] = []
    for part in location:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            found.append(part)
            data = data[part]
    return (*found, location[-1]) if missing else tuple(found)


def _sentence(first: Any, key: str, model: type[BaseModel]) -> str:
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(model, first["loc"][:-1])
        return f"unknown key '{key}'{did_you_mean(str(first['loc'][-1]), allowed)}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"'{key}' = {shown}: {message}" if key else message


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at `location` below `model` knows. Names of a union's members are part of a location."""
    current: Any = model
    for part in location:
        models = _models_in(current)
        named = next((one for one in models if one.__name__ == part), None)
        fields = next((one.model_fields for one in models if part in one.model_fields), None)
        if named is not None:
            current = named
        elif fields is not None:
            current = fields[str(part)].annotation
    models = _models_in(current)
    return sorted(field.alias or name for name, field in models[0].model_fields.items()) if models else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `tuple[Row, ...]` or `dict[str, Graph] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def cache_folder() -> Path:
    """Where results that cost time are kept between runs: `$EDGEDIFF_CACHE`, else `edgediff` below
    `$XDG_CACHE_HOME` or `~/.cache`. Everything in it may be deleted."""
    if own := os.environ.get("EDGEDIFF_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgediff"
