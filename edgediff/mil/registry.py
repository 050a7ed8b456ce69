"""The table of operations: MIL's name -> what computes it. Arguments have MIL's names, defaults are MIL's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Arg = Any  # a tensor, a string, a list of tensors, or a plain number where MIL's default stands in
Compute = Callable[..., Any]
F = TypeVar("F", bound=Compute)

OPERATIONS: dict[str, Compute] = {}
MOVES: set[str] = set()  # operations that only move values: nothing is rounded after them


def op(*names: str, moves: bool = False) -> Callable[[F], F]:
    """Enters a function under MIL's names."""

    def enter(function: F) -> F:
        for name in names:
            OPERATIONS[name] = function
            if moves:
                MOVES.add(name)
        return function

    return enter


def ints(value: Arg) -> list[int]:
    """A constant vector (or scalar) as a list of ints."""
    if isinstance(value, Tensor):
        return [int(item) for item in value.reshape(-1).tolist()]
    return [int(value)] if isinstance(value, int) else [int(item) for item in value]


def flag(value: Arg) -> bool:
    return bool(value)
