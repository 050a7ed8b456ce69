"""Links: the adb flow end to end with the real adb against a stand-in that speaks its protocol. What the stand-in
runs is marked emulated; nothing here is a phone's time."""

from __future__ import annotations

import platform
import shutil
import socket
import stat
import sys
from pathlib import Path

import pytest

from edgediff.bundle import open_bundle
from edgediff.errors import BackendError, ConfigError, LinkError, OutputError
from edgediff.links import _build_runner as build_runner_module
from edgediff.links import adb, run_all
from edgediff.links._build_runner import build_runner
from edgediff.links._heard import Heard
from edgediff.links._runners import find_runner, read_runner
from edgediff.profiling import profile_bundle, profile_devices
from tests.small_bundle import write_bundle
from tests.standin_adbd import StandIn, own_server

needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb: apt install adb")
BATTERY = "  AC powered: false\n  USB powered: true\n  level: 87\n  temperature: 312\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("links") / "small.edgediff", 8)


@pytest.fixture(scope="module", autouse=True)
def _server():
    if shutil.which("adb") is None:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with own_server(port):
        yield


def runner_file(folder: Path, body: str) -> Path:
    """A runner for the stand-in: a Python program on this machine."""
    file = folder / "runner"
    file.write_text(f"#!{sys.executable}\nimport json, sys, time\n{body}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


REAL = f"""
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from edgediff.bundle import open_bundle
from edgediff.profiling.worker import Clock, time_image
from edgediff.runtime import open_session
start = time.perf_counter()
asked = dict(zip(sys.argv, sys.argv[1:]))
session = open_session(open_bundle(sys.argv[1]), "onnxruntime", 1, asked["--program"])
print(json.dumps({{"load_ms": (time.perf_counter() - start) * 1e3}}), flush=True)
clock = Clock()
clock.wrap(session)
time_image(session, 0)
clock.seconds.clear()
for seed in range(int(asked["--runs"])):
    took = time_image(session, seed)
    for graph, seconds in clock.seconds.items():
        for value in seconds:
            print(json.dumps({{"graph": graph, "ms": value * 1e3}}))
    clock.seconds.clear()
    print(json.dumps({{"image_ms": took * 1e3}}), flush=True)
"""


@needs_adb
def test_a_bundle_runs_on_a_device(bundle, tmp_path):
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "battery").write_text(BATTERY)
    with StandIn(tmp_path / "device") as standin:
        device = adb.find_device(None)
        assert (device.serial, device.model, device.emulated) == (standin.serial, "StandIn", True)
        table = adb.run(bundle, device, runner_file(tmp_path, REAL), runs=3)
        assert table.source == "emulated"
        assert table.complete is True
        assert table.end_to_end_ms.n == 3
        assert set(table.graphs) >= {"text_encoder", "full", "vae_decoder"}
        assert table.device.os_build == "edgediff/standin/1"
        assert table.thermal_before is not None and table.thermal_before.celsius["battery"] == 31.2
        assert table.thermal_before.charging is True
        pulled = adb.pull(device, f"{adb.FOLDER}/{bundle.manifest.name}/manifest.json", tmp_path / "back.json")
        assert pulled.read_bytes() == (Path(bundle.folder) / "manifest.json").read_bytes()


@needs_adb
def test_a_push_goes_on_where_it_stopped_and_mends_what_is_spoilt(bundle, tmp_path):
    with StandIn(tmp_path) as standin:
        device = adb.find_device(standin.serial)
        folder = adb.push(bundle, device)
        here = tmp_path / folder.lstrip("/")
        spoilt = here / bundle.manifest.files[0].path
        spoilt.write_bytes(b"spoilt")
        pushed: list[str] = []
        adb.push(bundle, device, progress=lambda text, done, total: pushed.append(text))
        assert pushed == ["pushing manifest.json", f"pushing {bundle.manifest.files[0].path}"]
        assert open_bundle(here).manifest == bundle.manifest


@needs_adb
def test_a_device_that_goes_away_keeps_what_was_measured(bundle, tmp_path):
    body = 'for n in range(50):\n    print(json.dumps({"image_ms": 5.0 + n}), flush=True)\n    time.sleep(0.2)'
    with StandIn(tmp_path / "device") as standin:
        device = adb.find_device(standin.serial)

        def cut(text: str, done: int, total: int) -> None:
            if text.startswith("measuring") and done == 2:
                standin.vanish()

        table = adb.run(bundle, device, runner_file(tmp_path, body), runs=50, progress=cut)
    assert table.complete is False
    assert 2 <= table.end_to_end_ms.n < 50
    assert table.thermal_after is None


@needs_adb
def test_several_devices_at_once_and_one_that_fails(bundle, tmp_path):
    good = 'import os\nif "one" in os.path.abspath(sys.argv[0]): sys.exit(3)\nprint(json.dumps({"image_ms": 7.0}))'
    with StandIn(tmp_path / "one") as one, StandIn(tmp_path / "two") as two:
        with pytest.raises(LinkError, match="say which one"):
            adb.find_device(None)
        devices = [adb.find_device(one.serial), adb.find_device(two.serial)]
        found = run_all(bundle, [(adb, one) for one in devices], runner_file(tmp_path, good), runs=1)
    assert isinstance(found[one.serial], LinkError)
    assert "ended with status 3" in str(found[one.serial])
    assert found[two.serial].end_to_end_ms.p50 == 7.0


