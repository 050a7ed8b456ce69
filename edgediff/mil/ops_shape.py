"""Operations that move, join and choose values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgediff.mil.registry import Arg, flag, ints, op


@op("identity", moves=True)
def identity(x: Tensor) -> Tensor:
    return x


@op("shape", moves=True)
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@op("reshape", moves=True)
def reshape(x: Tensor, shape: Arg) -> Tensor:
    """A 0 copies the size of that axis, -1 is what remains."""
    sizes = ints(shape)
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


@op("transpose", moves=True)
def transpose(x: Tensor, perm: Arg) -> Tensor:
    return x.permute(ints(perm))


@op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: Arg) -> Tensor:
    """The axes are positions in the result."""
    places = ints(axes)
    rank = x.dim() + len(places)
    for axis in sorted(axis % rank for axis in places):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", moves=True)
def squeeze(x: Tensor, axes: Arg = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(ints(axes))


@op("flatten2d", moves=True)
def flatten2d(x: Tensor, axis: Arg = 1) -> Tensor:
    lead = 1
    for size in x.shape[: int(axis)]:
        lead *= size
    return x.reshape(lead, -1)


@op("concat", moves=True)
def concat(values: list[Tensor], axis: Arg, interleave: Arg = False) -> Tensor:
    if flag(interleave):
        at = int(axis) % values[0].dim()
        return torch.stack(values, at + 1).flatten(at, at + 1)
    return torch.cat(values, int(axis))


@op("stack", moves=True)
def stack(values: list[Tensor], axis: Arg) -> Tensor:
    return torch.stack(values, int(axis))


@op("split", moves=True)
def split(x: Tensor, axis: Arg, num_splits: Arg = None, split_sizes: Arg = None) -> list[Tensor]:
    sizes = ints(split_sizes) if split_sizes is not None else x.shape[int(axis)] // int(num_splits)
    return list(torch.split(x, sizes, int(axis)))


@op("slice_by_index", moves=True)
def slice_by_index(
    x: Tensor,
    begin: Arg,
    end: Arg,
    stride: Arg = None,
    begin_mask: Arg = None,
    end_mask: Arg = None,
    squeeze_mask: Arg = None,
) -> Tensor:
    """numpy's slices; a mask says that the bound of that axis is left out, `squeeze_mask` that one index is taken."""
    index = _slices(x.dim(), begin, end, stride, begin_mask, end_mask)
    for axis in range(x.dim()):
        if squeeze_mask is not None and bool(squeeze_mask[axis]):
            first = index[axis].start or 0
            index[axis] = slice(first, first + 1 or None, None)
    for axis, one in enumerate(index):
        if one.step is not None and one.step < 0:  # torch has no negative steps
            picked = torch.arange(x.shape[axis])[torch.tensor(range(*one.indices(x.shape[axis])), dtype=torch.long)]
            x = x.index_select(axis, picked)
            index[axis] = slice(None)
    found = x[tuple(index)]
    if squeeze_mask is not None:
        found = found.squeeze([axis for axis in range(x.dim()) if bool(squeeze_mask[axis])])
    return found


def _slices(rank: int, begin: Arg, end: Arg, stride: Arg, begin_mask: Arg, end_mask: Arg) -> list[Any]:
    starts, ends = ints(begin), ints(end)
    steps = [1] * rank if stride is None else ints(stride)
    return [
        slice(
            None if begin_mask is not None and bool(begin_mask[axis]) else starts[axis],
            None if end_mask is not None and bool(end_mask[axis]) else ends[axis],
            steps[axis],
        )
        for axis in range(rank)
    ]


@op("slice_by_size", moves=True)
def slice_by_size(x: Tensor, begin: Arg, size: Arg) -> Tensor:
    """A size of -1 runs to the end."""
    for axis, (start, length) in enumerate(zip(ints(begin), ints(size), strict=True)):
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


@op("slice_update", moves=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Arg,
    end: Arg,
    stride: Arg = None,
    begin_mask: Arg = None,
    end_mask: Arg = None,
    squeeze_mask: Arg = None,
) -> Tensor:
    """A copy of `x` with the slice replaced."""
    result = x.clone()
    result[tuple(_slices(x.dim(), begin, end, stride, begin_mask, end_mask))] = update
    return result


