"""Forms of attention, as rewrites of an exported program (ATen operators, fixed sizes). Any backend may use them.

`sdpa`          as PyTorch has it: one operation (iOS 18 has it too).
`original`      softmax(s q k^T + mask) v in two products, per batch and head; s is applied to q. For GPUs.
`split_einsum`  for the Neural Engine, after Apple's "Deploying Transformers on the Apple Neural Engine" (2022):
                tokens `[batch, tokens, channels]` become `[batch, channels, 1, tokens]`, linear layers 1 x 1
                convolutions, layer norms run over the channels, and every head has its own two products, with the
                keys first: softmax over axis 1 of `[batch, keys, 1, queries]`. Queries may be taken in chunks, which
                bounds the size of that tensor (Apple's second version). What is no tokens stays as it is; between
                the two worlds lies one transpose, and none where pictures are flattened into tokens and back.

Each form computes the same numbers up to the rounding of sums; the tests hold it against the untouched program.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from edgediff.errors import BackendError, unknown

FORMS = ("sdpa", "split_einsum", "original")
MASKED = -1.0e4  # far below any logit, inside fp16
ATEN = torch.ops.aten
UNARY = {"gelu", "silu", "sigmoid", "tanh", "relu", "mul", "add", "sub", "div"}
ELEMENTWISE = {"add", "sub", "mul", "div"}


def rewrite_attention(program: Any, form: str, *, query_chunk: int = 0) -> None:
    """Rewrites every attention of the program in place.

    `query_chunk` > 0 takes that many queries at a time in `split_einsum`. Attention that is not over tokens (its
    query is no reshaped `[batch, tokens, channels]`) takes the form `original` there. Raises BackendError for an
    unknown form.
    """
    if form not in FORMS:
        raise BackendError(unknown("form of attention", form, FORMS), code="attention")
    if form == "sdpa" or not _attentions(program):
        return
    if form == "split_einsum":
        _ChannelsFirst(program, query_chunk).rewrite()
    for node in _attentions(program):
        _to_products(program, node)
    graph = program.graph_module.graph
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _attentions(program: Any) -> list[Any]:
    return [node for node in program.graph_module.graph.nodes if _name(node) == "scaled_dot_product_attention"]


def _name(node: Any) -> str:
    """`aten.add.Tensor` -> `add`; empty for what is no call."""
    if getattr(node, "op", "") != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


class _Calls:
    """Adds calls before a node, with the fake values that say their shapes."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def __call__(self, target: Any, *args: Any) -> Any:
        def value(one: Any) -> Any:
            if isinstance(one, torch.fx.Node):
                return one.meta["val"]
            return [value(item) for item in one] if isinstance(one, list | tuple) else one

        node = self._graph.call_function(target, tuple(args))
        node.meta["val"] = target(*[value(one) for one in args])
        return node


def _arguments(node: Any) -> tuple[Any, Any, Any, Any, bool, float]:
    """query, key, value, mask, causal, scale."""
    query, key, value, mask, _, causal = tuple(node.args) + (None, 0.0, False)[len(node.args) - 3 :]
    mask, causal = node.kwargs.get("attn_mask", mask), node.kwargs.get("is_causal", causal)
    scale = node.kwargs.get("scale")
    return query, key, value, mask, bool(causal), float(scale or _shape(query)[-1] ** -0.5)


def _additive(call: _Calls, mask: Any, causal: bool, query: Any, key: Any) -> Any:
    """The mask as numbers to add to the logits `[.., queries, keys]`, or None."""
    if causal:
        full = call(ATEN.full.default, [_shape(query)[-2], _shape(key)[-2]], MASKED)
        return call(ATEN.triu.default, full, 1)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        return call(ATEN.where.self, mask, *(call(ATEN.full.default, [1], number) for number in (0.0, MASKED)))
    return mask


def _to_products(program: Any, node: Any) -> None:
    """Two products and a softmax in place of one operation."""
    graph = program.graph_module.graph
    query, key, value, mask, causal, scale = _arguments(node)
    with graph.inserting_before(node):
        call = _Calls(graph)
        bias = _additive(call, mask, causal, query, key)
        scaled = call(ATEN.mul.Tensor, query, scale)
        logits = call(ATEN.matmul.default, scaled, call(ATEN.transpose.int, key, -2, -1))
        if bias is not None:
            logits = call(ATEN.add.Tensor, logits, bias)
        result = call(ATEN.matmul.default, call(ATEN.softmax.int, logits, -1), value)
    _replace(program, node, result)


def _replace(program: Any, node: Any, result: Any) -> None:
    node.replace_all_uses_with(result)
    program.graph_signature.replace_all_uses(node.name, result.name)
    program.graph_module.graph.erase_node(node)


