"""A package outside of edgediff (tests/outside), installed with real metadata, and used from the command line: its
network family with a class of its own, its pruner, its reuse method, its backend with settings."""

from __future__ import annotations

import base64
import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SOURCE = Path(__file__).parent / "outside"
CONFIG = {"_class_name": "MixerDenoiser", "in_channels": 3, "sample_size": 8, "width": 32, "layers": 4}
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "clip_sample": False, "steps_offset": 0}
RECIPE = """
name = "outside"
[sampler]
kind = "ddim"
steps = 4
[guidance]
scale = 1.0
[calibration]
prompts = 1
[[prune]]
kind = "every_nth"
n = {n}
[[reuse]]
kind = "alternate"
"""
TARGET = """
name = "outside"
backends = ["exported"]
[exported]
decimals = {decimals}
"""


def make_wheel(source: Path, folder: Path) -> Path:
    """A wheel of a package of Python modules alone, from its pyproject.toml: no build backend, no network."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    files = {str(path.relative_to(source)): path.read_bytes() for path in sorted(source.rglob("*.py"))}
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    info = f"{stem}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n".encode()
    )
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = "\n".join(groups).encode()
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def write_model(folder: Path) -> None:
    """A model of the outside family, in diffusers' layout, with weights in the family's own file."""
    width, pixels = CONFIG["width"], CONFIG["in_channels"] * CONFIG["sample_size"] ** 2
    shapes = {"time": (width, 2), "entry": (width, pixels), "exit": (pixels, width)}
    shapes |= {f"layers.{index}.out": (width, width) for index in range(CONFIG["layers"])}
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=draw) / shape[1] ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    for index in range(CONFIG["layers"]):
        tensors[f"layers.{index}.norm.weight"] = torch.ones(width)
        tensors[f"layers.{index}.norm.bias"] = torch.zeros(width)
    (folder / "mixer").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    save_file(tensors, folder / "mixer" / "weights.safetensors")
    (folder / "mixer" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"_class_name": "MixerPipeline", "mixer": ["edgediff_outside", "MixerDenoiser"]}
    (folder / "model_index.json").write_text(json.dumps(index))


class Outside:
    """The folder where it all lies; `run` is one command line in a process that sees the package."""

    def __init__(self, folder: Path, installed: bool = True) -> None:
        import edgediff

        self.folder = folder
        paths = [*([str(folder / "site")] if installed else []), str(Path(edgediff.__file__).parent.parent)]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EDGEDIFF_CACHE": str(folder / "cache")}

    def run(self, *words: str, code: int = 0) -> dict:
        command = [sys.executable, "-m", "edgediff", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, (done.stdout[-2000:], done.stderr[-2000:])
        found = json.loads(done.stdout)
        return found["error"] if code == 2 else found


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Outside:
    folder = tmp_path_factory.mktemp("outside")
    wheel = make_wheel(SOURCE, folder)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--quiet",
        "--target",
        str(folder / "site"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    write_model(folder / "model")
    (folder / "recipe.toml").write_text(RECIPE.format(n=2))
    (folder / "target.toml").write_text(TARGET.format(decimals=5))
    return Outside(folder)


@pytest.fixture(scope="module")
def built(outside) -> dict:
    return outside.run("build", "model", "--recipe", "recipe.toml", "--target", "target.toml", "--out", "b.edgediff")


def test_build_uses_all_that_the_package_brings(outside, built):
    plan = json.loads((outside.folder / "b.edgediff" / "plan.json").read_text())
    assert [(cut["unit"], cut["by"]) for cut in plan["cuts"]] == [("layers.1", "every_nth"), ("layers.3", "every_nth")]
    assert plan["schedule"]["calls"] == ["full", "taken"] * 2
    assert plan["backends"]["exported"]["format"] == "pt2"
    assert plan["model"]["denoiser"] == "MixerDenoiser" and plan["model"]["kind"] == "unconditional-image"
    files = {path.name for path in (outside.folder / "b.edgediff" / "exported").iterdir()}
    assert {"full_1.pt2", "full_2.pt2", "taken_1.pt2"} <= files


def test_verify_and_run_open_the_model_and_the_programs(outside, built):
    found = outside.run("verify", "b.edgediff")
    graphs = found["backends"]["exported"]["graphs"]
    assert found["ok"] and set(graphs) == {"full", "taken"}
    assert 60 < graphs["full"]["psnr_db"] < 115, "weights are rounded to five decimals, as the target's table says"
    made = outside.run("run", "b.edgediff", "", "picture.png")
    assert made["steps"] == 4
    assert (outside.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_methods_and_settings_are_shown_and_checked(outside):
    methods = outside.run("methods")
    assert "every_nth" in methods["prune"] and "alternate" in methods["reuse"]
    wrong = {"recipe.toml": RECIPE.format(n=1), "target.toml": TARGET.format(decimals=5).replace("dec", "deci")}
    for name, text in wrong.items():
        (outside.folder / f"wrong_{name}").write_text(text)
    words = ("build", "model", "--out", "c.edgediff")
    error = outside.run(*words, "--recipe", "wrong_recipe.toml", "--target", "target.toml", code=2)
    assert "every_nth" in error["where"] and error["message"].startswith("'n' = 1: ")
    error = outside.run(*words, "--recipe", "recipe.toml", "--target", "wrong_target.toml", code=2)
    assert error["code"] == "unknown_key"
    assert error["message"].startswith("unknown key 'exported.deciimals'; did you mean 'decimals'?")


def test_without_the_package_each_of_its_words_is_an_error(outside):
    bare = Outside(outside.folder, installed=False)
    words = ("build", "model", "--out", "c.edgediff")
    error = bare.run(*words, "--recipe", "none", "--target", "target.toml", code=2)
    assert error["code"] == "unknown_backends" and error["where"] == "target.toml"
    assert error["message"].startswith("[exported] is no table of a target and no backend that is installed")
    assert "executorch" in error["message"] and "entry point in the group edgediff.backends" in error["message"]
    error = bare.run(*words, "--recipe", "recipe.toml", code=2)
    assert error["code"] == "unknown_prune" and error["message"].startswith("unknown prune kind 'every_nth'")
    error = bare.run(*words, "--recipe", "none", code=2)
    assert error["code"] == "missing_part" and "has no 'unet' or 'transformer'" in error["message"]
    assert "it names mixer (MixerDenoiser)" in error["message"]


def test_the_documents_code_is_the_packages():
    text = (SOURCE.parent.parent / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)
    files = [path.read_text() for path in (*SOURCE.rglob("*.py"), SOURCE / "pyproject.toml")]
    assert len(blocks) == 6
    for block in blocks:
        assert any(block in file for file in files), f"docs/extending.md has code that tests/outside has not:\n{block}"


@pytest.mark.parametrize("folder", ["networks", "prune", "reuse", "backends", "links", "layouts"])
def test_the_documents_table_names_every_member(folder):
    door = importlib.import_module(f"edgediff.{folder}").DOOR
    table = (SOURCE.parent.parent / "docs" / "extending.md").read_text().partition("## Entry points")[0]
    (row,) = [line for line in table.splitlines() if f"`{folder}.{door.__name__}`" in line]
    members = {*door.__annotations__, *(name for name, one in vars(door).items() if inspect.isfunction(one))}
    for name in members - {"NAME"}:
        assert name.startswith("_") or f"`{name}`" in row, f"docs/extending.md says nothing of {folder}'s {name}"
