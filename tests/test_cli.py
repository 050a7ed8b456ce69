"""The command line: what it prints, how it fails, and that it always fits 80 columns."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgediff
from edgediff.cli import commands as registry
from edgediff.cli import main as main_module
from edgediff.cli import text as cli_text
from edgediff.cli.commands import Answer
from edgediff.cli.commands import run as run_command
from edgediff.cli.main import COMMANDS, main, make_parser
from edgediff.documents.recipe import load_recipe
from edgediff.documents.target import load_target
from edgediff.errors import ModelError
from tests.tiny import write_tiny_model

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

        monkeypatch.setitem(COMMANDS, "recipes", main_module.Command(run, "fails"))

    return install


def shell(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
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


def test_help_lists_the_commands_by_their_places():
    places = [command.place for command in COMMANDS.values()]
    assert places == sorted(set(places)), "two commands have one place"
    assert [*COMMANDS][:4] == ["build", "distill", "verify", "run"]
    assert {"import", "export-layout"} <= set(COMMANDS)


def test_a_file_in_the_folder_is_a_command(tmp_path, monkeypatch):
    text = "from edgediff.cli.commands import Answer, Command\n"
    text += "COMMAND = Command(lambda args: Answer({}, 'tea'), 'makes tea', place=15)\n"
    (tmp_path / "make_tea.py").write_text(text, encoding="utf-8")
    (tmp_path / "_kettle.py").write_text("raise SystemExit('a helper is no command')", encoding="utf-8")
    monkeypatch.setattr(registry, "__path__", [*registry.__path__, str(tmp_path)])
    found = registry.load_commands()
    monkeypatch.delitem(sys.modules, "edgediff.cli.commands.make_tea")
    assert [*found][:3] == ["build", "make-tea", "distill"]
    assert set(found) - set(COMMANDS) == {"make-tea"}


def test_methods_name_every_key_of_their_tables(capsys):
    main(["methods", "--json"])
    laptop = json.loads(capsys.readouterr().out)["prune"]["laptop"]
    assert laptop["about"].startswith("LAPTOP-Diff")
    assert set(laptop["settings"]["properties"]) >= {"budget", "granularity", "timesteps", "rescore", "solver"}


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
    assert json.loads(captured.out) == {
        "error": {
            "code": "not_a_bundle",
            "where": str(tmp_path / "nowhere"),
            "message": "is not an edgediff bundle: it does not exist",
        }
    }
    assert captured.err == ""
    assert main(["inspect", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_where_stands_before_the_message(failing, capsys):
    failing(ModelError("has no unet", where="folder"))
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "edgediff: error: folder: has no unet\n"


def test_what_the_system_refuses_is_no_bug(failing, capsys):
    failing(PermissionError(13, "Permission denied", "/somewhere/x"))
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "edgediff: error: /somewhere/x: Permission denied\n"
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
    code = (
        "import signal, sys, time\nfrom edgediff.cli import main as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's child ignores it
        "def run(args):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "cli.COMMANDS['recipes'] = cli.Command(run, 'waits')\nsys.exit(cli.main(['recipes']))"
    )
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
    settings = {
        "cwd": tmp_path,
        "env": {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(Path(edgediff.__file__).parents[1])},
    }
    assert "balanced" in shell("recipes", **settings).stdout
    assert shell("--version", **settings).stdout.startswith("edgediff 0.")
    assert list(tmp_path.iterdir()) == []


ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("files", [["README.md"], ["Makefile"], PAGES], ids=["README.md", "Makefile", "docs"])
def test_every_command_that_is_written_down_parses(files):
    written = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files).replace("$(EDGEDIFF)", "edgediff")
    lines = re.findall(r"^\s*(?:edgediff|- edgediff) (.+?)(?:\s+#.*)?$", written, re.MULTILINE)
    lines += re.findall(r"`edgediff ([a-z]+ [^`]*\.edgediff[^`]*|build [^`]*)`", written)
    assert len(lines) >= 5
    for line in lines:
        args = make_parser().parse_args(shlex.split(line))
        if args.command == "build":
            load_recipe(args.recipe)
            load_target(args.target)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_every_link_and_script_of_a_page_is_there(page):
    text, folder = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = folder / link if link else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads], (
                f"{page}: #{anchor}"
            )
    scripts = re.findall(r"python (benchmarks/\S+\.py)", text)
    scripts += [
        f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m ((?:benchmarks|edgediff)\.[\w.]+)", text)
    ]
    missing = [script for script in scripts if not (ROOT / script).is_file()]
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "pictures are written as PNG; give a name that ends in .png"),
        ("missing/a.png", "does not exist; create it"),
    ],
)
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
    run_command._save_png(picture, path, {"prompt": "röt", "seed": 0})
    assert json.loads(Image.open(path).text["edgediff"]) == {"prompt": "röt", "seed": 0}
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_command._save_png(Image.new("RGB", (4, 4), "blue"), path, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_answers_have_an_exit_status():
    assert Answer({}, "").code == 0


# One bundle of the tiny model, made by the command line and taken through every command.

RECIPE = """
name = "quick"
[sampler]
steps = 4
[guidance]
scale = 3.0
[[reuse]]
kind = "deepcache"
interval = 2
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the tiny model, a recipe, and `a.edgediff` built from them for PyTorch."""
    folder = tmp_path_factory.mktemp("workshop")
    write_tiny_model(folder / "model")
    (folder / "quick.toml").write_text(RECIPE, encoding="utf-8")
    assert (
        main(
            [
                "build",
                str(folder / "model"),
                "--recipe",
                str(folder / "quick.toml"),
                "--backend",
                "eager",
                "--out",
                str(folder / "a.edgediff"),
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def bundle(workshop):
    return str(workshop / "a.edgediff")


def answer(capsys, *arguments: str, code: int = 0):
    """What a command prints with --json."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def text(capsys, *arguments: str, code: int = 0) -> str:
    """What a command prints for a person, which fits 80 columns."""
    capsys.readouterr()
    assert main([*arguments]) == code
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 or str(Path.cwd().anchor) in out
    return out


