"""How the bundle refuses: one sentence, naming the file, with the code of the broken rule."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from edgediff.errors import BundleError, ConfigError, OutputError
from edgediff.runtime.fields import safe_path


def broken(code: str, where: str, message: str) -> BundleError:
    return BundleError(message, where=where, code=code)


def already_exists(shown: str) -> OutputError:
    message = "exists already; choose another name or pass --overwrite"
    return OutputError(message, where=shown, code="exists")


@contextmanager
def as_bundle_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise BundleError(error.message, code=error.code, where=error.where) from error


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """What the system refuses while reading is the bundle's fault; a full disk is the writer's."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise broken("file", shown, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def writing(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=shown) from error


def is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def inside_bundle(path: str, shown: str) -> str:
    try:
        return safe_path(path)
    except ValueError as error:
        raise broken("path", shown, f"'{printable(path)}': {error}") from error


def printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def format_size(count: int) -> str:
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.2f} {name}" if count >= 1e4 else f"{count} bytes"
