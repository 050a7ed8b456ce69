"""Hand-written and machine-written files: every mistake names the file, the key and what is allowed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.config import Model, dump_json, parse, parse_outside, read_outside, write_text_atomic
from edgediff.documents.recipe import Recipe, list_recipes, load_recipe
from edgediff.documents.target import Target, list_targets, load_target
from edgediff.errors import ConfigError, OutputError, did_you_mean, unknown


class Inner(Model):
    depth: int = 1


class Outer(Model):
    name: str
    rows: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    extra: Inner | None = None
    score: float = 0.0


def recipe_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What people write


MISTAKES = (
    ('nmae = "x"', "value", "key 'name' is missing"),
    ('name = "x"\nsampeler = 3', "unknown_key", "unknown key 'sampeler'; did you mean 'sampler'? (allowed: "),
    (
        'name = "x"\n[sampler]\nstpes = 50',
        "unknown_key",
        "unknown key 'sampler.stpes'; did you mean 'steps'? (allowed: kind, steps)",
    ),
    (
        'name = "x"\n[sampler]\nsteps = 0',
        "value",
        "'sampler.steps' = 0: input should be greater than or equal to 1",
    ),
    ('name = "x"\n[sampler]\nsteps = "many"', "value", "'sampler.steps' = 'many': "),
    ('name = ""', "value", "'name' = '': "),
    ('name = "x"\n[guidance]\nscale = inf', "value", "'guidance.scale' = inf: "),
    ('name = "x"\n[guidance]\ninterval = [0.9, 0.1]', "value", "the interval needs 0 <= start < end <= 1"),
    (
        'name = "x"\nprecision = "int8"',
        "value",
        "'precision' = 'int8': there is no such precision any more: 'w8' (weights in 8 bits, floating arith",
    ),
    (
        'name = "x"\nprecision = "w9"',
        "value",
        "'precision' = 'w9': input should be 'auto', 'fp32', 'tf32', 'fp16', 'bf16', 'w8', 'w8a8', 'w8a16', 'w4'",
    ),
    (
        'name = "x"\n[precision]\nweights = "int8"',
        "value",
        "'precision' = {'weights': 'int8'}: a precision is one word now: write precision = \"w8a8\"",
    ),
    (
        'name = "x"\n[weights]\nformat = "int4/32"',
        "value",
        "'weights.format' = 'int4/32': weight format 'int4/32' is now",
    ),
    (
        'name = "x"\n[parity]\nint8_db = 20',
        "unknown_key",
        "key 'parity.int8_db' = 20 is no longer known: write w8_db, w8a8_db or w8a16_db",
    ),
    ('name = "x"\n[[reuse]]\nkind = "a"\n[[reuse]]\nkind = "b"', "value", "at most one [[reuse]] table"),
    (
        'name = "x"\n[[program]]\nname = "fast"\n[[program]]\nname = "best"\n[[program]]\nname = "fast"',
        "value",
        "'program.2.name' = 'fast': two [[program]] tables have this name, and an app chooses by name",
    ),
    (
        'name = "x"\n[sampler]\nsteps = 4\n[[program]]\nname = "fast"',
        "value",
        "key 'sampler': a recipe has either [[program]] tables or one [sampler] at the top",
    ),
    (
        'name = "x"\n[[program]]\nname = "fast"\n[[reuse]]\nkind = "fora"',
        "value",
        "key 'reuse': a recipe has either [[program]] tables or one [[reuse]] at the top",
    ),
    (
        'name = "x"\n[[program]]\nname = "fast"\n[budget]\nlatency_ms = 900',
        "value",
        "key 'budget': a recipe has either [[program]] tables or a [budget]",
    ),
    (
        'name = "x"\ndefault = "fats"\n[[program]]\nname = "fast"',
        "value",
        "'default' = 'fats' is no program of this recipe; did you mean 'fast'?",
    ),
    (
        'name = "x"\ndefault = "fast"',
        "value",
        "'default' = 'fast' is no program of this recipe; it has no [[program]]",
    ),
    (
        'name = "x"\n[[program]]\nname = "fast"\nsteps = 4',
        "unknown_key",
        "unknown key 'program.0.steps' (allowed: guidance, name, reuse, sampler)",
    ),
    (
        'name = "x"\n[[program]]\nname = "fast"\nsampler = { steps = 0 }',
        "value",
        "'program.0.sampler.steps' = 0: input should be greater than or equal to 1",
    ),
    ('name = "x"\n[[program]]\nname = "so fast"', "value", "'program.0.name' = 'so fast': "),
    ('name = "x"\n[[prune]]\nbudget = 1', "value", "key 'prune.0.kind' is missing"),
    ('name = "x"\nname = "y"', "syntax", "is not TOML: "),
    ('name = "x', "syntax", "is not TOML: "),
    (b'name = "\xff"', "syntax", "is not UTF-8 (byte 8)"),
)


@pytest.mark.parametrize(("text", "code", "message"), MISTAKES)
def test_recipe_mistakes(text: str | bytes, code: str, message: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value), "one mistake, one sentence"


def test_a_method_table_keeps_its_own_keys(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, 'name = "x"\n[[prune]]\nkind = "laptop"\nbudget = { parameters = 0.5 }'))
    assert recipe.prune[0].options() == {"budget": {"parameters": 0.5}}


@pytest.mark.parametrize(
    ("load", "name", "code", "message"),
    [
        (load_target, "hots", "unknown_target", "unknown target 'hots'; did you mean 'host'? ("),
        (load_recipe, "balancd", "unknown_recipe", "unknown recipe 'balancd'; did you mean 'balanced'? ("),
        (load_target, "nowhere.toml", "missing", "nowhere.toml: there is no such file"),
        (load_recipe, "no/such/folder.toml", "missing", "there is no such file"),
    ],
)
def test_names_that_are_not_there(load: Any, name: str, code: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_everything_shipped_loads() -> None:
    assert "balanced" in list_recipes()
    assert "host" in list_targets()
    for name in list_recipes():
        assert isinstance(load_recipe(name), Recipe)
    for name in list_targets():
        target = load_target(name)
        assert isinstance(target, Target)
        assert load_target(target) is target


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory") as caught:
        read_outside(tmp_path, Recipe)
    assert caught.value.code == "missing"


# What programs write


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('{"name": "a", "name": "b"}', "syntax", "key 'name' is given twice"),
        ('{"name": "a", "named": {"b": {"depth": 1, "depth": 1}}}', "syntax", "key 'depth' is given twice"),
        ('{"name": "a", "score": NaN}', "syntax", "NaN is not a JSON number"),
        ('{"name": "a", "score": -Infinity}', "syntax", "-Infinity is not a JSON number"),
        ('{"name": "a", "score": 1e999}', "value", "'score' = inf: "),
        ('{"name": "a",}', "syntax", "is not JSON: "),
        ('{"score": ' + "9" * 5000 + "}", "syntax", "is not JSON: "),
        ("[" * 100_000, "syntax", "is not JSON: "),
        (
            '{"name": "a", "rows": [{"depht": 2}]}',
            "unknown_key",
            "'rows.0.depht'; did you mean 'depth'? (allowed: depth)",
        ),
        ('{"name": "a", "named": {"b": {"x": 2}}}', "unknown_key", "'named.b.x' (allowed: depth)"),
        ('{"name": "a", "extra": {"deep": 2}}', "unknown_key", "'extra.deep'; did you mean 'depth'?"),
        ('{"nam": "a"}', "value", "key 'name' is missing"),
    ],
)
def test_json_mistakes(text: str, code: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_outside(text, Outer, where="some.json")
    assert caught.value.code == code
    assert str(caught.value).startswith("some.json: ")
    assert message in str(caught.value)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file"):
        read_outside(tmp_path / "nowhere.json", Outer)


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"name": "a", "score": "x" * 1000}, Outer, where="here")
    assert len(str(caught.value)) < 200


def test_canonical_json_is_the_same_for_the_same_value() -> None:
    one = Outer(name="é", rows=(Inner(depth=2),), score=0.5)
    assert one.to_json() == Outer(score=0.5, rows=(Inner(depth=2),), name="é").to_json()
    assert one.to_json().startswith('{\n  "name": "é",\n  "named": {},\n  "rows"')
    assert parse_outside(one.to_json(), Outer, where="") == one
    assert one.digest() != Outer(name="e").digest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"score": float("nan")})


def test_frozen_and_finite() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer(name="a").name = "b"  # type: ignore[misc]
    with pytest.raises(ValueError, match="finite"):
        Outer(name="a", score=float("inf"))


# Writing


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write_text_atomic(path, "first")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"out\.json: cannot be written: No space left on device"):
        write_text_atomic(path, "second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["out.json"]
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        write_text_atomic(tmp_path / "no" / "folder.json", "x")


# Words


def test_did_you_mean() -> None:
    assert unknown("backend", "onxruntime", ["onnxruntime", "coreml"]) == (
        "unknown backend 'onxruntime'; did you mean 'onnxruntime'? (allowed: coreml, onnxruntime)"
    )
    assert did_you_mean("teapot", ["coreml"]) == " (allowed: coreml)"
    assert did_you_mean("x", []) == ""
    assert len(did_you_mean("zz", [f"name_{i:03}" for i in range(300)])) < 200


def test_config_does_not_import_torch() -> None:
    code = "import sys, edgediff.documents.schemas, edgediff.runtime.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
