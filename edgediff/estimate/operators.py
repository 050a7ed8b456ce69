"""What a graph asks of a device: its operators, by class, with their arithmetic and their traffic."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import ConfigError

Kind = Literal[
    "conv",
    "conv3d",
    "pointwise",
    "depthwise",
    "linear",
    "matmul",
    "norm",
    "softmax",
    "elementwise",
    "pool",
    "resize",
    "layout",
    "gather",
    "other",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ARITHMETIC: tuple[Kind, ...] = ("conv", "conv3d", "pointwise", "depthwise", "linear", "matmul")
COLUMNS = ("count", "macs", "parameters", "reads", "writes", "rows", "columns", "depth")


@dataclass(frozen=True)
class Operator:
    """`count` operators of one kind and size, each with these figures for one sample.

    `macs` are multiply-accumulates, `parameters` weights that it reads, `reads` and `writes` values of
    activations. As a matrix product it is `[rows, depth] x [depth, columns]`: output positions, input values of
    one output value (kernel included), output channels (0 where it is none).
    """

    kind: Kind
    count: int = 1
    macs: float = 0.0
    parameters: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    rows: int = 0
    columns: int = 0
    depth: int = 0

    def scaled(self, batch: int) -> Operator:
        """The operator on `batch` samples at once: weights are read once, the rest grows."""
        return Operator(
            self.kind,
            self.count,
            self.macs * batch,
            self.parameters,
            self.reads * batch,
            self.writes * batch,
            self.rows * batch,
            self.columns,
            self.depth,
        )


@dataclass(frozen=True)
class OperatorTable:
    """The operators of one graph in no particular order. `unknown` counts, by name, operators that have no class
    here: they stand in `operators` as `other`, priced by their traffic. `peak_values` is the most activation
    values alive at once (0: not known), `ports` the values that a call takes and gives."""

    operators: tuple[Operator, ...]
    unknown: Mapping[str, int] = field(default_factory=dict)
    peak_values: int = 0
    ports: float = 0.0

    @property
    def macs(self) -> float:
        return sum(op.count * op.macs for op in self.operators)

    @property
    def parameters(self) -> float:
        return sum(op.count * op.parameters for op in self.operators)

    def scaled(self, batch: int) -> OperatorTable:
        """The same graph on `batch` samples."""
        many = tuple(op.scaled(batch) for op in self.operators)
        return OperatorTable(many, self.unknown, self.peak_values * batch, self.ports * batch)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """`[len(KINDS), 4]`: per kind the operators, the MACs, the parameters and the activation values."""
        found = np.zeros((len(KINDS), 4))
        for op in self.operators:
            figures = (1.0, op.macs, op.parameters, op.reads + op.writes)
            found[KINDS.index(op.kind)] += op.count * np.array(figures)
        return found

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON: one row per distinct operator."""
        rows = [[op.kind, *(getattr(op, name) for name in COLUMNS)] for op in self.operators]
        return {"operators": rows, "unknown": dict(self.unknown), "peak_values": self.peak_values, "ports": self.ports}


def merged_table(
    operators: Iterable[Operator],
    unknown: Mapping[str, int] | None = None,
    peak_values: int = 0,
    ports: float = 0.0,
) -> OperatorTable:
    """A table in which equal operators are counted together."""
    counts: dict[Operator, int] = {}
    for op in operators:
        one = Operator(op.kind, 1, op.macs, op.parameters, op.reads, op.writes, op.rows, op.columns, op.depth)
        counts[one] = counts.get(one, 0) + op.count
    merged = tuple(
        Operator(op.kind, n, op.macs, op.parameters, op.reads, op.writes, op.rows, op.columns, op.depth)
        for op, n in counts.items()
    )
    return OperatorTable(merged, dict(unknown or {}), peak_values, ports)


def read_table(data: Mapping[str, Any], *, where: str = "operator table") -> OperatorTable:
    """`to_data`'s inverse. Raises ConfigError for rows of another form and for kinds that are not known."""
    found: list[Operator] = []
    for row in data["operators"]:
        if len(row) != len(COLUMNS) + 1 or row[0] not in KINDS:
            raise ConfigError(f"'{row}' is not an operator (kind, {', '.join(COLUMNS)})", where=where)
        found.append(Operator(row[0], **dict(zip(COLUMNS, row[1:], strict=True))))
    peak, ports = int(data.get("peak_values", 0)), float(data.get("ports", 0.0))
    return OperatorTable(tuple(found), dict(data.get("unknown", {})), peak, ports)


def read_tables(path: Path) -> dict[str, OperatorTable]:
    """A `.json.gz` of operator tables by name."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)
    return {name: read_table(one, where=f"{path.name}: {name}") for name, one in data.items()}
