"""An ONNX program from fp32 to w8a8, in place; its inputs and outputs stay float32 and int64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.backends.onnxruntime.weights import Array, add_constant, drop_unused, lazy_tensor, refuse_subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir

QMAX = 127
ZERO = 128  # what uint8 weights of matrix products call zero


def to_w8a8(model: ir.Model) -> None:
    """Weights as 8-bit integers, symmetric around zero, with a scale of their own per output channel.

    *Matrix products* run in integers: the other operand is quantized to uint8 on the fly, per tensor (ONNX
    Runtime's dynamic quantization). Their weights are stored as uint8 around 128, because the product of uint8
    and int8 saturates on x86 processors without VNNI, and a bundle means the same everywhere.
    *Convolutions* and *embeddings* are weight-only: the integers are scaled back and the arithmetic is fp32.
    (Integer convolutions are slower than fp32 ones on CPUs, measured.) Biases and norms stay fp32.
    """
    graph = model.graph
    refuse_subgraphs(graph, "w8a8")
    operands: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in list(graph):
        if node.op_type in ("MatMul", "Gemm") and _weight(node, 1) is not None:
            _quantize_product(graph, node, operands)
        elif node.op_type == "Conv" and _weight(node, 1) is not None:
            _quantize_convolution(graph, node)
        elif node.op_type == "Gather" and _weight(node, 0) is not None:
            _quantize_embedding(graph, node)
    drop_unused(graph)


def quantize(array: Array, axis: int) -> tuple[Array, Array]:
    """int8 values in [-127, 127] and float32 scales, one for each index of `axis`: array ~ values * scale."""
    scale = scales(array, axis)
    shape = [-1 if index == axis else 1 for index in range(array.ndim)]
    return np.rint(array / scale.reshape(shape)).astype(np.int8), scale


def scales(array: Array, axis: int) -> Array:
    """float32 [size of axis]: the largest magnitude over 127; 1 where all is zero."""
    others = tuple(index for index in range(array.ndim) if index != axis)
    scale = np.abs(array).max(axis=others).astype(np.float32) / np.float32(QMAX)
    scale[scale == 0] = 1.0
    result: Array = scale
    return result


def _quantize_product(graph: ir.Graph, node: ir.Node, operands: dict[ir.Value, tuple[ir.Value, ...]]) -> None:
    """A x B (+ C) as DynamicQuantizeLinear(A), MatMulInteger, and both scales multiplied back in."""
    import onnx_ir as ir

    value = node.inputs[0]
    assert value is not None
    if node.op_type == "Gemm" and not _is_plain_gemm(node):
        return
    build = _Builder(graph, node)
    integers, scale = _store_matrix(build, node)
    zero = build.constant("uint8_zero", ir.tensor(np.array(ZERO, np.uint8)))
    if value not in operands:
        operands[value] = build.add("DynamicQuantizeLinear", [value], outputs=3)
    quantized, value_scale, value_zero = operands[value]
    (product,) = build.add("MatMulInteger", [quantized, integers, value_zero, zero])
    (product,) = build.add("Cast", [product], {"to": ir.DataType.FLOAT})
    (both,) = build.add("Mul", [value_scale, scale])
    (result,) = build.add("Mul", [product, both])
    if node.op_type == "Gemm" and len(node.inputs) == 3 and node.inputs[2] is not None:
        (result,) = build.add("Add", [result, node.inputs[2]])
    build.replace(result)


def _store_matrix(build: _Builder, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The matrix of a product as uint8 [inner, outer] around 128, and its scales [outer]."""
    import onnx_ir as ir

    weight = _weight(node, 1)
    assert weight is not None
    tensor, name = weight.const_value, str(weight.name)
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1

    def read() -> Array:
        array: Array = tensor.numpy()
        return array.T if turned else array

    def store() -> Array:
        return (quantize(read(), 1)[0].astype(np.int16) + ZERO).astype(np.uint8)

    name = f"{name}_turned" if turned else name
    integers = build.constant(f"{name}_uint8", lazy_tensor(store, np.uint8, read().shape))
    return integers, build.constant(f"{name}_uint8_scale", ir.tensor(scales(read(), 1)))


def _quantize_convolution(graph: ir.Graph, node: ir.Node) -> None:
    import onnx_ir as ir

    weight = _weight(node, 1)
    assert weight is not None
    build = _Builder(graph, node)
    tensor, name = weight.const_value, str(weight.name)
    stored = lazy_tensor(lambda: quantize(tensor.numpy(), 0)[0], np.int8, tensor.shape.numpy())
    integers = build.constant(f"{name}_int8", stored)
    scale = build.constant(f"{name}_int8_scale", ir.tensor(scales(tensor.numpy(), 0)))
    (restored,) = build.add("DequantizeLinear", [integers, scale], {"axis": 0})
    node.replace_input_with(1, restored)


def _quantize_embedding(graph: ir.Graph, node: ir.Node) -> None:
    """Rows of integers times their row's scale."""
    import onnx_ir as ir

    table, ids = _weight(node, 0), node.inputs[1]
    if table is None or node.attributes.get_int("axis", 0) != 0:
        return
    build = _Builder(graph, node)
    tensor, name = table.const_value, str(table.name)
    stored = lazy_tensor(lambda: quantize(tensor.numpy(), 0)[0], np.int8, tensor.shape.numpy())
    integers = build.constant(f"{name}_rows", stored)
    scale = build.constant(f"{name}_rows_scale", ir.tensor(scales(tensor.numpy(), 0).reshape(-1, 1)))
    (rows,) = build.add("Gather", [integers, ids], {"axis": 0})
    (rows,) = build.add("Cast", [rows], {"to": ir.DataType.FLOAT})
    (factors,) = build.add("Gather", [scale, ids], {"axis": 0})
    (result,) = build.add("Mul", [rows, factors])
    build.replace(result)


class _Builder:
    """Adds nodes in front of one node, and puts a value in its place."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.count = 0

    def constant(self, name: str, tensor: Any) -> ir.Value:
        """The initializer of that name, made at its first use."""
        known = self.graph.initializers.get(name)
        return add_constant(self.graph, name, tensor) if known is None else known

    def add(
        self, kind: str, inputs: list[ir.Value | None], attributes: Any = None, outputs: int = 1
    ) -> tuple[ir.Value, ...]:
        """The outputs of a new node."""
        import onnx_ir as ir

        name = f"{self.node.name}_q{self.count}"
        self.count += 1
        values = [ir.Value(name=f"{name}_{index}") for index in range(outputs)]
        self.graph.insert_before(self.node, ir.node(kind, inputs, attributes or {}, outputs=values, name=name))
        return tuple(values)

    def replace(self, value: ir.Value) -> None:
        import onnx_ir as ir

        old = self.node.outputs[0]
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], [], [old], [value])


def _weight(node: ir.Node, index: int) -> ir.Value | None:
    """The constant float32 operand at `index`; a matrix unless the node is a convolution. None for any other."""
    import onnx_ir as ir

    value = node.inputs[index]
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    tensor = value.const_value
    fits = node.op_type == "Conv" or tensor.shape.rank() == 2
    return value if fits and tensor.dtype == ir.DataType.FLOAT else None


def _is_plain_gemm(node: ir.Node) -> bool:
    at = node.attributes
    scaled = at.get_float("alpha", 1.0) != 1.0 or at.get_float("beta", 1.0) != 1.0
    return not scaled and at.get_int("transA", 0) == 0
