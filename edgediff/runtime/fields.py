"""The kinds of values that a manifest holds, with their limits: sections 4 and 5 of `docs/format.md`."""

from __future__ import annotations

import math
import re
from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from edgediff.runtime.steps import Number

BATCH: Literal["batch"] = "batch"
NAME_LENGTH, PATH_LENGTH = 200, 400
MAX_ELEMENTS, MAX_LATENT = 2**28, 2**24
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # and no others: what Unicode calls control grows with its versions
_PATH = re.compile(r"[A-Za-z0-9._+\-/@]+")


@dataclass(frozen=True)
class Length:
    """How many items a list has. Looked at after the items, which pydantic's own limits are not: the first fault in a
    document is to be the same one for every reader."""

    low: int
    high: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        low = {"minItems": self.low} if self.low else {}
        return {**handler(schema), **low, "maxItems": self.high}

    def check(self, value: Sized) -> Sized:
        if not self.low <= len(value) <= self.high:
            wanted = f"{self.low} to {self.high}" if self.low else f"at most {self.high}"
            raise ValueError(f"has {len(value)} items; {wanted} are allowed")
        return value


class PathError(ValueError):
    """A path that a bundle must not name; the reader reports it under this code."""

    code = "path"


def safe_path(path: str) -> str:
    """A relative path that stays inside the bundle (section 4). Raises PathError for any other."""
    if not 1 <= len(path) <= PATH_LENGTH or not _PATH.fullmatch(path):
        raise PathError(f"a path in a bundle has 1 to {PATH_LENGTH} characters of A-Z a-z 0-9 . _ + - / @")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise PathError("a path in a bundle is relative, with one slash between its parts, and never leaves it")
    return path


def _no_control(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("a name has no control characters")
    return value


Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH), AfterValidator(_no_control)]
Path = Annotated[str, AfterValidator(safe_path)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Short = Annotated[str, Field(max_length=NAME_LENGTH)]
Token = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]
Dimension = Annotated[int, Field(ge=1, le=2**20)]
Size = Dimension | Literal["batch"]
Weights = Annotated[tuple[Number, ...], Length(1, 64)]


def _few_elements(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    if sum(size == BATCH for size in shape) > 1:
        raise ValueError("'batch' stands once in a shape")
    if math.prod(2 if size == BATCH else size for size in shape) > MAX_ELEMENTS:
        raise ValueError(f"a tensor has at most {MAX_ELEMENTS} elements")
    return shape


Shape = Annotated[tuple[Size, ...], Length(0, 6), AfterValidator(_few_elements)]


def _small_latent(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MAX_LATENT:
        raise ValueError(f"a latent has at most {MAX_LATENT} elements")
    return shape


Latent = Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Length(2, 3), AfterValidator(_small_latent)]
