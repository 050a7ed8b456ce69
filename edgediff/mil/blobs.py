"""The weights file of an `.mlpackage`, memory-mapped.

Layout (MILBlob storage format, version 2, little endian): a header of 64 bytes (count, version), then per blob a
record of 64 bytes (sentinel, type, bytes, offset of the data, padding bits), its data at the offset named there.
Values narrower than a byte lie in a stream of bits, the least significant bit of each byte first.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.errors import BackendError

Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 2
SENTINEL = 0xDEADBEEF
RECORD = struct.Struct("<IIQQQ")
# Type in the record -> name, bits of a value. Signed narrow types are sign-extended when they are unpacked.
TYPES = {
    1: ("float16", 16),
    2: ("float32", 32),
    3: ("uint8", 8),
    4: ("int8", 8),
    5: ("bfloat16", 16),
    6: ("int16", 16),
    7: ("uint16", 16),
    8: ("int4", 4),
    9: ("uint1", 1),
    10: ("uint2", 2),
    11: ("uint4", 4),
    12: ("uint3", 3),
    13: ("uint6", 6),
    14: ("int32", 32),
    15: ("uint32", 32),
}


class BlobFile:
    """A weights file. Raises BackendError (code `damaged`) when it is not one, or a record points outside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes: Array = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise self._damaged(f"cannot be read: {error}") from error
        if self._bytes.size < 64 or struct.unpack("<II", self._bytes[:8].tobytes())[1] != VERSION:
            raise self._damaged(f"is no weights file of version {VERSION}")

    def read(self, offset: int, count: int) -> Array:
        """`count` values of the blob whose record lies at `offset`, flat. Whole-byte types are views of the file,
        bfloat16 comes as float32."""
        name, bits, raw = self._raw(offset)
        if raw.size * 8 < count * bits:
            raise self._damaged(f"holds {raw.size} bytes at {offset} where {count} values of {name} are wanted")
        if bits < 8:
            return unpack_bits(raw, bits, count, signed=name.startswith("int"))
        if name == "bfloat16":
            return (raw[: 2 * count].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return raw[: count * bits // 8].view(name)

    def raw(self, offset: int) -> Array:
        """The bytes of the blob whose record lies at `offset`."""
        return self._raw(offset)[2]

    def _raw(self, offset: int) -> tuple[str, int, Array]:
        end = offset + RECORD.size
        if offset < 0 or end > self._bytes.size:
            raise self._damaged(f"ends at byte {self._bytes.size}, and a weight is said to lie at {offset}")
        sentinel, kind, size, start, _ = RECORD.unpack(self._bytes[offset:end].tobytes())
        if sentinel != SENTINEL or kind not in TYPES:
            raise self._damaged(f"has no weight at byte {offset}")
        if start + size > self._bytes.size:
            raise self._damaged(f"ends at byte {self._bytes.size}, and a weight ends at {start + size}")
        name, bits = TYPES[kind]
        return name, bits, self._bytes[start : start + size]

    def _damaged(self, message: str) -> BackendError:
        return BackendError(f"{message}; copy or build the package again", where=str(self.path), code="damaged")


def unpack_bits(raw: Array, bits: int, count: int, *, signed: bool = False) -> Array:
    """`count` values of `bits` (1, 2, 3, 4 or 6) each out of a stream of bits, as uint8, or int8 when `signed`."""
    group = math.lcm(bits, 8) // 8  # bytes after which values and bytes start together again
    each = 8 * group // bits
    need = -(-count // each) * group
    padded = raw[:need] if raw.size >= need else np.concatenate([raw, np.zeros(need - raw.size, np.uint8)])
    lanes = padded.reshape(-1, group)
    word: Array = np.zeros(len(lanes), np.uint8 if group == 1 else np.uint32)
    for byte in range(group):
        word |= np.left_shift(lanes[:, byte], 8 * byte, dtype=word.dtype)
    out = np.empty((len(lanes), each), np.uint8)
    for index in range(each):
        out[:, index] = np.right_shift(word, bits * index, dtype=word.dtype) & (2**bits - 1)
    values = out.reshape(-1)[:count]
    if not signed:
        return values
    sign = np.int16(1 << (bits - 1))
    return ((values.astype(np.int16) ^ sign) - sign).astype(np.int8)


def pack_bits(values: Array, bits: int) -> Array:
    """The bytes of values narrower than a byte (negative ones in two's complement): the reverse of `unpack_bits`."""
    group = math.lcm(bits, 8) // 8
    each = 8 * group // bits
    flat = np.asarray(values, np.uint8).reshape(-1) & np.uint8(2**bits - 1)
    size = -(-flat.size * bits // 8)
    if spare := -flat.size % each:
        flat = np.concatenate([flat, np.zeros(spare, np.uint8)])
    lanes = flat.reshape(-1, each)
    word = np.zeros(len(lanes), np.uint32)
    for index in range(each):
        word |= lanes[:, index].astype(np.uint32) << np.uint32(bits * index)
    out = np.empty((len(lanes), group), np.uint8)
    for byte in range(group):
        out[:, byte] = (word >> np.uint32(8 * byte)) & np.uint32(255)
    return out.reshape(-1)[:size]
