"""iPhones and iPads through Xcode's `xcrun devicectl`: which are there, a bundle into an app's container, files back.

Running is the app's part: it finds the bundle in its Documents and leaves what it measured there. The commands are
those that coremltools' own link uses (coremltools.models.ml_program.experimental.remote_device, 9.0).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import LinkError, unknown

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.plugins import Progress
    from edgediff.runtime.latency import LatencyTable

FOLDER = "Documents/edgediff"
READY = ("connected", "available")  # a paired device that is away is `disconnected` or `unavailable`


@dataclass(frozen=True)
class AppleDevice:
    """A paired device. `state` is devicectl's word for the connection."""

    identifier: str
    udid: str
    name: str
    model: str
    os: str
    os_build: str
    state: str

    @property
    def serial(self) -> str:
        return self.udid


def list_devices() -> list[AppleDevice]:
    """Every physical device that this Mac is paired with. Raises LinkError off macOS and without Xcode."""
    found = []
    for one in _devicectl("list", "devices").get("result", {}).get("devices", []):
        hardware, device = one.get("hardwareProperties", {}), one.get("deviceProperties", {})
        if hardware.get("reality", "physical") != "physical":
            continue
        found.append(
            AppleDevice(
                one.get("identifier", ""),
                hardware.get("udid", ""),
                device.get("name", ""),
                hardware.get("marketingName") or hardware.get("productType", ""),
                device.get("osVersionNumber", ""),
                device.get("osBuildUpdate", ""),
                one.get("connectionProperties", {}).get("tunnelState", "unknown"),
            )
        )
    return found


def find_device(name: str | None = None) -> AppleDevice:
    """The device of that name, UDID or identifier; without one the only device that is connected. Raises LinkError
    for none, for several, for a name that is not there and for a device that is not connected."""
    every = list_devices()
    ready = [one for one in every if one.state in READY]
    if name is None:
        if len(ready) == 1:
            return ready[0]
        names = ", ".join(f"{one.name} ({one.udid})" for one in ready)
        raise LinkError(
            f"several devices are connected; name one: {names}"
            if ready
            else "no iPhone or iPad is connected: plug "
            "one in, unlock it, trust this Mac, and turn Developer Mode on (Settings, Privacy & Security)",
            code="several_devices" if ready else "no_device",
        )
    mine = [one for one in every if name in (one.name, one.udid, one.identifier)]
    if not mine:
        raise LinkError(unknown("device", name, [one.name for one in every]), code="unknown_device")
    if len(mine) > 1:
        raise LinkError(
            f"{len(mine)} devices are called '{name}': give one's UDID: {', '.join(one.udid for one in mine)}",
            code="several_devices",
        )
    if mine[0].state not in READY:
        raise LinkError(f"'{name}' is paired but {mine[0].state}: plug it in and unlock it", code="not_connected")
    return mine[0]


def push(bundle: Bundle, device: AppleDevice, *, app: str = "") -> str:
    """Copies a bundle into the container of the app with the bundle identifier `app`, which has to be installed and
    signed for development. Returns where it lies there, from the container's root. Raises LinkError without an app."""
    remote = f"{FOLDER}/{Path(bundle.folder).name}"
    _copy("to", device, app, str(Path(bundle.folder).resolve()), remote)
    return remote


def run(
    bundle: Bundle,
    device: AppleDevice,
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
    """Raises LinkError: iOS starts no program but an app."""
    raise LinkError(
        f"'{device.name}' cannot be profiled from here: iOS starts no program but an app. The demo app has a profile "
        "screen of its own, whose file has the same form",
        code="no_run",
    )


def pull(device: AppleDevice, remote: str, out: Path, *, app: str = "") -> Path:
    """Copies a file of the app's container to `out`."""
    _copy("from", device, app, remote, str(out.resolve()))
    if not out.exists():
        raise LinkError(f"'{remote}' of '{app}' was copied, and '{out}' is not there", code="pull")
    return out


def _copy(way: str, device: AppleDevice, app: str, source: str, destination: str) -> None:
    if not app:
        message = "files on an iPhone belong to an app: give `app`, the bundle identifier of one that you have signed"
        raise LinkError(message, code="no_app")
    _devicectl(
        "device",
        "copy",
        way,
        "--device",
        device.identifier,
        "--domain-type",
        "appDataContainer",
        "--domain-identifier",
        app,
        "--source",
        source,
        "--destination",
        destination,
    )


def _devicectl(*arguments: str) -> dict[str, Any]:
    """The JSON that devicectl writes: what it prints is not meant for programs."""
    if sys.platform != "darwin":
        raise LinkError(
            "devicectl is part of Xcode and runs on macOS alone; from here a bundle reaches an iPhone by "
            "`edgediff export-layout BUNDLE apple DIR` and a Mac",
            code="not_macos",
        )
    program = shutil.which("xcrun")
    if program is None:
        raise LinkError(
            "xcrun is not installed: install Xcode 15 or later, then `xcode-select --install`", code="no_xcrun"
        )
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [program, "devicectl", *arguments, "--json-output", str(answer)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise LinkError(
                f"`devicectl {' '.join(arguments[:3])}` failed ({done.returncode}): {lines[-1]}", code="devicectl"
            )
        try:
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LinkError("devicectl wrote no JSON: Xcode 15 or later is needed", code="devicectl") from error
    return found
