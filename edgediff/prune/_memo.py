"""Measurements on disk, so that scoring that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from edgediff.config import Model, cache_folder, dump_json, parse_outside, write_text_atomic
from edgediff.errors import ConfigError


class _Values(Model):
    values: dict[str, tuple[float, ...]] = {}


class Memo:
    """Name -> numbers, in a file of the cache folder whose name is the hash of everything they depend on.

    Used as a context manager: what was measured is written at most every `interval` seconds, whole or not at
    all, and once more on leaving, also when an exception (Ctrl-C) is on its way. Values that are not finite are
    not kept. A file that cannot be read is measured again.
    """

    def __init__(self, basis: Mapping[str, Any], *, interval: float = 2.0) -> None:
        digest = hashlib.sha256(dump_json(dict(basis)).encode()).hexdigest()
        self.path = cache_folder() / "measurements" / f"{digest}.json"
        self._interval = interval
        self._values = self._read()
        self._dirty = False
        self._written = time.monotonic()

    def __enter__(self) -> Memo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> tuple[float, ...] | None:
        """What was measured under this name, in this run or an earlier one."""
        return self._values.get(name)

    def put(self, name: str, *values: float) -> None:
        """Keeps the numbers, and writes the file when it is time to."""
        self._values[name] = values
        self._dirty = True
        if time.monotonic() - self._written >= self._interval:
            self.write()

    def write(self) -> None:
        """Writes the file if something is new. Raises OutputError when the cache folder cannot be written."""
        if self._dirty:
            finite = {n: v for n, v in self._values.items() if all(math.isfinite(x) for x in v)}
            self._values = {**self._read(), **finite}  # another process may have measured too
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path, dump_json({"values": self._values}))
        self._dirty, self._written = False, time.monotonic()

    def _read(self) -> dict[str, tuple[float, ...]]:
        try:
            text = self.path.read_text(encoding="utf-8")
            return dict(parse_outside(text, _Values, where=str(self.path)).values)
        except (OSError, UnicodeDecodeError, ConfigError):
            return {}
