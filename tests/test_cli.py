"""The command line: what it prints, how it fails, and that it always fits 80 columns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgediff import cli, cli_commands, cli_text
from edgediff.cli import COMMANDS, main
from edgediff.cli_commands import Answer
from edgediff.errors import ModelError

LISTS = ("recipes", "devices", "methods")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def failing(monkeypatch):
    """Makes `edgediff recipes` raise what it is given."""
    def install(error: BaseException) -> None:
        def run(args):
            raise error
        monkeypatch.setitem(COMMANDS, "recipes", cli.Command(run, "fails"))
    return install


def edgediff(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgediff", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


@pytest.mark.parametrize("command", LISTS)
def test_lists_fit_80_columns_and_say_the_same_as_json(command, capsys):
    assert main([command]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert main([command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    for name in data if command != "methods" else [kind for folder in data.values() for kind in folder]:
        assert name in text


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_fits_80_columns(command, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main([*command, "--help"])
    assert exit_status.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_methods_name_every_key_of_their_tables(capsys):
    main(["methods", "--json"])
    laptop = json.loads(capsys.readouterr().out)["prune"]["laptop"]
    assert laptop["about"].startswith("LAPTOP-Diff")
    assert set(laptop["settings"]["properties"]) == {"budget", "granularity", "timesteps"}


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["biuld"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("edgediff: error: unknown command 'biuld'; did you mean 'build'? (allowed: build,")
    assert captured.err.count("\n") == 1


def test_a_missing_argument_says_where_help_is(capsys):
    assert main(["verify"]) == 2
    assert capsys.readouterr().err == (
        "edgediff: error: the following arguments are required: BUNDLE; see `edgediff verify --help`\n"
    )


def test_build_needs_a_place_to_write(capsys):
    assert main(["build", "glyph"]) == 2
    assert "build needs --out DIR, or --dry-run to see the plan only" in capsys.readouterr().err


def test_unknown_names_fail_before_anything_is_loaded(tmp_path, capsys):
    assert main(["build", "glyph", "--recipe", "balnced", "--out", str(tmp_path / "b")]) == 2
    assert "unknown recipe 'balnced'; did you mean 'balanced'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_errors_as_json(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere"), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": {
        "code": "not_a_bundle", "where": str(tmp_path / "nowhere"),
        "message": "is not an edgediff bundle: it does not exist",
    }}
    assert captured.err == ""
    assert main(["inspect", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_where_stands_before_the_message(failing, capsys):
    failing(ModelError("has no unet", where="folder"))
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "edgediff: error: folder: has no unet\n"


def test_what_the_system_refuses_is_no_bug(failing, capsys):
    failing(PermissionError(13, "Permission denied", "/root/x"))
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "edgediff: error: /root/x: Permission denied\n"
    failing(MemoryError())
    assert main(["recipes"]) == 2
    assert "not enough memory" in capsys.readouterr().err


def test_a_bug_says_so_and_shows_its_traceback_on_request(failing, capsys, monkeypatch):
    failing(KeyError("rows"))
    assert main(["recipes"]) == 70
    assert capsys.readouterr().err == (
        "edgediff: error: KeyError: 'rows' (a bug: please report what EDGEDIFF_DEBUG=1 shows)\n"
    )
    monkeypatch.setenv("EDGEDIFF_DEBUG", "1")
    assert main(["recipes"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_text_from_files_cannot_steer_the_terminal(failing, capsys):
    failing(ModelError("bad name '\x1b[2J\nevil'"))
    main(["recipes"])
    assert capsys.readouterr().err == "edgediff: error: bad name '\\x1b[2J evil'\n"


def test_interrupted(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["recipes"]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "edgediff: interrupted, nothing was left half-written\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_ctrl_c_ends_a_running_command_with_one_line():
    code = ("import sys, time\nfrom edgediff import cli\n"
            "def run(args):\n    print('ready', flush=True)\n    time.sleep(60)\n"
            "cli.COMMANDS['recipes'] = cli.Command(run, 'waits')\nsys.exit(cli.main(['recipes']))")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, b"edgediff: interrupted, nothing was left half-written\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX systems")
def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "edgediff", "recipes", "--json"]
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_it_works_in_an_empty_folder_and_any_locale(tmp_path):
    settings = {"cwd": tmp_path, "env": {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(Path(cli.__file__).parents[1])}}
    assert "balanced" in edgediff("recipes", **settings).stdout
    assert edgediff("--version", **settings).stdout.startswith("edgediff 0.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [
    ("a.jpg", "pictures are written as PNG; give a name that ends in .png"),
    ("missing/a.png", "does not exist; create it"),
])
def test_run_refuses_a_bad_output_before_it_opens_the_bundle(tmp_path, capsys, name, message):
    assert main(["run", str(tmp_path), "red heart", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_progress_is_plain_lines_where_nobody_watches(capsys):
    with cli_text.show_progress() as progress:
        for done in range(3):
            progress(f"scoring layers ({done}/3)", 0, 6)
        progress("writing the bundle", 5, 6)
    assert capsys.readouterr().err == "edgediff: scoring layers\nedgediff: writing the bundle\n"


def test_progress_is_silent_with_json(capsys):
    with cli_text.show_progress(quiet=True) as progress:
        progress("working", 0, 1)
    assert capsys.readouterr() == ("", "")


def test_a_bar_names_the_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with cli_text.show_progress() as progress:
        progress("lowering to onnxruntime", 3, 6)
    assert "lowering to onnxruntime" in capsys.readouterr().err


def test_tables_wrap_their_last_column():
    table = cli_text.format_table(("name", "what"), [("a", "word " * 30)], width=40)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("      word") for line in lines[2:])


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    from PIL import Image

    path = tmp_path / "a.png"
    picture = Image.new("RGB", (4, 4), "red")
    cli_commands._save_png(picture, path, {"prompt": "röt", "seed": 0})
    assert json.loads(Image.open(path).text["edgediff"]) == {"prompt": "röt", "seed": 0}
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        cli_commands._save_png(Image.new("RGB", (4, 4), "blue"), path, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_answers_have_an_exit_status():
    assert Answer({}, "").code == 0
