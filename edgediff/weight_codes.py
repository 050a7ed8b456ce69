"""Weights in fewer bits: how a tensor is coded in a format of `documents.weight_format`, and what the code means.
numpy only.

Tables are least squares: Lloyd's algorithm in one dimension on the histogram of the weights' fp16 values, of which
there are at most 65,536, so that the largest layer takes well under a second. It starts from the quantiles of
density^(1/3), which are the optimal levels for many of them (Panter and Dite 1951). Scales are absolute maxima.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgediff.documents.weight_format import Format

Array = np.ndarray[Any, np.dtype[Any]]

MIN_WEIGHTS = 2048  # smaller tensors cost more in tables than they save
ROUNDS = 60


@dataclass(frozen=True)
class Palette:
    """`table` [blocks.., 2^bits, 1], `codes` uint8 of the tensor's shape."""

    bits: int
    codes: Array
    table: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def dtype(self) -> str:
        return self.table.dtype.name


@dataclass(frozen=True)
class Linear:
    """codes * scale: `codes` int8 (for 4 bits from -8 to 7), `scale` one per block."""

    bits: int
    codes: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def dtype(self) -> str:
        return self.scale.dtype.name


@dataclass(frozen=True)
class Sparse:
    """`mask` bool of the tensor's shape; `values` [kept] as they are, or coded (codes [kept])."""

    mask: Array
    values: Array | Palette | Linear
    element: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mask.shape)

    @property
    def dtype(self) -> str:
        return self.element


Encoded = Palette | Linear | Sparse


def encode(weight: Array, chosen: Format) -> Encoded | None:
    """The tensor `[out, ...]` (float16 or float32) in a format; None when its sizes do not allow the groups."""
    if chosen.sparse:
        return _sparse(weight, chosen)
    if chosen.kind == "palette":
        return _palette(weight, chosen.bits, chosen.group)
    if chosen.kind == "w":
        return _linear(weight, chosen.bits, chosen.group)
    return None


def decode(encoded: Encoded) -> Array:
    """What the code stands for, in its element type."""
    if isinstance(encoded, Palette):
        groups = encoded.table.shape[0]
        if groups == 1:
            return encoded.table.reshape(-1)[encoded.codes]
        tables = encoded.table.reshape(groups, -1)
        codes = encoded.codes.reshape(groups, -1)
        return np.take_along_axis(tables, codes.astype(np.int64), axis=1).reshape(encoded.shape)
    if isinstance(encoded, Linear):
        blocks = [size // count for size, count in zip(encoded.shape, encoded.scale.shape, strict=True)]
        scale = encoded.scale.astype(np.float32)
        for axis, length in enumerate(blocks):
            scale = np.repeat(scale, length, axis) if length > 1 and scale.shape[axis] > 1 else scale
        return (encoded.codes * scale).astype(encoded.dtype)
    dense = np.zeros(encoded.shape, encoded.dtype)
    values = encoded.values
    if isinstance(values, Palette):
        values = values.table.reshape(-1)[values.codes]
    elif isinstance(values, Linear):
        scale = np.broadcast_to(values.scale.astype(np.float32), encoded.shape)[encoded.mask]
        values = (values.codes * scale).astype(encoded.dtype)
    dense[encoded.mask] = values
    return dense


def fit_table(values: Array, bits: int) -> Array:
    """The 2^bits levels, ascending, float32, that are least squares for the values: Lloyd on their histogram."""
    halves = np.ascontiguousarray(values.reshape(-1), np.float16)
    counts = np.bincount(halves.view(np.uint16), minlength=1 << 16).astype(np.float64)
    points = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    known = np.nonzero(counts)[0]
    order = known[np.argsort(points[known], kind="stable")]
    point, count = points[order], counts[order]
    levels = 2**bits
    if len(point) <= levels:
        return np.pad(point, (0, levels - len(point)), mode="edge").astype(np.float32)
    table = _start(point, count, levels)
    mass = np.concatenate([[0.0], np.cumsum(count)])
    moment = np.concatenate([[0.0], np.cumsum(count * point)])
    for _ in range(ROUNDS):
        edges = np.searchsorted(point, (table[1:] + table[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(point)]])
        inside = mass[edges[1:]] - mass[edges[:-1]]
        total = moment[edges[1:]] - moment[edges[:-1]]
        moved = np.where(inside > 0, total / np.where(inside > 0, inside, 1.0), table)
        if np.allclose(moved, table, rtol=1e-6, atol=1e-9):
            break
        table = np.sort(moved)
    return table.astype(np.float32)


def _start(point: Array, count: Array, levels: int) -> Array:
    """Quantiles of density^(1/3)."""
    bins = min(max(8 * levels, 256), 4096)
    histogram, edges = np.histogram(point, bins=bins, range=(point[0], point[-1]), weights=count)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(histogram))])
    found: Array = np.interp((np.arange(levels) + 0.5) / levels * share[-1], share, edges)
    return found


