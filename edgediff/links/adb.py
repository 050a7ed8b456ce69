"""Android and boards through adb: push a bundle, check its hashes there, run it, and keep whatever was measured.

The runner is a program for the device that is given a bundle's folder, `--runs N --warmup N`, and prints JSON lines:
`{"load_ms": x}`, `{"graph": name, "ms": x}`, `{"image_ms": x}`, `{"peak_rss_mb": x}`; warm-up is not printed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import LinkError, unknown
from edgediff.latency import DeviceFacts, LatencyTable, LoadTimes, Samples, Thermal, graph_times, image_times

if TYPE_CHECKING:
    from edgediff.bundle import Bundle

FOLDER = "/data/local/tmp/edgediff"
STATUS = "edgediff-status"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AdbDevice:
    """One device that `adb devices` lists as ready. `emulated`: it is not the hardware whose name it bears."""

    serial: str
    model: str
    os_build: str
    abi: str
    emulated: bool


@dataclass
class Heard:
    """What a runner has printed so far."""

    load_ms: float | None = None
    peak_rss_mb: float | None = None
    images: list[float] = field(default_factory=list)
    graphs: dict[str, list[float]] = field(default_factory=dict)

    def take(self, line: str) -> None:
        """Adds one line; lines that are not the runner's JSON are passed over."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        if "image_ms" in said:
            self.images.append(float(said["image_ms"]))
        elif "graph" in said:
            self.graphs.setdefault(str(said["graph"]), []).append(float(said["ms"]))
        self.load_ms = said.get("load_ms", self.load_ms)
        self.peak_rss_mb = said.get("peak_rss_mb", self.peak_rss_mb)


def list_devices() -> list[AdbDevice]:
    """Every device that is ready. Raises LinkError when adb is missing, and when two devices bear one serial: adb
    could not tell them apart."""
    lines = [line.split() for line in _adb("devices").splitlines()[1:] if line.strip()]
    serials = [words[0] for words in lines if len(words) > 1 and words[1] == "device"]
    for serial in serials:
        if serials.count(serial) > 1:
            raise LinkError(
                f"two devices have the serial '{serial}', so that adb cannot tell them apart; unplug one of them",
                code="same_serial",
            )
    return [describe_device(serial) for serial in serials]


def describe_device(serial: str) -> AdbDevice:
    """Its model, build and kind of processor, as its system says."""
    keys = ("ro.product.model", "ro.build.fingerprint", "ro.product.cpu.abi", "ro.kernel.qemu", "ro.edgediff.standin")
    model, build, abi, qemu, standin = (_shell(serial, f"getprop {key}").strip() for key in keys)
    return AdbDevice(serial, model or serial, build, abi, "1" in (qemu, standin))


def find_device(serial: str | None) -> AdbDevice:
    """The device with this serial, or the only one. Raises LinkError for none, several, or an unknown serial."""
    found = {device.serial: device for device in list_devices()}
    if not found:
        raise LinkError("adb sees no device; connect one, unlock it and allow USB debugging", code="no_device")
    if serial is None:
        if len(found) > 1:
            raise LinkError(f"adb sees {', '.join(sorted(found))}; say which one", code="several_devices")
        return next(iter(found.values()))
    if serial not in found:
        raise LinkError(unknown("device", serial, found), code="unknown_device")
    return found[serial]


def push(bundle: Bundle, device: AdbDevice, *, progress: Progress | None = None) -> str:
    """Copies the bundle's files that are not there yet, and checks every hash there; returns the folder on the
    device. A push that was broken off goes on where it stopped. Raises LinkError when a hash is not what the
    manifest says."""
    remote = f"{FOLDER}/{bundle.manifest.name}"
    wanted = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    there = _hashes(device.serial, remote)
    missing = ["manifest.json", *(path for path, digest in wanted.items() if there.get(path) != digest)]
    folders = sorted({str(Path(remote, path).parent) for path in missing})
    _shell(device.serial, "mkdir -p " + " ".join(map(shlex.quote, folders)))
    for index, path in enumerate(missing):
        if progress is not None:
            progress(f"pushing {path}", index, len(missing))
        _adb("-s", device.serial, "push", str(Path(bundle.folder) / path), f"{remote}/{path}")
    there = _hashes(device.serial, remote)
    for path, digest in wanted.items():
        if there.get(path) != digest:
            raise LinkError(
                f"'{path}' arrived on {device.serial} with another hash than the manifest's; push again, and if that "
                "does not help, free space there", code="hash",
            )  # fmt: skip
    return remote


def push_runner(runner: Path, device: AdbDevice) -> str:
    """Copies the runner and makes it executable; returns its path on the device."""
    remote = f"{FOLDER}/{runner.name}"
    _shell(device.serial, f"mkdir -p {FOLDER}")
    _adb("-s", device.serial, "push", str(runner), remote)
    _shell(device.serial, f"chmod 755 {shlex.quote(remote)}")
    return remote


