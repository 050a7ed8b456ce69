"""Ways to break the valid bundle, and what a broken one is: a `Case`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.valid_bundle import Tree, valid_tree

Change = Callable[[Tree], None]


@dataclass(frozen=True)
class Case:
    """A broken bundle: the code of its error, and words that the message must hold."""

    name: str
    code: str
    text: str
    change: Change

    def tree(self) -> Tree:
        tree = valid_tree()
        self.change(tree)
        return tree


def put(key: str, value: Any) -> Change:
    """Sets a key of the manifest: `program.rows.1.graph`."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        at: Any = manifest
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in parents:
            at = at[part]
        at[last] = value
        tree.manifest = manifest

    return change


def drop(key: str) -> Change:
    """Removes a key of the manifest: `programs.main.rows`."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        at: Any = manifest
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in parents:
            at = at[part]
        del at[last]
        tree.manifest = manifest

    return change


def append(key: str, *values: Any) -> Change:
    """Adds items at the end of a list of the manifest."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        at: Any = manifest
        for part in key.split("."):
            at = at[int(part) if part.isdigit() else part]
        at.extend(values)
        tree.manifest = manifest

    return change


def text(old: str, new: str) -> Change:
    """Replaces text of the manifest, once."""

    def change(tree: Tree) -> None:
        before = tree.files["manifest.json"].decode()
        assert old in before, old
        tree.files["manifest.json"] = before.replace(old, new, 1).encode()

    return change


def raw(path: str, data: bytes | None) -> Change:
    """Writes a file behind the manifest's back; None removes it."""

    def change(tree: Tree) -> None:
        tree.files.pop(path, None)
        if data is not None:
            tree.files[path] = data

    return change


def add(path: str, data: bytes) -> Change:
    """Adds a file and lists it as it should be."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        entry = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        tree.manifest = {**manifest, "files": [*manifest["files"], entry]}
        tree.files[path] = data

    return change


def rewrite(path: str, data: bytes) -> Change:
    """Other content for a listed file, listed as it should be."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        digest = hashlib.sha256(data).hexdigest()
        entry = {"path": path, "bytes": len(data), "sha256": digest}
        manifest["files"] = [entry if one["path"] == path else one for one in manifest["files"]]
        tree.manifest = manifest
        tree.files[path] = data

    return change


def list_only(path: str) -> Change:
    """Lists a file of that path, and writes none."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        tree.manifest = {**manifest, "files": [*manifest["files"], {"path": path, "bytes": 1, "sha256": "0" * 64}]}

    return change


def unlist(path: str) -> Change:
    def change(tree: Tree) -> None:
        manifest = tree.manifest
        tree.manifest = {**manifest, "files": [entry for entry in manifest["files"] if entry["path"] != path]}

    return change


def link(path: str, target: str) -> Change:
    """Puts a link where a file or a folder was."""

    def change(tree: Tree) -> None:
        tree.files = {name: data for name, data in tree.files.items() if not f"{name}/".startswith(f"{path}/")}
        tree.links[path] = target

    return change


def both(*changes: Change) -> Change:
    def change(tree: Tree) -> None:
        for each in changes:
            each(tree)

    return change
