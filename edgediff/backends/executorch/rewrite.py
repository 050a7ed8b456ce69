"""Forms that a mobile delegate takes whole: an exported program, written again operator by operator.

XNNPACK knows neither norms nor attention, and keeps pictures with their channels last: what it does not know falls
out of the delegate, and a view or a permutation of a picture costs a copy. So, over ATen operators of fixed sizes:

`group_norm`   means over the picture, mixed within the groups by a 1 x 1 convolution of fixed weights: nothing is
               reshaped, and all of it stays in the layout of the convolutions around it.
`layer_norm`   means over the channels as products with a vector of 1 / channels.
`attention`    softmax(s q k^T + mask) v in two batched products of three axes, queries in chunks where asked.
`split`        a linear layer that is split at once becomes linear layers (GEGLU); other splits become slices.
`upsample`     nearest neighbours by a product with ones, which broadcasts.
`shapes`       squeeze, unsqueeze and flatten as reshape; transpose as permute, two permutes as one.
`identity`     a division or product by 1: gone; numbers as tensors, which is what delegates take.

Whatever depends on weights and constants alone is computed here, once (frequencies of sinusoids, masks). Each form
computes the same numbers up to the rounding of sums; the tests hold each against the untouched program.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgediff.errors import BackendError, unknown

ATEN = torch.ops.aten
MASKED = -1.0e4  # far below any logit, inside fp16
FIXED = "fixed_"  # begins the names of constants that a form makes, which are none of the network's weights
GELU, GELU_SQUARE = (1.59501569, 7.40113581e-2, -7.03043372e-4), 36.0  # logit of the normal distribution over x
REWRITES = ("group_norm", "layer_norm", "attention", "split", "upsample", "shapes", "identity")


def rewrite_program(
    program: Any, forms: Collection[str] = REWRITES, *, query_chunk: int = 0, dtype: torch.dtype = torch.float32
) -> Any:
    """The exported program in the given forms. Weights are shared with the old one's, but for those that a form
    computes.

    `query_chunk` > 0 takes that many queries at a time in attention, which bounds its memory to
    heads x chunk x keys numbers. With `dtype` float16 everything behind the first layer computes in halves, between
    inputs and outputs that stay as they are; the sinusoid of the time embedding, which halves would ruin, is before
    it. Raises BackendError for an unknown form.
    """
    for form in forms:
        if form not in REWRITES:
            raise BackendError(unknown("rewrite", form, REWRITES), code="rewrite")
    with torch.no_grad(), fx.traceback.preserve_node_meta():
        kind = _Rewriter if dtype == torch.float32 else _HalfRewriter
        module = kind(program.module(check_guards=False), frozenset(forms), query_chunk).transform()
        return torch.export.export(module, program.example_inputs[0], strict=False)


class _Rewriter(fx.Transformer):
    """Runs a graph with proxies in place of what depends on its inputs, and tensors in place of constants."""

    def __init__(self, module: fx.GraphModule, forms: frozenset[str], query_chunk: int) -> None:
        super().__init__(module)
        self._source, self._chunk, self._node = module, query_chunk, next(iter(module.graph.nodes))
        self._constants: dict[int, tuple[Tensor, Any]] = {}  # the tensor is kept, so that its id stays its own
        self._derived: dict[Any, Tensor] = {}
        self._forms = {target: getattr(self, name) for form, target, name in _FORMS if form in forms}

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Weights are tensors here, so that what is computed from them alone is computed at once."""
        value = operator.attrgetter(target)(self._source)
        return value.detach() if isinstance(value, Tensor) else super().get_attr(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not _has_proxy((args, kwargs)) and getattr(target, "namespace", "") != "torchao":
            return target(*args, **kwargs)
        form = self._forms.get(target)
        made = form(*args, **kwargs) if form is not None else NotImplemented
        return self._call(target, *args, **kwargs) if made is NotImplemented else made

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().output(target, fx.node.map_aggregate(args, self._lift), kwargs)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The operator as it is, its constants as buffers."""
        lifted = fx.node.map_aggregate((args, kwargs), self._lift)
        return self.tracer.create_proxy("call_function", target, *lifted)

    def _lift(self, value: Any) -> Any:
        """The buffer of a tensor, one per tensor however often it is read."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._constants:
            made_here = any(value is one for one in self._derived.values())
            name = f"{FIXED if made_here else 'constant_'}{len(self._constants)}"
            self.tracer.root.register_buffer(name, value)
            self._constants[id(value)] = value, self.tracer.create_proxy("get_attr", name, (), {})
        return self._constants[id(value)][1]

    def _once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """A constant that many places read."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def _number(self, value: float) -> Tensor:
        return self._once(value, lambda: torch.tensor([value]))

    def _shape(self, index: int = 0) -> tuple[int, ...]:
        """Sizes of an argument of the node at hand."""
        return tuple(self._node.args[index].meta["val"].shape)  # type: ignore[union-attr]

    # Norms

    def _group_norm(
        self,
        x: Any,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn: bool = True,
    ) -> Any:
        batch, channels, *sizes = shape = self._shape()
        picture = x if len(sizes) == 2 else self._reshape(x, (batch, channels, 1, math.prod(sizes)))
        width = channels // groups
        mix = self._once(("mix", channels, groups), lambda: torch.full((channels, width, 1, 1), 1 / width))

        def mean(value: Any) -> Any:
            over_picture = self._call(ATEN.mean.dim, value, [2, 3], True)
            return self._call(ATEN.conv2d.default, over_picture, mix, None, [1, 1], [0, 0], [1, 1], groups)

        result = self._normalised(picture, mean, weight, bias, eps, (1, -1, 1, 1))
        return result if len(sizes) == 2 else self._reshape(result, shape)

    def _layer_norm(
        self,
        x: Any,
        sizes: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn: bool = True,
    ) -> Any:
        if len(sizes) != 1:
            return NotImplemented
        ones = self._once(("mean", sizes[0]), lambda: torch.full((1, sizes[0]), 1 / sizes[0]))

        def mean(value: Any) -> Any:
            return self._call(ATEN.linear.default, value, ones)

        return self._normalised(x, mean, weight, bias, eps, (-1,))

    def _normalised(
        self,
        x: Any,
        mean: Callable[[Any], Any],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        shape: tuple[int, ...],
    ) -> Any:
        """(x - mean) / sqrt(variance + eps) * weight + bias."""
        centred = self._call(ATEN.sub.Tensor, x, mean(x))
        variance = mean(self._call(ATEN.mul.Tensor, centred, centred))
        scale = self._call(ATEN.rsqrt.default, self._call(ATEN.add.Tensor, variance, self._number(eps)))
        if weight is not None and shape != (-1,):
            scale, weight = self._call(ATEN.mul.Tensor, scale, weight.reshape(shape)), None
        result = self._call(ATEN.mul.Tensor, centred, scale)
        for operation, factor in ((ATEN.mul.Tensor, weight), (ATEN.add.Tensor, bias)):
            if factor is not None:
                result = self._call(operation, result, factor.reshape(shape))
        return result

    # Attention

    def _attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any = None,
        dropout: float = 0.0,
        causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        """Tensors `[..., queries or keys, width]`, all axes before these together one batch."""
        (*lead, queries, width), (*_, keys, _), (*_, depth) = (self._shape(i) for i in range(3))
        if enable_gqa or any(self._shape(i)[:-2] != tuple(lead) for i in (1, 2)):
            return NotImplemented
        count = math.prod(lead)
        factor = self._number(scale if scale is not None else width**-0.5)
        if keys < queries:
            key = self._call(ATEN.mul.Tensor, key, factor)
        else:
            query = self._call(ATEN.mul.Tensor, query, factor)
        swapped = [*range(len(lead)), len(lead) + 1, len(lead)]
        key = self._reshape(self._permute(key, swapped), (count, width, keys))
        query, value = self._reshape(query, (count, queries, width)), self._reshape(value, (count, keys, depth))
        bias = self._bias(mask, causal, (*lead, queries, keys))
        step = self._chunk if 0 < self._chunk < queries else queries
        found = []
        for start in range(0, queries, step):
            stop = min(start + step, queries)
            part = query if step == queries else self._call(ATEN.slice.Tensor, query, 1, start, stop)
            logits = self._call(ATEN.bmm.default, part, key)
            if bias is not None:
                logits = self._call(ATEN.add.Tensor, logits, bias[:, start:stop])
            found.append(self._call(ATEN.bmm.default, self._call(ATEN._softmax.default, logits, -1, False), value))
        joined = found[0] if len(found) == 1 else self._call(ATEN.cat.default, found, 1)
        return self._reshape(joined, (*lead, queries, depth))

    def _bias(self, mask: Any, causal: bool, shape: tuple[int, ...]) -> Any:
        """What is added to the logits `[batch, queries, keys]`, or None. Masks are constants in all our graphs."""
        if causal:
            mask = torch.ones(shape[-2:], dtype=torch.bool).tril()
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise BackendError("a mask of attention that depends on the inputs is not supported", code="export")
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, MASKED)
        while mask.dim() > 2 and mask.shape[0] == 1:
            mask = mask[0]
        return mask[None] if mask.dim() == 2 else mask.expand(shape).reshape(-1, *shape[-2:])

    # Splits

    def _linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """A layer whose outputs are split at once becomes layers."""
        users = list(self._node.users)
        if len(users) != 1 or users[0].target not in SPLITS or isinstance(weight, fx.Proxy):
            return NotImplemented
        sizes = _split_sizes(users[0])
        if sizes is None:
            return NotImplemented
        weights, biases = weight.split(sizes), bias.split(sizes) if bias is not None else [None] * len(sizes)
        # Copies: the serializer reads a view from where its storage begins.
        return _Parts(
            self._call(ATEN.linear.default, x, part.clone(), None if one is None else one.clone())
            for part, one in zip(weights, biases, strict=True)
        )

    def _split(self, x: Any, sizes: Any, dim: int = 0) -> Any:
        if isinstance(x, _Parts):
            return x
        lengths, start, parts = _lengths(self._node), 0, []
        for length in lengths:
            parts.append(self._call(ATEN.slice.Tensor, x, dim, start, start + length))
            start += length
        return _Parts(parts)

    def _chunk_even(self, x: Any, chunks: int, dim: int = 0) -> Any:
        return self._split(x, None, dim)

    def _getitem(self, x: Any, index: int) -> Any:
        return x[index] if isinstance(x, _Parts) else NotImplemented

    # Pictures

    def _upsample(self, x: Any, size: Any = None, factors: Any = None, *rest: Any) -> Any:
        """Each pixel becomes a rectangle of itself. Whole factors only."""
        (batch, channels, height, width), new = self._shape(), tuple(self._node.meta["val"].shape)
        if new[2] % height or new[3] % width:
            return NotImplemented
        down, across = new[2] // height, new[3] // width
        ones = self._once(("ones", down, across), lambda: torch.ones(1, 1, down, 1, across))
        spread = self._call(ATEN.mul.Tensor, self._reshape(x, (batch * channels, height, 1, width, 1)), ones)
        return self._reshape(spread, new)

    # Shapes

    def _reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return self._call(ATEN.reshape.default, x, list(shape))

    def _permute(self, x: Any, order: Sequence[int]) -> Any:
        order = [axis % len(order) for axis in order]
        before: Any = x.node if isinstance(x, fx.Proxy) else None
        if before is not None and before.target is ATEN.permute.default:
            x, order = fx.Proxy(before.args[0], self.tracer), [before.args[1][axis] for axis in order]
        return x if order == list(range(len(order))) else self._call(ATEN.permute.default, x, order)

    def _transpose(self, x: Any, first: int, second: int) -> Any:
        order = list(range(len(self._shape())))
        order[first], order[second] = order[second], order[first]
        return self._permute(x, order)

    def _expand(self, x: Any, shape: Sequence[int], **kwargs: Any) -> Any:
        """By a product with ones, which broadcasts."""
        new = tuple(self._node.meta["val"].shape)
        if new == self._shape():
            return x
        return self._call(ATEN.mul.Tensor, x, self._once(("ones", new), lambda: torch.ones(new)))

    def _as_reshape(self, x: Any, *rest: Any) -> Any:
        return self._reshape(x, self._node.meta["val"].shape)

    # Numbers

    def _scaled(self, x: Any, factor: Any) -> Any:
        if isinstance(factor, int | float):
            if factor == 1:
                return x
            number = 1 / factor if self._node.target is ATEN.div.Tensor else float(factor)
            return self._call(ATEN.mul.Tensor, x, self._number(number))
        return NotImplemented

    def _shifted(self, x: Any, number: Any, **kwargs: Any) -> Any:
        if kwargs or not isinstance(number, int | float):
            return NotImplemented
        return self._call(self._node.target, x, self._number(float(number)))


class _HalfRewriter(_Rewriter):
    """Casts inputs to halves where the first layer or sum with halves reads them, and outputs back."""

    def __init__(self, module: fx.GraphModule, forms: frozenset[str], query_chunk: int) -> None:
        super().__init__(module, forms, query_chunk)
        self._half: set[Any] = set()  # nodes
        self._halved: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor is kept, so that its id stays its own
        self._forms |= {ATEN.gelu.default: self._gelu, ATEN.silu.default: self._silu}

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        made = super().placeholder(target, args, kwargs)
        value = self._node.meta["val"]
        return self._cast(made, torch.float16) if value.is_floating_point() and value.dim() > 1 else made

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        def whole(value: Any) -> Any:
            return self._cast(value, torch.float32) if getattr(value, "node", None) in self._half else value

        return super().output(target, fx.node.map_aggregate(args, whole), kwargs)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        fx.node.map_aggregate(args, lambda one: found.append(one) if isinstance(one, fx.Proxy) else None)
        half = target in _LAYERS or any(one.node in self._half for one in found)

        def fit(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return self._halved.setdefault(id(value), (value, value.half()))[1]
            if isinstance(value, fx.Proxy) and value.node not in self._half:
                return self._cast(value, torch.float16)
            return value

        made = super()._call(target, *(fx.node.map_aggregate(args, fit) if half else args), **kwargs)
        if half:
            self._half.add(made.node)
        return made

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        made = super()._call(ATEN._to_copy.default, value, dtype=dtype)
        if dtype == torch.float16:
            self._half.add(made.node)
        return made

    def _silu(self, x: Any) -> Any:
        """PyTorch takes it apart in fp32."""
        return self._call(ATEN.mul.Tensor, x, self._call(ATEN.sigmoid.default, x))

    def _gelu(self, x: Any, approximate: str = "none") -> Any:
        """x times the logistic function of an odd polynomial, within 2.6e-5 of x times the normal distribution, whose
        error function XNNPACK has not in halves. Fitted by us on [0, 6], behind which the square is held."""
        square = self._call(ATEN.clamp.default, self._call(ATEN.mul.Tensor, x, x), 0.0, GELU_SQUARE)
        poly = self._number(GELU[-1])
        for factor in reversed(GELU[:-1]):
            poly = self._call(ATEN.add.Tensor, self._call(ATEN.mul.Tensor, square, poly), self._number(factor))
        logit = self._call(ATEN.mul.Tensor, x, poly)
        return self._call(ATEN.mul.Tensor, x, self._call(ATEN.sigmoid.default, logit))


_LAYERS = (ATEN.linear.default, ATEN.conv2d.default)


class _Parts(tuple[Any, ...]):
    """What a split makes."""

    __slots__ = ()


SPLITS = (ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.chunk.default)
_FORMS = (
    ("group_norm", ATEN.group_norm.default, "_group_norm"),
    ("layer_norm", ATEN.layer_norm.default, "_layer_norm"),
    ("attention", ATEN.scaled_dot_product_attention.default, "_attention"),
    ("split", ATEN.linear.default, "_linear"),
    ("split", ATEN.split.Tensor, "_split"),
    ("split", ATEN.split_with_sizes.default, "_split"),
    ("split", ATEN.chunk.default, "_chunk_even"),
    ("split", operator.getitem, "_getitem"),
    ("upsample", ATEN.upsample_nearest2d.vec, "_upsample"),
    ("upsample", ATEN.upsample_nearest2d.default, "_upsample"),
    ("shapes", ATEN.permute.default, "_permute"),
    ("shapes", ATEN.transpose.int, "_transpose"),
    ("shapes", ATEN.expand.default, "_expand"),
    *(
        ("shapes", target, "_as_reshape")
        for target in (
            ATEN.squeeze.dim,
            ATEN.squeeze.dims,
            ATEN.squeeze.default,
            ATEN.unsqueeze.default,
            ATEN.flatten.using_ints,
        )
    ),
    ("identity", ATEN.div.Tensor, "_scaled"),
    ("identity", ATEN.mul.Tensor, "_scaled"),
    ("identity", ATEN.add.Tensor, "_shifted"),
    ("identity", ATEN.sub.Tensor, "_shifted"),
)


def _has_proxy(value: Any) -> bool:
    found = []
    fx.node.map_aggregate(value, lambda one: found.append(one) if isinstance(one, fx.Proxy) else None)
    return bool(found)


def _lengths(node: fx.Node) -> list[int]:
    """Sizes of the parts that a split makes, along its axis."""
    axis = node.args[2] if len(node.args) > 2 else 0
    return [value.shape[axis] for value in node.meta["val"]]


def _split_sizes(node: fx.Node) -> list[int] | None:
    """The sizes where the split is along the last axis."""
    axis = node.args[2] if len(node.args) > 2 else 0
    last = node.args[0].meta["val"].dim() - 1  # type: ignore[union-attr]
    return _lengths(node) if axis in (-1, last) else None
