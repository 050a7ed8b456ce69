"""A folder is a registry: `edgediff/prune/laptop.py` is `kind = "laptop"`; other packages plug in
through the entry-point groups `edgediff.prune`, `edgediff.reuse`, `edgediff.networks`, `edgediff.backends`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from edgediff.errors import ConfigError, MissingLibrary, unknown

Progress = Callable[[str, int, int], None]
"""How work that takes time tells whoever watches: what is being done, steps done, steps in all."""

EXTRAS = {
    "onnx": "onnxruntime",
    "onnxscript": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "coremltools": "coreml",
    "executorch": "executorch",
    "torchao": "executorch",
    "optimum": "optimum",
    "ethosu": "ethosu",
    "tosa_serializer": "ethosu",
    "tosa_reference_model": "ethosu",
}


def plugin_names(folder: str) -> list[str]:
    """Kinds in `edgediff/<folder>/` and in the entry-point group `edgediff.<folder>`."""
    package = importlib.import_module(f"edgediff.{folder}")
    own = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return sorted({*own, *(point.name for point in _points(folder))})


def load_plugin(folder: str, kind: str) -> ModuleType:
    """The module of a kind. Raises ConfigError for an unknown kind, MissingLibrary (chained to its
    cause) when the module needs a library that is not installed."""
    if kind not in plugin_names(folder):
        raise ConfigError(unknown(f"{folder} kind", kind, plugin_names(folder)), code=f"unknown_{folder}")
    for point in _points(folder):
        if point.name == kind:
            module: ModuleType = point.load()
            return module
    return import_or_explain(f"edgediff.{folder}.{kind}", needed_by=kind)


@cache
def _points(folder: str) -> tuple[EntryPoint, ...]:
    """What other packages bring. Asked once: reading all installed packages' metadata takes tens of milliseconds."""
    return tuple(entry_points(group=f"edgediff.{folder}"))


def import_or_explain(module: str, *, needed_by: str) -> ModuleType:
    """`import module`, or MissingLibrary saying which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        extra = EXTRAS.get(missing)
        command = f'pip install "edgediff[{extra}]"' if extra else f"pip install {missing}"
        raise MissingLibrary(f"{needed_by} needs the library '{missing}': {command}") from error


def data_folder(name: str) -> Path:
    """`targets/` or `recipes/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
