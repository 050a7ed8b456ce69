"""The operators of a torch module, recorded while it runs on shapes alone: no arithmetic, no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edgediff.estimate.operators import Kind, Operator, OperatorTable, merged_table

if TYPE_CHECKING:
    from torch import Tensor, nn


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Names of ATen operators without their overload. What is free: views, copies that a runtime folds into the operator
# before, constants; batch norms fold into the convolution.
FREE = words("""
    view _unsafe_view reshape unsqueeze squeeze expand detach alias t clone contiguous _to_copy to copy_
    lift_fresh zeros ones full empty arange scalar_tensor new_zeros new_ones new_empty new_full zeros_like
    ones_like full_like empty_like _native_batch_norm_legit_no_training native_batch_norm
    _native_batch_norm_legit cudnn_batch_norm dropout native_dropout fill_ fill zero_ as_strided view_as_real
    view_as_complex unfold_copy sym_size is_same_size _local_scalar_dense lift eye linspace rand randn triu tril
    diagonal resolve_conj conj _reshape_alias expand_as empty_strided new_empty_strided constant
    linalg_vector_norm_meta item copy _adaptive_avg_pool2d_meta is_nonzero equal prod_meta narrow set_ resize_
    mkldnn_reorder_conv2d_weight
""")
FUSED = words("relu relu_ hardtanh hardtanh_ relu6 leaky_relu leaky_relu_ clamp clamp_ clamp_min")
BY_NAME: dict[Kind, frozenset[str]] = {
    "elementwise": words("""
        _prelu_kernel prelu hardswish_ hardswish hardsigmoid_ glu masked_fill_ where
    """),
    "norm": words("""
        native_layer_norm native_group_norm rms_norm _fused_rms_norm
    """),
    "softmax": words("""
        _softmax _log_softmax _safe_softmax log_softmax softmax
    """),
    "pool": words("""
        max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d mean sum amax amin max min cumsum var var_mean
        max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d argmax argmin any all topk sort prod std norm
        linalg_vector_norm avg_pool1d _adaptive_avg_pool1d max_pool1d adaptive_max_pool2d logsumexp
    """),
    "resize": words("""
        upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d upsample_nearest1d
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa grid_sampler_2d upsample_linear1d upsample_nearest3d
        upsample_trilinear3d
    """),
    "layout": words("""
        permute transpose cat stack slice select split split_with_sizes unbind roll constant_pad_nd pixel_shuffle
        pixel_unshuffle repeat flip unfold im2col channel_shuffle native_channel_shuffle reflection_pad2d
        reflection_pad1d replication_pad2d unsafe_split unsafe_chunk swapaxes movedim slice_scatter select_scatter
        chunk tile
    """),
    "gather": words("""
        embedding index index_select gather scatter index_put_ index_put masked_fill_scatter index_copy_ index_copy
        scatter_add index_add
    """),
}
KIND_OF: dict[str, Kind] = {name: kind for kind, names in BY_NAME.items() for name in names}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "dot", "addmv")


def record_operators(
    call: Callable[..., Any], inputs: Sequence[Any] | Mapping[str, Any], weights: nn.Module, *, batch: int = 1
) -> OperatorTable:
    """The operators of `call(*inputs)`, figures for one of its `batch` samples.

    `weights` is the module whose parameters `call` uses; real, fake or on the meta device. Inputs may be real: they
    become shapes. Convolutions carry their batch norm and a simple activation behind them; operators without a
    class are counted by name.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    watch = _Watch(weights)
    on_meta = any(parameter.is_meta for parameter in weights.parameters())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if not on_meta:
            fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))

        def shaped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.to("meta") if on_meta else fake.from_tensor(value)

        stack.enter_context(_watching(watch))
        if isinstance(inputs, Mapping):
            given: Any = {name: shaped(value) for name, value in inputs.items()}
            result = call(**given)
        else:
            given = [shaped(value) for value in inputs]
            result = call(*given)
    ports = float(sum(tensor.numel() for tensor in _tensors((given, result))))
    table = merged_table(watch.operators, watch.unknown, watch.peak, ports)
    return table if batch == 1 else _per_sample(table, batch)


