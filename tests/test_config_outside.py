"""The door for what comes from outside: what is hostile is one error with file and key, soon and in little memory."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.bundle.reader import parse_manifest
from edgediff.config import Limits, Model, load_plain, parse_outside, read_lines, read_outside, read_text
from edgediff.documents.plan import Plan
from edgediff.documents.recipe import load_recipe
from edgediff.documents.target import load_target
from edgediff.errors import BundleError, ConfigError
from tests.hostile import make_manifest, make_plan

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, devices and sockets of POSIX systems")


class Inner(Model):
    depth: int = 1


class Outer(Model):
    """Something of everything that a document may hold."""

    name: str = ""
    count: int = 0
    score: float = 0.0
    flag: bool = False
    pair: tuple[float, float] = (0.0, 0.0)
    rows: tuple[Inner, ...] = ()
    free: dict[str, Any] = {}


def refusal(path: Path, text: str | bytes) -> ConfigError:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_outside(path, Outer)
    assert caught.value.where == str(path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return caught.value


DEEP = 100_000
JSON_CASES = [
    ("[" * DEEP, "syntax", "is not JSON: lists and tables lie more than 64 deep in one another"),
    ('{"free": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}", "syntax", "more than 64 deep"),
    ('{"free": {"a": ' + "[" * 64 + "]" * 64 + "}}", "syntax", "more than 64 deep"),
    ('{"count": ' + "9" * 5000 + "}", "syntax", "is not JSON: a number of 5000 digits"),
    ('{"count": -9223372036854775809}', "value", "'count' = -9223372036854775809: a whole number here lies within 9.2"),
    ('{"free": {"a": [0, 1' + "0" * 4000 + "]}}", "value", "'free.a.1' = a number of 13288 bits: a whole number"),
    ('{"score": 1e999}', "value", "'score' = inf: a number here lies within 3.40282e+38 of 0"),
    ('{"score": -1e300}', "value", "'score' = -1e+300: a number"),
    ('{"score": NaN}', "syntax", "is not JSON: NaN is not a JSON number"),
    ('{"free": {"a": -Infinity}}', "syntax", "-Infinity is not a JSON number"),
    ('{"name": "a", "name": "b"}', "syntax", "is not JSON: key 'name' is given twice"),
    ('{"free": [{"x": 1, "y": 2, "x": 1}]}', "syntax", "key 'x' is given twice"),
    ('{"name": "\\ud800"}', "value", "'name' = '\\ud800': half of a surrogate pair is no text"),
    ('{"free": {"a": {"\\udfff": 1}}}', "value", "'free.a' = {'\\udfff': 1}: half of a surrogate pair"),
    (b"\xef\xbb\xbf{}", "syntax", "is not JSON: it begins with a byte-order mark; save it as UTF-8 without one"),
    ('{"name": "\ufeff"}'.encode("utf-16"), "syntax", "is not UTF-8 (byte 0)"),
    (b'{"name": "\xed\xa0\x80"}', "syntax", "is not UTF-8 (byte 10)"),
    (b"", "syntax", "is not JSON: "),
    (b"\0" * 100, "syntax", "is not JSON: "),
    ('{"count": "5"}', "value", "'count' = '5': input should be a valid integer"),
    ('{"count": 5.0}', "value", "'count' = 5.0: input should be a valid integer"),
    ('{"count": true}', "value", "'count' = True: input should be a valid integer"),
    ('{"score": "0.5"}', "value", "'score' = '0.5': input should be a valid number"),
    ('{"flag": 1}', "value", "'flag' = 1: input should be a valid boolean"),
    ('{"name": 5}', "value", "'name' = 5: input should be a valid string"),
    ('{"rows": [{"depht": 2}]}', "unknown_key", "unknown key 'rows.0.depht'; did you mean 'depth'? (allowed: depth)"),
    ("[]", "value", "input should be an object"),
]
TOML_CASES = [
    ("count = " + "9" * 5000, "syntax", "is not TOML: "),
    (
        "count = 0x" + "f" * 5000,
        "value",
        "'count' = a number of 20000 bits: a whole number here lies within 9.22337e+18",
    ),
    ("count = 9223372036854775808", "value", "'count' = 9223372036854775808: a whole number"),
    ("score = nan", "value", "'score' = nan: a number"),
    ("pair = [0.0, -inf]", "value", "'pair.1' = -inf: a number"),
    ("free = { a = " + "[" * 1500 + "]" * 1500 + " }", "syntax", "is not TOML: lists and tables lie more than 64 deep"),
    ("free" + ".a" * 64 + " = 1", "syntax", "is not TOML: a key has more than 64 parts"),
    ("a." * DEEP + "a = 1", "syntax", "a key has more than 64 parts"),
    ("[" + "'a' . " * 30_000 + "a]", "syntax", "a key has more than 64 parts"),
    ("a.b.c.d.e.f.g.h = 1\n" + "[x" + '."y"' * 70 + "]", "syntax", "a key has more than 64 parts"),
    ("name = 'a'\nname = 'b'", "syntax", "is not TOML: "),
    ("[free]\na = 2026-11-28", "value", "dates and times are not taken here; write a text in quotes"),
    ("[free]\na = 07:32:00", "value", "'free.a' = datetime.time(7, 32): dates and times"),
    ('name = "\\ud800"', "syntax", "is not TOML: "),
    (b"\xef\xbb\xbfname = 'a'", "syntax", "is not TOML: it begins with a byte-order mark"),
    ('count = "5"', "value", "'count' = '5': input should be a valid integer"),
    ("# " + "x" * (256 << 10), "size", "has more than 262144 bytes, which is the most that is read of such a file"),
]


@pytest.mark.parametrize(("text", "code", "message"), JSON_CASES)
def test_hostile_json(tmp_path, text, code, message):
    error = refusal(tmp_path / "some.json", text)
    assert (error.code, message in str(error)) == (code, True), str(error)


@pytest.mark.parametrize(("text", "code", "message"), TOML_CASES)
def test_hostile_toml(tmp_path, text, code, message):
    error = refusal(tmp_path / "some.toml", text)
    assert (error.code, message in str(error)) == (code, True), str(error)


def test_what_is_allowed_comes_through(tmp_path):
    path = tmp_path / "some.json"
    text = '{"name": "é\\ud83d\\ude00", "count": -9223372036854775807, "score": 1, "pair": [1, -3.4e38], "flag": true}'
    path.write_text(text, encoding="utf-8")
    found = read_outside(path, Outer)
    assert (found.name, found.count, found.score, found.pair, found.flag) == (
        "é😀",
        -(2**63) + 1,
        1.0,
        (1, -3.4e38),
        True,
    )
    path.write_text('{"free": {"a": ' + "[" * 63 + "]" * 63 + "}}", encoding="utf-8")
    assert read_outside(path, Outer).free != {}
    toml = tmp_path / "some.toml"
    toml.write_text("name = 'a.b'\r\n[[rows]]\r\ndepth = 2\r\n[free" + ".a" * 62 + "]\r\n", encoding="utf-8")
    assert read_outside(toml, Outer).rows == (Inner(depth=2),)


def test_a_reader_may_allow_more(tmp_path):
    text = '{"count": 1000000000000000019884624838656}'  # the model_max_length of many tokenizers
    assert parse_outside(text, Outer, where="x", limits=Limits(whole=1e31)).count == 1000000000000000019884624838656
    assert load_plain("[" * 300 + "]" * 300, where="x", limits=Limits(depth=299)) is not None
    with pytest.raises(ConfigError, match="more than 298 deep"):
        load_plain("[" * 300 + "]" * 300, where="x", limits=Limits(depth=298))
    with pytest.raises(ConfigError, match="'' = inf|a number here"):
        load_plain("1e999", where="x", limits=Limits(real=sys.float_info.max, whole=math.inf))


@posix
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a socket"])
@pytest.mark.parametrize("name", ["x.json", "x.toml"])
def test_only_regular_files_are_read(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(path))
    with pytest.raises(ConfigError) as caught:
        read_outside(path, Outer)
    special = kind in ("a pipe", "a device")
    said = f"is {kind}, not a file; give a file" if special else "cannot be read: "
    assert said in str(caught.value)
    assert caught.value.code == ("file" if special else "missing")


@posix
def test_a_pipe_is_refused_at_once_by_the_command_line(tmp_path):
    os.mkfifo(tmp_path / "r.toml")
    command = [sys.executable, "-m", "edgediff", "build", "glyph", "--dry-run", "--recipe", str(tmp_path / "r.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"edgediff: error: {tmp_path / 'r.toml'}: is a pipe, not a file; give a file\n",
    )


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere/x.json", "a\0b.json", "x" * 5000])
def test_names_that_are_no_file(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / name)
    assert caught.value.code == "missing"
    assert "there is no such file" in str(caught.value) or "cannot be read: File name too long" in str(caught.value)


@posix
def test_a_file_that_has_no_size_is_bounded_too():
    """Files of /proc say that they have 0 bytes."""
    with pytest.raises(ConfigError, match="has more than 10 bytes"):
        read_text(Path("/proc/self/status"), limits=Limits(bytes=10))


def test_a_long_key_is_not_copied_for_each_of_its_values():
    """A key of 1 MB before a list of 200,000 values: 200 GB, were every value's place spelt out."""
    text = json.dumps({"free": {"k" * 1_000_000: [0] * 200_000 + [1e300]}})
    with pytest.raises(ConfigError) as caught:
        parse_outside(text, Outer, where="x")
    assert len(str(caught.value)) < 300
    assert "200000' = 1e+300" in str(caught.value)


