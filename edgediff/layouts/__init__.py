"""A bundle in the folder layout of another tool. Its graphs are taken over as they are: new ends are sewn on, nothing
is exported again.

`optimum`: what `optimum.onnxruntime.ORTStableDiffusionPipeline.from_pretrained` loads.
`apple`: the `Resources` folder that Apple's Swift package `StableDiffusion` and the apps around it load.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import ConfigError, OutputError, unknown
from edgediff.layouts.apple import write_apple
from edgediff.layouts.optimum import write_optimum

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.pipeline import Pipeline

__all__ = ["export_layout"]

LAYOUTS: dict[str, Callable[[Any, Path, Any], None]] = {"apple": write_apple, "optimum": write_optimum}


def export_layout(bundle: Bundle, layout: str, out: str | Path, *, pipeline: Pipeline | None = None) -> Path:
    """Writes the bundle to the new folder `out` as `layout` wants it, whole or not at all.

    The configurations of the model's parts come from the model that the bundle was made from; `pipeline` spares
    loading it. Raises ConfigError for an unknown layout, OutputError, ModelError, BackendError for a bundle that
    does not have the graphs.
    """
    if layout not in LAYOUTS:
        raise ConfigError(unknown("layout", layout, LAYOUTS), code="unknown_layout")
    path = Path(out)
    if os.path.lexists(path):
        raise OutputError("exists already; choose another name", where=str(out), code="exists")
    if not path.parent.is_dir():
        raise OutputError(f"the folder '{path.parent}' does not exist; create it", where=str(out))
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        LAYOUTS[layout](bundle, partial, pipeline)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path
