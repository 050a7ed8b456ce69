"""A function in two chunks of about half the weights each, for phones that cannot load the whole at once.

The cut lies where the least crosses, among places with 40 to 60 % of the weights before them. What is computed before
it and read after it leaves the first chunk as outputs and enters the second by the same names, as Apple's own chunks
do, whose runner hands every chunk the original inputs too. Other functions of the component are cut where their
weights lie with those of the first, so that a weight is in one package only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from edgediff.backends.coreml.messages import block_of, values_of
from edgediff.errors import BackendError
from edgediff.mil.package import Package, ValueType, value_type

COUNT = 2
WINDOW = (0.4, 0.6)  # of the weights before the cut
CROSSING = {"float16": 2, "float32": 4, "int32": 4}  # what a function may put out, and its bytes
MOST_AXES = 5


@dataclass(frozen=True)
class _Layout:
    """A function as it matters for a cut, by its operations without the constants: the weights that each uses
    (digest -> bytes), and what a cut after so many of them costs, in bytes that cross; None for a place where
    something crosses that no function may put out, or nothing."""

    weights: tuple[dict[str, int], ...]
    prices: tuple[int | None, ...]


def plan_cuts(functions: Sequence[tuple[Package, str]]) -> list[int]:
    """Where each function is cut: the number of operations, constants apart, in its first chunk. The first function
    decides, the others follow its weights. Raises BackendError (code `chunks`) for one that cannot be cut."""
    cuts: list[int] = []
    homes: dict[str, set[int]] = {}
    for package, name in functions:
        layout = _layout(package, name)
        cut = _halve(layout) if not cuts else _follow(layout, homes)
        if cut is None:
            message = f"function '{name}' cannot be cut in two: there is no place with float tensors crossing it alone"
            raise BackendError(f"{message}; choose chunks 1", where="[coreml]", code="chunks")
        if not cuts:
            for index, weights in enumerate(layout.weights):
                for digest in weights:
                    homes.setdefault(digest, set()).add(int(index >= cut))
        cuts.append(cut)
    return cuts


def take_chunk(function: Any, cut: int, index: int) -> None:
    """Leaves one chunk of a `Function` message, 0 or 1."""
    block = block_of(function)
    constants, steps = _split(block)
    types = {output.name: output.type for one in steps for output in one.outputs}
    made = [{output.name for one in part for output in one.outputs} for part in (steps[:cut], steps[cut:])]
    part = steps[cut:] if index else steps[:cut]
    reads = {name for one in part for name in _names(one)}
    other = {name for one in steps[cut:] for name in _names(one)}
    crossing = [output.name for one in steps[:cut] for output in one.outputs if output.name in other]
    outputs = [name for name in block.outputs if name in made[index]]
    inputs = [one for one in function.inputs if one.name in reads]
    del function.inputs[:]
    function.inputs.extend(inputs)
    if index:
        for name in crossing:
            entry = function.inputs.add()
            entry.name = name
            entry.type.CopyFrom(types[name])
    else:
        outputs += [name for name in crossing if name not in outputs]
    kept = _needed(constants, reads)
    wanted = {id(one) for one in part}
    operations = [one for one in block.operations if id(one) in wanted or (one.outputs and one.outputs[0].name in kept)]
    del block.operations[:]
    block.operations.extend(operations)
    del block.outputs[:]
    block.outputs.extend(outputs)


def _halve(layout: _Layout) -> int | None:
    """The cheapest cut in the window, or else the one that halves the weights best."""
    seen: set[str] = set()
    sizes = []
    for weights in layout.weights:
        sizes.append(sum(size for digest, size in weights.items() if digest not in seen))
        seen |= weights.keys()
    before, total = [0, *accumulate(sizes)], sum(sizes) or 1
    prices = {cut: price for cut, price in enumerate(layout.prices) if price is not None}
    shares = {cut: before[cut] / total for cut in prices}
    inside = [cut for cut, share in shares.items() if WINDOW[0] <= share <= WINDOW[1]]
    if inside:
        return min(inside, key=lambda cut: (prices[cut], abs(shares[cut] - 0.5)))
    return min(shares, key=lambda cut: abs(shares[cut] - 0.5), default=None)


def _follow(layout: _Layout, homes: dict[str, set[int]]) -> int | None:
    """The cut with the fewest bytes of weights in a chunk where the first function has them not."""
    every = [item for weights in layout.weights for item in weights.items()]
    misplaced = [sum(size for digest, size in every if 1 not in homes.get(digest, {1}))]
    for weights in layout.weights:  # one more operation goes to the first chunk
        moved = sum(
            size * ((0 not in homes[digest]) - (1 not in homes[digest]))
            for digest, size in weights.items()
            if digest in homes
        )
        misplaced.append(misplaced[-1] + moved)
    prices = {cut: price for cut, price in enumerate(layout.prices) if price is not None}
    return min(prices, key=lambda cut: (misplaced[cut], prices[cut]), default=None)


def _layout(package: Package, name: str) -> _Layout:
    constants, steps = _split(package.block(name))
    makers = {output.name: one for one in constants for output in one.outputs}
    weights = tuple(
        {key: size for one in _makers(makers, frozenset(_names(step))) for key, size in _blobs(package, one)}
        for step in steps
    )
    return _Layout(weights, _prices(steps))


def _prices(steps: list[Any]) -> tuple[int | None, ...]:
    """What a cut before each operation costs."""
    last = {name: index for index, step in enumerate(steps) for name in _names(step)}
    found: list[int | None] = []
    alive: dict[str, ValueType] = {}
    for index, step in enumerate(steps):
        alive = {name: kind for name, kind in alive.items() if last[name] >= index}
        fit = all(kind.dtype in CROSSING and 1 <= len(kind.shape) <= MOST_AXES for kind in alive.values())
        total = sum(CROSSING.get(kind.dtype, 0) * kind.count for kind in alive.values())
        found.append(total if alive and fit else None)
        alive.update({one.name: value_type(one.type) for one in step.outputs if one.name in last})
    return tuple(found)


def _split(block: Any) -> tuple[list[Any], list[Any]]:
    """Constants (compressed ones too), and the other operations."""
    constants: list[Any] = []
    steps: list[Any] = []
    for one in block.operations:
        (constants if one.type == "const" or one.type.startswith("constexpr_") else steps).append(one)
    return constants, steps


def _names(operation: Any) -> list[str]:
    bounds = [bound for argument in operation.inputs.values() for bound in argument.arguments]
    return [bound.name for bound in bounds if bound.WhichOneof("binding") == "name"]


def _makers(makers: dict[str, Any], names: frozenset[str]) -> list[Any]:
    """The constants among names, with those that make them."""
    found, waiting = [], sorted(names)
    while waiting:
        if (one := makers.get(waiting.pop())) is not None:
            found.append(one)
            waiting += _names(one)
    return found


def _needed(constants: list[Any], reads: set[str]) -> set[str]:
    makers = {output.name: one for one in constants for output in one.outputs}
    return {one.outputs[0].name for one in _makers(makers, frozenset(reads))}


def _blobs(package: Package, constant: Any) -> list[tuple[str, int]]:
    """(digest, bytes) of what a constant has in the weights file."""
    found = []
    for value in values_of(constant):
        if value.WhichOneof("value") == "blobFileValue":
            raw = package.blob(value.blobFileValue.fileName).raw(int(value.blobFileValue.offset))
            found.append((hashlib.blake2b(raw.data, digest_size=16).hexdigest(), int(raw.nbytes)))
    return found
