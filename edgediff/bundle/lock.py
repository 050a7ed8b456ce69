"""One writer at a time: an advisory lock on a file beside the bundle, which the system lets go when its holder dies."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until nobody else writes to the bundle at `folder`, then holds `.NAME.lock` in the folder above it.

    Raises OSError where that folder cannot be written to.
    """
    file = folder.with_name(f".{folder.name}.lock")
    handle = _acquire(file)
    try:
        yield
    finally:
        if sys.platform != "win32":  # which does not remove open files; an empty file stays there
            file.unlink(missing_ok=True)
        os.close(handle)


def _acquire(file: Path) -> int:
    """The open, locked file. Who held it before may have removed it while we waited: then the next one counts."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _wait(handle)
            if _is_still(file, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _wait(handle: int) -> None:
    if sys.platform == "win32":
        while True:  # LK_LOCK gives up after ten seconds
            try:
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
                return
            except OSError as error:
                if error.errno != errno.EDEADLK:
                    raise
    else:
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_still(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
