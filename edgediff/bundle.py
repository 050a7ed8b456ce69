"""The bundle on disk: a strict reader, an atomic writer, and one file to send it in.

Everything is checked before a runtime opens anything: the manifest, then every file's place, kind, size
and SHA-256. Symbolic links are refused. Hard links are not: their content is hashed like any other, and
stores that deduplicate (ostree, `cp -al` backups) make them without asking. Nothing is ever unpickled, and
a file that looks like a pickle is refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickletools
import secrets
import shutil
import signal
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import RootModel, ValidationError

from edgediff.config import dump_json, parse, parse_json, read_json, read_text, write_text_atomic
from edgediff.errors import BundleError, ConfigError, OutputError, did_you_mean
from edgediff.manifest import SCHEMA_MAJOR, FileEntry, Manifest, check_version, safe_path
from edgediff.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgediff.runtime import GenerationStep
    from edgediff.tokenizer import Tokenizer

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 16 << 20  # bytes; a thousand rows with four graphs are below 1 MB
CHUNK = 4 << 20
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
ZIP_ENTRIES, ZIP_BYTES, ZIP_RATIO, ZIP_DIRECTORY = 10_000, 32 << 30, 200, 8 << 20
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the folder (absolute) and what its manifest says. Made by `open_bundle`."""

    folder: Path
    manifest: Manifest

    @cached_property
    def plan(self) -> Plan:
        """The decisions behind the bundle, read at first use. Raises BundleError when it is not a plan."""
        with _as_bundle_error():
            return read_json(self.path(self.manifest.plan), Plan)

    def path(self, relative: str) -> Path:
        """Where a listed file, or a folder of listed files, lies. Raises BundleError for any other."""
        names = [entry.path for entry in self.manifest.files]
        if relative not in names and not any(name.startswith(f"{relative}/") for name in names):
            message = f"the bundle lists no file '{relative}'{did_you_mean(relative, names)}"
            raise _broken("missing_file", str(self.folder), message)
        return self.folder / relative

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None when the program has no text stage."""
        from edgediff.tokenizer import Tokenizer

        stage = self.manifest.program.tokenize
        return Tokenizer.load(self.path(stage.folder)) if stage else None

    def generate(self, prompt: str = "", **options: Any) -> Image:
        """One picture; the options are those of `runtime.generate`."""
        from edgediff.runtime import generate

        return generate(self, prompt, **options)

    def generate_steps(self, prompt: str = "", **options: Any) -> Iterator[GenerationStep | Image]:
        """Every step, then the picture; the options are those of `runtime.generate_steps`."""
        from edgediff.runtime import generate_steps

        return generate_steps(self, prompt, **options)

    def __str__(self) -> str:
        """What is inside, in 80 columns."""
        m, rows = self.manifest, self.manifest.program.rows
        held = sum(row.graph is None for row in rows)
        guided = sum(row.guidance is not None and row.graph is not None for row in rows)
        counts = f"{held} held, {guided} guided ({m.program.mode})"
        lines = [
            f"bundle     {m.name[:40]} ({m.kind}, schema {m.schema_version})",
            f"files      {len(m.files)}, {_size(sum(entry.bytes for entry in m.files))}",
            f"source     {m.source.model[:36]}, weights {m.source.weights[:12]}, {m.source.licence[:16]}",
            f"program    {m.program.sampler}, {m.program.steps} steps in {len(rows)} rows: {counts}",
            "",
            f"{'graph':<20}{'rows':>5}{'GMACs':>10}{'M params':>10}  backends",
        ]
        for name, graph in m.graphs.items():
            count = sum(row.graph == name for row in rows) or "-"
            sizes = f"{graph.macs / 1e9:>10.3f}{graph.parameters / 1e6:>10.2f}"
            lines.append(f"{name[:19]:<20}{count:>5}{sizes}  {' '.join(sorted(graph.artifacts))[:33]}")
        return "\n".join(lines)


# Reading


def open_bundle(folder: str | Path, *, verify: bool = True) -> Bundle:
    """Reads and checks a bundle. `verify=False` leaves out the SHA-256 of the files and nothing else.

    Raises BundleError; its code is the rule that is broken: `not_a_bundle`, `syntax`, `version`,
    `unknown_key`, `value`, those of `Manifest.check` (`graph`, `tensor`, `carry`, `carry_before_write`,
    `history`, `file`), and of the files `path`, `link`, `file`, `pickle`, `missing_file`, `size`,
    `unlisted`, `hash`.
    """
    return _open(Path(folder), str(folder), verify)


def _open(folder: Path, shown: str, verify: bool) -> Bundle:
    with _as_bundle_error(), _readable(shown):
        manifest = _read_manifest(folder, shown)
        present = _scan(folder, shown)
        _check_files(manifest, folder, present, shown)
        if verify:
            _check_hashes(manifest, folder, shown)
    return Bundle(folder.resolve(), manifest)


def _read_manifest(folder: Path, shown: str) -> Manifest:
    """The manifest, parsed and checked. The version comes first: a manifest from the future says so."""
    file, where = folder / MANIFEST, f"{shown}/{MANIFEST}"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        hint = "; unpack it first: edgediff unpack" if folder.is_file() and zipfile.is_zipfile(folder) else ""
        raise _broken("not_a_bundle", shown, f"is not an edgediff bundle: it {what}{hint}")
    if not os.path.lexists(file):
        raise _broken("not_a_bundle", shown, f"is not an edgediff bundle: it has no {MANIFEST}")
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise _not_a_file(MANIFEST, status, shown)
    if status.st_size > MANIFEST_LIMIT:
        message = f"is {_size(status.st_size)}; a manifest is at most {_size(MANIFEST_LIMIT)}"
        raise _broken("size", where, message)
    return _parse_manifest(read_text(file), where)


def _parse_manifest(text: str, where: str) -> Manifest:
    data = parse_json(text, RootModel[dict[str, Any]], where=where).root
    version = data.get("schema_version")
    if not isinstance(version, str) or len(version) > 16:
        message = f"schema_version must be a text like '{SCHEMA_MAJOR}.0', which every manifest states"
        raise _broken("version", where, message)
    check_version(version, where)
    try:
        dump_json(data).encode()
    except ValueError as error:
        message = f"holds a number or a text that JSON cannot hold ({error})"
        raise _broken("syntax", where, message) from error
    try:
        manifest = parse(data, Manifest, where=where)
    except ConfigError as error:
        newer = version != f"{SCHEMA_MAJOR}.0" and error.code == "unknown_key"
        hint = f"; the manifest is of schema {version}, which is newer: update edgediff" if newer else ""
        raise _broken(error.code, where, f"{error.message}{hint}") from None
    _check_types(text, where)
    manifest.check(where=where)
    _check_names([entry.path for entry in manifest.files], where)
    return manifest


def _check_types(text: str, where: str) -> None:
    """No text where a number belongs: Kotlin and Swift would refuse it, so this reader does too."""
    try:
        Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"'{key}' = {first['input']!r:.60}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise _broken("value", where, message) from None


def _check_names(paths: list[str], where: str) -> None:
    """No two paths that are one file where case is ignored; the manifest is not its own entry."""
    seen: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen:
            message = f"'{seen[key]}' and '{path}' are one file where case is ignored; rename one"
            raise _broken("path", where, message)
        seen[key] = path
    if MANIFEST in seen:
        raise _broken("file", where, f"lists '{seen[MANIFEST]}', but cannot hold its own hash")


def _scan(folder: Path, shown: str) -> dict[str, int]:
    """Relative path -> bytes of every file below `folder`; links and special files are errors."""
    found: dict[str, int] = {}
    waiting = [("", str(folder))]
    while waiting:
        prefix, current = waiting.pop()
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                path, status = f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((f"{path}/", entry.path))
                elif stat.S_ISREG(status.st_mode):
                    found[path] = status.st_size
                else:
                    raise _not_a_file(path, status, shown)
    return found


def _not_a_file(path: str, status: os.stat_result, shown: str) -> BundleError:
    what, code = ("a link", "link") if stat.S_ISLNK(status.st_mode) else ("not a regular file", "file")
    message = f"'{_printable(path)}' is {what}; a bundle holds plain files and folders only"
    return _broken(code, shown, message)


def _check_files(manifest: Manifest, folder: Path, present: dict[str, int], shown: str) -> None:
    for path in sorted(present):
        refuse_pickle(folder / path, path, shown)
    for entry in manifest.files:
        if entry.path not in present:
            what = "is a folder" if (folder / entry.path).is_dir() else "is missing"
            message = f"'{entry.path}' {what}, the manifest says a file of {entry.bytes} bytes; copy it again"
            raise _broken("missing_file", shown, message)
        if (size := present[entry.path]) != entry.bytes:
            message = f"'{entry.path}' has {size} bytes, the manifest says {entry.bytes}; copy it again"
            raise _broken("size", shown, message)
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    if unlisted := sorted(set(present) - listed):
        more = f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
        message = f"'{_printable(unlisted[0])}'{more} is not in the manifest; remove it from the folder"
        raise _broken("unlisted", shown, message)


def _check_hashes(manifest: Manifest, folder: Path, shown: str) -> None:
    for entry in manifest.files:
        with open(folder / entry.path, "rb") as file:
            digest = copy_hashed(file)
        if digest != entry.sha256:
            raise _wrong_hash(entry, digest, shown)


def _wrong_hash(entry: FileEntry, digest: str, shown: str) -> BundleError:
    message = (
        f"'{entry.path}' has SHA-256 {digest[:12]}.., the manifest says {entry.sha256[:12]}..; "
        "the file was changed or damaged, copy it again"
    )
    return _broken("hash", shown, message)


def copy_hashed(source: BinaryIO, target: Any = None) -> str:
    """SHA-256 (hex) of what is left in `source`, copied to `target` on the way; memory stays at 4 MiB."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    while count := source.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        if target is not None:
            target.write(buffer[:count])
    return digest.hexdigest()


