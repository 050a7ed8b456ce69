"""A variant to an ONNX program in memory, through torch.export.

No weight is copied here: initializers refer to the torch parameters, transposed ones are views of them.
What comes out depends on the network alone. The exporter's notes (stack traces with paths of this machine,
version of the torch build) are taken out, so the same plan gives the same bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgediff.backends._capture import quiet_exporter
from edgediff.errors import BackendError, first_line
from edgediff.runtime.manifest import BATCH, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgediff.variants import Variant

OPSET = 20
MAX_BATCH = 16  # torch.export wants a range for the batch; a bundle runs 1 and 2


def export_graph(variant: Variant) -> ir.Model:
    """The ONNX program of a variant, its inputs and outputs named and typed as the variant's.

    The batch is symbolic where the variant has one. Raises BackendError, chained to its cause, naming the
    operator that ONNX has no form for and the module it came from.
    """
    with quiet_exporter():
        program = _capture(variant)
        model = _translate(variant, program)
    _strip_notes(model)
    _type_ends(variant.name, model.graph.inputs, variant.inputs)
    _type_ends(variant.name, model.graph.outputs, variant.outputs)
    return model


def _capture(variant: Variant) -> Any:
    """torch.export of the module. The example is doubled where the batch is symbolic: a traced size of 1
    would be taken for a constant."""
    import torch

    batch = torch.export.Dim(BATCH, min=1, max=MAX_BATCH)
    shapes = torch.export.ShapesCollection()
    example = list(variant.example)
    for index, spec in enumerate(variant.inputs):
        if BATCH in spec.shape:
            axis = spec.shape.index(BATCH)
            example[index] = torch.cat([example[index]] * 2, dim=axis)
            shapes[example[index]] = {axis: batch}
    dynamic: Any = shapes if any(BATCH in spec.shape for spec in variant.inputs) else None
    try:
        with torch.no_grad():
            return torch.export.export(variant.module, tuple(example), dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export raises many kinds
        message = (
            f"graph '{variant.name}' cannot be traced by torch.export: {first_line(error)}; "
            "its modules must not branch on values of tensors"
        )
        raise BackendError(message, code="export") from error


def _translate(variant: Variant, program: Any) -> ir.Model:
    import torch

    try:
        result = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=[spec.name for spec in variant.inputs],
            output_names=[spec.name for spec in variant.outputs],
        )
    except Exception as error:  # the exporter's own classes are private
        raise BackendError(_explain(variant.name, program, error), code="export") from error
    if result is None:
        raise BackendError(f"the exporter gave no program for graph '{variant.name}'", code="export")
    model: ir.Model = result.model
    return model


def _explain(name: str, program: Any, error: Exception) -> str:
    """The sentence about a failed translation, with the operator and its module where the exporter says so."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", "\n".join(chain))
    if missing is None:
        return f"graph '{name}' cannot be written as ONNX: {first_line(error)}; the cause is chained"
    operator = missing[1]
    place = _module_of(program, operator.rpartition(".")[2])
    return (
        f"graph '{name}': ONNX opset {OPSET} has no form for operator '{operator}'{place}; "
        "replace the operation in the network, or leave this backend out of the target"
    )


def _module_of(program: Any, operator: str) -> str:
    """` in module 'a.b' (Class)` of the first node that calls the operator, if there is one."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and operator in str(node.target) and stack:
            path, kind = list(stack.values())[-1]
            return f" in module '{path}' ({str(kind).rpartition('.')[2]})"
    return ""


def _strip_notes(model: ir.Model) -> None:
    """Takes out notes and inferred types of what lies between inputs and outputs: a runtime infers these."""
    model.producer_name, model.producer_version, model.doc_string = "edgediff", None, None
    graph = model.graph
    graph.doc_string, graph.name = None, "graph"
    for holder in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        holder.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _type_ends(name: str, values: Any, specs: tuple[TensorSpec, ...]) -> None:
    """Gives the graph's inputs or outputs the shapes of the specs, after checking that they are the same but
    for the name of the batch. Raises BackendError."""
    import onnx_ir as ir

    if [value.name for value in values] != [spec.name for spec in specs]:
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        raise BackendError(f"graph '{name}' was exported with {found} in place of {wanted}", code="export")
    for value, spec in zip(values, specs, strict=True):
        sizes = tuple(size if isinstance(size, int) else BATCH for size in value.shape)
        if sizes != spec.shape or value.dtype.numpy().name != spec.dtype:
            message = (
                f"tensor '{spec.name}' of graph '{name}' was exported as {value.dtype.numpy().name} {sizes}, "
                f"the variant says {spec.dtype} {spec.shape}"
            )
            raise BackendError(message, code="export")
        value.shape = ir.Shape(spec.shape)