@needs_adb
def test_profile_on_a_device(bundle, tmp_path):
    """With a runner of one's own, which runs another backend than ours."""
    runner = runner_file(tmp_path, REAL)
    with StandIn(tmp_path / "device") as standin:
        options = {"device": f"adb:{standin.serial}", "runs": 2}
        table = profile_bundle(bundle, **options, backend="onnxruntime", runner=runner)
        assert (table.source, table.device.backend, table.end_to_end_ms.n) == ("emulated", "onnxruntime", 2)
        assert table.device.cores and table.device.memory_gb
        fast = profile_bundle(bundle.as_program("fast"), **options, backend="onnxruntime", runner=runner)
        assert set(table.graphs) - set(fast.graphs) == {"shallow@1", "shallow@2"} and "shallow" in fast.graphs
        with pytest.raises(BackendError, match="was not built for it: unknown backend 'executorch'"):
            profile_bundle(bundle, **options)
        with pytest.raises(ConfigError, match="a runner of one's own traces no operators"):
            profile_bundle(bundle, **options, per_op=True, backend="onnxruntime", runner=runner)
        with pytest.raises(ConfigError, match="one device is named twice"):
            profile_devices(bundle, ["adb", options["device"]], backend="onnxruntime", runner=runner)


@needs_adb
def test_a_board_without_properties(tmp_path):
    with StandIn(tmp_path, android=False) as standin:
        device = adb.find_device(standin.serial)
    assert (device.model, device.abi) == (platform.node(), platform.machine())
    assert (device.os_build, device.emulated) == ("", False)


def test_an_emulator_that_does_not_say_so(monkeypatch):
    """Its programs are for Arm, its kernel's processor is not."""
    lines = {"x86_64": True, "aarch64": False}
    for machine, emulated in lines.items():
        said = f"Phone\nbuild/1\narm64-v8a\n\n\n\nlocalhost\n{machine}\n"
        monkeypatch.setattr(adb, "_shell", lambda serial, command, said=said: said)
        assert adb.describe_device("x").emulated is emulated


def test_a_device_that_does_not_answer(tmp_path, monkeypatch):
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(adb, "_program", lambda: str(program))
    with pytest.raises(LinkError, match="adb ls: no answer in 0.2 s; unplug the device, plug it in again and retry"):
        adb._adb("shell", "ls", seconds=0.2)


def test_a_runner_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
    build = "build it: python -m edgediff.links._build_runner --architecture aarch64"
    with pytest.raises(LinkError, match=f"there is no runner for aarch64 in .*; {build}"):
        find_runner("arm64-v8a")
    with pytest.raises(LinkError, match=r"no runner can be built for the ABI 'armeabi-v7a' \(known: arm64-v8a, "):
        find_runner("armeabi-v7a")
    with pytest.raises(LinkError, match=f"nothing: is not there; {build}"):
        read_runner(tmp_path / "nothing")
    with pytest.raises(LinkError, match=f"has no runner.json; {build}"):
        read_runner(tmp_path)


def test_a_runner_that_cannot_be_built(tmp_path, monkeypatch):
    with pytest.raises(LinkError, match=r"unknown architecture 'mips' \(allowed: aarch64, x86_64\)"):
        build_runner("mips")
    with pytest.raises(LinkError, match="there is no compiler no-such-c: apt install g\\+\\+-aarch64-linux-gnu"):
        build_runner(compiler="no-such-c", out=tmp_path / "new")
    monkeypatch.setattr(build_runner_module, "JSON_FOLDERS", (str(tmp_path),))
    with pytest.raises(LinkError, match="nlohmann/json.hpp is not installed: apt install nlohmann-json3-dev"):
        build_runner(compiler=sys.executable, out=tmp_path / "new")
    (tmp_path / "photos").mkdir()
    (tmp_path / "nlohmann").mkdir()
    (tmp_path / "nlohmann" / "json.hpp").touch()
    with pytest.raises(OutputError, match="photos: is there and is no runner; choose another folder"):
        build_runner(compiler=sys.executable, out=tmp_path / "photos")
    with pytest.raises(LinkError, match="is not ExecuTorch's wheel for aarch64"):
        build_runner(compiler=sys.executable, out=tmp_path / "new", wheel=tmp_path / "executorch-1.5.1-x86_64.whl")


def test_half_a_line_and_a_runtimes_own_words():
    heard = Heard()
    for line in (
        '{"load_ms": 5.0}',
        "I 00:00 executorch: x",
        '{"graph": "full", "ms": 2.0}',
        '{"graph": "full", "m',
        '{"ms": 2.0}',
        '{"image_ms": null}',
        "edgediff-runner: out of memory",
        "Aborted",
        '{"image_ms": 3.5}',
    ):
        heard.take(line)
    assert (heard.images, heard.graphs, heard.facts) == ([3.5], {"full": [2.0]}, {"load_ms": 5.0})
    assert heard.why_it_ended() == "the device went away"
    heard.take("edgediff-status 1")
    assert heard.why_it_ended() == "the runner ended with status 1: out of memory"


def test_adb_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LinkError, match="adb is not installed: apt install adb"):
        adb.list_devices()


def test_two_devices_with_one_serial(monkeypatch):
    monkeypatch.setattr(adb, "_adb", lambda *words: "List of devices attached\nabc\tdevice\nabc\tdevice\n")
    with pytest.raises(LinkError, match="two devices have the serial 'abc'"):
        adb.list_devices()


def test_no_device_and_an_unknown_one(monkeypatch):
    monkeypatch.setattr(adb, "list_devices", list)
    with pytest.raises(LinkError, match="adb sees no device"):
        adb.find_device(None)
    monkeypatch.setattr(adb, "list_devices", lambda: [adb.AdbDevice("emulator-5554", "x", "", "", True)])
    with pytest.raises(LinkError, match="unknown device 'emulator-5555'; did you mean 'emulator-5554'"):
        adb.find_device("emulator-5555")