def test_a_dry_run_prints_the_plan_and_writes_nothing(workshop, capsys):
    before = sorted(workshop.iterdir())
    common = ("build", str(workshop / "model"), "--recipe", str(workshop / "quick.toml"), "--dry-run")
    assert "schedule   FsFs" in text(capsys, *common)
    assert answer(capsys, *common)["schedule"]["calls"] == ["full", "shallow", "full", "shallow"]
    assert sorted(workshop.iterdir()) == before


def test_a_bundle_is_replaced_on_request_only(workshop, bundle, capsys):
    arguments = ["build", str(workshop / "model"), "--recipe", str(workshop / "quick.toml"), "--out", bundle]
    assert answer(capsys, *arguments, code=2)["error"]["code"] == "exists"


def test_inspect(bundle, capsys):
    data = answer(capsys, "inspect", bundle)
    assert (data["kind"], data["steps"], data["backends"]) == ("text-to-image", 4, ["eager"])
    assert data["graphs"]["full"]["rows"] == data["graphs"]["shallow"]["rows"] == 2
    assert data["graphs"]["full"]["writes"] == data["graphs"]["shallow"]["reads"] != []
    denoiser = 2 * 2 * (data["graphs"]["full"]["macs"] + data["graphs"]["shallow"]["macs"])
    others = data["graphs"]["text_encoder"]["macs"] * 2 + data["graphs"]["vae_decoder"]["macs"]
    assert data["macs_per_image"] == denoiser + others
    assert data["parameters"] == sum(
        data["graphs"][name]["parameters"] for name in ("full", "text_encoder", "vae_decoder")
    )
    assert data["bytes"] == sum(f.stat().st_size for f in Path(bundle).rglob("*") if f.is_file()) - (
        Path(bundle, "manifest.json").stat().st_size
    )
    assert "not verified yet: edgediff verify" in text(capsys, "inspect", bundle)