def run(
    bundle: Bundle, device: AdbDevice, runner: Path, *, runs: int = 5, warmup: int = 1, backend: str = "",
    progress: Progress | None = None,
) -> LatencyTable:
    """Pushes, runs and reads what the runner prints, image by image. A device that goes away in the middle leaves
    the images that it had made, with `complete` False. Raises LinkError when not one was made."""
    folder = push(bundle, device, progress=progress)
    program = push_runner(runner, device)
    before = read_thermal(device)
    command = f"{shlex.quote(program)} {shlex.quote(folder)} --runs {runs} --warmup {warmup}"
    heard, status, last = Heard(), None, ""
    for line in _stream(device.serial, f"{command}; echo {STATUS} $?"):
        if line.startswith(STATUS):
            status = int(line.split()[1])
        else:
            heard.take(line)
            last = line.strip() or last
        if progress is not None:
            progress(f"measuring on {device.serial}", len(heard.images), runs)
    if not heard.images:
        why = "the device went away" if status is None else f"the runner ended with status {status}: {last}"
        raise LinkError(f"nothing was measured on {device.serial}: {why}", code="no_result")
    return _table(bundle, device, heard, before, _after(device), backend, warmup, status == 0)


def run_all(
    bundle: Bundle, devices: Sequence[AdbDevice], runner: Path, **options: Any
) -> dict[str, LatencyTable | LinkError]:
    """`run` on several devices at once, by serial; one that fails does not stop the others."""

    def one(device: AdbDevice) -> LatencyTable | LinkError:
        try:
            return run(bundle, device, runner, **options)
        except LinkError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        return dict(zip((device.serial for device in devices), pool.map(one, devices), strict=True))


def pull(device: AdbDevice, remote: str, out: Path) -> Path:
    """Copies a file from the device to `out`."""
    _adb("-s", device.serial, "pull", remote, str(out))
    return out


def read_thermal(device: AdbDevice) -> Thermal:
    """Temperatures and battery, as far as the device tells without root."""
    battery = dict(re.findall(r"^\s*(level|temperature|AC powered|USB powered): (\S+)",
                              _shell(device.serial, "dumpsys battery 2>/dev/null"), re.MULTILINE))  # fmt: skip
    zones = "for z in /sys/class/thermal/thermal_zone*; do echo $(cat $z/type) $(cat $z/temp); done 2>/dev/null"
    celsius = {name: int(value) / 1000 for name, value in
               re.findall(r"^(\S+) (-?\d+)$", _shell(device.serial, zones), re.MULTILINE)}  # fmt: skip
    if "temperature" in battery:
        celsius["battery"] = int(battery["temperature"]) / 10
    powered = [battery[key] == "true" for key in ("AC powered", "USB powered") if key in battery]
    return Thermal(
        celsius=celsius, battery_percent=float(battery["level"]) if "level" in battery else None,
        charging=any(powered) if powered else None,
    )


def _after(device: AdbDevice) -> Thermal | None:
    try:
        return read_thermal(device)
    except LinkError:
        return None


def _table(
    bundle: Bundle, device: AdbDevice, heard: Heard, before: Thermal, after: Thermal | None, backend: str,
    warmup: int, complete: bool,
) -> LatencyTable:
    backend = backend or next(iter({name for graph in bundle.manifest.graphs.values() for name in graph.artifacts}), "")
    inside = sum(map(sum, heard.graphs.values()))
    return LatencyTable(
        source="emulated" if device.emulated else "measured",
        device=DeviceFacts(name=device.model, backend=backend, cpu=device.abi or None, serial=device.serial,
                           os_build=device.os_build or None),
        load_ms=LoadTimes(cold=heard.load_ms), graphs={n: graph_times(times) for n, times in heard.graphs.items()},
        end_to_end_ms=image_times(heard.images), warmup=warmup, peak_rss_mb=heard.peak_rss_mb,
        overhead_fraction=round(max(0.0, 1 - inside / sum(heard.images)), 5) if complete and heard.graphs else None,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"), bundle=bundle.manifest.name,
        samples=Samples(end_to_end_ms=tuple(heard.images), graphs={n: tuple(t) for n, t in heard.graphs.items()}),
        thermal_before=before, thermal_after=after, complete=complete,
    )  # fmt: skip


def _hashes(serial: str, remote: str) -> dict[str, str]:
    """SHA-256 of every file below `remote`, by path; {} when there is nothing."""
    said = _shell(serial, f"cd {shlex.quote(remote)} 2>/dev/null && find . -type f -exec sha256sum {{}} +")
    return {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})\s+\./(.+?)\r?$", said, re.MULTILINE)}


def _program() -> str:
    found = shutil.which("adb")
    if found is None:
        raise LinkError(
            "adb is not installed: apt install adb (Debian, Ubuntu), brew install android-platform-tools (macOS), or "
            "https://developer.android.com/tools/releases/platform-tools", code="no_adb",
        )  # fmt: skip
    return found


def _adb(*arguments: str) -> str:
    done = subprocess.run([_program(), *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LinkError(f"adb {arguments[-1]}: {said[-1] if said else 'failed'}", code="adb")
    return done.stdout


def _shell(serial: str, command: str) -> str:
    return _adb("-s", serial, "shell", command)


def _stream(serial: str, command: str) -> Iterator[str]:
    """Lines as they come; ends when the command does, or when the device goes away."""
    call = [_program(), "-s", serial, "shell", command]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as told:
        yield from told.stdout or ()