def _per_sample(table: OperatorTable, batch: int) -> OperatorTable:
    found = tuple(
        Operator(
            op.kind,
            op.count,
            op.macs / batch,
            op.parameters,
            op.reads / batch,
            op.writes / batch,
            max(1, op.rows // batch),
            op.columns,
            op.depth,
        )
        for op in table.operators
    )
    return OperatorTable(found, table.unknown, table.peak_values // batch, table.ports / batch)


class _Watch:
    """What the operators of a module read, write and hold, one call after the other."""

    def __init__(self, weights: nn.Module) -> None:
        self.owned = {id_of(tensor) for tensor in (*weights.parameters(), *weights.buffers())}
        self.operators: list[Operator] = []
        self.unknown: dict[str, int] = {}
        self.fusable: set[int] = set()
        self.read: set[int] = set()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.peak = 0
        self.kept: list[Tensor] = []  # or their identities would be given to others

    def note(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """One operator has been called."""
        name = func._schema.name.partition("::")[2]
        tensors = list(_tensors((args, kwargs)))
        outputs = list(_tensors(result))
        self.fusable -= {id_of(tensor) for tensor in outputs} - {id_of(tensor) for tensor in tensors}
        if tensors and all(id_of(tensor) in self.owned for tensor in tensors):
            self.owned.update(id_of(tensor) for tensor in outputs)  # a weight, transposed or in another dtype
            self.kept += outputs
        elif outputs:
            self._classify(func, name, args, tensors, outputs)
            self._track(outputs)

    def _track(self, outputs: list[Tensor]) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        for tensor in outputs:
            if id_of(tensor) not in self.owned:
                self.alive[id_of(tensor)] = (StorageWeakRef(tensor.untyped_storage()), tensor.numel())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def _classify(self, func: Any, name: str, args: Any, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        import torch

        mine = [tensor for tensor in tensors if id_of(tensor) in self.owned]
        activations = [tensor for tensor in tensors if id_of(tensor) not in self.owned]
        reads, writes = float(sum(t.numel() for t in activations)), float(outputs[0].numel())
        held, again = self._first_read(mine)
        reads += again
        if name in FREE or not activations:
            if name.startswith(("view", "_native_batch", "native_batch", "_unsafe", "clone")):
                self._pass_on(activations, outputs)
            return
        found: list[Operator]
        if "convolution" in name:
            found = [_convolution(args, reads, held, outputs[0])]
        elif name in PRODUCTS:
            found = [_product(name, tensors, mine, reads, held, outputs[0])]
        elif "scaled_dot_product" in name:
            found = _attention(args)
        elif name in FUSED and id_of(activations[0]) in self.fusable:
            return
        elif name in KIND_OF:
            found = [Operator(KIND_OF[name], 1, 0.0, held, _moved(name, reads, writes), writes)]
        elif torch.Tag.pointwise in func.tags:
            found = [Operator("elementwise", 1, 0.0, held, reads, writes)]
        else:
            self.unknown[name] = self.unknown.get(name, 0) + 1
            found = [Operator("other", 1, 0.0, held, reads, writes)]
        self.operators += found
        if found[0].kind in ("conv", "pointwise", "depthwise", "linear") or name.startswith("add"):
            self._mark(outputs)

    def _first_read(self, mine: list[Tensor]) -> tuple[float, float]:
        """Values of weights that no operator has read before, and of those that one has: memory holds them once,
        and the second reading comes from wherever the first left them, as an activation does."""
        fresh = {id_of(tensor): tensor.numel() for tensor in mine if id_of(tensor) not in self.read}
        self.read.update(fresh)
        return float(sum(fresh.values())), float(sum(t.numel() for t in mine if id_of(t) not in fresh))

    def _mark(self, outputs: list[Tensor]) -> None:
        self.fusable.update(id_of(tensor) for tensor in outputs)

    def _pass_on(self, activations: list[Tensor], outputs: list[Tensor]) -> None:
        if activations and id_of(activations[0]) in self.fusable:
            self._mark(outputs)


def _watching(watch: _Watch) -> Any:
    """A context in which torch tells `watch` of every operator."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            watch.note(func, args, kwargs or {}, result)
            return result

    return Mode()


def id_of(tensor: Tensor) -> int:
    """What views of one tensor share."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for one in value.values() for t in _tensors(one)]
    if isinstance(value, list | tuple):
        return [t for one in value for t in _tensors(one)]
    return []


def _moved(name: str, reads: float, writes: float) -> float:
    """A slice, a lookup or a split reads what it writes, not the whole of its input."""
    return writes if name in ("slice", "select", "embedding", "index", "index_select", "gather") else reads


def _convolution(args: Any, reads: float, held: float, output: Tensor) -> Operator:
    value, weight = args[0], args[1]
    transposed, groups = (args[6], args[8]) if len(args) > 8 else (False, 1)
    kernel = math.prod(weight.shape[2:])
    if transposed:
        inner = int(weight.shape[1]) * kernel
        macs, columns = float(value.numel()) * inner, int(weight.shape[1]) * groups
        return Operator(
            "conv",
            1,
            macs,
            held,
            reads,
            float(output.numel()),
            value.numel() // value.shape[1],
            columns,
            int(value.shape[1]) // groups * kernel,
        )
    depth, columns = int(weight.shape[1]) * kernel, int(weight.shape[0])
    kind: Kind = "conv3d" if len(weight.shape) == 5 else "conv"
    if groups > 1 and weight.shape[1] == 1:
        kind = "depthwise"
    elif kernel == 1 and groups == 1:
        kind = "pointwise"
    positions = output.numel() // columns
    return Operator(
        kind, 1, float(output.numel()) * depth, held, reads, float(output.numel()), positions, columns // groups, depth
    )


def _product(
    name: str, tensors: list[Tensor], mine: list[Tensor], reads: float, held: float, output: Tensor
) -> Operator:
    factors = tensors[1:] if name.startswith(("add", "badd")) else tensors
    depth = int(factors[0].shape[-1])
    columns = int(output.shape[-1]) if output.ndim else 1
    kind: Kind = "linear" if any(tensor.ndim > 1 for tensor in mine) else "matmul"
    return Operator(
        kind,
        1,
        float(output.numel()) * depth,
        held,
        reads,
        float(output.numel()),
        max(1, output.numel() // columns),
        columns,
        depth,
    )


def _attention(args: Any) -> list[Operator]:
    query, key, value = args[:3]
    rows = query.numel() // query.shape[-1]
    scores = float(rows) * key.shape[-2]
    first = Operator(
        "matmul",
        1,
        scores * query.shape[-1],
        0.0,
        float(query.numel() + key.numel()),
        scores,
        rows,
        int(key.shape[-2]),
        int(query.shape[-1]),
    )
    second = Operator(
        "matmul",
        1,
        scores * value.shape[-1],
        0.0,
        scores + value.numel(),
        float(rows) * value.shape[-1],
        rows,
        int(value.shape[-1]),
        int(key.shape[-2]),
    )
    return [first, Operator("softmax", 1, 0.0, 0.0, scores, scores), second]
