"""Weights that a program keeps compressed (`constexpr_*`), decompressed.

Each function is the operation of that name in iOS 16 or iOS 18, on numpy arrays; those of iOS 18 work on any rank
with blocks implied by the shapes (block = size of the data / size of the table along that axis).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgediff.mil.blobs import Array, unpack_bits

Found = Array | tuple[Array, ...]


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """iOS 16: `source_val` in another float type."""
    return source_val.astype({"fp16": np.float16, "fp32": np.float32}[output_dtype])


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """iOS 16: (q - zero_point) * scale, both scalars or one value per index along `axis`."""
    shape = [1] * quantized_data.ndim
    if scale.ndim or zero_point.ndim:
        shape[int(axis)] = -1
    data = quantized_data.astype(np.float32) - zero_point.astype(np.float32).reshape(shape if zero_point.ndim else ())
    values: Array = data * scale.astype(np.float32).reshape(shape if scale.ndim else ())
    return values.astype(scale.dtype)


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """iOS 18: scale * (data - offset), one scale and offset per block."""
    values = data.astype(np.float32)
    if offset is not None:
        values -= _spread(offset.astype(np.float32), values.shape)
    values *= _spread(scale.astype(np.float32), values.shape)
    return values.astype(scale.dtype)


def constexpr_lut_to_dense(
    indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None
) -> Array:
    """Values looked up in one table (iOS 16: `indices` is a stream of bits, `lut` [2^bits]), or in a table per
    block (iOS 18: `lut` [blocks.., 2^bits, vector length])."""
    if shape is not None:
        bits = int(lut.size - 1).bit_length()
        count = int(np.prod(shape))
        index = indices[:count] if bits == 8 else unpack_bits(indices, max(bits, 1), count)
        dense: Array = lut[index].reshape(tuple(int(size) for size in shape))
        return dense
    palettes, length = lut.shape[-2:]
    groups = lut.shape[:-2]
    tables = lut.reshape(-1, palettes, length)
    if len(tables) == 1:
        found = tables[0][indices]
    else:
        number = np.arange(len(tables), dtype=np.int32).reshape(groups)
        found = tables[_spread(number, indices.shape), indices]
    if length == 1:
        return np.asarray(found[..., 0])
    axis = int(vector_axis) % indices.ndim if vector_axis is not None else indices.ndim - 1
    moved = np.moveaxis(found, -1, axis + 1)
    sizes = list(indices.shape)
    sizes[axis] *= length
    return np.asarray(moved.reshape(sizes))


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """Values where the mask has ones, zeros elsewhere. iOS 16: the mask is a stream of bits of `shape`."""
    if shape is not None:
        sizes = tuple(int(size) for size in shape)
        mask = unpack_bits(mask, 1, int(np.prod(sizes))).reshape(sizes)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask.astype(bool)] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None
) -> tuple[Array, Array]:
    """iOS 18: a mask and the looked-up values of the kept entries, for `constexpr_sparse_to_dense`."""
    codes = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(codes, lut, None, vector_axis)
    mask = indices_mask
    if (length := lut.shape[-1]) > 1 and vector_axis is not None:
        mask = np.repeat(indices_mask, length, axis=int(vector_axis))
    return mask, dense[mask.astype(bool)]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """iOS 18: a mask and the dequantized values of the kept entries, for `constexpr_sparse_to_dense`."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.astype(bool)]


def _spread(table: Array, shape: tuple[int, ...]) -> Array:
    """`table` with each entry repeated over its block, so that it broadcasts to `shape`."""
    for axis, (size, count) in enumerate(zip(shape, table.shape, strict=True)):
        if count not in (1, size):
            table = np.repeat(table, size // count, axis)
    return table


CONSTEXPR: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        constexpr_cast,
        constexpr_affine_dequantize,
        constexpr_blockwise_shift_scale,
        constexpr_lut_to_dense,
        constexpr_sparse_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
    )
}
