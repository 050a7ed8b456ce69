"""Core ML's protobuf messages and weights file, written: constants, compressed constants, single operations."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgediff.compression import Encoded, Linear, Palette, Sparse
from edgediff.mil.blobs import RECORD, SENTINEL, TYPES, VERSION, Array, pack_bits
from edgediff.mil.package import DTYPES, NARROW, STRING

WEIGHTS = "@model_path/weights/weight.bin"
ALIGNMENT = 64
BLOB_IDS = {name: number for number, (name, _) in TYPES.items()}
DATA_TYPES = {name: number for number, name in DTYPES.items()}
INLINE = 64  # bytes; smaller constants lie in the program itself


class BlobWriter:
    """A weights file that is being written; `add` returns where a blob's record lies."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> BlobWriter:
        self._file = self._path.open("wb")
        self._file.write(bytes(ALIGNMENT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.write(struct.pack("<II", self._count, VERSION))
        self._file.close()

    def add(self, values: Array, dtype: str, count: int) -> int:
        """Appends the bytes of `count` values of `dtype` (already packed where they are narrower than a byte)."""
        assert self._file is not None
        offset = self._file.seek(0, 2)
        if spare := -offset % ALIGNMENT:
            self._file.write(bytes(spare))
            offset += spare
        raw = np.ascontiguousarray(values)
        padding = raw.nbytes * 8 - count * NARROW[dtype] if dtype in NARROW else 0
        record = RECORD.pack(SENTINEL, BLOB_IDS[dtype], raw.nbytes, offset + ALIGNMENT, padding)
        self._file.write(record.ljust(ALIGNMENT, b"\0"))
        self._file.write(raw.data if raw.nbytes else b"")
        self._count += 1
        return offset


def set_type(message: Any, dtype: str, shape: Sequence[int]) -> None:
    """Fills a `ValueType` message."""
    tensor = message.tensorType
    tensor.dataType = STRING if dtype == "string" else DATA_TYPES[dtype]
    tensor.rank = len(shape)
    del tensor.dimensions[:]
    for size in shape:
        tensor.dimensions.add().constant.size = int(size)


def set_immediate(message: Any, value: Any, dtype: str) -> None:
    """Fills a `Value` message with a small constant."""
    array = np.asarray(value)
    set_type(message.type, dtype, array.shape)
    tensor = message.immediateValue.tensor
    if dtype == "string":
        tensor.strings.values.extend([str(value)])
    elif dtype == "bool":
        tensor.bools.values.extend([bool(item) for item in array.reshape(-1)])
    elif dtype == "int32":
        tensor.ints.values.extend([int(item) for item in array.reshape(-1)])
    elif dtype == "float32":
        tensor.floats.values.extend([float(item) for item in array.reshape(-1)])
    else:
        tensor.bytes.values = np.ascontiguousarray(array).tobytes()


def make_operation(
    kind: str, inputs: dict[str, Any], outputs: Sequence[tuple[str, str, Sequence[int]]]
) -> Any:
    """An `Operation` message. An input is a name, or `(value, dtype)` for a constant written in place; an output is
    its name, type and shape."""
    from coremltools.proto import MIL_pb2

    operation = MIL_pb2.Operation(type=kind)
    for key, value in inputs.items():
        argument = operation.inputs[key].arguments.add()
        if isinstance(value, str):
            argument.name = value
        else:
            set_immediate(argument.value, *value)
    for name, dtype, shape in outputs:
        output = operation.outputs.add()
        output.name = name
        set_type(output.type, dtype, shape)
    set_immediate(operation.attributes["name"], outputs[0][0] if outputs else kind, "string")
    return operation


def make_constexpr(constant: Any, encoded: Encoded, weights: BlobWriter, written: dict[str, Any]) -> list[Any]:
    """The operations in place of a constant. `written` keeps the arguments that are in the weights file already,
    for the next function that reads the same weight."""
    name = constant.outputs[0].name

    def argument(operation: Any, key: str, values: Array, dtype: str, slot: str) -> None:
        bound = operation.inputs[key].arguments.add()
        if slot not in written:
            packed = pack_bits(values.view(np.uint8), NARROW[dtype]) if dtype in NARROW else values
            offset = weights.add(packed, dtype, values.size) if packed.nbytes >= INLINE else None
            written[slot] = offset, packed
        offset, packed = written[slot]
        set_type(bound.value.type, dtype, values.shape)
        if offset is None:
            bound.value.immediateValue.tensor.bytes.values = np.ascontiguousarray(packed).tobytes()
        else:
            bound.value.blobFileValue.fileName = WEIGHTS
            bound.value.blobFileValue.offset = offset

    def bind(operation: Any, arguments: dict[str, tuple[Array, str]]) -> Any:
        for key, (values, dtype) in arguments.items():
            argument(operation, key, values, dtype, key)
        return operation

    shape, dtype = encoded.shape, encoded.dtype
    whole = [(name, dtype, shape)]
    if isinstance(encoded, Palette):
        made = make_operation("constexpr_lut_to_dense", {}, whole)
        return [bind(made, {"indices": (encoded.codes, f"uint{encoded.bits}"), "lut": (encoded.table, dtype)})]
    if isinstance(encoded, Linear):
        made = make_operation("constexpr_blockwise_shift_scale", {}, whole)
        return [bind(made, {"data": (encoded.codes, f"int{encoded.bits}"), "scale": (encoded.scale, dtype)})]
    assert isinstance(encoded, Sparse)
    mask = encoded.mask.astype(np.uint8)
    if isinstance(encoded.values, Palette | Linear):
        return _joint(encoded, encoded.values, mask, name, bind)
    made = make_operation("constexpr_sparse_to_dense", {}, whole)
    return [bind(made, {"nonzero_data": (encoded.values, dtype), "mask": (mask, "uint1")})]


def _joint(encoded: Sparse, values: Palette | Linear, mask: Array, name: str, bind: Any) -> list[Any]:
    """Sparse, and what is kept is compressed in its turn: two operations."""
    kept = [(f"{name}_mask", "uint1", encoded.shape), (f"{name}_kept", encoded.dtype, values.codes.shape)]
    if isinstance(values, Palette):
        first = bind(make_operation("constexpr_lut_to_sparse", {}, kept), {
            "indices_mask": (mask, "uint1"), "indices_nonzero_data": (values.codes, f"uint{values.bits}"),
            "lut": (values.table, encoded.dtype),
        })  # fmt: skip
    else:
        first = bind(make_operation("constexpr_sparse_blockwise_shift_scale", {}, kept), {
            "data_mask": (mask, "uint1"), "nonzero_data": (values.codes, f"int{values.bits}"),
            "scale": (values.scale, encoded.dtype),
        })  # fmt: skip
    second = make_operation(
        "constexpr_sparse_to_dense", {"nonzero_data": f"{name}_kept", "mask": f"{name}_mask"},
        [(name, encoded.dtype, encoded.shape)],
    )
    return [first, second]
