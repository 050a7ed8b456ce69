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

from edgediff.backends.coreml.messages import (
    WEIGHTS,
    BlobWriter,
    ConstexprMaker,
    block_of,
    describe_function,
    values_of,
)
from edgediff.mil.blobs import Array
from edgediff.mil.package import FLOATS, Package, open_package, value_type
from edgediff.weight_codes import Encoded

FOLDER = "com.apple.CoreML"
IOS_18 = 9  # its specification version
NAMESPACE = uuid.UUID("6f3b1c0a-2f0e-5b7a-9d0e-5d1f6c0e7a11")
DROPPED_NOTES = ("com.github.apple.coremltools.conversion_date",)

# What a weight becomes: None leaves it as it is. Called once per distinct weight.
Compress = Callable[[str, Array], Encoded | None]


@dataclass(frozen=True)
class Description:
    """What a package says about itself: texts, and keys in reverse-domain style. `others` is said of tensors that
    `tensors` does not name."""

    short: str = ""
    author: str = ""
    licence: str = ""
    version: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    others: str = ""


@dataclass(frozen=True)
class Part:
    """A function to link: its name in the result, the package it is in and its name there, and what changes it (the
    `Function` message, a copy)."""

    name: str
    path: Path
    source: str = "main"
    change: Callable[[Any], None] | None = None


def link_functions(
    parts: Sequence[Part],
    out: Path,
    *,
    compress: Compress | None = None,
    description: Description | None = None,
) -> None:
    """Writes the package `out` with one function per part.

    One part named `main` gives a package of the old kind, which iOS 16 and 17 read. The first part is the default
    function. Weights of floats with two axes or more go through `compress`.
    """
    from coremltools.proto import Model_pb2

    packages = [open_package(part.path) for part in parts]
    data = out / "Data" / FOLDER
    (data / "weights").mkdir(parents=True)
    spec = Model_pb2.Model()
    single = [part.name for part in parts] == ["main"]
    version = max(int(package.spec.specificationVersion) for package in packages)
    spec.specificationVersion = version if single else max(version, IOS_18)
    spec.mlProgram.version = 1
    with BlobWriter(data / "weights" / "weight.bin") as weights:
        maker = ConstexprMaker(weights, multifunction=spec.specificationVersion >= IOS_18)
        linker = _Linker(weights, compress, maker)
        for part, package in zip(parts, packages, strict=True):
            function = spec.mlProgram.functions[part.name]
            function.CopyFrom(package.function(part.source))
            if part.change is not None:
                part.change(function)
            linker.link(package, function)
            description_of = spec.description if single else spec.description.functions.add(name=part.name)
            describe_function(function, description_of)
    if not single:
        spec.description.defaultFunctionName = parts[0].name
    spec.description.metadata.CopyFrom(packages[0].spec.description.metadata)
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

    def link(self, package: Package, function: Any) -> None:
        """Places the weights that a function of the package reads, and codes them."""
        block = block_of(function)
        operations = list(block.operations)
        del block.operations[:]
        for operation in operations:
            block.operations.extend(self._operation(package, operation))

    def _operation(self, package: Package, operation: Any) -> list[Any]:
        for value in values_of(operation):
            if value.WhichOneof("value") != "blobFileValue":
                continue
            kind = value_type(value.type)
            raw = package.blob(value.blobFileValue.fileName).raw(int(value.blobFileValue.offset))
            digest = hashlib.blake2b(raw.data, digest_size=16, person=kind.dtype.encode()).hexdigest()
            if operation.type == "const" and kind.dtype in FLOATS and len(kind.shape) >= 2:
                made = self._compressed(package, f"{digest}{kind.shape}", operation)
                if made is not None:
                    return made
            if digest not in self._placed:
                self._placed[digest] = self._weights.add(raw, kind.dtype, kind.count)
            value.blobFileValue.fileName, value.blobFileValue.offset = WEIGHTS, self._placed[digest]
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
            feature.shortDescription = description.tensors.get(feature.name, description.others)


def _manifest() -> str:
    """What names the two parts of every package."""
    entries = {}
    for name, said in (("model.mlmodel", "CoreML Model Specification"), ("weights", "CoreML Model Weights")):
        entries[str(uuid.uuid5(NAMESPACE, name))] = {
            "author": FOLDER,
            "description": said,
            "name": name,
            "path": f"{FOLDER}/{name}",
        }
    root = str(uuid.uuid5(NAMESPACE, "model.mlmodel"))
    whole = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(whole, indent=4, sort_keys=True) + "\n"
