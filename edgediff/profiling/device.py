"""What this machine is and how it is doing: facts to print beside a measurement. None is "cannot be read here"."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import mmap
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from edgediff.runtime.latency import DeviceFacts

CPUINFO, GOVERNOR = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STATUS, ROLLUP = Path("/proc/self/status"), Path("/proc/self/smaps_rollup")


def read_device(backend: str, threads: int | None) -> DeviceFacts:
    """This machine, now. `threads` None: the backend's own choice."""
    return DeviceFacts(
        name="host",
        backend=backend,
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        affinity=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
        threads=threads,
        os=platform.platform(terse=True),
        governor=_first_line(GOVERNOR),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        memory_gb=_memory_gb(),
        runtime=_runtime(backend),
    )


def peak_rss_mb() -> float | None:
    """The process's highest resident memory so far, MB. Not `ru_maxrss`, which a child inherits on Linux."""
    return _kilobytes(STATUS, "VmHWM")


def rss_mb() -> float | None:
    """Resident memory now, MB."""
    return _kilobytes(STATUS, "VmRSS")


def pss_mb() -> float | None:
    """Resident memory now with shared pages divided among those who share them, MB."""
    return _kilobytes(ROLLUP, "Pss")


def drop_from_cache(files: Iterable[Path]) -> bool | None:
    """Asks the system to forget the files' pages. True when none is left in memory, False when some are
    (tmpfs, or mapped by another process), None where that cannot be told."""
    if not hasattr(os, "posix_fadvise"):
        return None
    left: list[int | None] = []
    for path in files:
        with open(path, "rb") as file:
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            left.append(_resident_pages(file.fileno()))
    known = [count for count in left if count is not None]
    return None if len(known) < len(left) else not any(known)


def _resident_pages(handle: int) -> int | None:
    """Pages of an open file that are in memory, by mincore(2); None where the system does not say."""
    size = os.fstat(handle).st_size
    if not size:
        return 0
    with mmap.mmap(handle, 0, access=mmap.ACCESS_COPY) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(mapped)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), states)
        finally:
            del view  # or the map cannot be closed
    return None if failed else sum(state & 1 for state in states)


def _cpu_name() -> str | None:
    for line in _lines(CPUINFO):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "cpu model"):
            return value.strip()
    return platform.processor() or platform.machine() or None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _runtime(backend: str) -> str | None:
    """Name and version of the library behind a backend."""
    library = {"eager": "torch", "cuda": "torch"}.get(backend, backend)
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def _kilobytes(path: Path, key: str) -> float | None:
    """A `Key:  123 kB` line of /proc in MB (the kernel's kB is 1024 bytes)."""
    for line in _lines(path):
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def _first_line(path: Path) -> str | None:
    return next(iter(_lines(path)), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