def _code(values: Array, table: Array) -> Array:
    """The nearest level of each value, as uint8: looked up by the value's fp16 bits."""
    halves = np.ascontiguousarray(values, np.float16)
    points = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    nearest = np.searchsorted((table[1:] + table[:-1]) / 2, np.nan_to_num(points)).astype(np.uint8)
    found: Array = nearest[halves.view(np.uint16)]
    return found


def _palette(weight: Array, bits: int, group: int) -> Palette | None:
    groups = 1
    if group:
        if weight.shape[0] % group:
            return None
        groups = weight.shape[0] // group
    parts = weight.reshape(groups, -1)
    tables = [fit_table(part, bits) for part in parts]
    codes = np.stack([_code(part, table) for part, table in zip(parts, tables, strict=True)])
    shape = (groups, *[1] * (weight.ndim - 1), 2**bits, 1)
    return Palette(bits, codes.reshape(weight.shape), np.stack(tables).reshape(shape).astype(weight.dtype))


def _linear(weight: Array, bits: int, group: int) -> Linear | None:
    """Symmetric; blocks run along the second axis (the input channels)."""
    top = 2 ** (bits - 1) - 1
    values = weight.astype(np.float32)
    if not group:
        scale = np.abs(values).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    else:
        if weight.shape[1] % group:
            return None
        blocks = values.reshape(weight.shape[0], weight.shape[1] // group, group, *weight.shape[2:])
        scale = np.abs(blocks).max(axis=tuple(range(2, blocks.ndim)))
        scale = scale.reshape(*scale.shape, *[1] * (weight.ndim - 2))
    scale = np.where(scale == 0, 1.0, scale / top).astype(weight.dtype)
    spread = scale.astype(np.float32)
    spread = np.repeat(spread, group, 1) if group else spread
    spread = np.where(spread == 0, 1.0, spread)
    codes = np.rint(values / spread).clip(-top - 1, top).astype(np.int8)
    return Linear(bits, codes, scale)


def _sparse(weight: Array, chosen: Format) -> Sparse:
    """The smallest weights by magnitude are zero; exactly that many."""
    drop = round(weight.size * chosen.sparse / 100)
    mask = np.ones(weight.size, bool)
    mask[np.argpartition(np.abs(weight.reshape(-1)), drop)[:drop]] = False
    mask = mask.reshape(weight.shape)
    kept = weight[mask]
    if chosen.kind == "palette":
        table = fit_table(kept, chosen.bits)
        shape = (*[1] * weight.ndim, 2**chosen.bits, 1)
        coded = Palette(chosen.bits, _code(kept, table), table.reshape(shape).astype(weight.dtype))
        return Sparse(mask, coded, weight.dtype.name)
    if chosen.kind == "w":
        whole = _linear(np.where(mask, weight, 0).astype(weight.dtype), chosen.bits, 0)
        assert whole is not None
        return Sparse(mask, Linear(chosen.bits, whole.codes[mask], whole.scale), weight.dtype.name)
    return Sparse(mask, kept, weight.dtype.name)
