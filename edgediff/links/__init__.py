"""How to reach a device: one file per kind of link (`Link`), and the import of what other tools measured.

What runs on a device is a `_runners.DeviceRunner`: the C++ program in `runner/`, which `_build_runner` compiles, or any
program that prints the lines of `_heard`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgediff.errors import LinkError
from edgediff.plugins import Progress

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime.latency import LatencyTable


class Device(Protocol):
    """A device that a link found. `serial` tells it from all others of the link."""

    @property
    def serial(self) -> str: ...


class Link(Protocol):
    """A file in this folder, or an entry point of `edgediff.links`. `edgediff profile --device NAME:SERIAL` uses it.
    Functions may take more by keyword; `device` is what the link's own `find_device` gave."""

    NAME: str

    @abstractmethod
    def find_device(self, name: str | None = None) -> Device:
        """The device of this name or serial, or the only one. Raises LinkError for none, several or an unknown one."""

    @abstractmethod
    def push(self, bundle: Bundle, device: Any) -> Any:
        """Copies the bundle to the device; what it is called there. Raises LinkError."""

    def run(
        self,
        bundle: Bundle,
        device: Any,
        runner: Path | None = None,
        *,
        runs: int = 5,
        warmup: int = 1,
        threads: int | None = None,
        sustained: float | None = None,
        per_op: bool = False,
        backend: str = "",
        progress: Progress | None = None,
    ) -> LatencyTable:
        """Pushes the bundle and makes pictures there, as `profiling.profile_bundle` says. Raises LinkError."""
        raise LinkError(
            f"the link '{self.NAME}' starts no programs on a device, so nothing can be profiled through it",
            code="no_run",
        )

    def pull(self, device: Any, remote: str, out: Path) -> Path:
        """Copies a file from the device to `out`. Raises LinkError."""
        raise LinkError(f"the link '{self.NAME}' brings no files back", code="no_pull")


DOOR = Link


def run_all(
    bundle: Bundle, reached: Sequence[tuple[Link, Device]], runner: Any = None, **options: Any
) -> dict[str, LatencyTable | LinkError]:
    """`run` on several devices at once, by serial; one that fails does not stop the others."""

    def one(pair: tuple[Link, Device]) -> LatencyTable | LinkError:
        link, device = pair
        try:
            return link.run(bundle, device, runner, **options)
        except LinkError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(reached))) as pool:
        return dict(zip((device.serial for _, device in reached), pool.map(one, reached), strict=True))
