"""Android and boards through adb: push a bundle, check its hashes there, run it, and keep whatever was measured.

The runner (`links/runner`, or any program that does the same) is given a bundle's folder, `--pushed` (what only other
backends need is left out), `--no-verify` (the push has compared the hashes), `--runs N --warmup N`, perhaps
`--threads N` and `--sustained SECONDS`, and prints the lines of `links/heard.py`. They are read as they come, and lie
on the device besides, from where they are pulled in the end.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgediff.errors import LinkError, unknown
from edgediff.links._heard import STATUS, Heard
from edgediff.links._imports import import_etdump, join_operators
from edgediff.links._runners import ARCHITECTURES, DeviceRunner, find_runner, read_runner
from edgediff.plugins import Progress
from edgediff.runtime.latency import DeviceFacts, LatencyTable, Source, Thermal

if TYPE_CHECKING:
    from edgediff.bundle import Bundle

FOLDER = "/data/local/tmp/edgediff"
EMULATED = ("ro.kernel.qemu", "ro.boot.qemu", "ro.edgediff.standin")  # "1" in one of them
PUSHED = ("--pushed", "--no-verify")
ANSWER_SECONDS, HASH_SECONDS = 60.0, 1800.0  # a slow board hashes 3 GB in minutes


@dataclass(frozen=True)
class AdbDevice:
    """One device that `adb devices` lists as ready. `emulated`: it is not the hardware whose name it bears."""

    serial: str
    model: str
    os_build: str
    abi: str
    emulated: bool


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
    """Its model, build and kind of processor, as its system says; a board without Android's properties by the names
    that its kernel has."""
    keys = ("ro.product.model", "ro.build.fingerprint", "ro.product.cpu.abi", *EMULATED)
    said = _shell(serial, "; ".join([*(f"echo $(getprop {key} 2>/dev/null)" for key in keys), "uname -n", "uname -m"]))
    model, build, abi, *emulated, name, machine = [line.strip() for line in said.splitlines()]
    translated = ARCHITECTURES.get(abi, machine) != machine  # programs for `abi` run there, but not on their processor
    return AdbDevice(serial, model or name, build, abi or machine, "1" in emulated or translated)


def find_device(serial: str | None = None) -> AdbDevice:
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


def push(bundle: Bundle, device: AdbDevice, *, backend: str | None = None, progress: Progress | None = None) -> str:
    """Copies the bundle's files that are not there yet, and checks every hash there; returns the folder on the
    device. `backend` leaves out what only other backends need. A push that was broken off goes on where it stopped.
    Raises LinkError when a hash is not what the manifest says."""
    remote = f"{FOLDER}/{bundle.manifest.name}"
    others = _files_of(bundle, lambda name: name != backend) - _files_of(bundle, lambda name: name == backend)
    wanted = {
        entry.path: entry.sha256
        for entry in bundle.manifest.files
        if backend is None or not any(f"{entry.path}/".startswith(f"{other}/") for other in others)
    }
    # The manifest lists no hash of its own, and is small: it is always copied.
    _push_files(device, Path(bundle.folder), remote, wanted, ("manifest.json",), progress)
    return remote


def push_runner(runner: DeviceRunner, device: AdbDevice, *, progress: Progress | None = None) -> str:
    """Copies the runner's files that are not there yet and makes them executable; returns their folder there.
    Raises LinkError as `push` does."""
    remote = f"{FOLDER}/{runner.facts.name}.d"
    _push_files(device, runner.folder, remote, runner.facts.files, (), progress)
    _shell(device.serial, "chmod 755 " + " ".join(shlex.quote(f"{remote}/{path}") for path in runner.facts.files))
    return remote


def run(
    bundle: Bundle,
    device: AdbDevice,
    runner: Path | DeviceRunner | None = None,
    *,
    runs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    sustained: float | None = None,
    per_op: bool = False,
    backend: str = "",
    progress: Progress | None = None,
) -> LatencyTable:
    """Pushes, runs and reads what the runner prints, image by image. `runner` None is the one that was built for the
    device's ABI. `per_op` runs it again with its tracer on, for `operators_ms` and `placement`.

    A device that goes away in the middle leaves the images that it had made, with `complete` False; the push of the
    next attempt finds what is there already. Raises LinkError when not one image was made."""
    chosen = runner if isinstance(runner, DeviceRunner) else read_runner(runner) if runner else find_runner(device.abi)
    backend = backend or chosen.facts.backend
    folder = push(bundle, device, backend=backend or None, progress=progress)
    program = push_runner(chosen, device, progress=progress)
    facts, before = _read_facts(device, backend), read_thermal(device)
    start = [*chosen.facts.command, folder, "--program", bundle.manifest.default]
    start += ["--threads", str(threads)] if threads else []
    words = [*start, "--runs", str(runs), "--warmup", str(warmup)]
    words += [*(["--sustained", f"{sustained:g}"] if sustained else []), *PUSHED]
    log = f"{FOLDER}/{bundle.manifest.name}.jsonl"
    command = f"cd {shlex.quote(program)} && {{ {shlex.join(words)}; echo {STATUS} $?; }} 2>&1 | tee {shlex.quote(log)}"
    heard = Heard()
    for line in _stream(device.serial, command):
        heard.take(line)
        if progress is not None:
            progress(f"measuring on {device.serial}", len(heard.images), runs)
    if heard.status is not None:
        heard = _pulled(device, log)
    if not heard.images:
        raise LinkError(f"nothing was measured on {device.serial}: {heard.why_it_ended()}", code="no_result")
    source: Source = "emulated" if device.emulated else "measured"
    table = heard.table(source, facts, bundle=bundle.manifest.name, warmup=warmup)
    after = _after(device)
    traced = _trace(device, program, start, tuple(heard.graphs)) if per_op and table.complete else {}
    return table.model_copy(update={"thermal_before": before, "thermal_after": after, **traced})


def pull(device: AdbDevice, remote: str, out: Path) -> Path:
    """Copies a file from the device to `out`."""
    _adb("-s", device.serial, "pull", remote, str(out))
    return out


def read_thermal(device: AdbDevice) -> Thermal:
    """Temperatures and battery, as far as the device tells without root."""
    battery = dict(
        re.findall(
            r"^\s*(level|temperature|AC powered|USB powered): (\S+)",
            _shell(device.serial, "dumpsys battery 2>/dev/null"),
            re.MULTILINE,
        )
    )
    zones = "for z in /sys/class/thermal/thermal_zone*; do echo $(cat $z/type) $(cat $z/temp); done 2>/dev/null"
    celsius = {
        name: int(value) / 1000
        for name, value in re.findall(r"^(\S+) (-?\d+)$", _shell(device.serial, zones), re.MULTILINE)
    }
    if "temperature" in battery:
        celsius["battery"] = int(battery["temperature"]) / 10
    powered = [battery[key] == "true" for key in ("AC powered", "USB powered") if key in battery]
    return Thermal(
        celsius=celsius,
        battery_percent=float(battery["level"]) if "level" in battery else None,
        charging=any(powered) if powered else None,
    )


def _after(device: AdbDevice) -> Thermal | None:
    try:
        return read_thermal(device)
    except LinkError:
        return None


def _trace(device: AdbDevice, program: str, start: Sequence[str], graphs: Sequence[str]) -> dict[str, Any]:
    """`operators_ms` and `placement` of every graph, from pictures that are traced and not timed."""
    remote = f"{FOLDER}/traces"
    words = shlex.join([*start, "--runs", "2", "--warmup", "0", "--etdump", remote, *PUSHED])
    heard = Heard()
    for line in _stream(device.serial, f"rm -rf {remote}; cd {shlex.quote(program)} && {words} 2>&1; echo {STATUS} $?"):
        heard.take(line)
    if heard.status != 0:
        raise LinkError(f"no operators were traced on {device.serial}: {heard.why_it_ended()}", code="no_result")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            graph: pull(device, f"{remote}/{graph}.etdp", Path(folder) / f"{index}.etdp")
            for index, graph in enumerate(graphs)
        }
        tables = {graph: import_etdump(file, graph=graph) for graph, file in files.items()}
    return join_operators(tables)


def _pulled(device: AdbDevice, log: str) -> Heard:
    """What the runner has said, from the file on the device."""
    with tempfile.TemporaryDirectory() as folder:
        text = pull(device, log, Path(folder) / "log").read_text(encoding="utf-8", errors="replace")
    heard = Heard()
    for line in text.splitlines():
        heard.take(line)
    return heard


def _read_facts(device: AdbDevice, backend: str) -> DeviceFacts:
    """The device before the run, as far as its shell tells."""
    said = dict(
        re.findall(
            r"^(\w+)=(\S.*?)\s*$",
            _shell(
                device.serial,
                "echo cores=$(nproc); echo os=$(uname -sr); echo load=$(cat /proc/loadavg); "
                "echo kb=$(grep MemTotal /proc/meminfo); "
                "echo governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)",
            ),
            re.MULTILINE,
        )
    )
    kilobytes = re.search(r"\d+", said.get("kb", ""))
    return DeviceFacts(
        name=device.model,
        backend=backend,
        cpu=device.abi or None,
        serial=device.serial,
        os_build=device.os_build or None,
        os=said.get("os"),
        governor=said.get("governor"),
        cores=int(said["cores"]) if said.get("cores", "").isdigit() else None,
        load_average=float(said["load"].split()[0]) if "load" in said else None,
        memory_gb=round(int(kilobytes[0]) * 1024 / 1e9, 1) if kilobytes else None,
    )


def _files_of(bundle: Bundle, wanted: Callable[[str], bool]) -> set[str]:
    """Files and folders of the artifacts of some backends."""
    artifacts = [(name, one) for graph in bundle.manifest.graphs.values() for name, one in graph.artifacts.items()]
    return {path for name, one in artifacts if wanted(name) for path in (one.file, *one.data)}


def _push_files(
    device: AdbDevice,
    local: Path,
    remote: str,
    wanted: Mapping[str, str],
    always: Sequence[str],
    progress: Progress | None,
) -> None:
    """Copies those of `wanted` (SHA-256 by path) that are not there with that hash, and `always`; then checks."""
    there = _hashes(device.serial, remote)
    missing = [*always, *(path for path, digest in wanted.items() if there.get(path) != digest)]
    folders = sorted({remote, *(str(PurePosixPath(remote, path).parent) for path in missing)})
    _shell(device.serial, "mkdir -p " + " ".join(map(shlex.quote, folders)))
    for index, path in enumerate(missing):
        if progress is not None:
            progress(f"pushing {path}", index, len(missing))
        _adb("-s", device.serial, "push", str(local / path), f"{remote}/{path}")
    there = _hashes(device.serial, remote)
    for path, digest in wanted.items():
        if there.get(path) != digest:
            raise LinkError(
                f"'{path}' arrived on {device.serial} with another hash than it has here; push again, and if that "
                "does not help, free space there",
                code="hash",
            )


def _hashes(serial: str, remote: str) -> dict[str, str]:
    """SHA-256 of every file below `remote`, by path; {} when there is nothing."""
    said = _shell(
        serial, f"cd {shlex.quote(remote)} 2>/dev/null && find . -type f -exec sha256sum {{}} +", HASH_SECONDS
    )
    return {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})\s+\./(.+?)\r?$", said, re.MULTILINE)}


def _program() -> str:
    found = shutil.which("adb")
    if found is None:
        raise LinkError(
            "adb is not installed: apt install adb (Debian, Ubuntu), brew install android-platform-tools (macOS), or "
            "https://developer.android.com/tools/releases/platform-tools",
            code="no_adb",
        )
    return found


def _adb(*arguments: str, seconds: float | None = None) -> str:
    try:
        done = subprocess.run(
            [_program(), *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        message = f"adb {arguments[-1]}: no answer in {seconds:g} s; unplug the device, plug it in again and retry"
        raise LinkError(message, code="adb") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LinkError(f"adb {arguments[-1]}: {said[-1] if said else 'failed'}", code="adb")
    return done.stdout


def _shell(serial: str, command: str, seconds: float = ANSWER_SECONDS) -> str:
    return _adb("-s", serial, "shell", command, seconds=seconds)


def _stream(serial: str, command: str) -> Iterator[str]:
    """Lines as they come; ends when the command does, or when the device goes away."""
    call = [_program(), "-s", serial, "shell", command]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as told:
        yield from told.stdout or ()
