"""Graphs to one ExecuTorch program: a method per graph, handed whole to the target's delegate."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.backends._capture import operator_name, place_of, quiet_exporter
from edgediff.errors import BackendError, first_line

if TYPE_CHECKING:
    from edgediff.backends.executorch.delegates import Delegate
    from edgediff.backends.executorch.ethos import Watch


@dataclass(frozen=True)
class Method:
    """A graph ready to be lowered: an exported program, rewritten and quantized."""

    name: str
    program: Any


@dataclass
class Lowered:
    """What became of a method: calls of each delegate, operators left to the CPU's own kernels (name and place in the
    network -> count), and bytes of the arena that the program plans for it."""

    delegates: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    planned_bytes: int = 0


def write_program(
    methods: Sequence[Method],
    delegate: Delegate,
    path: Path,
    *,
    weights_apart: bool = False,
    seen: Watch | None = None,
) -> dict[str, Lowered]:
    """Lowers the methods together and writes `path`; each weight is in the file once.

    `weights_apart` puts the delegate's weights into a `.ptd` file of the same name beside it. `seen` is told which of
    the vendor compiler's reports are whose. Raises BackendError (code `export`) for what ExecuTorch cannot express;
    for operators left outside a delegate that must take all of them; MissingLibrary.
    """
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    with quiet_executorch(), _few_copies():
        programs = {one.name: _weights_apart(one.program) if weights_apart else one.program for one in methods}
        try:
            edge = to_edge_transform_and_lower(
                programs,
                partitioner={name: delegate.partitioners() for name in programs},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            programs.clear()
            found = {one.name: _count(edge.exported_program(one.name).graph) for one in methods}
            _check_whole(found, delegate, seen)
            if seen is not None:
                for name in found:
                    seen.keep(name, edge.exported_program(name).graph_module)
            program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass()))
        except BackendError:
            raise
        except Exception as error:  # the passes raise many kinds
            names = ", ".join(f"'{one.name}'" for one in methods)
            message = f"graphs {names} cannot be lowered by ExecuTorch to '{delegate.name}': {_deepest(error)}"
            raise BackendError(message, code="export") from error
    del edge
    for plan in program.executorch_program.execution_plan:
        found[plan.name].planned_bytes = sum(plan.non_const_buffer_sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        program.write_to_file(file)
    if weights_apart:
        program.write_tensor_data_to_file(str(path.parent))
    return found


@contextlib.contextmanager
def quiet_executorch() -> Iterator[None]:
    """Within it the exporters' warnings and log lines below an error reach nobody's terminal. Some delegates log to
    the root of all loggers, and set it up."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        with quiet_exporter():
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _few_copies() -> Iterator[None]:
    """Within it ExecuTorch leaves out two kinds of copies that nobody needs.

    A node's record of the nodes it was made from grows with every pass, and every pass copies all of it: as long as all
    else that lowering does. And a delegate is given a copy of the whole program, weights included, of which XNNPACK
    changes none: a third of the peak memory.
    """
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from torch.fx.traceback import NodeSource

    def copy_program(cls: Any, program: Any, specs: Any) -> Any:
        weights = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(weight): weight for weight in weights})

    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    XnnpackBackend.copy_exported_program_for_preprocess = classmethod(copy_program)
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]
        del XnnpackBackend.copy_exported_program_for_preprocess


def _weights_apart(program: Any) -> Any:
    """The program with its weights marked for a file of their own."""
    import torch
    from executorch.exir.passes.external_constants_pass import delegate_external_constants_pass_unlifted

    module = program.module(check_guards=False)
    delegate_external_constants_pass_unlifted(module=module, gen_tag_fn=lambda node: "weights")
    with torch.no_grad():
        return torch.export.export(module, program.example_inputs[0], strict=False)


def _count(graph: Any) -> Lowered:
    found = Lowered()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name == "executorch_call_delegate":
            found.delegates[_backend_of(graph, node)] += 1
        elif name != "getitem":  # hands on what a delegate made
            found.outside[operator_name(node) + place_of(node)] += 1
    return found


def _backend_of(graph: Any, node: Any) -> str:
    lowered = getattr(graph.owning_module, node.args[0].target)
    return str(lowered.backend_id)


def _check_whole(found: dict[str, Lowered], delegate: Delegate, seen: Watch | None) -> None:
    """Raises BackendError for operators outside, where the target says that the delegate must take them all."""
    if delegate.may_leave:
        return
    for name, one in found.items():
        others = {word: count for word, count in one.delegates.items() if word not in delegate.backend_ids}
        if one.outside or others:
            reasons = {} if seen is None else seen.reasons
            left = "; ".join(
                f"{count} x {what}" + (f" ({reasons[what]})" if what in reasons else "")
                for what, count in one.outside.most_common(4)
            ) or str(others)
            message = (
                f"graph '{name}': delegate '{delegate.name}' leaves {sum(one.outside.values())} operators to the CPU: "
                f"{left}. Set [executorch] fallback = true in the target to let them run there, or choose another "
                "delegate"
            )
            raise BackendError(message, code="delegate")


def peak_bytes(graph: Any) -> int:
    """Most bytes of intermediate tensors alive at once when the graph's operators run in order; reshapes are free.

    What a delegate needs at the least: its own working memory is planned when it loads, and in no file.
    """
    order = [node for node in graph.nodes if node.op == "call_function"]
    base: dict[Any, Any] = {}
    last: dict[Any, int] = {}
    for index, node in enumerate(order):
        source = node.args[0] if operator_name(node) in ("reshape", "view", "getitem") else None
        base[node] = base.get(source, node)
        for used in node.all_input_nodes:
            if used in base:
                last[base[used]] = index
    alive, most, now = {}, 0, 0
    for index, node in enumerate(order):
        if base[node] is node:
            alive[node] = _bytes(node)
            now += alive[node]
        most = max(most, now)
        for done in [one for one, end in last.items() if end == index and one in alive]:
            now -= alive.pop(done)
    return most


def _bytes(node: Any) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return sum(one.numel() * one.element_size() for one in values if hasattr(one, "element_size"))


def _deepest(error: BaseException) -> str:
    """The deepest cause's first line, and its kind."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {first_line(error)}"
