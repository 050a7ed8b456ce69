"""What edgediff writes lies on the disk whole or not at all; what may be measured again lies in the cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgediff.errors import OutputError


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of text in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, flushes it to the disk, then renames: never a half-written file.

    Raises OutputError when the folder is missing, read-only or full; `path` then is as it was.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """Where results that cost time are kept between runs: `$EDGEDIFF_CACHE`, else `edgediff` below
    `$XDG_CACHE_HOME` or `~/.cache`. Everything in it may be deleted."""
    if own := os.environ.get("EDGEDIFF_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgediff"