@op("pad", moves=True)
def pad(x: Tensor, pad: Arg, mode: str = "constant", constant_val: Arg = 0.0) -> Tensor:
    """`pad` holds (before, after) of the last axes, the last pair for the last axis."""
    sizes = ints(pad)
    backwards = [size for pair in range(len(sizes) // 2, 0, -1) for size in sizes[2 * pair - 2 : 2 * pair]]
    if mode == "constant":
        return F.pad(x, backwards, value=float(constant_val))
    while len(backwards) > 2 and backwards[-2:] == [0, 0]:
        backwards = backwards[:-2]
    spatial = len(backwards) // 2
    lead = x.shape[: x.dim() - spatial]
    folded = x.reshape(1, -1, *x.shape[x.dim() - spatial :])  # torch wants batch and channels in front
    padded = F.pad(folded, backwards, mode="reflect" if mode == "reflect" else "replicate")
    return padded.reshape(*lead, *padded.shape[2:])


@op("tile", moves=True)
def tile(x: Tensor, reps: Arg) -> Tensor:
    return x.repeat(ints(reps))


@op("reverse", moves=True)
def reverse(x: Tensor, axes: Arg = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else ints(axes))


@op("gather", moves=True)
def gather(x: Tensor, indices: Tensor, axis: Arg = 0, batch_dims: Arg = 0, validate_indices: Arg = False) -> Tensor:
    """x[.., indices, ..] along `axis`; negative indices count from the end."""
    lead, at = int(batch_dims), int(axis) % x.dim()
    index = indices.long()
    index = torch.where(index < 0, index + x.shape[at], index)
    if lead == 0:
        found = x.index_select(at, index.reshape(-1))
        return found.reshape(*x.shape[:at], *index.shape, *x.shape[at + 1 :])
    rows = [gather(part, one, at - 1, lead - 1) for part, one in zip(x.unbind(0), index.unbind(0), strict=True)]
    return torch.stack(rows)


@op("gather_along_axis", moves=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: Arg = 0, validate_indices: Arg = False) -> Tensor:
    at, index = int(axis) % x.dim(), indices.long()
    return torch.take_along_dim(x, torch.where(index < 0, index + x.shape[at], index), at)


@op("gather_nd", moves=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: Arg = 0, validate_indices: Arg = False) -> Tensor:
    if lead := int(batch_dims):
        pairs = zip(x.unbind(0), indices.unbind(0), strict=True)
        return torch.stack([gather_nd(part, one, lead - 1) for part, one in pairs])
    return x[tuple(indices.long().unbind(-1))]


@op("select", moves=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


@op("fill", moves=True)
def fill(shape: Arg, value: Arg = 0.0) -> Tensor:
    one = value if isinstance(value, Tensor) else torch.tensor(value)
    return one.reshape(()).expand(ints(shape)).clone()


@op("fill_like", moves=True)
def fill_like(ref_tensor: Tensor, value: Arg = 0.0) -> Tensor:
    return fill(list(ref_tensor.shape), value)


@op("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item()).to(start.dtype)


@op("one_hot", moves=True)
def one_hot(indices: Tensor, one_hot_vector_size: Arg, axis: Arg = -1, on_value: Arg = 1, off_value: Arg = 0) -> Tensor:
    hot = F.one_hot(indices.long(), int(one_hot_vector_size)).bool()
    value = torch.where(hot, torch.as_tensor(on_value), torch.as_tensor(off_value))
    return value.movedim(-1, int(axis))


@op("band_part", moves=True)
def band_part(x: Tensor, lower: Arg = -1, upper: Arg = -1) -> Tensor:
    """Keeps the diagonal, `lower` below and `upper` above it; -1 keeps all."""
    value = x if int(lower) < 0 else x.triu(-int(lower))
    return value if int(upper) < 0 else value.tril(int(upper))


@op("topk", moves=True)
def topk(
    x: Tensor,
    k: Arg,
    axis: Arg = -1,
    ascending: Arg = False,
    sort: Arg = True,
    return_indices: Arg = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    values, places = x.topk(int(k), int(axis), largest=not flag(ascending), sorted=flag(sort))
    return [values, places.to(torch.int32)] if flag(return_indices) else [values]


@op("pixel_shuffle", moves=True)
def pixel_shuffle(x: Tensor, upscale_factor: Arg) -> Tensor:
    return F.pixel_shuffle(x, int(upscale_factor))


@op("pixel_unshuffle", moves=True)
def pixel_unshuffle(x: Tensor, downscale_factor: Arg) -> Tensor:
    return F.pixel_unshuffle(x, int(downscale_factor))


@op("depth_to_space", moves=True)
def depth_to_space(x: Tensor, block_size: Arg) -> Tensor:
    """Channels are read block by block (tensorflow's order), unlike in `pixel_shuffle`."""
    size = int(block_size)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // size**2, height * size, width * size)


@op("space_to_depth", moves=True)
def space_to_depth(x: Tensor, block_size: Arg) -> Tensor:
    size = int(block_size)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * size**2, height // size, width // size)
