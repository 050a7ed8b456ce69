"""Weights beside ONNX programs: one file for all graphs of a component, each tensor in it once.

Two graphs that share weights name the same file, offset and length, so they cost the disk no more than one, and
a runtime that maps the file holds its pages once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgediff.errors import BackendError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
PAGE, LINE = 4096, 64  # alignment in bytes of tensors that are mapped, and of the others
MAPPED = 1 << 16  # from this size on a tensor begins at a page
INLINE = 256  # up to this size a tensor stays in the graph: shapes and scalars, which optimizers want to see


class WeightsFile:
    """Writes tensors one after the other and knows again what it has written, by content."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115, closed by __exit__
        self._known: dict[bytes, tuple[int, int]] = {}

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, array: Array) -> tuple[int, int]:
        """Offset and length in bytes of the array's values, written (row-major, little-endian) if they are new."""
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            step = PAGE if data.nbytes >= MAPPED else LINE
            offset = -(-self._file.tell() // step) * step
            self._file.write(bytes(offset - self._file.tell()))
            self._file.write(data)
            self._known[key] = (offset, data.nbytes)
        return self._known[key]


def write_graph(model: ir.Model, path: Path, weights: WeightsFile) -> int:
    """Writes the program to `path`, its large constants to `weights`, which lies in the same folder; returns the
    bytes of all its constants.

    The model then refers to the file and no longer to what the constants were made from.
    """
    import onnx_ir as ir

    ends = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in ends:
                value.type = value.shape = None
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise BackendError(f"constant '{name}' of '{path.name}' has no value", code="export")
        if tensor.nbytes > INLINE:
            offset, length = weights.add(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                weights.path.name, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir=path.parent
            )
    ir.save(model, path)
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def lazy_tensor(read: Callable[[], Array], dtype: Any, shape: Sequence[int]) -> Any:
    """A constant that is computed when it is written and not kept, so that changing the precision of a model
    costs one tensor of memory."""
    import onnx_ir as ir

    kind = ir.DataType.from_numpy(np.dtype(dtype))
    return ir.LazyTensor(lambda: ir.tensor(read()), kind, ir.Shape(shape))


def add_constant(graph: ir.Graph, name: str, tensor: Any) -> ir.Value:
    """A new initializer of the graph."""
    import onnx_ir as ir

    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph) -> None:
    """Removes initializers that no node reads any more."""
    ends = set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in ends:
            del graph.initializers[name]


def refuse_subgraphs(graph: ir.Graph, precision: str) -> None:
    """Raises BackendError for a node with a body of its own (If, Loop), into which no conversion looks."""
    import onnx_ir as ir

    for node in graph:
        kinds = {attribute.type for attribute in node.attributes.values()}
        if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            message = f"node '{node.name}' ({node.op_type}) holds a graph of its own; use fp32, not {precision}"
            raise BackendError(message, code="export")
