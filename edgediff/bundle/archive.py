"""One file to send a bundle in: a zip of its files, unpacked as strictly as a folder is read."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgediff.bundle.files import CHUNK, MANIFEST, copy_hashed, wrong_hash
from edgediff.bundle.reader import check_folder
from edgediff.bundle.refusals import (
    already_exists,
    as_bundle_error,
    broken,
    format_size,
    inside_bundle,
    reading,
    writing,
)
from edgediff.bundle.writer import BundleWriter
from edgediff.runtime.manifest import FileEntry

if TYPE_CHECKING:
    from edgediff.bundle import Bundle

ZIP_ENTRIES, ZIP_BYTES, ZIP_RATIO, ZIP_DIRECTORY = 10_000, 32 << 30, 200, 8 << 20
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def pack_bundle(bundle: Bundle, file: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the bundle as a zip, checking every hash on the way: the same bundle, the same bytes.

    Stored, not deflated: weights hardly shrink, and zlib's output differs between versions. Names are sorted
    and times fixed. Raises OutputError when `file` exists or cannot be written, BundleError `hash`.
    """
    target = Path(file)
    if os.path.lexists(target) and (not overwrite or not target.is_file()):
        raise already_exists(str(file))
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        with writing(str(file)):
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
        raise wrong_hash(entry, digest, str(folder))


def unpack_bundle(file: str | Path, out: str | Path, *, overwrite: bool = False) -> Bundle:
    """Unpacks a zip into a hidden folder, opens that strictly, and only then renames it to `out`.

    Raises BundleError: `not_a_bundle`, `archive` (damaged, encrypted, a name twice), `limit` (entries, total
    size, ratio), `path`, `link`, and all of `open_bundle`; OutputError as `BundleWriter`.
    """
    shown = str(file)
    with BundleWriter(out, overwrite) as writer:
        with reading(shown), as_bundle_error():
            _check_directory_size(Path(file), shown)
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = _check_entries(archive, os.path.getsize(file), shown)
                    top = _top_folder([info.orig_filename for info in infos])
                    for info in infos:
                        _extract(archive, info, info.orig_filename.removeprefix(top), writer, shown)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
                raise broken("archive", shown, f"is damaged: {error}; copy it again") from error
        return writer.publish(check_folder(writer.folder, shown, verify=True))


def _check_directory_size(file: Path, shown: str) -> None:
    """Bounds the zip's directory before `zipfile` reads all of it into memory. The directory's end is the
    last 22 bytes (so no comment), after its 64-bit twin if there is one."""
    with open(file, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 98))
        tail = stream.read()
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise broken("not_a_bundle", shown, "is not a packed bundle: no zip, or one with a comment")
    size = struct.unpack_from("<I", end, 12)[0]
    if len(tail) == 98 and tail[56:60] == b"PK\6\7":
        size = max(0 if size == 0xFFFFFFFF else size, struct.unpack_from("<Q", tail, 40)[0])
    if size > ZIP_DIRECTORY:
        message = f"has a directory of {format_size(size)}; at most {format_size(ZIP_DIRECTORY)} are read"
        raise broken("limit", shown, message)


def _check_entries(archive: zipfile.ZipFile, packed: int, shown: str) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if _check_entry(info, shown)]
    names = sorted(info.orig_filename for info in infos)
    for name, following in pairwise(names):
        if name == following:
            raise broken("archive", shown, f"holds '{name}' twice; pack the bundle again")
    for name, following in pairwise(sorted(names, key=str.lower)):
        if name.lower() == following.lower():
            message = f"'{name}' and '{following}' are one file where case is ignored; rename one"
            raise broken("path", shown, message)
    total = sum(info.file_size for info in infos)
    limits = (
        ("entries", len(archive.infolist()), ZIP_ENTRIES),
        ("bytes unpacked", total, ZIP_BYTES),
        ("times its packed size", total // max(packed, 1), ZIP_RATIO),
    )
    for what, value, limit in limits:
        if value > limit:
            raise broken("limit", shown, f"has {value} {what}; at most {limit} are read")
    return infos


def _top_folder(names: list[str]) -> str:
    """`red-panda.edgediff/` where all files lie in the one folder that somebody packed; else nothing."""
    top = names[0].partition("/")[0] + "/" if names else ""
    return top if f"{top}{MANIFEST}" in names and all(name.startswith(top) for name in names) else ""


def _check_entry(info: zipfile.ZipInfo, shown: str) -> bool:
    """Whether the entry is a file; folders are made as files need them. `orig_filename` is the name before
    `zipfile` cuts it at a NUL."""
    name, mode = info.orig_filename, info.external_attr >> 16
    inside_bundle(name.removesuffix("/"), shown)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise broken("link", shown, f"'{name}' is a link or a special file; a bundle has none")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        message = f"'{name}' is encrypted or compressed in a way other than deflate; pack the bundle again"
        raise broken("archive", shown, message)
    return not name.endswith("/")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, writer: BundleWriter, shown: str) -> None:
    with archive.open(info) as source, _create(writer, name, shown) as target:
        left = info.file_size
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise broken("archive", shown, f"'{info.filename}' is longer than it says")
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())


def _create(writer: BundleWriter, name: str, shown: str) -> BinaryIO:
    try:
        return open(writer.path(name), "xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise broken("archive", shown, f"'{name}' is both a file and a folder") from error
