"""The roofline's terms: what a graph asks of each limit of a device, operator by operator."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgediff.estimate.operators import ARITHMETIC, KINDS, Operator, OperatorTable

Array = NDArray[np.float64]

# By what coefficients are fitted for: `device.PRICED_AS` says which of these a precision is.
VALUE_BYTES = {"fp32": 4.0, "fp16": 2.0, "w8a16": 2.0, "w8a8": 1.0}
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "w8a16": 1.0, "w8a8": 1.0}
SPEED = {"fp32": 0.5, "fp16": 1.0, "w8a16": 1.0, "w8a8": 2.0}
ON_CHIP_MB = 4.0  # an operator whose tensors take more than this goes to memory for the rest
# Pixels along a side, and channels, that a kernel takes at once: fewer leave it idle. Published networks hardly show
# it; without it the estimates of glyph on a CPU are twice as far off (benchmarks/claims/estimator_host.py).
SIDE, TILE = 8, 32
PORT_BYTES = 4e-6  # MB of a value that enters or leaves a graph: the host's floats, converted on the way
SPILLS = ("products", "attention", "light")
ATTENTION = ("matmul", "softmax")
TERMS: tuple[tuple[str, str], ...] = (
    ("call", ""),
    ("ports", ""),
    *(("macs", kind) for kind in ARITHMETIC),
    ("weights", ""),
    *(("traffic", kind) for kind in KINDS),
    *(("spill", kind) for kind in SPILLS),
    *(("launch", kind) for kind in KINDS),
)
PARTS = ("arithmetic", "traffic", "launches")
PART_OF = np.array(
    [{"macs": 0, "ports": 1, "weights": 1, "traffic": 1, "spill": 1, "call": 2, "launch": 2}[name] for name, _ in TERMS]
)
_AT = {term: index for index, term in enumerate(TERMS)}


def design(table: OperatorTable, precision: str) -> Array:
    """`[len(TERMS)]`: the call (1), and in units of a thousandth of a microsecond on a device of 1 GFLOP/s at fp16
    and 1 GB/s: nothing of this is milliseconds before it is divided by a device's figures.

    macs: 2 MACs in 10^6, over the speed of the precision relative to fp16; ports, weights, traffic, spill: 10^6
    bytes; launch: operators.
    """
    found = np.zeros(len(TERMS))
    found[0], found[1] = 1.0, table.ports * PORT_BYTES
    for op in table.operators:
        for index, amount in operator_terms(op, precision):
            found[index] += amount * op.count
    return found


@lru_cache(maxsize=200_000)
def operator_terms(op: Operator, precision: str) -> tuple[tuple[int, float], ...]:
    """Indices into TERMS and amounts of one operator (its `count` left out)."""
    size = VALUE_BYTES[precision] * 1e-6
    moved = (op.reads + op.writes) * size
    found = [(_AT["traffic", op.kind], moved), (_AT["launch", op.kind], 1.0)]
    if op.kind in ARITHMETIC:
        found.append((_AT["macs", op.kind], op.macs * padding(op) * 2e-6 / SPEED[precision]))
    if op.parameters and op.kind != "gather":  # a lookup reads the rows it needs
        found.append((_AT["weights", ""], op.parameters * WEIGHT_BYTES[precision] * 1e-6))
    if moved > ON_CHIP_MB:
        kind = "attention" if op.kind in ATTENTION else "products" if op.kind in ARITHMETIC else "light"
        found.append((_AT["spill", kind], moved - ON_CHIP_MB))
    return tuple(found)


def padding(op: Operator) -> float:
    """How many more MACs a kernel does than the operator needs, for channels and pixels that do not fill its tiles."""
    if op.kind == "depthwise" or not op.columns or not op.depth:
        return 1.0
    found = (-(-op.columns // TILE) * TILE / op.columns) * (-(-op.depth // TILE) * TILE / op.depth)
    if op.kind in ("conv", "pointwise"):
        side = max(1.0, op.rows**0.5)
        found *= (-(-side // SIDE) * SIDE / side) ** 2
    return found