def refuse_pickle(file: Path, path: str, shown: str) -> None:
    """Raises BundleError `pickle` for a pickle by name or by content: a pickle stream of protocol 2 to 5
    (which is how old `.bin` checkpoints begin), or a zip that holds a `data.pkl` (`torch.save`)."""
    if path.lower().endswith(PICKLE_SUFFIXES) or _is_pickled(file):
        message = f"'{_printable(path)}' is a pickle, which can run code; convert it to safetensors"
        raise _broken("pickle", shown, message)


def _is_pickled(file: Path) -> bool:
    with open(file, "rb") as stream:
        head = stream.read(4096)
    if head[:4] == b"PK\3\4" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    if head[:1] != b"\x80" or head[1:2] not in b"\2\3\4\5":
        return False
    count = 0  # weights may begin with these two bytes by chance, but not go on with eight pickle opcodes
    try:
        for opcode, _, _ in pickletools.genops(head):
            count += 1
            if count == 8 or opcode.name == "STOP":
                return True
    except (ValueError, KeyError, IndexError, OverflowError):
        return False
    return False


# Writing


class BundleWriter:
    """Writes a bundle whole or not at all.

    `out` is checked when the writer is made, before any work: it must not exist, or with `overwrite` be a
    bundle with no files of anybody else's in it. Inside the `with` block files go to `folder`, a hidden
    sibling of `out`; `commit` makes it the bundle. Any way out of the block without a commit (exceptions,
    Ctrl-C, SIGTERM) removes the folder and leaves an old bundle as it was. Only SIGKILL or a power cut leave
    a `.<name>.partial-*` behind.
    """

    def __init__(self, out: str | Path, overwrite: bool = False) -> None:
        """Raises OutputError (code `exists`, `not_a_bundle` or `output`)."""
        path = Path(out)
        self.out, self.overwrite = path.parent.resolve() / path.name, overwrite
        self._shown, self._handles_term = str(out), False
        check_output(self.out, overwrite, self._shown)
        self.folder = self.out.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")

    def __enter__(self) -> BundleWriter:
        if threading.current_thread() is threading.main_thread():
            self._handles_term = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._handles_term:
            signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            with _writing(self._shown):
                self.folder.mkdir()
        except BaseException:
            self._restore_signal()
            raise
        return self

    def path(self, relative: str) -> Path:
        """Where to write a file; its folder exists. Raises BundleError for a path outside the bundle."""
        target = self.folder / _inside(relative, self._shown)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(self, manifest: Manifest) -> Bundle:
        """Lists and hashes the files in `folder`, writes the manifest, and renames the folder to `out`.

        `manifest.files` is replaced. What the reader would refuse is refused here, so that a written bundle
        always opens. Raises BundleError, OutputError.
        """
        with _writing(self._shown):
            sizes = _scan(self.folder, self._shown)
            sizes.pop(MANIFEST, None)
            entries = tuple(self._entry(path, sizes[path]) for path in sorted(sizes))
            _write_manifest(self.folder, manifest.model_copy(update={"files": entries}), self._shown)
            _open(self.folder, self._shown, verify=False)
        return self.publish()

    def publish(self) -> Bundle:
        """Renames `folder`, which holds a checked bundle, to `out`; an old one goes once it is there."""
        check_output(self.out, self.overwrite, self._shown)
        aside = self.out.with_name(f".{self.out.name}.old-{secrets.token_hex(4)}")
        with _writing(self._shown):
            for current, _, _ in os.walk(self.folder):
                _fsync_folder(Path(current))
            try:
                if self.out.exists():
                    os.rename(self.out, aside)
                os.rename(self.folder, self.out)
            finally:
                if aside.exists() and not self.out.exists():
                    os.rename(aside, self.out)
                elif aside.exists():
                    shutil.rmtree(aside, ignore_errors=True)
            _fsync_folder(self.out.parent)
        return _open(self.out, self._shown, verify=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            written = _bytes_below(self.folder) if _is_disk_full(error) else 0
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._restore_signal()
        if _is_disk_full(error):
            free = shutil.disk_usage(self.out.parent).free
            message = (
                f"the disk is full: the unfinished bundle had reached {_size(written)}, and with it removed "
                f"{_size(free)} are free; make room or write elsewhere"
            )
            raise OutputError(message, where=self._shown, code="disk_full") from error

    def _entry(self, path: str, size: int) -> FileEntry:
        with open(self.folder / path, "rb") as file:
            digest = copy_hashed(file)
            if os.name != "nt":  # Windows flushes only handles that may write
                os.fsync(file.fileno())
        return FileEntry(path=_inside(path, self._shown), bytes=size, sha256=digest)

    def _restore_signal(self) -> None:
        if self._handles_term:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._handles_term = False


def check_output(out: Path, overwrite: bool, shown: str) -> None:
    """Raises OutputError when a bundle may not be written to `out`: call it before the first long stage."""
    if out.name in ("", ".", ".."):
        raise OutputError("has no name; give the bundle's folder one", where=shown)
    if not out.parent.is_dir():
        raise OutputError(f"the folder '{out.parent}' does not exist; create it", where=shown)
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise _exists(shown)
    if reason := _why_not_ours(out):
        message = f"exists and {reason}, so it is not replaced even with --overwrite; choose another name"
        raise OutputError(message, where=shown, code="not_a_bundle")


def update_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Rewrites manifest.json, atomically, with `changes` (`parity=`, `profile=`) over what is on disk now.

    Raises BundleError for an unknown key or a bad value (the file then is as it was), OutputError.
    """
    shown = str(bundle.folder)
    with _as_bundle_error():
        current = _read_manifest(bundle.folder, shown).model_dump(mode="json", by_alias=True)
        manifest = parse({**current, **changes}, Manifest, where=f"{shown}/{MANIFEST}")
        with _writing(shown):
            _write_manifest(bundle.folder, manifest, shown)
    return Bundle(bundle.folder, manifest)


def _write_manifest(folder: Path, manifest: Manifest, shown: str) -> None:
    where = f"{shown}/{MANIFEST}"
    try:
        dump_json(manifest.model_dump(by_alias=True))  # pydantic would write NaN as null
        text = manifest.to_json()
    except ValueError as error:
        raise _broken("value", where, f"holds a value that JSON has not: {error}") from error
    _parse_manifest(text, where)
    write_text_atomic(folder / MANIFEST, text)


def _why_not_ours(out: Path) -> str:
    """Why a folder must not be replaced; empty for a bundle of any version or damage with nothing besides."""
    if out.is_symlink() or not out.is_dir():
        return "is a link" if out.is_symlink() else "is not a folder"
    try:
        if (out / MANIFEST).lstat().st_size > MANIFEST_LIMIT:
            return "is not an edgediff bundle"
        data = parse_json(read_text(out / MANIFEST), RootModel[dict[str, Any]], where=str(out)).root
        listed = {entry["path"] for entry in data["files"]} | {MANIFEST}
        present = _scan(out, str(out))
        known = {"schema_version", "graphs", "program"} <= set(data)
    except (OSError, ConfigError, BundleError, KeyError, TypeError):
        return "is not an edgediff bundle"
    if not known:
        return "is not an edgediff bundle"
    others = sorted(set(present) - listed)
    return f"holds a file that is not the bundle's own ('{_printable(others[0])}')" if others else ""


# One file


def pack_bundle(bundle: Bundle, file: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the bundle as a zip, checking every hash on the way: the same bundle, the same bytes.

    Stored, not deflated: weights hardly shrink, and zlib's output differs between versions. Names are sorted
    and times fixed. Raises OutputError when `file` exists or cannot be written, BundleError `hash`.
    """
    target = Path(file)
    if os.path.lexists(target) and (not overwrite or not target.is_file()):
        raise _exists(str(file))
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        with _writing(str(file)):
            with open(partial, "xb") as packed:
                entries = (_manifest_entry(bundle), *bundle.manifest.files)
                with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                    for entry in sorted(entries, key=lambda entry: entry.path):
                        _pack_file(archive, bundle.folder, entry)
                packed.flush()
                os.fsync(packed.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _manifest_entry(bundle: Bundle) -> FileEntry:
    data = (bundle.folder / MANIFEST).read_bytes()
    return FileEntry(path=MANIFEST, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _pack_file(archive: zipfile.ZipFile, folder: Path, entry: FileEntry) -> None:
    info = zipfile.ZipInfo(entry.path, ZIP_DATE)
    info.create_system, info.external_attr, info.file_size = 3, 0o100644 << 16, entry.bytes
    with open(folder / entry.path, "rb") as source, archive.open(info, "w") as target:
        digest = copy_hashed(source, target)
    if digest != entry.sha256:
        raise _wrong_hash(entry, digest, str(folder))


def unpack_bundle(file: str | Path, out: str | Path, *, overwrite: bool = False) -> Bundle:
    """Unpacks a zip into a hidden folder, opens that strictly, and only then renames it to `out`.

    Raises BundleError: `not_a_bundle`, `archive` (damaged, encrypted, a name twice), `limit` (entries, total
    size, ratio), `path`, `link`, and all of `open_bundle`; OutputError as `BundleWriter`.
    """
    shown = str(file)
    with BundleWriter(out, overwrite) as writer:
        with _readable(shown), _as_bundle_error():
            _check_directory_size(Path(file), shown)
            try:
                with zipfile.ZipFile(file) as archive:
                    for info in _check_entries(archive, os.path.getsize(file), shown):
                        _extract(archive, info, writer, shown)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
                raise _broken("archive", shown, f"is damaged: {error}; copy it again") from error
        _open(writer.folder, shown, verify=True)
        return writer.publish()


def _check_directory_size(file: Path, shown: str) -> None:
    """Bounds the zip's directory before `zipfile` reads all of it into memory. The directory's end is the
    last 22 bytes (so no comment), after its 64-bit twin if there is one."""
    with open(file, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 98))
        tail = stream.read()
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise _broken("not_a_bundle", shown, "is not a packed bundle: no zip, or one with a comment")
    size = struct.unpack_from("<I", end, 12)[0]
    if len(tail) == 98 and tail[56:60] == b"PK\6\7":
        size = max(0 if size == 0xFFFFFFFF else size, struct.unpack_from("<Q", tail, 40)[0])
    if size > ZIP_DIRECTORY:
        message = f"has a directory of {_size(size)}; at most {_size(ZIP_DIRECTORY)} are read"
        raise _broken("limit", shown, message)


def _check_entries(archive: zipfile.ZipFile, packed: int, shown: str) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if _check_entry(info, shown)]
    names = sorted(info.orig_filename for info in infos)
    for name, following in pairwise(names):
        if name == following:
            raise _broken("archive", shown, f"holds '{name}' twice; pack the bundle again")
    _check_names([name for name in names if name != MANIFEST], shown)
    total = sum(info.file_size for info in infos)
    limits = (
        ("entries", len(archive.infolist()), ZIP_ENTRIES), ("bytes unpacked", total, ZIP_BYTES),
        ("times its packed size", total // max(packed, 1), ZIP_RATIO),
    )
    for what, value, limit in limits:
        if value > limit:
            raise _broken("limit", shown, f"has {value} {what}; at most {limit} are read")
    return infos


def _check_entry(info: zipfile.ZipInfo, shown: str) -> bool:
    """Whether the entry is a file; folders are made as files need them. `orig_filename` is the name before
    `zipfile` cuts it at a NUL."""
    name, mode = info.orig_filename, info.external_attr >> 16
    _inside(name.removesuffix("/"), shown)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _broken("link", shown, f"'{name}' is a link or a special file; a bundle has none")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        message = f"'{name}' is encrypted or compressed in a way other than deflate; pack the bundle again"
        raise _broken("archive", shown, message)
    return not name.endswith("/")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, writer: BundleWriter, shown: str) -> None:
    with archive.open(info) as source, _create(writer, info.orig_filename, shown) as target:
        left = info.file_size
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise _broken("archive", shown, f"'{info.filename}' is longer than it says")
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())


# Small matters


def _create(writer: BundleWriter, name: str, shown: str) -> BinaryIO:
    try:
        return open(writer.path(name), "xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise _broken("archive", shown, f"'{name}' is both a file and a folder") from error


def _exit_on_signal(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _as_bundle_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise BundleError(error.message, code=error.code, where=error.where) from error


@contextmanager
def _readable(shown: str) -> Iterator[None]:
    """What the system refuses while reading is the bundle's fault; a full disk is the writer's."""
    try:
        yield
    except OSError as error:
        if _is_disk_full(error):
            raise
        raise _broken("file", shown, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def _writing(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=shown) from error


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_below(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def _inside(path: str, shown: str) -> str:
    try:
        return safe_path(path)
    except ValueError as error:
        raise _broken("path", shown, f"'{_printable(path)}': {error}") from error


def _broken(code: str, where: str, message: str) -> BundleError:
    return BundleError(message, where=where, code=code)


def _exists(shown: str) -> OutputError:
    message = "exists already; choose another name or pass --overwrite"
    return OutputError(message, where=shown, code="exists")


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _size(count: int) -> str:
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.2f} {name}" if count >= 1e4 else f"{count} bytes"
