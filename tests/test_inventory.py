"""Everything that a file of this repository names is in it, and no ignore rule swallows a source.

An app's Kotlin sources once lay on their author's disk only: an ignore rule hid them, and every test was green.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.inventory import GENERATED, missing

ROOT = Path(__file__).parent.parent
SOURCES = ("edgediff", "recipes", "targets", "tests", "benchmarks", "android_demo", "ios_demo", "docs")
# The app's screens and activities are not here yet. Whoever brings them empties this set.
APP = {
    "android_demo/app/build.gradle.kts names android_demo/app/src/android/kotlin",
    "android_demo/app/src/main/AndroidManifest.xml names dev.edgediff.demo.MainActivity",
    "android_demo/app/src/main/AndroidManifest.xml names dev.edgediff.demo.ProfileActivity",
    "android_demo/compile_app.sh names android_demo/app/src/android/kotlin",
    "android_demo/pom.xml names android_demo/app/src/main/kotlin",
}
# The second embedded model is being trained: its weights and its judge's are not here yet.
SCENES = {
    "edgediff/embedded/scenes/export.py names edgediff/embedded/scenes/weights",
    "edgediff/embedded/scenes/detector.py names edgediff/embedded/scenes/detector.safetensors",
}
AWAITED = APP | SCENES
# Rules without a slash in front: folders and files that only tools write, whatever lies beside them.
TOOLS_ONLY = {
    "__pycache__/",
    "*.egg-info/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".mypy_cache/",
    ".build/",
    ".swiftpm/",
    "DerivedData/",
    "xcuserdata/",
    ".gradle/",
    ".kotlin/",
    ".idea/",
    "*.iml",
}
TOOL_FILES = (".pyc", ".iml", ".egg-info", "local.properties")

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="no git checkout (an unpacked source distribution, or no git): what is tracked is not known",
)


def git(*arguments: str) -> list[str]:
    """What git lists, NUL between names; the user's own ignore file does not count."""
    command = ["git", "-c", "safe.directory=*", "-c", "core.excludesFile=", *arguments, "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


@cache
def tracked() -> frozenset[str]:
    return frozenset(git("ls-files"))


@cache
def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def on_disk() -> frozenset[str]:
    """Files below the folders of sources, but for what tools write."""
    found: set[str] = set()
    for source in SOURCES:
        for folder, folders, files in os.walk(ROOT / source):
            here = Path(folder).relative_to(ROOT).as_posix()
            folders[:] = [
                name for name in folders if not name.startswith((".", "__")) and not GENERATED.match(f"{here}/{name}")
            ]
            found |= {f"{here}/{name}" for name in files if not name.startswith(".") and not name.endswith(TOOL_FILES)}
    return frozenset(found)


def missing_without(*removed: str) -> set[str]:
    """What is named and not there when these files are not tracked."""
    return missing(set(tracked()) - set(removed), read) - AWAITED


def test_all_that_is_named_is_tracked():
    """But for what is awaited, exactly: this fails as soon as it is here, or anything else is not."""
    assert missing(set(tracked()), read) == AWAITED


def test_all_that_lies_here_is_tracked():
    assert not sorted(on_disk() - tracked()), "git add these, or remove them; git check-ignore -v FILE says which rule"


def test_no_ignore_rule_matches_what_is_tracked():
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


@pytest.mark.parametrize("path", sorted(name for name in tracked() if name.endswith(".gitignore")) or ["none"])
def test_ignore_rules_are_anchored_or_name_what_only_tools_write(path):
    rules = [line for line in read(path).splitlines() if line and not line.startswith("#")]
    assert [rule for rule in rules if not rule.startswith("/") and rule not in TOOLS_ONLY] == []


@pytest.mark.parametrize(
    "path",
    [
        "android_demo/engines/pom.xml",
        "android_demo/engines/build.gradle.kts",
        "android_demo/engines/src/executorch/kotlin/dev/edgediff/engines/ExecuTorchEngine.kt",
        "android_demo/runner/src/main/kotlin/dev/edgediff/runner/Main.kt",
        "android_demo/gradle/libs.versions.toml",
        "android_demo/test.sh",
        "LICENSE",
        "README.md",
        "Makefile",
        "pyproject.toml",
        "edgediff/cli/main.py",
        "edgediff/cli/text.py",
        "edgediff/links/_build_runner.py",
        "edgediff/links/runner/check.hpp",
        "edgediff/embedded/MODEL_CARD.md",
        "edgediff/estimate/coefficients.json",
        "edgediff/report/style.css",
        "edgediff/pipeline/architectures/sd15.json",
        "benchmarks/claims/sd15_build.py",
        "benchmarks/claims/pruning_scores.py",
        "tests/kotlin_vectors.py",
        "tests/hostile.py",
        "tests/golden/rng.json",
        "tests/golden/programs.json",
    ],
)
def test_a_removed_file_is_noticed_by_who_names_it(path):
    assert path in tracked()
    assert missing_without(path), f"nothing notices that {path} is not there"


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("recipes/", "pyproject.toml names recipes"),
        ("targets/", "pyproject.toml names targets"),
        ("edgediff/links/runner/", "edgediff/links/_build_runner.py names edgediff/links/runner"),
        ("android_demo/runner/src/", "android_demo/runner/pom.xml names dev.edgediff.runner.MainKt"),
        ("edgediff/estimate/calibration/", "edgediff/estimate/rows.py names edgediff/estimate/calibration"),
    ],
)
def test_a_removed_folder_is_noticed_by_who_names_it(folder, named):
    gone = [path for path in tracked() if path.startswith(folder)]
    assert gone
    assert named in missing_without(*gone)


def test_a_class_of_an_android_manifest_is_found_where_it_is_declared():
    manifest = (
        '<manifest><application android:name=".App"><activity\n android:exported="true" android:name="a.b.Main"/>'
    )
    files = {
        "x/src/main/AndroidManifest.xml": manifest,
        "x/build.gradle.kts": 'android { namespace = "a.demo" }',
        "x/src/main/kotlin/Screens.kt": "package a.demo\n\nclass App : Application()\n",
    }
    assert missing(set(files), files.__getitem__) == {"x/src/main/AndroidManifest.xml names a.b.Main"}
    files["x/src/main/kotlin/Main.kt"] = "package a.b\ninternal class Main"
    assert missing(set(files), files.__getitem__) == set()


def test_every_file_that_an_ignore_rule_hides_would_be_found():
    """The accident again: with the sources on the disk and no longer tracked, the list is not empty."""
    kotlin = {path for path in tracked() if path.startswith("android_demo/edgediff/src/main/kotlin/")}
    assert kotlin <= on_disk() - (tracked() - kotlin)
