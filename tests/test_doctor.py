"""The doctor: what it says of what is missing, broken and in order."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

from edgediff.cli import doctor
from edgediff.cli.doctor import Check
from edgediff.cli.main import main


@pytest.fixture
def installed(monkeypatch):
    """Puts other versions in place of the installed ones; None is not installed."""
    real = importlib.metadata.version

    def install(**versions: str | None) -> None:
        def version(name: str) -> str:
            found = versions.get(name, "")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def by_name(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_missing_library_comes_with_the_command_that_brings_it(installed):
    installed(torch=None, onnxruntime=None)
    found = by_name(doctor.check_libraries())
    assert found["torch"] == Check(
        "library", "torch", "missing", "is not installed", 'pip install "torch==2.13.0"', needed=True
    )
    assert found["onnxruntime"] == Check(
        "library", "onnxruntime", "missing", "for the extra 'onnxruntime'", 'pip install "edgediff[onnxruntime]"'
    )
    assert not doctor.is_healthy(tuple(found.values()))


def test_another_version_than_the_tested_one_is_not_in_order(installed):
    installed(numpy="2.4.6")
    found = by_name(doctor.check_libraries())["numpy"]
    assert (found.state, found.detail, found.fix) == (
        "broken",
        "2.4.6, tested with ==2.1.3",
        'pip install "numpy==2.1.3"',
    )


def test_a_build_of_the_tested_version_is_in_order(installed):
    installed(torch="2.13.0+cpu")
    assert by_name(doctor.check_libraries())["torch"].state == "ok"


def test_without_a_record_of_its_own_it_says_so(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (found,) = doctor.check_libraries()
    assert (found.state, found.fix) == ("missing", "pip install -e . in the checkout")


def test_a_backend_whose_library_is_missing_says_how_to_get_it(monkeypatch):
    text = "coreml needs the library 'coremltools': pip install \"edgediff[coreml]\""
    monkeypatch.setattr(doctor, "PROBE", f"import sys; print('noise', file=sys.stderr); sys.exit({text!r})")
    assert doctor.probe_backend("coreml") == Check(
        "backend",
        "coreml",
        "missing",
        "coreml needs the library 'coremltools'",
        'pip install "edgediff[coreml]"',
    )


def test_a_backend_that_crashes_is_a_line_and_not_the_end(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", "import os; os.abort()")
    found = doctor.probe_backend("onnxruntime")
    assert (found.state, found.detail) == ("broken", "ended with status -6")


def test_a_backend_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", "import time; time.sleep(60)")
    assert doctor.probe_backend("onnxruntime", seconds=0.2).detail == "did not load within 0 s"


def test_an_unknown_backend_is_broken():
    found = doctor.probe_backend("onxruntime")
    assert found.state == "broken"
    assert "unknown backends kind 'onxruntime'; did you mean 'onnxruntime'?" in found.detail


def test_links_name_their_tool(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/true" if name == "adb" else None)
    monkeypatch.setattr(
        doctor,
        "LINK_TOOLS",
        {
            "adb": (f"{sys.executable} --version", ""),
            "xcrun": ("xcrun --version", "on macOS only"),
        },
    )
    adb, xcrun = doctor.check_links()
    assert (adb.state, adb.detail.split()[0]) == ("ok", "Python")
    assert (xcrun.state, xcrun.fix) == ("missing", "on macOS only")


def test_the_font_is_for_training_only(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEDIFF_EMOJI_FONT", str(tmp_path / "none.ttf"))
    (found,) = doctor.check_fonts()
    assert (found.state, found.needed, found.fix) == ("missing", False, "apt install fonts-noto-color-emoji")


def test_the_command_fits_80_columns_and_fails_only_for_what_is_needed(monkeypatch, capsys):
    coreml = Check("backend", "coreml", "missing", "no", "x " * 60)
    monkeypatch.setattr(doctor, "check_backends", lambda: iter([coreml]))
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert max(map(len, captured.out.splitlines())) <= 80
    assert captured.out.endswith("everything that is needed is here\n")
    monkeypatch.setattr(doctor, "check_fonts", lambda: iter([Check("font", "f", "missing", "", needed=True)]))
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_every_backend_here_is_looked_at():
    done = subprocess.run(
        [sys.executable, "-m", "edgediff", "doctor", "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    checks = json.loads(done.stdout)["checks"]
    assert {"onnxruntime"} <= {check["name"] for check in checks if check["group"] == "backend"}
    assert {check["state"] for check in checks} <= {"ok", "note", "missing", "broken"}
