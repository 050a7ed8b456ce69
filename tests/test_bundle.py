"""The bundle on disk: every hostile bundle is refused for its own reason, and none is ever half written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import CASES, GOLDEN, ZIP_CASES, Case, Tree, ZipCase, make_manifest, render_golden, valid_parts, valid_tree

from edgediff.bundle import (
    MANIFEST_LIMIT,
    Bundle,
    BundleWriter,
    copy_hashed,
    open_bundle,
    pack_bundle,
    refuse_pickle,
    unpack_bundle,
    update_manifest,
)
from edgediff.config import Model
from edgediff.documents.schemas import FOLDER, MODELS, render_schema
from edgediff.errors import BundleError, OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return valid_tree().write(tmp_path / "red-panda.edgediff")


def write(out: Path, *, overwrite: bool = False, parts: dict[str, bytes] | None = None) -> Bundle:
    with BundleWriter(out, overwrite) as writer:
        for path, data in (valid_parts() if parts is None else parts).items():
            writer.path(path).write_bytes(data)
        return writer.commit(make_manifest())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert lines[0] == "bundle     red-panda (text-to-image, schema 1.0)"
    assert lines[3] == "program    ddim, 4 steps in 4 rows: 1 held, 2 guided (batched)"
    assert lines[6].split() == ["full", "1", "0.000", "0.00", "onnxruntime"]


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


# Writing


def test_written_bundle_lists_its_files(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    assert open_bundle(tmp_path / "out") == bundle
    entries = bundle.manifest.files
    assert [entry.path for entry in entries] == sorted(valid_parts())
    assert all(entry.bytes == len(valid_parts()[entry.path]) for entry in entries)
    assert os.listdir(tmp_path) == ["out"]
    assert contents(write(tmp_path / "again").folder) == contents(bundle.folder)


@pytest.mark.parametrize("name", ["folder", "file", "link", "bundle"])
def test_existing_output_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    _occupy(tmp_path / name, name)
    with pytest.raises(OutputError, match="exists already; choose another name or pass --overwrite") as caught:
        BundleWriter(tmp_path / name)
    assert caught.value.code == "exists"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("folder", "is not an edgediff bundle"),
        ("empty", "is not an edgediff bundle"),
        ("file", "is not a folder"),
        ("link", "is a link"),
        ("notes", "not the bundle's own \\('tokenizer/notes.txt'\\)"),
        ("other_json", "is not an edgediff bundle"),
    ],
)
def test_overwrite_never_deletes_what_is_not_ours(name: str, text: str, tmp_path: Path) -> None:
    _occupy(tmp_path / name, name)
    with pytest.raises(OutputError, match=f"{text}.*not replaced even with --overwrite") as caught:
        BundleWriter(tmp_path / name, overwrite=True)
    assert caught.value.code == "not_a_bundle"
    assert os.path.lexists(tmp_path / name)


def _occupy(path: Path, what: str) -> None:
    if what == "file":
        path.write_text("mine")
    elif what == "link":
        path.symlink_to(valid_tree().write(path.parent / "bundle"))
    elif what == "bundle":
        valid_tree().write(path)
    elif what == "notes":
        valid_tree().write(path)
        (path / "tokenizer" / "notes.txt").write_text("mine")
    else:
        path.mkdir()
        if what == "folder":
            (path / "thesis.tex").write_text("mine")
        elif what == "other_json":
            (path / "manifest.json").write_text('{"files": []}')


def test_overwrite_replaces_a_bundle_of_any_version_or_damage(tmp_path: Path) -> None:
    for name in ("version_2", "missing_file", "hash", "graph_row"):
        next(case for case in CASES if case.name == name).tree().write(tmp_path / name)
        write(tmp_path / name, overwrite=True)
        assert open_bundle(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["graph_row", "hash", "missing_file", "version_2"]


@pytest.mark.parametrize(("out", "text"), [("no/such/out", "does not exist; create it"), ("..", "has no name")])
def test_output_that_cannot_be(out: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=text):
        BundleWriter(tmp_path / out)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), FileNotFoundError(2, "no model")])
def test_a_failure_inside_leaves_nothing(error: BaseException, folder: Path) -> None:
    before = contents(folder)
    for out, overwrite in ((folder.parent / "new", False), (folder, True)):
        with pytest.raises(type(error)) as caught:
            _write_half(out, lambda: _raise(error), overwrite=overwrite)
        assert caught.value is error, "the error is passed on as it was"
    assert os.listdir(folder.parent) == [folder.name]
    assert contents(folder) == before


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        _write_half(tmp_path / "out", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.code == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    _write_half(tmp_path / "out", lambda: None)
    assert os.listdir(tmp_path) == []


def _write_half(out: Path, then: Callable[[], object], *, overwrite: bool = False) -> None:
    with BundleWriter(out, overwrite) as writer:
        writer.path("plan.json").write_text("half")
        then()


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_full_disk(function: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(os, function, full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 123_000_000))
    with pytest.raises(OutputError, match=r"disk is full.*reached 3802 bytes|reached .*123\.00 MB are free") as caught:
        write(folder, overwrite=True)
    assert caught.value.code == "disk_full"
    assert "123.00 MB are free; make room or write elsewhere" in str(caught.value)
    monkeypatch.undo()
    assert os.listdir(folder.parent) == [folder.name]
    assert contents(folder) == before


def test_a_failed_swap_puts_the_old_bundle_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = contents(folder), os.rename

    def second_fails(source: Path, target: Path) -> None:
        if ".partial-" in Path(source).name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        write(folder, overwrite=True)
    assert os.listdir(folder.parent) == [folder.name]
    assert contents(folder) == before


def test_a_read_only_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    writer = BundleWriter(tmp_path / "out")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"), writer:
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    parts = valid_parts()
    for code, broken in {
        "pickle": {**parts, "extra.pth": b"x"},
        "path": {**parts, "Plan.json": b"x"},
        "file": {path: data for path, data in parts.items() if path != "plan.json"},
    }.items():
        with pytest.raises(BundleError) as caught:
            write(tmp_path / "out", parts=broken)
        assert caught.value.code == code
    with pytest.raises(BundleError, match="never leaves it"), BundleWriter(tmp_path / "out") as writer:
        writer.path("../outside")
    with BundleWriter(tmp_path / "out") as writer:
        writer.path("plan.json").symlink_to("/etc/hostname")
        with pytest.raises(BundleError, match="is a link"):
            writer.commit(make_manifest())
    assert os.listdir(tmp_path) == []


# Changing the manifest


def test_update_manifest_keeps_results(folder: Path) -> None:
    bundle = open_bundle(folder)
    update_manifest(bundle, parity={"ok": True})
    update_manifest(bundle, profile={"p50_ms": 4.5})  # `bundle` is from before the parity: it must not get lost
    read = open_bundle(folder).manifest
    assert (read.parity, read.profile) == ({"ok": True}, {"p50_ms": 4.5})
    assert read.model_copy(update={"parity": None, "profile": None}) == bundle.manifest


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"paritty": {}}, "unknown_key", "did you mean 'parity'"),
        ({"parity": {"psnr": float("nan")}}, "value", "JSON has not"),
        ({"kind": "film"}, "value", "kind"),
        ({"schema_version": "3.0"}, "version", "update edgediff"),
        ({"files": ()}, "file", "plan"),
    ],
)
def test_a_bad_update_changes_nothing(folder: Path, changes: dict[str, object], code: str, text: str) -> None:
    before = contents(folder)
    with pytest.raises(BundleError, match=text) as caught:
        update_manifest(open_bundle(folder), **changes)
    assert caught.value.code == code
    assert contents(folder) == before


def test_an_update_is_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = contents(folder)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        update_manifest(open_bundle(folder), parity={"ok": True})
    monkeypatch.undo()
    assert contents(folder) == before


# One file


def test_packing_is_deterministic_and_comes_back(folder: Path, tmp_path: Path) -> None:
    bundle = open_bundle(folder)
    first = pack_bundle(bundle, tmp_path / "a.zip").read_bytes()
    os.utime(folder / "plan.json", (1, 1))
    os.chmod(folder / "plan.json", 0o600)
    assert pack_bundle(bundle, tmp_path / "b.zip").read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == sorted(valid_tree().files)
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    unpacked = unpack_bundle(tmp_path / "a.zip", tmp_path / "out")
    assert unpacked.manifest == bundle.manifest
    assert contents(tmp_path / "out") == contents(folder)


def test_packing_refuses_an_existing_file_and_a_changed_bundle(folder: Path, tmp_path: Path) -> None:
    bundle, file = open_bundle(folder), tmp_path / "a.zip"
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        pack_bundle(bundle, file)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.3\n")
    with pytest.raises(BundleError, match="changed or damaged"):
        pack_bundle(bundle, file, overwrite=True)
    assert file.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a.zip", folder.name]


@pytest.mark.parametrize("case", ZIP_CASES, ids=lambda case: case.name)
def test_hostile_zip_is_refused_and_leaves_nothing(case: ZipCase, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file = case.write(tmp_path / "hostile.zip")
    with pytest.raises(BundleError) as caught:
        unpack_bundle(file, tmp_path / "inside" / ".." / "out")
    assert (caught.value.code, os.listdir(tmp_path)) == (case.code, ["hostile.zip"]), str(caught.value)
    assert case.text in str(caught.value)
    assert str(file) in str(caught.value)


def _eocd(size: int, comment: bytes = b"") -> bytes:
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, len(comment)) + comment


def _zip64(size: int) -> bytes:
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1) + _eocd(46)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_a_bundle"),
        (b"not a zip at all, but long enough", "not_a_bundle"),
        (_eocd(0, b"comment"), "not_a_bundle"),
        (_eocd(1 << 30), "limit"),
        (_zip64(1 << 40), "limit"),
        (_eocd(9000), "archive"),
        (_eocd(0), "not_a_bundle"),
    ],
)
def test_zip_directories(data: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        unpack_bundle(tmp_path / "a.zip", tmp_path / "out")
    assert (caught.value.code, os.listdir(tmp_path)) == (code, ["a.zip"]), str(caught.value)


def test_damaged_and_missing_zips(folder: Path, tmp_path: Path) -> None:
    file = pack_bundle(open_bundle(folder), tmp_path / "a.zip")
    data = file.read_bytes()
    at = data.index(b"graph unet/full")
    file.write_bytes(data[:at] + b"GRAPH" + data[at + 5 :])
    with pytest.raises(BundleError, match="is damaged: Bad CRC-32") as caught:
        unpack_bundle(file, tmp_path / "out")
    assert caught.value.code == "archive"
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        unpack_bundle(tmp_path / "b.zip", tmp_path / "out")


def test_unpacking_does_not_replace(folder: Path, tmp_path: Path) -> None:
    file = pack_bundle(open_bundle(folder), tmp_path / "a.zip")
    with pytest.raises(OutputError, match="exists already"):
        unpack_bundle(file, folder)
    assert unpack_bundle(file, folder, overwrite=True).folder == folder.resolve()


def test_a_zip_from_another_packer_is_fine(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("tokenizer")
        for path, data in valid_tree().files.items():
            archive.writestr(path, data)
    assert unpack_bundle(tmp_path / "a.zip", tmp_path / "out")
    assert not stat.S_IMODE((tmp_path / "out" / "plan.json").stat().st_mode) & 0o111


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
