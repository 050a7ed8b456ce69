"""Core ML's protobuf messages and weights file, written: constants, compressed constants, single operations."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgediff.errors import BackendError
from edgediff.mil.blobs import RECORD, SENTINEL, TYPES, VERSION, Array, pack_bits
from edgediff.mil.package import DTYPES, NARROW, STRING, value_type
from edgediff.weight_codes import Encoded, Linear, Palette, Sparse

WEIGHTS = "@model_path/weights/weight.bin"
ALIGNMENT = 64
BLOB_IDS = {name: number for number, (name, _) in TYPES.items()}
DATA_TYPES = {name: number for number, name in DTYPES.items()}
MIL_NAMES = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool"}
ARRAY_TYPES = {"float16": 65552, "float32": 65568, "int32": 131104}  # ArrayFeatureType.ArrayDataType
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


def make_operation(kind: str, inputs: dict[str, Any], outputs: Sequence[tuple[str, str, Sequence[int]]]) -> Any:
    """An `Operation` message. An input is a name, a list of names, or `(value, dtype)` for a constant written in
    place; an output is its name, type and shape."""
    from coremltools.proto import MIL_pb2

    operation = MIL_pb2.Operation(type=kind)
    for key, value in inputs.items():
        for one in value if isinstance(value, list) else [value]:
            argument = operation.inputs[key].arguments.add()
            if isinstance(one, str):
                argument.name = one
            else:
                set_immediate(argument.value, *one)
    for name, dtype, shape in outputs:
        output = operation.outputs.add()
        output.name = name
        set_type(output.type, dtype, shape)
    set_immediate(operation.attributes["name"], outputs[0][0] if outputs else kind, "string")
    return operation


def values_of(operation: Any) -> Iterator[Any]:
    """Every constant that lies in an operation itself: its attributes, and arguments written in place."""
    yield from operation.attributes.values()
    for argument in operation.inputs.values():
        for bound in argument.arguments:
            if bound.WhichOneof("binding") == "value":
                yield bound.value


def block_of(function: Any) -> Any:
    """The one block of a `Function` message."""
    return function.block_specializations[function.opset]


def replace_input(
    function: Any,
    name: str,
    dtype: str,
    shape: Sequence[int],
    steps: Sequence[tuple[str, dict[str, Any], Sequence[int]]] = (),
) -> str:
    """Gives an input another type and shape; `steps` (operation, further arguments, shape of the result) make of it
    what the function read before, whose name is returned."""
    block, inner = block_of(function), f"{name}_inner"
    entry = next(one for one in function.inputs if one.name == name)
    old = value_type(entry.type)
    rename_reads(block, name, inner)
    set_type(entry.type, dtype, shape)
    made, current, sizes = [], name, tuple(shape)
    plan = [*steps, *([("cast", {"dtype": (MIL_NAMES[old.dtype], "string")}, None)] if old.dtype != dtype else [])]
    if not plan:
        plan = [("identity", {}, None)]
    for index, (kind, arguments, result) in enumerate(plan):
        sizes = tuple(result) if result is not None else sizes
        last = index == len(plan) - 1
        following = inner if last else f"{name}_inner_{index}"
        element = old.dtype if last else dtype
        made.append(make_operation(kind, {"x": current, **arguments}, [(following, element, sizes)]))
        current = following
    rest = list(block.operations)
    del block.operations[:]
    block.operations.extend([*made, *rest])
    return inner


def keep_outputs(function: Any, names: Sequence[str]) -> None:
    """Leaves these outputs only, and no operation and no state that nothing reads; states are not written any more."""
    block = block_of(function)
    del block.outputs[:]
    block.outputs.extend(names)
    needed, kept = set(names), []
    for operation in reversed(block.operations):
        if any(output.name in needed for output in operation.outputs):
            kept.append(operation)
            for argument in operation.inputs.values():
                needed |= {one.name for one in argument.arguments if one.WhichOneof("binding") == "name"}
    del block.operations[:]
    block.operations.extend(reversed(kept))
    inputs = [one for one in function.inputs if one.name in needed or one.type.WhichOneof("type") != "stateType"]
    del function.inputs[:]
    function.inputs.extend(inputs)


def add_output(function: Any, name: str, steps: Sequence[tuple[str, dict[str, Any], str, Sequence[int]]]) -> None:
    """Adds an output made by `steps` (operation, arguments, type, shape). Each reads the one before it: as `x` where
    that is not given, and wherever an argument is the empty string."""
    block, current = block_of(function), ""
    for index, (kind, given, dtype, shape) in enumerate(steps):
        arguments = {key: current if isinstance(value, str) and not value else value for key, value in given.items()}
        if current and "x" not in arguments:
            arguments["x"] = current
        current = name if index == len(steps) - 1 else f"{name}_{index}"
        block.operations.append(make_operation(kind, arguments, [(current, dtype, shape)]))
    block.outputs.append(name)


def describe_function(function: Any, description: Any) -> None:
    """Fills `input`, `output` and `state` of a model or function description from a function's own types."""
    block = block_of(function)
    types = {output.name: output.type for operation in block.operations for output in operation.outputs}
    types.update({one.name: one.type for one in function.inputs})
    states = [one.name for one in function.inputs if one.type.WhichOneof("type") == "stateType"]
    inputs = [one.name for one in function.inputs if one.name not in states]
    for field, names in (("input", inputs), ("output", list(block.outputs)), ("state", states)):
        entries = getattr(description, field)
        del entries[:]
        for name in names:
            kind, entry = value_type(types[name]), entries.add()
            entry.name = name
            array = entry.type.stateType.arrayType if field == "state" else entry.type.multiArrayType
            array.dataType = ARRAY_TYPES[kind.dtype]
            array.shape.extend([size or 0 for size in kind.shape])