class _ChannelsFirst:
    """Gives tokens `[batch, tokens, channels]` a twin `[batch, channels, 1, tokens]` wherever linear layers, norms
    and attention are, and lets these compute on the twins."""

    def __init__(self, program: Any, query_chunk: int) -> None:
        self._program, self._chunk = program, query_chunk
        self._graph = program.graph_module.graph
        self._call = _Calls(self._graph)
        self._twins: dict[Any, Any] = {}
        self._own: set[Any] = set()  # nodes whose twin is computed, not transposed

    def rewrite(self) -> None:
        for node in list(self._graph.nodes):
            if node.op != "call_function":
                continue
            with self._graph.inserting_before(node):
                twin = self._make(node)
            if twin is not None:
                self._twins[node] = twin
                self._own.add(node)
        for node in list(self._own):
            if isinstance(node.meta.get("val"), torch.Tensor):
                self._hand_back(node)

    def _make(self, node: Any) -> Any:
        """The twin of what the node makes, if it can be computed from twins."""
        maker = getattr(self, f"_make_{_name(node)}", None)
        if maker is not None:
            return maker(node)
        if _name(node) in UNARY and _is_tokens(node):
            return self._make_elementwise(node)
        return None

    def _twin(self, node: Any) -> Any:
        """The twin of tokens: computed, or transposed here."""
        if node not in self._twins:
            flipped = self._call(ATEN.transpose.int, node, 1, 2)
            self._twins[node] = self._call(ATEN.unsqueeze.default, flipped, 2)
        return self._twins[node]

    def _make_linear(self, node: Any) -> Any:
        source, weight, *bias = node.args
        if not _is_tokens(source):
            return None
        kernel = self._call(ATEN.reshape.default, weight, [*_shape(weight), 1, 1])
        return self._call(ATEN.conv2d.default, self._twin(source), kernel, *bias)

    def _make_layer_norm(self, node: Any) -> Any:
        source, sizes, *rest = node.args
        if not _is_tokens(source) or len(sizes) != 1:
            return None
        weight, bias, epsilon = tuple(rest[:3]) + (None, None, 1e-5)[len(rest) :]
        call, value = self._call, self._twin(source)
        centred = call(ATEN.sub.Tensor, value, call(ATEN.mean.dim, value, [1], True))
        variance = call(ATEN.mean.dim, call(ATEN.mul.Tensor, centred, centred), [1], True)
        result = call(ATEN.mul.Tensor, centred, call(ATEN.rsqrt.default, call(ATEN.add.Tensor, variance, epsilon)))
        for operation, factor in ((ATEN.mul.Tensor, weight), (ATEN.add.Tensor, bias)):
            if factor is not None:
                result = call(operation, result, call(ATEN.reshape.default, factor, [1, -1, 1, 1]))
        return result

    def _make_elementwise(self, node: Any) -> Any:
        """Along with tokens that have a twin of their own, tokens of the same batch or one that broadcast."""
        if not any(one in self._own for one in node.args if isinstance(one, torch.fx.Node)):
            return None
        converted = []
        for one in node.args:
            if isinstance(one, torch.fx.Node):
                shape = _shape(one)
                if len(shape) == 3:
                    converted.append(self._twin(one))
                elif len(shape) == 1:
                    converted.append(self._call(ATEN.reshape.default, one, [1, -1, 1, 1]))
                elif len(shape) == 0:
                    converted.append(one)
                else:
                    return None
            else:
                converted.append(one)
        made = self._graph.call_function(node.target, tuple(converted), dict(node.kwargs))
        values = [one.meta["val"] if isinstance(one, torch.fx.Node) else one for one in converted]
        made.meta["val"] = node.target(*values, **node.kwargs)
        return made

    def _make_split(self, node: Any) -> Any:
        source, sizes, *axis = node.args
        if source not in self._own or (axis[0] if axis else 0) not in (-1, 2):
            return None
        return self._call(node.target, self._twin(source), sizes, 1)

    _make_split_with_sizes = _make_split

    def _make_getitem(self, node: Any) -> Any:
        source, index = node.args
        return self._call(operator.getitem, self._twins[source], index) if source in self._own else None

    def _make_reshape(self, node: Any) -> Any:
        """Pictures `[b, c, h, w]` flattened into tokens, and attention joined over its heads."""
        source = node.args[0]
        if not _is_tokens(node) or not hasattr(source, "op"):
            return None
        batch, count, channels = _shape(node)
        order = [axis % 4 for axis in source.args[1]] if _name(source) == "permute" else []
        if order == [0, 2, 3, 1] and _shape(source) == (batch, *_shape(source)[1:3], channels):
            return self._call(ATEN.reshape.default, source.args[0], [batch, channels, 1, count])
        if _swaps(source) and _name(source.args[0]) == "scaled_dot_product_attention":
            return self._make_heads(source.args[0])
        return None

    _make_view = _make_reshape
    _make__unsafe_view = _make_reshape

    def _make_heads(self, node: Any) -> Any:
        query, key, value, mask, causal, scale = _arguments(node)
        parts = [_joined(one) for one in (query, key, value)]
        if any(one is None for one in parts) or node.kwargs.get("enable_gqa"):
            return None
        call, heads, width = self._call, _shape(query)[1], _shape(query)[3]
        bias = _additive(call, mask, causal, query, key)
        if bias is not None:
            while len(_shape(bias)) < 4:
                bias = call(ATEN.unsqueeze.default, bias, 0)
            if _shape(bias)[1] != 1:
                return None
            bias = call(ATEN.permute.default, bias, [0, 3, 1, 2])
        queries = call(ATEN.mul.Tensor, self._twin(parts[0]), scale)
        keys = call(ATEN.transpose.int, self._twin(parts[1]), 1, 3)
        values = self._twin(parts[2])
        count, found = _shape(queries)[3], []
        step = self._chunk if 0 < self._chunk < count else count
        for head in range(heads):
            low, high = head * width, (head + 1) * width
            k = call(ATEN.slice.Tensor, keys, 3, low, high)
            v = call(ATEN.slice.Tensor, values, 1, low, high)
            q = call(ATEN.slice.Tensor, queries, 1, low, high)
            chunks = []
            for start in range(0, count, step):
                stop = min(start + step, count)
                part = q if step == count else call(ATEN.slice.Tensor, q, 3, start, stop)
                logits = call(ATEN.einsum.default, "bchq,bkhc->bkhq", [part, k])
                if bias is not None:
                    cut = _shape(bias)[3] > 1 and step != count
                    logits = call(
                        ATEN.add.Tensor, logits, call(ATEN.slice.Tensor, bias, 3, start, stop) if cut else bias
                    )
                weights = call(ATEN.softmax.int, logits, 1)
                chunks.append(call(ATEN.einsum.default, "bkhq,bchk->bchq", [weights, v]))
            found.append(chunks[0] if len(chunks) == 1 else call(ATEN.cat.default, chunks, 3))
        return found[0] if heads == 1 else call(ATEN.cat.default, found, 1)

    def _hand_back(self, node: Any) -> None:
        """Readers of the tokens that know nothing of twins get them transposed; those that make a picture of them
        get a reshape."""
        twin = self._twins[node]
        readers = [user for user in node.users if user not in self._own and not self._is_flip(node, user)]
        back = None
        for user in readers:
            if (picture := _picture_of(node, user)) is not None:
                with self._graph.inserting_before(picture):
                    made = self._call(ATEN.reshape.default, twin, list(_shape(picture)))
                _replace(self._program, picture, made)
                continue
            if back is None:
                with self._graph.inserting_before(node):
                    flat = self._call(ATEN.squeeze.dims, twin, [2])
                    back = self._call(ATEN.transpose.int, flat, 1, 2)
            user.replace_input_with(node, back)
            if user.op == "output":
                self._program.graph_signature.replace_all_uses(node.name, back.name)

    def _is_flip(self, node: Any, user: Any) -> bool:
        """Whether the reader is the transpose that a twin began with: it stays."""
        return any(_name(twin) == "unsqueeze" and twin.args[0] is user for twin in [self._twins.get(node)] if twin)


