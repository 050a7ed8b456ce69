"""Products, norms, pooling, resizing. Sums inside one operation are carried in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgediff.errors import BackendError
from edgediff.mil.registry import Arg, flag, ints, op


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Arg = False, transpose_y: Arg = False) -> Tensor:
    left = x.mT if flag(transpose_x) else x
    right = y.mT if flag(transpose_y) else y
    return left @ right


@op("einsum")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """iOS 18: softmax(query key^T / sqrt(width) + mask) value, one operation: nothing inside it is rounded."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Arg = None,
    pad_type: str = "valid",
    pad: Arg = None,
    dilations: Arg = None,
    groups: Arg = 1,
) -> Tensor:
    rank = x.dim() - 2
    stride = [1] * rank if strides is None else ints(strides)
    dilation = [1] * rank if dilations is None else ints(dilations)
    kernel = list(weight.shape[2:])
    before, after = _padding(list(x.shape[2:]), kernel, stride, dilation, pad_type, pad)
    if before != after:
        x = F.pad(x, [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair])
        before = [0] * rank
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, bias, stride, before, dilation, int(groups))


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Arg = None,
    output_shape: Arg = None,
    pad_type: str = "valid",
    strides: Arg = None,
    dilations: Arg = None,
    groups: Arg = 1,
) -> Tensor:
    """The full result without its padding: cropped as `pad` says, at the end up to `output_shape`."""
    rank = x.dim() - 2
    stride = [1] * rank if strides is None else ints(strides)
    dilation = [1] * rank if dilations is None else ints(dilations)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    full = function(x, weight, bias, stride, 0, 0, int(groups), dilation)
    crop = ints(pad) if pad_type == "custom" and pad is not None else [0] * (2 * rank)
    wanted = ints(output_shape)[2:] if output_shape is not None else None
    for axis in range(rank):
        length = full.shape[axis + 2] - crop[2 * axis] - crop[2 * axis + 1]
        if pad_type == "same":
            length = x.shape[axis + 2] * stride[axis]
        start = crop[2 * axis] if pad_type != "same" else (full.shape[axis + 2] - length) // 2
        if wanted is not None:
            length = wanted[axis]
            if (short := start + length - full.shape[axis + 2]) > 0:
                full = F.pad(full, [0, 0] * (rank - axis - 1) + [0, short])
        full = full.narrow(axis + 2, start, length)
    return full


def _padding(
    sizes: list[int], kernel: list[int], stride: list[int], dilation: list[int], kind: str, pad: Arg
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    rank = len(kernel)
    if kind == "custom":
        given = ints(pad)
        return given[::2], given[1::2]
    if kind == "valid":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, width, step, gap in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // step) - 1) * step + (width - 1) * gap + 1 - size, 0)
        low = total // 2
        before.append(low if kind == "same" else total - low)
        after.append(total - low if kind == "same" else low)
    return before, after


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Arg = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


@op("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Arg = 1e-5) -> Tensor:
    return F.instance_norm(x, None, None, gamma, beta, True, 0.0, float(epsilon))


@op("layer_norm")
def layer_norm(
    x: Tensor, axes: Arg = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Arg = 1e-5
) -> Tensor:
    """Over any axes; gamma and beta have the sizes of these."""
    places = sorted(axis % x.dim() for axis in (range(x.dim()) if axes is None else ints(axes)))
    sizes = [x.shape[axis] for axis in places]
    if places == list(range(x.dim() - len(places), x.dim())):
        return F.layer_norm(x, sizes, gamma, beta, float(epsilon))
    centred = x - x.mean(places, keepdim=True)
    value = centred * torch.rsqrt((centred * centred).mean(places, keepdim=True) + float(epsilon))
    shape = [size if axis in places else 1 for axis, size in enumerate(x.shape)]
    value = value if gamma is None else value * gamma.reshape(shape)
    return value if beta is None else value + beta.reshape(shape)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: Arg = 1e-6) -> Tensor:
    """Over the last three axes."""
    return x * torch.rsqrt((x * x).sum([-3, -2, -1], keepdim=True).clamp_min(float(epsilon)))


@op("max_pool")
def max_pool(
    x: Tensor, kernel_sizes: Arg, strides: Arg = None, pad_type: str = "valid", pad: Arg = None, ceil_mode: Arg = False
) -> Tensor:
    return _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, "max", True)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Arg,
    strides: Arg = None,
    pad_type: str = "valid",
    pad: Arg = None,
    exclude_padding_from_average: Arg = False,
    ceil_mode: Arg = False,
) -> Tensor:
    return _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode, "avg", not flag(exclude_padding_from_average))


def _pool(
    x: Tensor, kernel_sizes: Arg, strides: Arg, pad_type: str, pad: Arg, ceil_mode: Arg, kind: str, count_pad: bool
) -> Tensor:
    kernel = ints(kernel_sizes)
    rank = len(kernel)
    stride = [1] * rank if strides is None else ints(strides)
    before, after = _padding(list(x.shape[2:]), kernel, stride, [1] * rank, pad_type, pad)
    if flag(ceil_mode):  # the last window may reach beyond the end
        for axis in range(rank):
            size = x.shape[axis + 2] + before[axis] + after[axis]
            after[axis] += -(size - kernel[axis]) % stride[axis]
    sizes = [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
    if kind == "max":
        padded = F.pad(x, sizes, value=float("-inf"))
        return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1](padded, kernel, stride)
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    value = average(F.pad(x, sizes), kernel, stride)
    return value if count_pad else value / average(F.pad(torch.ones_like(x), sizes), kernel, stride)


# Resizing


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Arg = 1, scale_factor_width: Arg = 1) -> Tensor:
    height, width = float(scale_factor_height), float(scale_factor_width)
    if height % 1 == 0 and width % 1 == 0:
        return x.repeat_interleave(int(height), -2).repeat_interleave(int(width), -1)
    return _folded(x, lambda value: F.interpolate(value, scale_factor=(height, width), mode="nearest"))


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Arg = 1,
    scale_factor_width: Arg = 1,
    align_corners: Arg = True,
    half_pixel_centers: Arg = None,
) -> Tensor:
    if half_pixel_centers is not None and not flag(half_pixel_centers) and not flag(align_corners):
        raise BackendError("upsample_bilinear without align_corners and half_pixel_centers is not computed", code="op")
    size = [int(x.shape[-2] * float(scale_factor_height)), int(x.shape[-1] * float(scale_factor_width))]
    corners = flag(align_corners)
    return _folded(x, lambda value: F.interpolate(value, size=size, mode="bilinear", align_corners=corners))


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Tensor, target_size_height: Arg, target_size_width: Arg) -> Tensor:
    size = [int(target_size_height), int(target_size_width)]
    return _folded(x, lambda value: F.interpolate(value, size=size, mode="nearest"))


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: Arg = 1, target_size_width: Arg = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The sampling modes that torch has too."""
    modes = {"STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}
    if sampling_mode not in modes:
        raise BackendError(f"resize_bilinear with sampling_mode {sampling_mode} is not computed", code="op")
    size, corners = [int(target_size_height), int(target_size_width)], modes[sampling_mode]
    return _folded(x, lambda value: F.interpolate(value, size=size, mode="bilinear", align_corners=corners))


def _folded(x: Tensor, function: object) -> Tensor:
    """`function` of the last two axes, with any number in front of them."""
    value: Tensor = function(x.reshape(1, -1, *x.shape[-2:]))  # type: ignore[operator]
    return value.reshape(*x.shape[:-2], *value.shape[-2:])


# State


@op("read_state", moves=True)
def read_state(input: Tensor) -> Tensor:
    return input.clone()
