"""An `.mlpackage` on the disk: its manifest, the program in it, and the constants that the program names."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.errors import BackendError
from edgediff.mil.blobs import Array, BlobFile, unpack_bits
from edgediff.plugins import import_or_explain

MANIFEST = "Manifest.json"
MODEL_PATH = "@model_path/"
# Element types of MIL (DataType in MIL.proto) -> numpy's. Narrow integers are held in whole bytes.
DTYPES = {
    1: "bool",
    10: "float16",
    11: "float32",
    12: "float64",
    13: "bfloat16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
STRING = 2
NARROW = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}
FLOATS = {"float16", "float32", "float64", "bfloat16"}


@dataclass(frozen=True)
class ValueType:
    """Element type by name (`float16`, `uint6`, `string`) and shape; None where a size is not fixed."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def count(self) -> int:
        return int(np.prod([size or 0 for size in self.shape], dtype=np.int64))


@dataclass(frozen=True)
class Package:
    """A package whose program can be read: `spec` is the protobuf message `CoreML.Specification.Model`."""

    path: Path
    spec: Any

    def function(self, name: str) -> Any:
        """The protobuf message `Function`."""
        return self.spec.mlProgram.functions[name]

    def block(self, name: str) -> Any:
        """The one block of a function, for the opset that it was made for."""
        function = self.function(name)
        return function.block_specializations[function.opset]

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(sorted(self.spec.mlProgram.functions))

    @property
    def default_function(self) -> str:
        """What an app gets that names no function."""
        named: str = self.spec.description.defaultFunctionName
        return named if named in self.functions else self.functions[0]

    @cached_property
    def _blobs(self) -> dict[str, BlobFile]:
        return {}

    @property
    def model_file(self) -> Path:
        return _model_file(self.path)

    def blob(self, name: str) -> BlobFile:
        """The weights file that the program knows by `name` (`@model_path/weights/weight.bin`)."""
        if name not in self._blobs:
            relative = name.removeprefix(MODEL_PATH)
            if relative == name or ".." in Path(relative).parts:
                raise _damaged(self.path, f"names a weights file outside the package: '{name}'")
            self._blobs[name] = BlobFile(self.model_file.parent / relative)
        return self._blobs[name]

    def value(self, message: Any) -> Array | str | list[str]:
        """A constant: a numpy array of the type's shape, a string, or a list of strings.

        Arrays of whole-byte types out of the weights file are views of it.
        """
        kind = value_type(message.type)
        if message.WhichOneof("value") == "blobFileValue":
            blob = message.blobFileValue
            return self.blob(blob.fileName).read(int(blob.offset), kind.count).reshape(_fixed(kind.shape))
        tensor = message.immediateValue.tensor
        which = tensor.WhichOneof("value")
        values: Any = getattr(tensor, which).values if which else []
        if kind.dtype == "string":
            return values[0] if not kind.shape else list(values)
        if which == "bytes":
            return _from_bytes(values, kind)
        shape = _fixed(kind.shape)
        return np.array(values, NUMPY.get(kind.dtype, kind.dtype)).reshape(shape)


NUMPY = {**{name: "int8" if name.startswith("int") else "uint8" for name in NARROW}, "bfloat16": "float32"}


def open_package(path: str | Path) -> Package:
    """Reads the program of an `.mlpackage`, not its weights.

    Raises BackendError: `missing` when there is none, `damaged` for a package that lacks a part or whose program
    cannot be parsed, `kind` for a model that is no ML program; MissingLibrary.
    """
    import_coremltools("the MIL evaluator")
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    folder = Path(path)
    if not folder.is_dir():
        raise BackendError("there is no such package (an .mlpackage is a folder)", where=str(path), code="missing")
    file = _model_file(folder)
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise _damaged(folder, f"the program in '{file.name}' cannot be parsed: {error}") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise BackendError(f"holds a model of kind '{kind}', not an ML program", where=str(path), code="kind")
    if not spec.mlProgram.functions:
        raise _damaged(folder, "its program has no function")
    return Package(folder, spec)


def import_coremltools(needed_by: str) -> None:
    """Imports the library without its remarks: outside a Mac it says eight times that it found no Core ML.

    Raises MissingLibrary.
    """
    if "coremltools" in sys.modules:
        return
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_or_explain("coremltools", needed_by=needed_by)


def value_type(message: Any) -> ValueType:
    """The type of a value from its protobuf message `ValueType`."""
    if message.WhichOneof("type") == "stateType":
        message = message.stateType.wrappedType
    tensor = message.tensorType
    dtype = "string" if tensor.dataType == STRING else DTYPES.get(tensor.dataType, f"type {tensor.dataType}")
    shape = tuple(
        int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions
    )
    return ValueType(dtype, shape)


def _damaged(path: Path, message: str) -> BackendError:
    return BackendError(f"{message}; copy or build the package again", where=str(path), code="damaged")


def _model_file(folder: Path) -> Path:
    """Where the manifest says that the program lies."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"its {MANIFEST} is missing or says nothing about a model") from error
    file = folder / "Data" / str(entry)
    if ".." in Path(str(entry)).parts or not file.is_file():
        raise _damaged(folder, f"its {MANIFEST} names '{entry}', which is not there")
    return file


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size or 0 for size in shape)


def _from_bytes(values: bytes, kind: ValueType) -> Array:
    """Immediate values of types that protobuf has no list for: 8- and 16-bit ones, and narrower."""
    raw = np.frombuffer(values, np.uint8)
    if bits := NARROW.get(kind.dtype):
        return unpack_bits(raw, bits, kind.count, signed=kind.dtype.startswith("int")).reshape(_fixed(kind.shape))
    return raw.view(NUMPY.get(kind.dtype, kind.dtype)).reshape(_fixed(kind.shape))