def _is_tokens(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _swaps(node: Any) -> bool:
    """Whether it exchanges axes 1 and 2 of four."""
    if _name(node) == "transpose":
        return {axis % 4 for axis in node.args[1:3]} == {1, 2} and len(_shape(node)) == 4
    return _name(node) == "permute" and [axis % 4 for axis in node.args[1]] == [0, 2, 1, 3]


def _joined(node: Any) -> Any:
    """The tokens that were reshaped to heads `[batch, heads, tokens, width]`."""
    if not _swaps(node) or _name(node.args[0]) not in ("view", "reshape", "_unsafe_view"):
        return None
    source = node.args[0].args[0]
    batch, heads, count, width = _shape(node)
    return source if _is_tokens(source) and _shape(source) == (batch, count, heads * width) else None


def _picture_of(tokens: Any, user: Any) -> Any:
    """The permuted picture `[b, c, h, w]` that `user`, a reshape of the tokens to `[b, h, w, c]`, goes into alone."""
    if _name(user) not in ("view", "reshape", "_unsafe_view") or len(user.users) != 1:
        return None
    shape: Sequence[int] = _shape(user)
    reader = next(iter(user.users))
    batch, count, channels = _shape(tokens)
    fits = len(shape) == 4 and shape[0] == batch and shape[3] == channels and shape[1] * shape[2] == count
    return reader if fits and _name(reader) == "permute" and [a % 4 for a in reader.args[1]] == [0, 3, 1, 2] else None
