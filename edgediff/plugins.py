"""A folder is a registry: `edgediff/prune/laptop.py` is `kind = "laptop"`, and other packages plug in through the
entry-point group `edgediff.prune`; so for `reuse`, `networks`, `backends`, `links` and `layouts`.

Every registry's `__init__` declares its Protocol as `DOOR`. A plug-in is a module (or any object) with the Protocol's
members; those that have a body or a value there may be left out.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

from edgediff.errors import ConfigError, MissingLibrary, first_line, unknown

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
    return sorted({*own_names(folder), *(point.name for point in _points(folder))})


def own_names(folder: str) -> list[str]:
    """Kinds in `edgediff/<folder>/` alone."""
    package = importlib.import_module(f"edgediff.{folder}")
    return [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]


def load_plugin(folder: str, kind: str) -> Any:
    """The plug-in of a kind behind its registry's Protocol, which the caller names as the type of what it gets.

    Raises ConfigError for an unknown kind and for a plug-in that is half-written (naming the member, the plug-in and
    its file or entry point), MissingLibrary (chained to its cause) when it needs a library that is not installed.
    """
    if kind not in plugin_names(folder):
        raise ConfigError(unknown(f"{folder} kind", kind, plugin_names(folder)), code=f"unknown_{folder}")
    return _open(folder, kind)


class Plugin:
    """A plug-in's own members, and the Protocol's defaults for those that it leaves out. `NAME` is its kind."""

    def __init__(self, own: Any, door: type, kind: str) -> None:
        self.own, self.door, self.NAME = own, door, kind
        self.__doc__ = own.__doc__

    def __getattr__(self, member: str) -> Any:
        if hasattr(self.own, member):
            return getattr(self.own, member)
        default = getattr(self.door, member)
        return MethodType(default, self) if inspect.isfunction(default) else default


@cache
def _open(folder: str, kind: str) -> Plugin:
    """Loaded and checked once."""
    door = importlib.import_module(f"edgediff.{folder}").DOOR
    points = [point for point in _points(folder) if point.name == kind]
    inside = kind in own_names(folder)
    if len(points) + inside > 1:
        packages = ", ".join(sorted(str(point.dist and point.dist.name) for point in points))
        has = "edgediff has one of its own" if inside else "only one of them can be installed"
        raise ConfigError(f"{folder} plug-in '{kind}' is brought by {packages}, and {has}", code="plugin_twice")
    if not points:
        own = import_or_explain(f"edgediff.{folder}.{kind}", needed_by=kind)
        check_plugin(own, door, f"{folder} plug-in '{kind}'", str(own.__file__))
        return Plugin(own, door, kind)
    where = f"entry point {kind} = {points[0].value} of the package '{points[0].dist and points[0].dist.name}'"
    own = _load_point(points[0], f"{folder} plug-in '{kind}'", where)
    check_plugin(own, door, f"{folder} plug-in '{kind}'", where)
    return Plugin(own, door, kind)


def _load_point(point: EntryPoint, what: str, where: str) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("edgediff", point.module.partition(".")[0]):
            raise missing_library(error, what) from error
        raise ConfigError(f"{what} cannot be loaded: {first_line(error)}", where=where, code="plugin") from error
    except Exception as error:
        message = f"{what} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise ConfigError(message, where=where, code="plugin") from error


def check_plugin(own: Any, door: type, what: str, where: str) -> None:
    """Raises ConfigError `half_written` for a member of the Protocol `door` that has no default there and is not in
    `own`, for a function of `own` that does not take what the Protocol hands it, and for a class that is another."""
    functions = {name: member for name, member in vars(door).items() if inspect.isfunction(member) and name[0] != "_"}
    for name in (*(name for name in door.__annotations__ if name != "NAME"), *functions):
        default = getattr(door, name, None)
        if hasattr(own, name):
            wrong = _misfit(getattr(own, name), functions.get(name), door.__annotations__.get(name, ""))
        elif not hasattr(door, name) or getattr(default, "__isabstractmethod__", False):
            wrong = f"it has no '{name}'"
        else:
            continue
        if wrong:
            message = (
                f"{what} is half-written: {wrong.format(name=name)}; {door.__module__}.{door.__name__} says what it is"
            )
            raise ConfigError(message, where=where, code="half_written")


def _misfit(value: Any, member: Callable[..., Any] | None, annotation: str) -> str:
    """What is wrong with a member, given the Protocol's function or annotation; empty when it fits."""
    if member is not None and not _takes(value, member):
        given = ", ".join(list(inspect.signature(member).parameters)[1:])
        return f"its '{{name}}' must be a function that takes ({given})"
    base = annotation.removeprefix("type[").removesuffix("]")
    if annotation.startswith("type[") and base not in [one.__name__ for one in getattr(value, "__mro__", ())]:
        return f"its '{{name}}' must be a class derived from {base}"
    return ""


def _takes(function: Any, member: Callable[..., Any]) -> bool:
    """Whether a function can be called as the Protocol's is."""
    if not callable(function):
        return False
    _, *wanted = inspect.signature(member).parameters.values()
    by_name = {one.name: None for one in wanted if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None for one in wanted if one.kind is not one.KEYWORD_ONLY], **by_name)
    except TypeError:
        return False
    return True


@cache
def _points(folder: str) -> tuple[EntryPoint, ...]:
    """What other packages bring. Asked once: reading all installed packages' metadata takes tens of milliseconds."""
    return tuple(entry_points(group=f"edgediff.{folder}"))


def import_or_explain(module: str, *, needed_by: str) -> ModuleType:
    """`import module`, or MissingLibrary saying which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_library(error, needed_by) from error


def missing_library(error: ModuleNotFoundError, needed_by: str) -> MissingLibrary:
    """What to install for a module that was not found."""
    missing = (error.name or str(error)).partition(".")[0]
    extra = EXTRAS.get(missing)
    command = f'pip install "edgediff[{extra}]"' if extra else f"pip install {missing}"
    return MissingLibrary(f"{needed_by} needs the library '{missing}': {command}")


def data_folder(name: str) -> Path:
    """`targets/` or `recipes/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
