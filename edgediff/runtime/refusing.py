"""What the rules of a manifest share: how they refuse, and how they find what a name means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from edgediff.errors import did_you_mean
from edgediff.runtime.fields import Size
from edgediff.runtime.manifest import Graph, Manifest, TensorSpec

FLOATS, INTEGERS = ("float32", "float16"), ("int64", "int32")
Shape = tuple[Size, ...]


class Broken(Exception):
    """A broken rule, on its way to whoever knows the file."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def refuse(code: str, message: str) -> NoReturn:
    raise Broken(code, message)


def find_graph(manifest: Manifest, name: str) -> Graph:
    if name not in manifest.graphs:
        refuse("graph", f"graph '{name}' does not exist{did_you_mean(name, manifest.graphs)}")
    return manifest.graphs[name]


def find_named(graph: str, tensors: Sequence[TensorSpec], name: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    refuse("tensor", f"graph '{graph}' has no tensor '{name}'{did_you_mean(name, [t.name for t in tensors])}")


def shown(shape: Sequence[Size]) -> str:
    """`[batch, 4, 64, 64]`."""
    return f"[{', '.join(map(str, shape))}]"
