"""Arm's passes over large graphs in minutes: what they compute again and again is kept.

The pass that moves transposes traces the whole graph anew after every round of moves, only to know the sizes of what it
moved; a U-Net takes hundreds of rounds. Here a round computes the sizes of the nodes that changed and of what hangs on
them, and the graph is traced once, when the pass is done. And all passes ask a program's signature for every node
whether it is a weight, for which the signature makes a dictionary of all weights each time.

What comes out is the same, byte for byte (`tests/test_executorch_ethos.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx.node import map_arg

Seen = dict[Any, tuple[Any, ...]]


@contextlib.contextmanager
def sizes_in_place() -> Iterator[None]:
    """Within it the pass `PropagateViewCopyPermutePass` of ExecuTorch keeps its graph between rounds."""
    from executorch.backends.transforms.propagate_view_copy_permute_pass import PropagateViewCopyPermutePass as Pass
    from executorch.exir.pass_base import PassResult

    call, retrace = Pass.call, Pass._retrace

    def keep(self: Any, module: Any) -> Any:
        refresh_sizes(module.graph, self._edgediff_seen)
        return module

    def call_once(self: Any, module: Any) -> Any:
        self._edgediff_seen = {}
        result = call(self, module)
        return PassResult(retrace(self, result.graph_module), True) if result.modified else result

    Pass.call, Pass._retrace = call_once, keep
    try:
        yield
    finally:
        Pass.call, Pass._retrace = call, retrace


@contextlib.contextmanager
def weights_by_name() -> Iterator[None]:
    """Within it a program's signature keeps its dictionaries of weights until its list of inputs has other members."""
    from torch.export.graph_signature import ExportGraphSignature as Signature

    names = ("inputs_to_parameters", "inputs_to_buffers", "inputs_to_lifted_tensor_constants")
    made = {name: vars(Signature)[name] for name in names}
    known: dict[int, tuple[Any, list[Any], dict[str, Any]]] = {}

    def keep(name: str) -> property:
        def find(self: Any) -> Any:
            _, inputs, found = known.get(id(self), (self, [], {}))
            if inputs != self.input_specs:
                found = {}
                known[id(self)] = (self, list(self.input_specs), found)
            if name not in found:
                found[name] = made[name].fget(self)
            return found[name]

        return property(find)

    for name in names:
        setattr(Signature, name, keep(name))
    try:
        yield
    finally:
        for name in names:
            setattr(Signature, name, made[name])


def refresh_sizes(graph: Any, seen: Seen) -> None:
    """Computes `meta["val"]` of the nodes whose arguments, or whose arguments' sizes, are not those in `seen`, which it
    keeps up to date. Dead nodes are taken out."""
    graph.eliminate_dead_code()
    mode = next(
        (node.meta["val"].fake_mode for node in graph.nodes if hasattr(node.meta.get("val"), "fake_mode")), None
    )
    with mode or contextlib.nullcontext():
        for node in graph.nodes:
            if node.op == "call_function" and not _keeps_its_type(node):
                inputs = [one.meta.get("val") for one in node.all_input_nodes]
                before = seen.get(node)
                if (
                    before is None
                    or before[:3] != (node.target, node.args, node.kwargs)
                    or any(old is not new for old, new in zip(before[3], inputs, strict=True))
                ):
                    _refresh(node)
                    seen[node] = (node.target, node.args, node.kwargs, inputs)


def _refresh(node: Any) -> None:
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    value, before = node.target(*args, **kwargs), node.meta.get("val")
    if not _same(value, before):
        node.meta["val"] = value


def _same(value: Any, before: Any) -> bool:
    tensors = isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor)
    return tensors and (value.shape, value.dtype, value.stride()) == (before.shape, before.dtype, before.stride())


def _keeps_its_type(node: Any) -> bool:
    """Quantized products whose kernel for sizes knows no integers: Arm's passes leave their values as they are."""
    return bool(node.meta.get("input_qparams")) and str(node.target).rpartition("aten.")[2] in (
        "bmm.default",
        "leaky_relu.default",
    )
