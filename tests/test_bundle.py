"""The bundle on disk: every hostile bundle is refused for its own reason, and none is ever half written."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from edgediff.bundle import (
    MANIFEST_LIMIT,
    Bundle,
    BundleWriter,
    copy_hashed,
    open_bundle,
    pack_bundle,
    refuse_pickle,
)
from edgediff.config import Model
from edgediff.documents.schemas import FOLDER, MODELS, render_schema
from edgediff.errors import BundleError
from edgediff.runtime import choose_backend, generate, generate_steps
from tests.hostile import (
    CASES,
    GOLDEN,
    Case,
    Tree,
    make_manifest,
    render_golden,
    valid_parts,
    valid_tree,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return valid_tree().write(tmp_path / "red-panda.edgediff")


# Reading


def test_valid_bundle_opens(folder: Path) -> None:
    bundle = open_bundle(str(folder))
    assert bundle.folder == folder.resolve()
    assert bundle.plan.recipe_name == "by hand"
    assert bundle.path("onnxruntime/unet") == folder.resolve() / "onnxruntime" / "unet"
    with pytest.raises(BundleError, match=r"lists no file 'plan\.jsn'; did you mean 'plan\.json'") as caught:
        bundle.path("plan.jsn")
    assert caught.value.code == "missing_file"


def test_bundle_prints_in_80_columns(folder: Path) -> None:
    lines = str(open_bundle(folder)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "bundle     red-panda (makes image, schema 2.0)"
    assert lines[5].split() == ["main", "*", "ddim", "4", "4", "1", "2", "prompt,", "negative"]
    assert lines[6].split() == ["fast", "ddim", "2", "2", "0", "0", "prompt"]
    assert lines[9].split() == ["full", "2", "0.000", "0.00", "onnxruntime"]


def test_every_code_and_every_rule_has_a_case() -> None:
    """Section 9 of the page: what a reader may refuse a folder for."""
    page = (GOLDEN.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    rows = page[page.index("## 9.") : page.index("## 10.")].splitlines()
    reading = [cell for row in rows if row.startswith("| `") for cell in _reading_cells(row)]
    codes = {code for cell in reading for code in re.findall(r"`(\w+)`", cell)}
    assert {case.code for case in CASES} == codes
    assert len({case.name for case in CASES}) == len(CASES) > 300


def _reading_cells(row: str) -> list[str]:
    """The codes of steps 1 to 6 in a row of the table: the cells beside `step` or `section 7`."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return [cells[at] for at in (0, 3) if cells[at + 1].startswith(("step", "section 7"))]


