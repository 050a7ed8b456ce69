"""Which calls are computed in full: sampling modes over call indices 0 (noisiest) to calls - 1. No torch here.

Every mode gives distinct, ascending indices that begin with 0, because nothing is cached before the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgediff.errors import MethodError

Mode = Literal["uniform", "front_dense", "back_dense", "both_ends", "prefix"]


def uniform_keys(calls: int, count: int) -> tuple[int, ...]:
    """`count` calls as evenly spread as whole numbers allow: floor(j calls / count)."""
    check_count(calls, count)
    return tuple(j * calls // count for j in range(count))


def spread_keys(mode: Mode, calls: int, count: int, power: float, prefix: int = 0) -> tuple[int, ...]:
    """`count` calls by mode. Front-dense is floor(calls (j / count)^power), the simple form of DeepCache's released
    code; back-dense is its mirror with call 0 in the place of the earliest; both ends take half of each; prefix runs
    the first `prefix` calls and spreads the rest evenly. Where rounding makes two indices equal the next free one is
    taken. Raises MethodError for counts that do not fit."""
    check_count(calls, count)
    match mode:
        case "uniform":
            return uniform_keys(calls, count)
        case "front_dense":
            return _dense(calls, count, power)
        case "back_dense":
            mirrored = sorted(calls - 1 - index for index in _dense(calls, count, power))
            return (0, *mirrored[1:])
        case "both_ends":
            front = _dense(calls // 2, (count + 1) // 2, power)
            back = _dense(calls - calls // 2, count // 2, power) if count > 1 else ()
            return tuple(sorted({*front, *(calls - 1 - index for index in back)}))
        case "prefix":
            if not 1 <= prefix <= count:
                raise MethodError(f"prefix = {prefix}: it needs 1 to {count}, the calls that are computed", code="keys")
            rest = count - prefix
            later = tuple(prefix + (j + 1) * (calls - prefix) // (rest + 1) for j in range(rest))
            return (*range(prefix), *later)


def check_keys(keys: Sequence[int], calls: int) -> tuple[int, ...]:
    """Keys that somebody wrote down. Raises MethodError unless they ascend from 0 and exist."""
    found = tuple(keys)
    if not found or found[0] != 0:
        raise MethodError("the first key must be 0: nothing is cached before the first call", code="keys")
    if list(found) != sorted(set(found)) or found[-1] >= calls:
        message = f"keys {list(found)} must ascend, each once, up to {calls - 1}: the sampler makes {calls} calls"
        raise MethodError(message, code="keys")
    return found


def check_count(calls: int, count: int) -> None:
    """Raises MethodError unless 1 <= count <= calls."""
    if not 1 <= count <= calls:
        raise MethodError(f"{count} computed calls: it needs 1 to {calls}, the calls of the sampler", code="keys")


def _dense(calls: int, count: int, power: float) -> tuple[int, ...]:
    found: list[int] = []
    for j in range(count):
        index = int(calls * (j / count) ** power + 1e-9)
        index = max(index, found[-1] + 1 if found else 0)
        found.append(min(index, calls - count + j))  # those that follow must still fit
    return tuple(found)
