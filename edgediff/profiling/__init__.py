"""What a bundle takes on this machine or on a device, measured; and which of two bundles is faster.

What is measured here is measured in a fresh Python process, so that the first load and the memory are the bundle's own
and not what the caller has imported. No torch, unless the backend is torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import ConfigError, LinkError
from edgediff.links import Device, Link, run_all
from edgediff.links._runners import read_runner
from edgediff.links.host import run_worker
from edgediff.plugins import Progress, load_plugin, plugin_names
from edgediff.runtime import choose_backend, find_stand_in
from edgediff.runtime.latency import LatencyTable

if TYPE_CHECKING:
    from edgediff.bundle import Bundle

__all__ = ["compare_bundles", "profile_bundle", "profile_devices"]

RUNNER_BACKEND = "executorch"  # of the runner that edgediff builds


def profile_bundle(
    bundle: Bundle,
    *,
    device: str = "host",
    backend: str | None = None,
    runs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    sustained: float | None = None,
    per_op: bool = False,
    runner: Path | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Loads the bundle cold, makes `warmup` + `runs` pictures, loads it again warm.

    Cold: the bundle's files are dropped from the system's page cache where it lets us (`load_ms.cache_dropped`
    says whether that came true), and the process is new; libraries are imported before the clock starts.
    A load opens the bundle, checks every hash, and readies every graph. A graph's times are those of its
    runner's calls alone. `sustained` seconds of pictures, one after the other, in place of `runs` show how much the
    machine slows down when it is warm. `per_op` adds `operators_ms` and `placement` from one more picture that is
    traced, and not timed.

    `device` is `host`, `adb` (the only device that adb sees) or `adb:SERIAL`; there `runner` makes the pictures, by
    default the one of `edgediff.links._build_runner`. Raises LinkError for a device that cannot be reached,
    ConfigError for counts, BackendError, BundleError, and EdgeDiffError `profiling` when the process dies.
    """
    _check(runs, warmup, sustained)
    return _only(
        profile_devices(
            bundle,
            [device],
            backend=backend,
            runs=runs,
            warmup=warmup,
            threads=threads,
            sustained=sustained,
            per_op=per_op,
            runner=runner,
            progress=progress,
        )
    )


def profile_devices(
    bundle: Bundle,
    devices: Sequence[str],
    *,
    backend: str | None = None,
    runs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    sustained: float | None = None,
    per_op: bool = False,
    runner: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, LatencyTable | LinkError]:
    """`profile_bundle` on several devices at once, by serial: a table, or why there is none. One that fails does not
    stop the others. Raises LinkError when a device is not there to begin with, ConfigError, BackendError."""
    _check(runs, warmup, sustained)
    reached = [_reach(device) for device in devices]
    if len({(link.NAME, one.serial) for link, one in reached}) < len(reached):
        raise ConfigError("one device is named twice", code="usage")
    here = any(link.NAME == "host" for link, _ in reached)
    if here and (runner is not None or len(reached) > 1):
        what = "a runner is for a device" if runner is not None else "host is measured alone"
        raise ConfigError(f"{what}; give --device adb:SERIAL as well", code="usage")
    chosen = None if runner is None else read_runner(runner)
    if per_op and chosen is not None and chosen.facts.backend != RUNNER_BACKEND:
        raise ConfigError("a runner of one's own traces no operators; leave --per-op out", code="usage")
    wanted = backend or (chosen.facts.backend if chosen is not None else RUNNER_BACKEND) or None
    return run_all(
        bundle,
        reached,
        chosen,
        runs=runs,
        warmup=warmup,
        threads=threads,
        sustained=sustained,
        per_op=per_op,
        backend=_measurable(bundle, backend) if here else choose_backend(bundle.manifest, wanted),
        progress=progress,
    )


def compare_bundles(
    a: Bundle,
    b: Bundle,
    *,
    backend: str | None = None,
    runs: int = 10,
    warmup: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Is `b` faster than `a`? Both are loaded into one fresh process and take turns, picture by picture.

    `{"ratio": {"median", "low", "high"}, "n", "verdict"}` is the time of b over the time of a, as
    `latency.compare_samples` has it; besides, `a` and `b` with name, backend, `p50_ms` and their samples, and the
    `device`. Who goes first changes from pair to pair, so that neither always finds the other's heat and
    caches. Raises what `profile_bundle` raises.
    """
    _check(runs, warmup)
    job = {
        "what": "compare",
        "bundles": [str(a.folder), str(b.folder)],
        "programs": [a.manifest.default, b.manifest.default],
        "backends": [_measurable(one, backend) for one in (a, b)],
        "runs": runs,
        "warmup": warmup,
        "threads": threads,
    }
    found: dict[str, Any] = run_worker(job, progress)
    return found


def _measurable(bundle: Bundle, backend: str | None) -> str:
    """The backend, unless its times here would say nothing about its device."""
    name = choose_backend(bundle.manifest, backend)
    if said := find_stand_in(bundle.manifest, name):
        raise LinkError(
            f"the runtime of '{name}' is not on this machine; here {said} computes its programs, whose times say "
            "nothing about it. Profile on the device (Core ML: on a Mac), or predict with edgediff estimate",
            code="unknown_device",
        )
    return name


def _reach(device: str) -> tuple[Link, Device]:
    """The link and the device of `host`, `adb` (whatever is there) or `adb:SERIAL`."""
    kind, colon, serial = device.partition(":")
    if kind not in plugin_names("links") or (colon and not serial):
        raise LinkError(
            f"device '{device}' cannot be profiled from here: give host, adb (the only device that adb sees) or "
            f"adb:SERIAL, several times for several devices (links: {', '.join(plugin_names('links'))})",
            code="unknown_device",
        )
    link: Link = load_plugin("links", kind)
    return link, link.find_device(serial or None)


def _only(found: dict[str, LatencyTable | LinkError]) -> LatencyTable:
    (one,) = found.values()
    if isinstance(one, LinkError):
        raise one
    return one


def _check(runs: int, warmup: int, sustained: float | None = None) -> None:
    for name, count, least in (("runs", runs, 1), ("warmup", warmup, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= 10_000:
            raise ConfigError(f"{name} = {count!r}: it must be a whole number from {least} to 10000", code="runs")
    if sustained is not None and not 1 <= sustained <= 86_400:
        raise ConfigError(f"sustained = {sustained!r}: it must be from 1 to 86400 seconds", code="runs")
