"""The devicectl link against a stand-in that writes the JSON that Xcode's own does."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from edgediff.errors import LinkError
from edgediff.links import xcrun

STANDIN = """#!{python}
import json, shutil, sys
from pathlib import Path
words = sys.argv[1:]
root, out = Path("{root}"), words[words.index("--json-output") + 1]
if words[1:3] == ["list", "devices"]:
    Path(out).write_text((root / "devices.json").read_text())
    sys.exit()
value = lambda name: words[words.index(name) + 1]
if value("--domain-identifier") != "app.installed":
    print("ERROR: The application is not installed.", file=sys.stderr)
    sys.exit(1)
container = root / value("--device")
source, destination = value("--source"), value("--destination")
if words[3] == "to":
    shutil.copytree(source, container / destination)
else:
    shutil.copy(container / source, destination)
Path(out).write_text(json.dumps({{"result": {{"source": source, "destination": destination}}}}))
"""


def device(name, udid, state="connected", reality="physical"):
    return {
        "identifier": f"id-{udid}",
        "connectionProperties": {"tunnelState": state},
        "deviceProperties": {"name": name, "osVersionNumber": "18.1", "osBuildUpdate": "22B83"},
        "hardwareProperties": {"udid": udid, "marketingName": "iPhone 15 Pro", "reality": reality},
    }


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """A Mac with these devices."""

    def make(*devices):
        (tmp_path / "devices.json").write_text(json.dumps({"result": {"devices": devices}}))
        program = tmp_path / "bin" / "xcrun"
        program.parent.mkdir()
        program.write_text(STANDIN.format(python=sys.executable, root=tmp_path))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setenv("PATH", str(program.parent))
        return tmp_path

    return make


def test_a_bundle_goes_into_the_apps_container_and_a_file_comes_back(mac):
    root = mac(device("Ann's", "u1"), device("simulated", "u2", reality="virtual"))
    found = xcrun.find_device()
    assert (found.name, found.model, found.os, found.os_build) == ("Ann's", "iPhone 15 Pro", "18.1", "22B83")
    (root / "glyph.edgediff").mkdir()
    (root / "glyph.edgediff" / "manifest.json").write_text("{}")
    remote = xcrun.push(SimpleNamespace(folder=root / "glyph.edgediff"), found, app="app.installed")
    assert remote == "Documents/edgediff/glyph.edgediff"
    back = xcrun.pull(found, f"{remote}/manifest.json", root / "back.json", app="app.installed")
    assert back.read_text() == "{}"
    with pytest.raises(LinkError, match=r"`devicectl device copy to` failed \(1\): ERROR: The application is not inst"):
        xcrun.push(SimpleNamespace(folder=root / "glyph.edgediff"), found, app="app.other")


def test_which_device(mac):
    mac(device("A", "u1"), device("B", "u2"), device("B", "u3"), device("away", "u4", state="disconnected"))
    assert xcrun.find_device("u2").udid == "u2"
    for name, message in (
        (None, r"several devices are connected; name one: A \(u1\), B \(u2\), B \(u3\)"),
        ("B", "2 devices are called 'B': give one's UDID: u2, u3"),
        ("away", "'away' is paired but disconnected"),
        ("awax", "unknown device 'awax'; did you mean 'away'"),
    ):
        with pytest.raises(LinkError, match=message):
            xcrun.find_device(name)


def test_no_device_no_xcode_no_mac(mac, monkeypatch):
    mac()
    with pytest.raises(LinkError, match="no iPhone or iPad is connected: plug one in"):
        xcrun.find_device()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LinkError, match="xcrun is not installed: install Xcode 15"):
        xcrun.list_devices()
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(LinkError, match="runs on macOS alone"):
        xcrun.list_devices()


def test_an_iphone_is_not_profiled_from_here_and_its_files_belong_to_an_app(tmp_path):
    phone = xcrun.AppleDevice("i", "u1", "Anna's iPhone", "iPhone 15", "18.0", "22A", "connected")
    assert phone.serial == "u1"
    with pytest.raises(
        LinkError, match="'Anna's iPhone' cannot be profiled from here: iOS starts no program but an app"
    ):
        xcrun.run(SimpleNamespace(folder=tmp_path), phone)
    with pytest.raises(LinkError, match="give `app`, the bundle identifier of one that you have signed"):
        xcrun.push(SimpleNamespace(folder=tmp_path), phone)
