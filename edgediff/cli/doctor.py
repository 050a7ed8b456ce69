"""What works on this machine: Python, libraries, backends, links to devices, fonts, memory.

Versions come from the installed packages' own records. Whether a backend works is found by loading it in a
process of its own, so that a library that crashes when imported is a line here and not the end of the doctor.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgediff.config import cache_folder
from edgediff.errors import EdgeDiffError
from edgediff.plugins import Progress, plugin_names

State = Literal["ok", "missing", "broken", "note"]

OLDEST_PYTHON = (3, 11)
PROBE_SECONDS = 120.0
EXTRAS_SHOWN = ("onnxruntime", "coreml", "executorch", "ethosu")
# Imports what the extra of a backend's name brings, then the backend; the last line of output is the finding.
PROBE = """
import sys
from edgediff.errors import EdgeDiffError
from edgediff.plugins import EXTRAS, import_or_explain, load_plugin
name = sys.argv[1]
try:
    for library in [library for library, extra in EXTRAS.items() if extra == name]:
        import_or_explain(library, needed_by=name)
    load_plugin("backends", name)
except EdgeDiffError as error:
    sys.exit(str(error))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
LINK_TOOLS = {
    "adb": ("adb version", "Android phones: apt install adb, or Android's platform-tools"),
    "xcrun": ("xcrun --version", "iPhones, on macOS only: xcode-select --install"),
}


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is what mends it; `needed` says that no command can do without."""

    group: str
    name: str
    state: State
    detail: str
    fix: str = ""
    needed: bool = False


def examine(progress: Progress | None = None) -> tuple[Check, ...]:
    """Everything the doctor looks at, in the order in which it is shown."""
    parts: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("machine", check_machine),
        ("libraries", check_libraries),
        ("backends", check_backends),
        ("links", check_links),
        ("fonts", check_fonts),
    )
    found: list[Check] = []
    for index, (name, part) in enumerate(parts):
        if progress is not None:
            progress(f"looking at {name}", index, len(parts))
        found += part()
    return tuple(found)


def is_healthy(checks: tuple[Check, ...]) -> bool:
    """Whether everything that is needed is there."""
    return all(check.state in ("ok", "note") for check in checks if check.needed)


def as_data(checks: tuple[Check, ...]) -> dict[str, Any]:
    """The findings as plain values."""
    return {"ok": is_healthy(checks), "checks": [asdict(check) for check in checks]}


def check_machine() -> Iterator[Check]:
    """Python, system, cores, memory and disk."""
    import psutil

    version = platform.python_version()
    old = sys.version_info[:2] < OLDEST_PYTHON
    yield Check(
        "python",
        "python",
        "broken" if old else "ok",
        f"{version} ({sys.executable})",
        "edgediff needs Python 3.11 or newer" if old else "",
        needed=True,
    )
    yield Check("machine", "system", "note", f"{platform.system()} {platform.release()}, {platform.machine()}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("machine", "cores", "note", f"{usable} of {os.cpu_count()} usable")
    memory = psutil.virtual_memory()
    yield Check("machine", "memory", "note", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")
    place = cache_folder()
    while not place.exists():
        place = place.parent
    yield Check("machine", "disk", "note", f"{shutil.disk_usage(place).free / 1e9:.0f} GB free for the cache")


def check_libraries() -> Iterator[Check]:
    """Every library that edgediff's own record asks for: installed, and in the version it was tested with."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("edgediff") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "library",
            "edgediff",
            "missing",
            "runs from a folder, so its requirements are unknown",
            "pip install -e . in the checkout",
        )
        return
    yield Check("library", "edgediff", "ok", importlib.metadata.version("edgediff"))
    for requirement in wanted:
        if _applies(requirement, ""):
            yield _check_library(requirement, "")
    shown = {"edgediff"}  # an extra may take another along
    for extra in EXTRAS_SHOWN:
        for requirement in wanted:
            new = requirement.name not in shown and not _applies(requirement, "")
            if new and _applies(requirement, extra):
                shown.add(requirement.name)
                yield _check_library(requirement, extra)


def _applies(requirement: Any, extra: str) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": extra}))


def _check_library(requirement: Any, extra: str) -> Check:
    needed = not extra
    fix = f'pip install "edgediff[{extra}]"' if extra else f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        detail = f"for the extra '{extra}'" if extra else "is not installed"
        return Check("library", requirement.name, "missing", detail, fix, needed)
    if not requirement.specifier.contains(version, prereleases=True):
        detail = f"{version}, tested with {requirement.specifier}"
        return Check("library", requirement.name, "broken", detail, fix, needed)
    return Check("library", requirement.name, "ok", version, needed=needed)


def check_backends() -> Iterator[Check]:
    """Every backend, loaded in a process of its own."""
    for name in plugin_names("backends"):
        yield probe_backend(name)


def probe_backend(name: str, *, seconds: float = PROBE_SECONDS) -> Check:
    """Loads one backend with its libraries."""
    command = [sys.executable, "-c", PROBE, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Check("backend", name, "broken", f"did not load within {seconds:.0f} s")
    if done.returncode == 0:
        return Check("backend", name, "ok", "loads")
    reason = _last_line(done.stderr) or f"ended with status {done.returncode}"
    text, mark, command_text = reason.partition("pip install")
    fix = f"{mark}{command_text}" if mark else ""
    return Check("backend", name, "missing" if mark else "broken", text.rstrip(" :") if mark else reason, fix)


def check_links() -> Iterator[Check]:
    """The tools that reach a device. None is needed to build, verify or run here."""
    for name, (command, fix) in LINK_TOOLS.items():
        if not shutil.which(name):
            yield Check("link", name, "missing", "is not on the PATH", fix)
            continue
        try:
            done = subprocess.run(command.split(), capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check("link", name, "broken", str(error), fix)
            continue
        output = (done.stdout or done.stderr).splitlines() or [""]
        yield Check("link", name, "ok" if done.returncode == 0 else "broken", output[0])


def check_fonts() -> Iterator[Check]:
    """The emoji font, which only training the embedded model needs."""
    from edgediff.embedded.glyphs import find_font

    try:
        yield Check("font", "Noto Color Emoji", "ok", str(find_font()))
    except EdgeDiffError:
        yield Check(
            "font",
            "Noto Color Emoji",
            "missing",
            "only training the embedded model needs it",
            "apt install fonts-noto-color-emoji",
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
