"""A bundle in the folder layout of another tool. Its graphs are taken over as they are: new ends are sewn on, nothing
is exported again. One file, one layout (`Layout`)."""

from __future__ import annotations

import os
import secrets
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgediff.errors import ConfigError, OutputError, unknown
from edgediff.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.pipeline import Pipeline

__all__ = ["Layout", "export_layout"]


class Layout(Protocol):
    """A file in this folder, or an entry point of `edgediff.layouts`."""

    NAME: str

    @abstractmethod
    def write(self, bundle: Bundle, out: Path, pipeline: Pipeline | None) -> None:
        """Writes the bundle into the empty folder `out`. `pipeline` is the model that the bundle was made from, if it
        is loaded. Raises BackendError for a bundle without the graphs, ModelError."""


DOOR = Layout


def export_layout(bundle: Bundle, layout: str, out: str | Path, *, pipeline: Pipeline | None = None) -> Path:
    """Writes the bundle to the new folder `out` as `layout` wants it, whole or not at all.

    The configurations of the model's parts come from the model that the bundle was made from; `pipeline` spares
    loading it. Raises ConfigError for an unknown layout, OutputError, ModelError, BackendError for a bundle that
    does not have the graphs.
    """
    if layout not in plugin_names("layouts"):
        raise ConfigError(unknown("layout", layout, plugin_names("layouts")), code="unknown_layout")
    writer: Layout = load_plugin("layouts", layout)
    path = Path(out)
    if os.path.lexists(path):
        raise OutputError("exists already; choose another name", where=str(out), code="exists")
    if not path.parent.is_dir():
        raise OutputError(f"the folder '{path.parent}' does not exist; create it", where=str(out))
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        writer.write(bundle, partial, pipeline)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path