def test_inspect_says_who_runs_what_and_in_how_much_memory(bundle):
    from edgediff.cli.describe import describe_bundle, summary_text

    opened = edgediff.open_bundle(bundle)
    left = "sin in module 'unet.down_blocks.0.a_module_of_a_long_name.time_proj' (Timesteps), embeddings.py:1084"
    graphs = dict(opened.manifest.graphs)
    for name, memory in (("full", 3_000_000), ("shallow", 2_000_000)):
        artifact = (
            graphs[name]
            .artifacts["eager"]
            .model_copy(update={"delegates": {"SomeBackend": 2}, "outside": {left: 4}, "memory_bytes": memory})
        )
        graphs[name] = graphs[name].model_copy(update={"artifacts": {"eager": artifact}})
    manifest = opened.manifest.model_copy(update={"graphs": graphs})
    said = summary_text(dataclasses.replace(opened, manifest=manifest)).splitlines()
    assert max(map(len, said)) <= 80
    row = next(line for line in said if line.startswith("full"))
    assert row.split() == ["full", "SomeBackend", "x", "2", "4", "3.0"]
    assert any(re.search(r"4 x sin in \.\.\..*' \(Timesteps\), embeddings.py:1084", line) for line in said)
    files = {file for graph in graphs.values() for file in graph.artifacts["eager"].files}
    programs = sum(entry.bytes for entry in manifest.files if entry.path in files)
    need = {"programs_bytes": programs, "work_bytes": 3_000_000, "graph": "full"}
    assert describe_bundle(manifest)["memory"] == {"eager": need}
    assert f"memory     eager: {programs / 1e6:.1f} MB of programs, 3.0 MB at work in full" in said


def test_verify_keeps_its_result_in_the_manifest(bundle, capsys):
    found = answer(capsys, "verify", bundle)
    assert found["ok"] is True
    assert found["backends"]["eager"]["graphs"]["full"]["psnr_db"] > 100
    assert answer(capsys, "inspect", bundle)["parity_ok"] is True


def test_a_missed_floor_is_exit_status_1(bundle, capsys, monkeypatch):
    from edgediff import bundle as bundle_module
    from edgediff import verify
    from edgediff.runtime.evidence import Parity

    trajectory, image = {"worst_step": 2, "psnr_db": 9.0}, {"psnr_db": 11.0, "floor_db": 35.0}
    backend = {
        "executed_by": "torch",
        "graphs": {"full": {"psnr_db": 12.0, "max_abs": 1.0, "floor_db": 60.0}},
        "programs": {"main": {"trajectory": trajectory, "image": image}},
    }
    asked = {"prompt": "a", "seed": 0, "seconds": 1.0, "reading": {"why": "it was not run"}}
    found = Parity.model_validate({"ok": False, "backends": {"eager": backend}, **asked})
    monkeypatch.setattr(verify, "verify_bundle", lambda *_, **__: found)
    monkeypatch.setattr(bundle_module, "update_manifest", lambda *_, **__: None)
    said = text(capsys, "verify", bundle, code=1)
    assert "graph full" in said
    assert "12.0" in said
    assert "MISSED" in said
    assert said.endswith("its own pipeline: it was not run\na floor was missed\n")


def test_what_computes_in_the_place_of_the_devices_runtime_is_named(workshop, bundle, capsys, monkeypatch):
    from edgediff.backends import eager

    monkeypatch.setattr(eager, "stand_in", lambda artifact: "an abacus", raising=False)
    note = "computed by an abacus, not by the device's own runtime"
    assert f"eager: {note}" in text(capsys, "verify", bundle)
    assert note in text(capsys, "run", bundle, "red heart", str(workshop / "2.png"))
    assert answer(capsys, "run", bundle, "red heart", str(workshop / "2.png"))["stand_in"] == "an abacus"
    error = answer(capsys, "profile", bundle, code=2)["error"]
    assert "here an abacus computes its programs, whose times say nothing about it" in error["message"]
    monkeypatch.undo()
    assert answer(capsys, "verify", bundle)["backends"]["eager"]["stand_in"] == ""


def test_run_makes_the_picture_that_python_makes(workshop, bundle, capsys):
    from PIL import Image

    out = workshop / "1.png"
    data = answer(capsys, "run", bundle, "red heart", str(out), "--seed", "7")
    assert (data["seed"], data["steps"], data["prompt"]) == (7, 4, "red heart")
    picture = Image.open(out)
    assert picture.tobytes() == edgediff.open_bundle(bundle).generate("red heart", seed=7).tobytes()
    made = json.loads(picture.text["edgediff"])
    assert (made["prompt"], made["seed"]) == ("red heart", 7)


