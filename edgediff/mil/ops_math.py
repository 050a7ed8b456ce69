"""Element by element, and reductions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgediff.mil.registry import OPERATIONS, Arg, flag, ints, op

CASTS = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int32": torch.int32,
    "bool": torch.bool,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
}

UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "logical_not": torch.logical_not,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def _enter_simple() -> None:
    for name, function in UNARY.items():
        OPERATIONS[name] = lambda x, function=function: function(x)
    for name, function in BINARY.items():
        OPERATIONS[name] = lambda x, y, function=function: function(x, y)


_enter_simple()


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Integers are divided without a fraction, rounded towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(CASTS[dtype])


@op("clip")
def clip(x: Tensor, alpha: Arg, beta: Arg) -> Tensor:
    return x.clamp(float(alpha), float(beta))


@op("threshold")
def threshold(x: Tensor, alpha: Arg) -> Tensor:
    return x.clamp_min(float(alpha))


@op("inverse")
def inverse(x: Tensor, epsilon: Arg = 1e-4) -> Tensor:
    return 1.0 / (x + float(epsilon))


@op("log")
def log(x: Tensor, epsilon: Arg = 1e-45) -> Tensor:
    return torch.log(x + float(epsilon))


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: Arg = 1e-12) -> Tensor:
    return torch.rsqrt(x + float(epsilon))


# Activations


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: Arg) -> Tensor:
    return F.leaky_relu(x, float(alpha))


@op("elu")
def elu(x: Tensor, alpha: Arg) -> Tensor:
    return F.elu(x, float(alpha))


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: Arg, beta: Arg) -> Tensor:
    return F.leaky_relu(x, float(alpha)).clamp_max(float(beta))


@op("linear_activation")
def linear_activation(x: Tensor, alpha: Arg, beta: Arg) -> Tensor:
    return x * float(alpha) + float(beta)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: Arg, beta: Arg) -> Tensor:
    return float(alpha) * torch.tanh(x * float(beta))


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: Arg, beta: Arg) -> Tensor:
    return (x * float(alpha) + float(beta)).clamp(0.0, 1.0)


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: Arg) -> Tensor:
    return torch.where(x >= float(alpha), x, torch.zeros_like(x))


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    shape = [1, -1, *[1] * (x.dim() - 2)]
    return alpha.reshape(shape) * F.softplus(x * beta.reshape(shape))


@op("softmax")
def softmax(x: Tensor, axis: Arg = -1) -> Tensor:
    return torch.softmax(x, int(axis))


# Reductions


def _axes(x: Tensor, axes: Arg) -> list[int]:
    return list(range(x.dim())) if axes is None else ints(axes)


@op("reduce_mean")
def reduce_mean(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return x.mean(_axes(x, axes), keepdim=flag(keep_dims))


@op("reduce_sum")
def reduce_sum(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=flag(keep_dims)).to(x.dtype)


@op("reduce_sum_square")
def reduce_sum_square(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return reduce_sum(x * x, axes, keep_dims)


@op("reduce_max")
def reduce_max(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return x.amax(_axes(x, axes), keepdim=flag(keep_dims))


@op("reduce_min")
def reduce_min(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return x.amin(_axes(x, axes), keepdim=flag(keep_dims))


@op("reduce_prod")
def reduce_prod(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in _axes(x, axes)), reverse=True):
        x = x.prod(axis, keepdim=flag(keep_dims)).to(x.dtype)
    return x


@op("reduce_l1_norm")
def reduce_l1_norm(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return reduce_sum(x.abs(), axes, keep_dims)


@op("reduce_l2_norm")
def reduce_l2_norm(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return reduce_sum_square(x, axes, keep_dims).sqrt()


@op("reduce_log_sum")
def reduce_log_sum(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return reduce_sum(x, axes, keep_dims).log()


@op("reduce_log_sum_exp")
def reduce_log_sum_exp(x: Tensor, axes: Arg = None, keep_dims: Arg = False) -> Tensor:
    return torch.logsumexp(x, _axes(x, axes), keepdim=flag(keep_dims))


@op("reduce_argmax")
def reduce_argmax(x: Tensor, axis: Arg = -1, keep_dims: Arg = True, output_dtype: str = "int32") -> Tensor:
    return x.argmax(int(axis), keepdim=flag(keep_dims)).to(torch.int32)


@op("reduce_argmin")
def reduce_argmin(x: Tensor, axis: Arg = -1, keep_dims: Arg = True, output_dtype: str = "int32") -> Tensor:
    return x.argmin(int(axis), keepdim=flag(keep_dims)).to(torch.int32)


@op("cumsum")
def cumsum(x: Tensor, axis: Arg = 0, exclusive: Arg = False, reverse: Arg = False) -> Tensor:
    at = int(axis)
    value = x.flip(at) if flag(reverse) else x
    total = value.cumsum(at)
    if flag(exclusive):
        total = total - value
    return (total.flip(at) if flag(reverse) else total).to(x.dtype)
