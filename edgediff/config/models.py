"""Typed records: plain data into strict models, and models into canonical JSON.

An unknown key is an error that names the file, the key and the nearest key that exists.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from edgediff.errors import ConfigError, did_you_mean


class Model(BaseModel):
    """A frozen record in which an unknown key is an error and no value is NaN or infinite. `renamed`: keys that it had
    once, and what to write instead."""

    renamed: ClassVar[dict[str, str]] = {}

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


def parse(data: Any, model: type[M], *, where: str, strict: bool = False) -> M:
    """Validates plain data. `strict` takes what JSON writes and no more: "5" is no number, 5.0 is not whole.

    Raises ConfigError naming the first offending key and what it may be.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True) if strict else model.model_validate(data)
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
        holder, last = _model_at(model, first["loc"][:-1]), str(first["loc"][-1])
        if instead := getattr(holder, "renamed", {}).get(last):
            return f"key '{key}' = {first['input']!r} is no longer known: {instead}"
        return f"unknown key '{key}'{did_you_mean(last, _keys_of(holder))}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"'{key}' = {shown}: {message}" if key else message


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model at `location` below `model`. Names of a union's members are part of a location."""
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
    return models[0] if models else None


def _keys_of(model: type[BaseModel] | None) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items()) if model else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `tuple[Row, ...]` or `dict[str, Graph] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