def test_run_says_what_the_bundle_has_not(workshop, bundle, capsys):
    error = answer(capsys, "run", bundle, "x", str(workshop / "x.png"), "--backend", "coreml", code=2)["error"]
    assert "unknown backend 'coreml'" in error["message"]
    assert "(allowed: eager)" in error["message"]
    assert not (workshop / "x.png").exists()


def test_profile_keeps_its_table_in_the_manifest(bundle, capsys, monkeypatch):
    from edgediff import profiling
    from edgediff.runtime.latency import LatencyTable, graph_times, image_times

    table = LatencyTable(
        source="measured",
        device={"name": "this machine", "backend": "eager"},
        graphs={"full": graph_times([1.0])},
        end_to_end_ms=image_times([9.0]),
        samples={"end_to_end_ms": (9.0,)},
    )
    asked = {}
    monkeypatch.setattr(profiling, "profile_bundle", lambda one, **settings: asked.update(settings) or table)
    found = answer(capsys, "profile", bundle, "--runs", "3", "--threads", "1", "--backend", "eager")
    assert (asked["runs"], asked["threads"], asked["backend"], asked["device"]) == (3, 1, "eager", "host")
    assert answer(capsys, "inspect", bundle)["profile"] == found
    assert "p50 9.0 ms" in text(capsys, "profile", bundle)
    assert "p50 9 ms an image" in text(capsys, "inspect", bundle)


def test_compare_says_which_is_faster(bundle, capsys, monkeypatch):
    from edgediff import profiling

    found = {"ratio": {"median": 0.5, "low": 0.4, "high": 0.6}, "n": 10, "verdict": "faster"}
    monkeypatch.setattr(profiling, "compare_bundles", lambda a, b, **settings: found)
    assert answer(capsys, "compare", bundle, bundle) == found
    assert "is faster: 0.500 of the time of" in text(capsys, "compare", bundle, bundle)


def test_evaluate_says_what_beats_what(workshop, bundle, capsys, monkeypatch):
    from edgediff import evaluation

    figures = {"retrieval_at_1": 0.5, "frechet": None, "psnr_db": 20.0, "ssim": 0.8}
    found = {
        "prompts": 4,
        "n": 8,
        **figures,
        "reference": figures,
        "equal_compute": {"sampler": "ddim", "steps": 3, **figures},
        "against_equal_compute": {"ssim": {"difference": 0.1, "low": 0.05, "high": 0.2, "better": True}},
        "reasons": {"frechet": "too few pictures"},
    }
    asked = {}
    monkeypatch.setattr(evaluation, "evaluate_bundle", lambda bundle, **settings: asked.update(settings) or found)
    out = workshop / "evaluation.json"
    assert answer(capsys, "evaluate", bundle, "--prompts", "4", "--seeds", "2", "--out", str(out)) == found
    assert (asked["prompts"], list(asked["seeds"])) == ("4", [0, 1])
    assert json.loads(out.read_text(encoding="utf-8")) == found
    said = text(capsys, "evaluate", bundle)
    assert "untouched, ddim 3" in said
    assert "+0.05 to +0.2" in said
    assert said.endswith("too few pictures\n")


def test_report(workshop, bundle, capsys):
    out = workshop / "report.html"
    assert text(capsys, "report", bundle, "--out", str(out)).startswith("wrote ")
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    error = answer(capsys, "report", bundle, bundle, "--evaluation", "-", "--out", str(out), code=2)["error"]
    assert error["message"].startswith("1 evaluations for 2 bundles; give one for each bundle, in their order, or")


