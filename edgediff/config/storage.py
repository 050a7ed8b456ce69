"""What edgediff writes lies on the disk whole or not at all; what may be measured again lies in the cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgediff.errors import OutputError


def write_text_atomic(path: Path, text: str, *, unfinished: Path | None = None) -> None:
    """`write_bytes_atomic` of text in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"), unfinished=unfinished)


def write_bytes_atomic(path: Path, data: bytes, *, unfinished: Path | None = None) -> None:
    """Writes `data` beside `path`, flushes it to the disk, then renames: never a half-written file.

    `unfinished` is what the unfinished file's path begins with instead, on the same disk: for a folder in which no
    other file may be seen. Raises OutputError when the folder is missing, read-only or full; `path` then is as it was.
    """
    unfinished = unfinished or path.with_name(f".{path.name}.")
    try:
        handle, name = tempfile.mkstemp(dir=unfinished.parent, prefix=unfinished.name)
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
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        Path(name).unlink(missing_ok=True)  # there only where the renaming was not reached


def cache_folder() -> Path:
    """Where results that cost time are kept between runs: `$EDGEDIFF_CACHE`, else `edgediff` below
    `$XDG_CACHE_HOME` or `~/.cache`. Everything in it may be deleted."""
    if own := os.environ.get("EDGEDIFF_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgediff"
