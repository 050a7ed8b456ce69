"""Packages of one function each into one package of several, over one weights file.

The program messages are taken over as the converter wrote them; only where weights lie is written anew. Equal
weights are stored once, whichever functions read them, and compressed here where a format is chosen for them: one
tensor is in memory at a time. The same input gives the same bytes: identifiers are derived, not drawn, and the
date of conversion is left out.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.backends._coreml_messages import WEIGHTS, BlobWriter, ConstexprMaker
from edgediff.compression import Encoded
from edgediff.mil.blobs import Array
from edgediff.mil.package import FLOATS, Package, open_package, value_type

FOLDER = "com.apple.CoreML"
IOS_18 = 9  # its specification version
NAMESPACE = uuid.UUID("6f3b1c0a-2f0e-5b7a-9d0e-5d1f6c0e7a11")
DROPPED_NOTES = ("com.github.apple.coremltools.conversion_date",)

# What a weight becomes: None leaves it as it is. Called once per distinct weight.
Compress = Callable[[str, Array], Encoded | None]


@dataclass(frozen=True)
class Description:
    """What a package says about itself: texts, and keys in reverse-domain style."""

    short: str = ""
    author: str = ""
    licence: str = ""
    version: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


def link_functions(
    parts: Sequence[tuple[str, Path]], out: Path, *, compress: Compress | None = None,
    description: Description | None = None,
) -> None:
    """Writes the package `out` with one function per part `(name, package whose function main it is)`.

    One part named `main` gives a package of the old kind, which iOS 16 and 17 read. The first part is the default
    function. Weights of floats with two axes or more go through `compress`.
    """
    from coremltools.proto import Model_pb2

    sources = [(name, open_package(path)) for name, path in parts]
    data = out / "Data" / FOLDER
    (data / "weights").mkdir(parents=True)
    spec = Model_pb2.Model()
    single = [name for name, _ in sources] == ["main"]
    _describe(spec, sources, single)
    with BlobWriter(data / "weights" / "weight.bin") as weights:
        linker = _Linker(weights, compress, ConstexprMaker(weights, multifunction=spec.specificationVersion >= IOS_18))
        for name, package in sources:
            linker.link(package, spec.mlProgram.functions[name])
    _annotate(spec, description or Description())
    (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    (out / "Manifest.json").write_text(_manifest(), encoding="utf-8")


class _Linker:
    """Places each distinct weight once."""

    def __init__(self, weights: BlobWriter, compress: Compress | None, maker: ConstexprMaker) -> None:
        self._weights, self._compress, self._maker = weights, compress, maker
        self._placed: dict[str, int] = {}
        self._made: dict[str, list[Any]] = {}  # weight -> the operations that make it, at its first use
        self._left: set[str] = set()  # weights that are not compressed

    def link(self, package: Package, target: Any) -> None:
        """Copies the function `main` of a package."""
        target.CopyFrom(package.function("main"))
        block = target.block_specializations[target.opset]
        operations = list(block.operations)
        del block.operations[:]
        for operation in operations:
            block.operations.extend(self._operation(package, operation))

    def _operation(self, package: Package, operation: Any) -> list[Any]:
        if operation.type != "const" or operation.attributes["val"].WhichOneof("value") != "blobFileValue":
            return [operation]
        value = operation.attributes["val"]
        kind, blob = value_type(value.type), value.blobFileValue
        raw = package.blob(blob.fileName).raw(int(blob.offset))
        digest = hashlib.blake2b(raw.data, digest_size=16, person=kind.dtype.encode()).hexdigest() + str(kind.shape)
        if self._compress is not None and kind.dtype in FLOATS and len(kind.shape) >= 2:
            made = self._compressed(package, digest, operation)
            if made is not None:
                return made
        if digest not in self._placed:
            self._placed[digest] = self._weights.add(raw, kind.dtype, kind.count)
        blob.fileName, blob.offset = WEIGHTS, self._placed[digest]
        return [operation]

    def _compressed(self, package: Package, digest: str, operation: Any) -> list[Any] | None:
        """The operations in place of a constant; None where it stays as it is."""
        if digest in self._left or self._compress is None:
            return None
        if digest not in self._made:
            array = np.asarray(package.value(operation.attributes["val"]))
            encoded = self._compress(operation.outputs[0].name, array)
            if encoded is None:
                self._left.add(digest)
                return None
            made = self._maker.make(operation, encoded)
            self._made[digest] = made
            return made
        return [_renamed(one, self._made[digest][-1].outputs[0].name, operation) for one in self._made[digest]]


def _renamed(operation: Any, old: str, constant: Any) -> Any:
    """A copy of an operation that made `old`, making what the constant was."""
    copy, new = type(operation)(), constant.outputs[0].name
    copy.CopyFrom(operation)
    for output in copy.outputs:
        output.name = new + output.name.removeprefix(old)
    for argument in copy.inputs.values():
        for bound in argument.arguments:
            if bound.WhichOneof("binding") == "name":
                bound.name = new + bound.name.removeprefix(old)
    copy.attributes["name"].immediateValue.tensor.strings.values[0] = copy.outputs[0].name
    return copy


def _describe(spec: Any, sources: Sequence[tuple[str, Package]], single: bool) -> None:
    """Inputs and outputs of every function."""
    version = max(int(package.spec.specificationVersion) for _, package in sources)
    spec.specificationVersion = version if single else max(version, IOS_18)
    spec.mlProgram.version = 1
    if single:
        spec.description.CopyFrom(sources[0][1].spec.description)
        return
    for name, package in sources:
        source = package.spec.description
        function = spec.description.functions.add()
        function.name = name
        function.input.extend(source.input)
        function.output.extend(source.output)
        function.state.extend(source.state)
    spec.description.defaultFunctionName = sources[0][0]
    spec.description.metadata.CopyFrom(sources[0][1].spec.description.metadata)


def _annotate(spec: Any, description: Description) -> None:
    metadata = spec.description.metadata
    for key in DROPPED_NOTES:
        metadata.userDefined.pop(key, None)
    metadata.shortDescription, metadata.author = description.short, description.author
    metadata.license, metadata.versionString = description.licence, description.version
    for key, value in sorted(description.notes.items()):
        metadata.userDefined[key] = value
    holders = spec.description.functions or [spec.description]
    for holder in holders:
        for feature in (*holder.input, *holder.output, *holder.state):
            feature.shortDescription = description.tensors.get(feature.name, "")


def _manifest() -> str:
    """What names the two parts of every package."""
    entries = {}
    for name, said in (("model.mlmodel", "CoreML Model Specification"), ("weights", "CoreML Model Weights")):
        entries[str(uuid.uuid5(NAMESPACE, name))] = {
            "author": FOLDER, "description": said, "name": name, "path": f"{FOLDER}/{name}",
        }  # fmt: skip
    root = str(uuid.uuid5(NAMESPACE, "model.mlmodel"))
    whole = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(whole, indent=4, sort_keys=True) + "\n"