def test_pack_and_unpack(workshop, bundle, capsys):
    packed, again = str(workshop / "a.zip"), str(workshop / "b.edgediff")
    assert answer(capsys, "pack", bundle, packed)["bytes"] == Path(packed).stat().st_size
    assert answer(capsys, "unpack", packed, again)["kind"] == "text-to-image"
    assert "exists already" in answer(capsys, "pack", bundle, packed, code=2)["error"]["message"]
    changed = next(Path(again).rglob("*.safetensors"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x07")
    assert answer(capsys, "inspect", again, code=2)["error"]["code"] == "hash"


DIAL = """
name = "dial"
default = "slow"
[guidance]
scale = 3.0
[[program]]
name = "quick"
sampler = { kind = "ddim", steps = 2 }
[[program]]
name = "slow"
sampler = { kind = "ddim", steps = 4 }
reuse = [{ kind = "deepcache", interval = 2 }]
"""


@pytest.fixture(scope="module")
def dial(workshop):
    """A bundle of two programs."""
    (workshop / "dial.toml").write_text(DIAL, encoding="utf-8")
    common = ["--recipe", str(workshop / "dial.toml"), "--backend", "eager", "--out", str(workshop / "dial.edgediff")]
    assert main(["build", str(workshop / "model"), *common]) == 0
    return str(workshop / "dial.edgediff")


def test_inspect_names_every_program(dial, capsys):
    data = answer(capsys, "inspect", dial)
    assert data["program"] == "slow"
    assert {name: one["steps"] for name, one in data["programs"].items()} == {"slow": 4, "quick": 2}
    assert data["macs_per_image"] == data["programs"]["slow"]["macs_per_image"]
    said = text(capsys, "inspect", dial)
    assert re.search(r"^slow \* +ddim +4 +4", said, re.MULTILINE), "the default one has a star"
    assert re.search(r"^quick +ddim +2 +2", said, re.MULTILINE)


def test_run_makes_the_picture_of_the_program_that_is_asked_for(workshop, dial, capsys):
    from PIL import Image

    out = workshop / "quick.png"
    data = answer(capsys, "run", dial, "red heart", str(out), "--program", "quick")
    assert (data["program"], data["steps"]) == ("quick", 2)
    wanted = edgediff.open_bundle(dial).generate("red heart", program="quick")
    assert Image.open(out).tobytes() == wanted.tobytes()
    assert answer(capsys, "run", dial, "red heart", str(out))["program"] == "slow"
    assert Image.open(out).tobytes() != wanted.tobytes()
    error = answer(capsys, "run", dial, "red heart", str(out), "--program", "quik", code=2)["error"]
    assert error["code"] == "program" and "did you mean 'quick'? (allowed: quick, slow)" in error["message"]
    error = answer(capsys, "run", dial, "red heart", str(out), "--strength", "0.5", code=2)["error"]
    assert error["code"] == "strength" and "this bundle has none" in error["message"]


def test_verify_compares_every_program(dial, capsys):
    found = answer(capsys, "verify", dial)["backends"]["eager"]
    assert set(found["programs"]) == {"slow", "quick"}
    assert found["image"] == found["programs"]["slow"]["image"], "the default one stands where it always did"
    assert edgediff.open_bundle(dial).evidence.parity.backends["eager"].ok
    said = text(capsys, "verify", dial)
    assert "quick: picture" in said and "slow: picture" in said


def test_evaluate_and_profile_are_about_the_program_that_is_asked_for(dial, capsys, monkeypatch):
    from edgediff import evaluation, profiling
    from edgediff.runtime.latency import LatencyTable, image_times

    device = {"name": "this machine", "backend": "eager"}
    times = {"end_to_end_ms": image_times([9.0]), "samples": {"end_to_end_ms": (9.0,)}}
    table = LatencyTable(source="measured", device=device, graphs={}, **times)
    seen = []
    monkeypatch.setattr(profiling, "profile_bundle", lambda one, **_: seen.append(one) or table)
    monkeypatch.setattr(evaluation, "evaluate_bundle", lambda one, **_: seen.append(one) or {"n": 0})
    monkeypatch.setattr("edgediff.cli.commands.evaluate._quality_text", lambda found: "")
    answer(capsys, "profile", dial, "--program", "quick")
    answer(capsys, "evaluate", dial, "--program", "quick")
    assert [one.manifest.default for one in seen] == ["quick", "quick"]
    assert [one.plan.sampler.steps for one in seen] == [2, 2]
    opened = edgediff.open_bundle(dial)
    assert set(opened.evidence.profile) == {"quick"} and opened.manifest.default == "slow"
    assert answer(capsys, "profile", dial, "--program", "x", code=2)["error"]["code"] == "program"