def test_null_leaves_an_optional_key_out(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["picture"] = manifest["safety"] = manifest["programs"]["main"]["rows"][2]["graph"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(folder)


def test_a_newer_minor_version_is_read(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"2.0"', '"2.17"'))
    assert open_bundle(folder).manifest.schema_version == "2.17"
    (folder / "manifest.json").write_text(text.replace('"2.0"', '"2.17"').replace('"image"', '"film"', 1))
    with pytest.raises(BundleError, match=r"schema 2\.17, which is newer: update edgediff"):
        open_bundle(folder)


def test_the_limits_themselves_are_allowed(folder: Path) -> None:
    """One beyond each of them is a case."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "\U0001f43c" * 200
    manifest["source"]["model"] = "\U0001f43c" * 65_536
    manifest["decoder"]["scale"] = 1e30
    manifest["evidence"] = {"a": "HERE", "b": "NUMBER"}
    manifest["tokenizers"]["clip"]["added"].append({"content": "x", "ids": [2**24] * 64})
    manifest["graphs"]["full"]["macs"] = 2**53 - 1
    text = json.dumps(manifest).replace('"HERE"', "[" * 30 + "]" * 30).replace('"NUMBER"', "1" * 40)
    (folder / "manifest.json").write_text(text)
    assert open_bundle(folder)


def test_maps_keep_their_order(tmp_path: Path) -> None:
    """A graph's artifacts stand in the order of preference, which is not that of the alphabet."""
    manifest = make_manifest()
    graphs = {
        name: graph.model_copy(update={"artifacts": dict.fromkeys(("z", "b", "m"), graph.artifacts["onnxruntime"])})
        for name, graph in manifest.graphs.items()
    }
    with BundleWriter(tmp_path / "out") as writer:
        for path, data in valid_parts().items():
            writer.path(path).write_bytes(data)
        writer.commit(manifest.model_copy(update={"graphs": graphs}))
    read = open_bundle(tmp_path / "out").manifest
    assert [list(graph.artifacts) for graph in read.graphs.values()] == [["z", "b", "m"]] * 4
    assert choose_backend(read) == "z"


def test_tokenizers_by_name(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert list(bundle.tokenizers()) == ["clip"]
    assert bundle.tokenizers()["clip"].encode("a", 6) == [1, 0, 2, 2, 2, 2]
    (folder / "tokenizer" / "vocab.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"tokenizer/vocab\.json: holds no tokens") as caught:
        bundle.tokenizers()
    assert caught.value.code == "tokenizer"


def test_the_public_door_has_the_names_that_others_rely_on() -> None:
    steps = inspect.signature(Bundle.generate_steps).parameters
    assert list(steps)[1:10] == [
        *("prompt", "negative_prompt", "seed", "program", "noise", "picture", "mask", "strength", "guidance"),
    ]
    assert [steps[name].default for name in ("prompt", "negative_prompt", "seed")] == ["", "", 0]
    whole = inspect.signature(Bundle.generate).parameters
    assert [name for name in whole if name not in steps] == ["progress"]
    for ours, theirs in ((Bundle.generate_steps, generate_steps), (Bundle.generate, generate)):
        own, other = (list(inspect.signature(one).parameters.values())[1:] for one in (ours, theirs))
        assert [(one.name, one.default, one.kind) for one in own] == [
            (one.name, one.default, one.kind) for one in other
        ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_bundle_is_refused(case: Case, tmp_path: Path) -> None:
    folder = case.tree().write(tmp_path / "bundle")
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert caught.value.code == case.code, str(caught.value)
    assert case.text in str(caught.value)
    assert str(folder) in str(caught.value), "an error names the place"


def test_only_the_hash_is_left_to_verify(tmp_path: Path) -> None:
    opened = {case.name for case in CASES if _opens_unverified(case.tree().write(tmp_path / case.name))}
    assert opened == {"hash"}


def _opens_unverified(folder: Path) -> bool:
    try:
        open_bundle(folder, verify=False)
    except BundleError:
        return False
    return True


@pytest.mark.parametrize(("name", "text"), [("nowhere", "does not exist"), ("file", "is a file")])
def test_not_a_folder(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=text) as caught:
        open_bundle(tmp_path / name)
    assert caught.value.code == "not_a_bundle"


def test_a_packed_bundle_says_unpack(folder: Path, tmp_path: Path) -> None:
    file = pack_bundle(open_bundle(folder), tmp_path / "packed.zip")
    with pytest.raises(BundleError, match="unpack it first: edgediff unpack"):
        open_bundle(file)


def test_a_pipe_is_no_file(folder: Path) -> None:
    (folder / "plan.json").unlink()
    os.mkfifo(folder / "plan.json")
    with pytest.raises(BundleError, match=r"'plan\.json' is not a regular file") as caught:
        open_bundle(folder)
    assert caught.value.code == "file"


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    os.truncate(folder / "manifest.json", MANIFEST_LIMIT + 1)
    with pytest.raises(BundleError, match=r"is 16\.78 MB; a manifest is at most 16\.78 MB") as caught:
        open_bundle(folder)
    assert caught.value.code == "size"


def test_a_name_that_is_not_utf8_is_unlisted(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/\xff.bin", "wb"):
        pass
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert caught.value.code == "unlisted"
    str(caught.value).encode()


def test_hard_links_and_a_link_to_the_bundle_are_fine(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "plan.json", tmp_path / "twin.json")
    (tmp_path / "latest").symlink_to(folder)
    assert open_bundle(tmp_path / "latest").folder == folder.resolve()


def test_weights_that_begin_like_a_pickle_are_weights(tmp_path: Path) -> None:
    for head in (b"\x80\x02\x00\x00", b"\x80\x04" + bytes(range(128, 256)), b"\x80\x03"):
        (tmp_path / "weights.bin").write_bytes(head + bytes(4096))
        refuse_pickle(tmp_path / "weights.bin", "weights.bin", "here")


def test_hashing_needs_little_memory(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 48 << 20)
    tracemalloc.start()
    with open(tmp_path / "sparse", "rb") as file:
        digest = copy_hashed(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest == hashlib.sha256(bytes(48 << 20)).hexdigest()
    assert peak < 6 << 20


# Files of the repository, and imports


@pytest.mark.parametrize("name", sorted(render_golden()))
def test_golden_files_are_up_to_date(name: str) -> None:
    assert (GOLDEN / name).read_text(encoding="utf-8") == render_golden()[name], "run: python tests/hostile.py"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_schemas_are_up_to_date(name: str) -> None:
    written = (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")
    assert written == render_schema(name), "run: python -m edgediff.documents.schemas"


def test_schemas_accept_what_is_valid_and_name_what_is_not() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tree: Tree = valid_tree()
    validators = {name: jsonschema.Draft202012Validator(json.loads(render_schema(name))) for name in MODELS}
    for validator in validators.values():
        validator.check_schema(validator.schema)
    assert not list(validators["manifest"].iter_errors(tree.manifest))
    assert not list(validators["plan"].iter_errors(json.loads(tree.files["plan.json"])))
    refused = {
        case.name
        for case in CASES
        if case.name in ("unknown_key", "no_rows", "text_for_number")
        and list(validators["manifest"].iter_errors(case.tree().manifest))
    }
    assert refused == {"unknown_key", "no_rows", "text_for_number"}
    assert all(issubclass(model, Model) for model in MODELS.values())


def test_reading_a_bundle_does_not_import_torch() -> None:
    code = "import sys, edgediff.bundle, edgediff.runtime, edgediff.documents.schemas; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