def test_lines_end_as_any_editor_ends_them(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffred heart\r\n\r\nblue\u2028car\n last ".encode())
    assert read_lines(path) == ["red heart", "", "blue\u2028car", " last "]
    path.write_bytes(b"")
    assert read_lines(path) == []
    path.write_bytes(b"a\n\n")
    assert read_lines(path) == ["a", ""]


@pytest.mark.parametrize("load", [load_recipe, load_target])
@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 1500, "a." * DEEP + "a = 1"])
def test_recipes_and_targets_come_through_the_door(tmp_path, load, text):
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not TOML: ") as caught:
        load(path)
    assert caught.value.code == "syntax"


def test_plans_come_through_the_door(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(make_plan().to_json(), encoding="utf-8")
    assert read_outside(path, Plan) == make_plan()
    path.write_text(make_plan().to_json().replace('"steps": 4', '"steps": "4"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="'sampler.steps' = '4': input should be a valid integer"):
        read_outside(path, Plan)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('"name": "red-panda"', '"name": ' + "[" * 401 + "]" * 401, "syntax"),
        ('"name": "red-panda"', '"name": "red-panda", "evidence": {"a": 1e999}', "syntax"),
        ('"schema_version": "2.0"', '"schema_version": "3.0", "steps": -1', "version"),
    ],
)
def test_a_manifest_says_its_version_before_its_keys(old, new, code):
    text = make_manifest().to_json()
    assert old in text
    with pytest.raises((BundleError, ConfigError)) as caught:
        parse_manifest(text.replace(old, new, 1), "x")
    assert caught.value.code == code
