"""Writing a bundle, changing its evidence, and packing it: never half, and never over what is somebody else's."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediff.bundle import (
    Bundle,
    BundleWriter,
    open_bundle,
    pack_bundle,
    unpack_bundle,
    update_manifest,
)
from edgediff.errors import BundleError, OutputError
from edgediff.runtime.evidence import (
    BackendParity,
    Comparison,
    Figure,
    GraphParity,
    Parity,
    PictureParity,
    ProgramParity,
    Quality,
    Reading,
    Side,
    TrajectoryParity,
)
from edgediff.runtime.latency import LatencyTable
from tests.hostile import (
    CASES,
    ZIP_CASES,
    ZipCase,
    make_manifest,
    valid_parts,
    valid_tree,
)


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
    for name in ("version_1", "version_3", "missing_file", "hash", "graph_row"):
        next(case for case in CASES if case.name == name).tree().write(tmp_path / name)
        write(tmp_path / name, overwrite=True)
        assert open_bundle(tmp_path / name)
    first = {"schema_version": "1.0", "graphs": {}, "program": {}, "files": []}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "manifest.json").write_text(json.dumps(first))
    assert write(tmp_path / "first", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["first", "graph_row", "hash", "missing_file", "version_1", "version_3"]


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
    with pytest.raises(OutputError, match=r"disk is full.*reached \d+ bytes|reached .*123\.00 MB are free") as caught:
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


def parity(prompt: str = "red panda", psnr: float = 60.0) -> Parity:
    graph = GraphParity(psnr_db=psnr, max_abs=0.001, floor_db=40.0)
    program = ProgramParity(
        trajectory=TrajectoryParity(worst_step=3, psnr_db=55.0), image=PictureParity(psnr_db=50.0, floor_db=35.0)
    )
    backend = BackendParity(
        executed_by="onnxruntime 1.0", graphs={"full": graph}, programs={"main": program, "fast": program}
    )
    reading = Reading(why="the model has no pipeline of its own")
    backends = {"onnxruntime": backend}
    return Parity(ok=backend.ok, reading=reading, backends=backends, prompt=prompt, seed=0, seconds=1.5)


def table(p50: float = 4.5) -> LatencyTable:
    return LatencyTable(
        source="estimated",
        device={"name": "a phone", "backend": "onnxruntime"},
        graphs={},
        end_to_end_ms={"p50": p50, "p90": 5.0, "p95": 5.0, "n": 1},
    )


def comparison(b: str, median: float = 0.5) -> Comparison:
    ratio = {"median": median, "low": 0.4, "high": 0.6}
    return Comparison(
        a=Side(bundle="a", program="main"), b=Side(bundle=b, program="main"), ratio=ratio, n=9, verdict="faster"
    )


def quality(value: float) -> Quality:
    figures = {"psnr_db": Figure(value=value, low=value - 1, high=value + 1)}
    equal = {"sampler": "ddim", "steps": 2, "metrics": figures}
    return Quality(metrics=figures, prompts=8, seeds=1, dataset="glyph", reference=figures, equal_compute=equal)


def test_update_manifest_keeps_what_others_found(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.evidence.parity is None
    update_manifest(bundle, parity=parity())
    update_manifest(bundle, profile={"main": table()})  # `bundle` is from before the parity: it must not get lost
    update_manifest(bundle, quality={"main": quality(30.0)}, comparison=[comparison("b"), comparison("c")])
    update_manifest(
        bundle, profile={"fast": table(2.0)}, quality={"main": quality(31.0)}, comparison=[comparison("b", 0.55)]
    )
    read = open_bundle(folder)
    assert read.evidence.parity == parity()
    assert read.evidence.profile == {"main": table(), "fast": table(2.0)}
    assert read.evidence.quality == {"main": quality(31.0)}
    assert read.evidence.comparison == (comparison("c"), comparison("b", 0.55))
    assert read.manifest.model_copy(update={"evidence": {}}) == bundle.manifest
    assert sorted(os.listdir(folder.parent)) == [folder.name]


def test_the_report_of_parity_has_the_names_that_others_rely_on() -> None:
    """`verify`'s JSON: each backend's graphs, and of the default program its trajectory and image."""
    backend = parity().report("main")["backends"]["onnxruntime"]
    graph = backend["graphs"]["full"]
    assert (graph["psnr_db"], graph["max_abs"], graph["floor_db"], graph["ok"]) == (60.0, 0.001, 40.0, True)
    assert backend["trajectory"] == {"worst_step": 3, "psnr_db": 55.0, "finite": True}
    assert backend["image"] == {"psnr_db": 50.0, "floor_db": 35.0, "ok": True}
    assert (backend["ok"], backend["stand_in"]) == (True, "")
    assert sorted(backend["programs"]) == ["fast", "main"]
    assert not parity(psnr=39.0).ok


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ({"speed": {}}, "unknown key 'speed'"),
        ({"parity": {"ok": True}}, "'parity.reading' is missing"),
        ({"parity": {**json.loads(parity().to_json()), "ok": 1}}, "parity.ok"),
        ({"parity": {**json.loads(parity().to_json()), "reading": {"latent_db": 3.0}}}, "says why"),
        ({"profile": {"main": {"source": "guessed"}}}, "profile.main.source"),
        ({"comparison": [{**json.loads(comparison("b").to_json()), "verdict": "better"}]}, "verdict"),
        ({"quality": {"main": {**json.loads(quality(1.0).to_json()), "prompts": 0}}}, "prompts"),
    ],
)
def test_damaged_evidence_stops_its_reader_and_no_program(evidence: dict[str, object], text: str, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "evidence": evidence}))
    bundle, before = open_bundle(folder), contents(folder)
    with pytest.raises(BundleError, match=text) as caught:
        bundle.evidence  # noqa: B018
    assert caught.value.code == "evidence"
    with pytest.raises(BundleError):
        update_manifest(bundle, parity=parity())
    assert contents(folder) == before


def test_a_bad_update_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(BundleError, match="a text of 65537") as caught:
        update_manifest(open_bundle(folder), parity=parity(prompt="x" * 65_537))
    assert caught.value.code == "syntax"
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_an_update_is_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = contents(folder)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        update_manifest(open_bundle(folder), parity=parity())
    monkeypatch.undo()
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_two_writers_at_once_both_land(folder: Path) -> None:
    """In processes and in threads: each reads what the other wrote."""
    code = (
        "import sys; from tests.test_bundle_writing import *\n"
        "for name in sys.argv[2:]: update_manifest(open_bundle(sys.argv[1]), profile={name: table()})"
    )
    names = [[f"{writer}{index}" for index in range(6)] for writer in "ab"]
    root = Path(__file__).parent.parent
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder), *own], cwd=root) for own in names]
    bundle = open_bundle(folder)
    threads = [
        threading.Thread(target=lambda name=name: update_manifest(bundle, profile={name: table()})) for name in "xyz"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(open_bundle(folder).evidence.profile) == sorted([*names[0], *names[1], *"xyz"])
    assert os.listdir(folder.parent) == [folder.name]


def test_readers_never_see_an_update_on_its_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between writing and renaming, or opened just then: the bundle is whole, and what is left lies beside."""
    replace, seen = os.replace, []

    def watch(source: Path, target: Path) -> None:
        if Path(source).name.startswith(f".{folder.name}.manifest-"):
            seen.append(open_bundle(folder))
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with pytest.raises(KeyboardInterrupt):
        update_manifest(open_bundle(folder), parity=parity())
    assert [one.evidence.parity for one in seen] == [None]
    monkeypatch.undo()
    (folder.parent / f".{folder.name}.manifest-0123").write_text("{half")  # what a kill would leave
    assert update_manifest(open_bundle(folder), parity=parity()).evidence.parity == parity()


def test_a_dead_writers_lock_holds_nobody_up(folder: Path) -> None:
    (folder.parent / f".{folder.name}.lock").touch()
    assert update_manifest(open_bundle(folder), parity=parity()).evidence.parity == parity()


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


def test_a_zip_of_the_folder_itself_is_fine(tmp_path: Path) -> None:
    """One top folder, as file managers pack it; not two, and none below it."""
    for name, prefixes, good in (
        ("one", ["red-panda/"], True),
        ("two", ["red-panda/", "other/"], False),
        ("deep", ["a/red-panda/"], False),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for index, (path, data) in enumerate(sorted(valid_tree().files.items())):
                archive.writestr(f"{prefixes[index % len(prefixes)]}{path}", data)
        if good:
            assert contents(unpack_bundle(tmp_path / f"{name}.zip", tmp_path / name).folder) == valid_tree().files
        else:
            with pytest.raises(BundleError, match="has no manifest"):
                unpack_bundle(tmp_path / f"{name}.zip", tmp_path / name)
