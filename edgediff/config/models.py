"""Typed records: plain data into strict models, and models into canonical JSON.

An unknown key is an error that names the file, the key and the nearest key that exists.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

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


def describe_error(error: ValidationError, model: type[BaseModel], *, where: str) -> ConfigError:
    """The first fault as a sentence: the key, its value, what is allowed."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    own = getattr(first.get("ctx", {}).get("error"), "code", "value")  # a validator's error may bring its code
    code = "unknown_key" if first["type"] == "extra_forbidden" else own
    return ConfigError(_sentence(first, key, model), where=where, code=code)


def _sentence(first: Any, key: str, model: type[BaseModel]) -> str:
    if first["type"] == "extra_forbidden":
        holder, last = _model_at(model, first["loc"][:-1]), str(first["loc"][-1])
        if instead := getattr(holder, "renamed", {}).get(last):
            return f"key '{key}' = {first['input']!r} is no longer known: {instead}"
        return f"unknown key '{key}'{did_you_mean(last, sorted(holder.model_fields) if holder else [])}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"'{key}' = {shown}: {message}" if key else message


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model at `location` below `model`."""
    current: Any = model
    for part in location:
        if isinstance(part, str) and (field := _field(current, part)) is not None:
            current = field.annotation
        current = _model_in(current) or current
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _field(model: Any, name: str) -> FieldInfo | None:
    return model.model_fields.get(name) if isinstance(model, type) and issubclass(model, BaseModel) else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as `tuple[Row, ...]` or `dict[str, Graph] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
