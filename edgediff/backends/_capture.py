"""A variant as an exported program of fixed sizes, in core operators: what Core ML and ExecuTorch are given; and the
batch sizes that a plan runs its graphs at."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import BackendError, first_line
from edgediff.runtime.manifest import BATCH

if TYPE_CHECKING:
    from edgediff.documents.plan import Plan
    from edgediff.variants import Variant

NOISY = ("torch", "onnxscript", "onnx_ir", "onnx")

# Nodes that hand their input on: checks, views and copies that mean nothing in a program without side effects.
PASSED_ON = {"alias", "detach", "lift_fresh_copy", "lift_fresh", "contiguous", "clone"}
RESHAPES = {"reshape", "expand"}  # dropped where they change nothing
DROPPED = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Within it the exporter's warnings and log lines below an error reach nobody's terminal."""
    loggers = [logging.getLogger(name) for name in NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def graph_batches(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Graph of the denoiser -> the batch sizes that some program runs it at, in the order of first use."""
    found: dict[str, list[int]] = {name: [] for name in plan.graphs}
    for one in plan.programs().values():
        for call, guidance in zip(one.schedule.calls, one.guidance.calls, strict=True):
            batch = 2 if guidance is not None and one.guidance.mode == "batched" else 1
            if call in found and batch not in found[call]:
                found[call].append(batch)
    return {name: tuple(batches) or (1,) for name, batches in found.items()}


def function_name(graph: str, batch: int, batches: tuple[int, ...]) -> str:
    """The function of a graph at a batch size: the graph's name for the first of its `batches`."""
    return graph if batch == batches[0] else f"{graph}_batch{batch}"


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
            message = (
                f"graph '{variant.name}' cannot be traced by torch.export: {first_line(error)}; "
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
