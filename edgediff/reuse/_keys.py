"""Which calls are computed in full: sampling modes over call indices 0 (noisiest) to calls - 1. No torch here.

Every mode gives distinct, ascending indices that begin with 0, because nothing is cached before the first call.
"""

from __future__ import annotations

import math
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
            front = _dense((calls + 1) // 2, (count + 1) // 2, power)
            back = _dense(calls // 2, count // 2, power) if count > 1 else ()
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


def centre_keys(calls: int, count: int, centre: int, power: float, *, released: bool) -> tuple[int, ...]:
    """DeepCache's non-uniform form: dense around call `centre`, sparser the higher `power` (above 1).

    x are count + 1 equal steps from (-centre)^(1/power) to (calls - centre)^(1/power); the keys are 0 and
    centre + trunc(x^power) without both ends, `power` falling by 0.02 until `count` of them differ. A negative number
    has no real root: the released code takes Python's complex one and truncates the real part of the result
    (`released`); the other form takes roots and powers of the magnitude and keeps the sign, which is what was meant.
    Raises MethodError for numbers with which that never happens.
    """
    check_count(calls, count)
    if not 0 <= centre < calls:
        raise MethodError(f"centre = {centre}: it needs 0 to {calls - 1}, the calls of the sampler", code="keys")
    start = power
    while power > 1.0:
        ends = [_raised(value, 1 / power, released) for value in (-centre, calls - centre)]
        steps = (ends[0] + (ends[1] - ends[0]) * j / count for j in range(count + 1))
        whole = sorted({int(complex(_raised(x, power, released)).real) for x in steps})
        keys = (0, *(centre + value for value in whole[1:-1]))
        if len(set(keys)) == count:
            return tuple(sorted(keys))
        power -= 0.02
    raise MethodError(
        f"no {count} of {calls} calls lie around {centre} with power {start:g}; give a larger power or another centre",
        code="keys",
    )


def _raised(value: complex, power: float, released: bool) -> complex:
    if released:
        return complex(value) ** power
    real = complex(value).real
    return math.copysign(abs(real) ** power, real)
