"""The files of a bundle: plain, inside the folder, of the size and SHA-256 that the manifest states.

Symbolic links are refused. Hard links are not: their content is hashed like any other, and stores that
deduplicate (ostree, `cp -al` backups) make them without asking. Nothing is ever unpickled, and a file that looks
like a pickle is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from edgediff.bundle.refusals import broken, printable
from edgediff.errors import BundleError
from edgediff.runtime.manifest import FileEntry, Manifest

MANIFEST = "manifest.json"  # the one file that no bundle lists
CHUNK = 4 << 20
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def scan_folder(folder: Path, shown: str) -> dict[str, int]:
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
                    raise not_a_file(path, status, shown)
    return found


def not_a_file(path: str, status: os.stat_result, shown: str) -> BundleError:
    what, code = ("a link", "link") if stat.S_ISLNK(status.st_mode) else ("not a regular file", "file")
    message = f"'{printable(path)}' is {what}; a bundle holds plain files and folders only"
    return broken(code, shown, message)


def check_files(manifest: Manifest, folder: Path, present: dict[str, int], shown: str) -> None:
    for path in sorted(present):
        refuse_pickle(folder / path, path, shown)
    for entry in manifest.files:
        if entry.path not in present:
            what = "is a folder" if (folder / entry.path).is_dir() else "is missing"
            message = f"'{entry.path}' {what}, the manifest says a file of {entry.bytes} bytes; copy it again"
            raise broken("missing_file", shown, message)
        if (size := present[entry.path]) != entry.bytes:
            message = f"'{entry.path}' has {size} bytes, the manifest says {entry.bytes}; copy it again"
            raise broken("size", shown, message)
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    if unlisted := sorted(set(present) - listed):
        more = f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
        message = f"'{printable(unlisted[0])}'{more} is not in the manifest; remove it from the folder"
        raise broken("unlisted", shown, message)


def check_hashes(manifest: Manifest, folder: Path, shown: str) -> None:
    for entry in manifest.files:
        with open(folder / entry.path, "rb") as file:
            digest = copy_hashed(file)
        if digest != entry.sha256:
            raise wrong_hash(entry, digest, shown)


def wrong_hash(entry: FileEntry, digest: str, shown: str) -> BundleError:
    message = (
        f"'{entry.path}' has SHA-256 {digest[:12]}.., the manifest says {entry.sha256[:12]}..; "
        "the file was changed or damaged, copy it again"
    )
    return broken("hash", shown, message)


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
        message = f"'{printable(path)}' is a pickle, which can run code; convert it to safetensors"
        raise broken("pickle", shown, message)


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
