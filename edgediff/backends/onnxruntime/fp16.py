"""An ONNX program from fp32 to fp16, in place; its inputs and outputs stay float32 and int64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgediff.backends.onnxruntime.weights import Array, add_constant, drop_unused, lazy_tensor, refuse_subgraphs
from edgediff.errors import BackendError

if TYPE_CHECKING:
    import onnx_ir as ir

FP16_MAX = 65504.0
MASK_FILL = -1e30  # a constant below it says "never attend", which the largest negative number says as well
STAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX wants in float32: region, scales


def to_fp16(model: ir.Model) -> None:
    """Weights and arithmetic in fp16, with casts where tensors enter and leave.

    What a sine or cosine is computed from stays fp32, and so does it: timestep x frequency reaches 999, where
    neighbouring fp16 numbers lie 0.5 apart, and the time embedding would be noise (measured: four times the error
    of the whole graph). Raises BackendError for a weight beyond the range of fp16.
    """
    graph = model.graph
    refuse_subgraphs(graph, "fp16")
    island = _sinusoid_nodes(graph)
    halves: dict[ir.Value, ir.Value] = {}
    nodes = [node for node in graph if node not in island]
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and index not in STAYS_FLOAT.get(node.op_type, ()):
                source = value.producer()
                if source is None or source in island:
                    node.replace_input_with(index, _half_of(graph, value, halves))
    for node in nodes:
        _retype(node)
    _restore_outputs(graph)
    drop_unused(graph)


def _sinusoid_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Every Sin and Cos with all that it is computed from."""
    found: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type in ("Sin", "Cos")]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [source for value in node.inputs if value and (source := value.producer())]
    return found


def _half_of(graph: ir.Graph, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value:
    """The fp16 twin of a weight, an input, or a value of the fp32 island; made once."""
    import onnx_ir as ir

    if value not in halves:
        name, tensor, source = f"{value.name}_fp16", value.const_value, value.producer()
        if tensor is not None and source is None:
            half = lazy_tensor(lambda: halve(tensor.numpy(), name), np.float16, tensor.shape.numpy())
            halves[value] = add_constant(graph, name, half)
        else:
            cast = _cast(value, ir.DataType.FLOAT16, name)
            if source is None:
                graph.insert_before(graph[0], cast)
            else:
                graph.insert_after(source, cast)
            halves[value] = cast.outputs[0]
    return halves[value]


def halve(array: Array, name: str) -> Array:
    """float32 -> float16; mask fills such as -3.4e38 become the largest negative number. Raises BackendError
    when another value is out of range."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    lost = np.isinf(half) & np.isfinite(array)
    if lost.any():
        worst = float(array[lost].max())
        if worst > MASK_FILL:
            raise BackendError(
                f"constant '{name}' holds {worst:g}, and fp16 ends at {FP16_MAX:g}; use fp32 for this backend",
                code="fp16_range",
            )
        half[lost] = -FP16_MAX
    return half


def _retype(node: ir.Node) -> None:
    """Makes the node's float32 outputs fp16, and what its attributes say about them."""
    import onnx_ir as ir

    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    elif node.op_type == "ConstantOfShape" and _is_float(node.outputs[0]):
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, "f")
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(halve(fill, str(node.name))))
    for value in node.outputs:
        if _is_float(value):
            value.type = ir.TensorType(ir.DataType.FLOAT16)


def _restore_outputs(graph: ir.Graph) -> None:
    """Casts the graph's fp16 outputs back to float32, under their own names."""
    import onnx_ir as ir

    for index, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.FLOAT16:
            name = str(value.name)
            value.name = f"{name}_fp16"
            cast = _cast(value, ir.DataType.FLOAT, name)
            graph.append(cast)
            graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    import onnx_ir as ir

    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=f"cast_{name}")


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    if value.dtype is None:
        raise BackendError(f"the exporter gave value '{value.name}' no type; use fp32 for this backend", code="export")
    return bool(value.dtype == ir.DataType.FLOAT)