def rename_reads(block: Any, old: str, new: str) -> None:
    """Whatever read a value reads another one."""
    for operation in block.operations:
        for argument in operation.inputs.values():
            for bound in argument.arguments:
                if bound.WhichOneof("binding") == "name" and bound.name == old:
                    bound.name = new


class ConstexprMaker:
    """Makes compressed constants in place of constants."""

    def __init__(self, weights: BlobWriter, *, multifunction: bool) -> None:
        """`multifunction`: operations of iOS 18, else those of iOS 16, which know whole tensors only."""
        self._weights, self._new = weights, multifunction

    def make(self, constant: Any, encoded: Encoded) -> list[Any]:
        """The operations that make the weight. Raises BackendError for what iOS 16 and 17 have no form for."""
        name, shape, dtype = constant.outputs[0].name, encoded.shape, encoded.dtype
        whole = [(name, dtype, shape)]
        sizes = {"shape": (np.array(shape, np.uint32), "uint32")}
        if isinstance(encoded, Palette):
            if self._new:
                arguments = {"indices": (encoded.codes, f"uint{encoded.bits}"), "lut": (encoded.table, dtype)}
                return [self._bound("constexpr_lut_to_dense", arguments, whole)]
            self._refuse(encoded.table.shape[0] > 1, "a table per group of channels")
            packed = encoded.codes.reshape(-1) if encoded.bits == 8 else pack_bits(encoded.codes, encoded.bits)
            arguments = {"indices": (packed, "uint8"), "lut": (encoded.table.reshape(-1), dtype), **sizes}
            return [self._bound("constexpr_lut_to_dense", arguments, whole)]
        if isinstance(encoded, Linear):
            if self._new:
                arguments = {"data": (encoded.codes, f"int{encoded.bits}"), "scale": (encoded.scale, dtype)}
                return [self._bound("constexpr_blockwise_shift_scale", arguments, whole)]
            self._refuse(encoded.bits != 8 or encoded.scale.size != shape[0], "4 bits, or a scale per block,")
            arguments = {
                "quantized_data": (encoded.codes, "int8"),
                "zero_point": (np.zeros(shape[0], np.int8), "int8"),
                "scale": (encoded.scale.reshape(-1), dtype),
                "axis": (np.array(0, np.int32), "int32"),
            }
            return [self._bound("constexpr_affine_dequantize", arguments, whole)]
        assert isinstance(encoded, Sparse)
        mask = encoded.mask.astype(np.uint8)
        if isinstance(encoded.values, Palette | Linear):
            self._refuse(not self._new, "sparse weights whose rest is coded")
            return self._joint(encoded, encoded.values, mask, name)
        found: dict[str, tuple[Array, str]] = {"nonzero_data": (encoded.values, dtype), "mask": (mask, "uint1")}
        if not self._new:
            found = {**found, "mask": (pack_bits(mask, 1), "uint8"), **sizes}
        return [self._bound("constexpr_sparse_to_dense", found, whole)]

    def _joint(self, encoded: Sparse, values: Palette | Linear, mask: Array, name: str) -> list[Any]:
        """Sparse, and what is kept is coded in its turn: two operations."""
        kept = [(f"{name}_mask", "uint1", encoded.shape), (f"{name}_kept", encoded.dtype, values.codes.shape)]
        if isinstance(values, Palette):
            kind, arguments = (
                "constexpr_lut_to_sparse",
                {
                    "indices_mask": (mask, "uint1"),
                    "indices_nonzero_data": (values.codes, f"uint{values.bits}"),
                    "lut": (values.table, encoded.dtype),
                },
            )
        else:
            kind, arguments = (
                "constexpr_sparse_blockwise_shift_scale",
                {
                    "data_mask": (mask, "uint1"),
                    "nonzero_data": (values.codes, f"int{values.bits}"),
                    "scale": (values.scale, encoded.dtype),
                },
            )
        names = {"nonzero_data": f"{name}_kept", "mask": f"{name}_mask"}
        second = make_operation("constexpr_sparse_to_dense", names, [(name, encoded.dtype, encoded.shape)])
        return [self._bound(kind, arguments, kept), second]

    def _bound(
        self,
        kind: str,
        arguments: dict[str, tuple[Array, str]],
        outputs: Sequence[tuple[str, str, Sequence[int]]],
    ) -> Any:
        """One operation with its values: arguments in iOS 18, attributes before."""
        operation = make_operation(kind, {}, outputs)
        for key, (values, dtype) in arguments.items():
            message = operation.inputs[key].arguments.add().value if self._new else operation.attributes[key]
            packed = pack_bits(values.view(np.uint8), NARROW[dtype]) if dtype in NARROW else values
            if packed.nbytes >= INLINE:
                set_type(message.type, dtype, values.shape)
                message.blobFileValue.fileName = WEIGHTS
                message.blobFileValue.offset = self._weights.add(packed, dtype, values.size)
            elif dtype in NARROW:
                set_type(message.type, dtype, values.shape)
                message.immediateValue.tensor.bytes.values = packed.tobytes()
            else:
                set_immediate(message, values, dtype)
        return operation

    def _refuse(self, wrong: bool, what: str) -> None:
        if wrong:
            message = f"{what} is a weight format of iOS 18; choose deployment 'iOS18', or one table or scale a tensor"
            raise BackendError(message, where="[coreml]", code="deployment")
