"""A variant as an exported program of fixed sizes that Core ML's converter takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.backends._onnx_export import quiet_exporter
from edgediff.errors import BackendError
from edgediff.manifest import BATCH

if TYPE_CHECKING:
    from edgediff.variants import Variant

# Nodes that hand their input on: checks, views and copies that mean nothing in a program without side effects.
PASSED_ON = {"alias", "detach", "lift_fresh_copy", "lift_fresh", "contiguous", "clone"}
RESHAPES = {"reshape", "expand"}  # dropped where they change nothing
DROPPED = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}


def capture_program(variant: Variant, batch: int) -> Any:
    """torch.export of the module at one batch size, in core operators, without checks and copies.

    Raises BackendError (code `export`) for a module that cannot be traced.
    """
    import torch

    example = tuple(
        torch.cat([tensor] * batch, dim=spec.shape.index(BATCH)) if BATCH in spec.shape else tensor
        for spec, tensor in zip(variant.inputs, variant.example, strict=True)
    )
    with quiet_exporter(), torch.no_grad():
        try:
            program = torch.export.export(variant.module, example, strict=False).run_decompositions({})
        except Exception as error:  # torch.export raises many kinds
            lines = str(error).strip().splitlines() or [type(error).__name__]
            message = (
                f"graph '{variant.name}' cannot be traced by torch.export: {lines[0].strip().rstrip('.')}; "
                "its modules must not branch on values of tensors"
            )
            raise BackendError(message, code="export") from error
        clean_program(program)
    return program


def clean_program(program: Any) -> None:
    """Takes the nodes out that only check or hand on. A view becomes a reshape, which needs no copy before it."""
    import torch

    graph, signature = program.graph_module.graph, program.graph_signature
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        kind = operator_name(node)
        if kind in ("view", "_unsafe_view"):
            node.target = torch.ops.aten.reshape.default
            kind = "reshape"
        if kind in DROPPED:
            graph.erase_node(node)
        elif kind in PASSED_ON or (kind in RESHAPES and node.meta["val"].shape == node.args[0].meta["val"].shape):
            source = node.args[0]
            node.replace_all_uses_with(source)
            signature.replace_all_uses(node.name, source.name)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def check_operators(name: str, program: Any) -> None:
    """Raises BackendError naming the first operator that Core ML has no form for, the module it is in and the line
    that calls it."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    for node in program.graph_module.graph.nodes:
        if node.op != "call_function" or operator_name(node) == "getitem":
            continue
        kind = sanitize_op_kind(str(node.target))
        if kind not in _TORCH_OPS_REGISTRY:
            message = (
                f"graph '{name}': Core ML has no form for operator '{kind}'{place_of(node)}; "
                "replace the operation in the network, or leave this backend out of the target"
            )
            raise BackendError(message, code="export")


def operator_name(node: Any) -> str:
    """`aten.add.Tensor` -> `add`."""
    parts = str(node.target).split(".")
    if len(parts) > 1:
        return parts[1]
    return str(getattr(node.target, "__name__", parts[0]))


def place_of(node: Any) -> str:
    """` in module 'a.b' (Class), file.py:12`, as far as it is known."""
    text = ""
    if stack := node.meta.get("nn_module_stack"):
        path, kind = list(stack.values())[-1]
        text = f" in module '{path}' ({getattr(kind, '__name__', str(kind).rpartition('.')[2])})"
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{text}, {Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else text
