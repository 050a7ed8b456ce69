"""The atomic writer: a bundle appears whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgediff.bundle.files import MANIFEST, copy_hashed, scan_folder
from edgediff.bundle.lock import locked
from edgediff.bundle.reader import MANIFEST_LIMIT, check_folder, parse_manifest, read_manifest
from edgediff.bundle.refusals import (
    already_exists,
    as_bundle_error,
    broken,
    format_size,
    inside_bundle,
    is_disk_full,
    printable,
    writing,
)
from edgediff.config import load_plain, read_text, write_text_atomic
from edgediff.errors import BundleError, ConfigError, OutputError
from edgediff.runtime.evidence import Comparison, Evidence, Parity, Quality, merge_evidence, read_evidence
from edgediff.runtime.latency import LatencyTable
from edgediff.runtime.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from edgediff.bundle import Bundle


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
            with writing(self._shown):
                self.folder.mkdir()
        except BaseException:
            self._restore_signal()
            raise
        return self

    def path(self, relative: str) -> Path:
        """Where to write a file; its folder exists. Raises BundleError for a path outside the bundle."""
        target = self.folder / inside_bundle(relative, self._shown)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(self, manifest: Manifest) -> Bundle:
        """Lists and hashes the files in `folder`, writes the manifest, and renames the folder to `out`.

        `manifest.files` is replaced. What the reader would refuse is refused here, so that a written bundle
        always opens. Raises BundleError, OutputError.
        """
        with writing(self._shown):
            sizes = scan_folder(self.folder, self._shown)
            sizes.pop(MANIFEST, None)
            entries = tuple(self._entry(path, sizes[path]) for path in sorted(sizes))
            _write_manifest(self.folder, manifest.model_copy(update={"files": entries}), self._shown)
            written = check_folder(self.folder, self._shown, verify=False)
        return self.publish(written)

    def publish(self, manifest: Manifest) -> Bundle:
        """Renames `folder`, where `check_folder` found this manifest, to `out`; an old one goes once it is there."""
        from edgediff.bundle import Bundle

        check_output(self.out, self.overwrite, self._shown)
        with writing(self._shown):
            for current, _, _ in os.walk(self.folder):
                _fsync_folder(Path(current))
            with locked(self.out):
                self._swap()
            _fsync_folder(self.out.parent)
        return Bundle(self.out.resolve(), manifest)

    def _swap(self) -> None:
        """Puts `folder` in the place of `out`, or leaves `out` as it was."""
        aside = self.out.with_name(f".{self.out.name}.old-{secrets.token_hex(4)}")
        try:
            if self.out.exists():
                os.rename(self.out, aside)
            os.rename(self.folder, self.out)
        finally:
            if aside.exists() and not self.out.exists():
                os.rename(aside, self.out)
            elif aside.exists():
                shutil.rmtree(aside, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            written = _bytes_below(self.folder) if is_disk_full(error) else 0
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._restore_signal()
        if is_disk_full(error):
            free = shutil.disk_usage(self.out.parent).free
            message = (
                f"the disk is full: the unfinished bundle had reached {format_size(written)}, and with it removed "
                f"{format_size(free)} are free; make room or write elsewhere"
            )
            raise OutputError(message, where=self._shown, code="disk_full") from error

    def _entry(self, path: str, size: int) -> FileEntry:
        with open(self.folder / path, "rb") as file:
            digest = copy_hashed(file)
            if os.name != "nt":  # Windows flushes only handles that may write
                os.fsync(file.fileno())
        return FileEntry(path=inside_bundle(path, self._shown), bytes=size, sha256=digest)

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
        raise already_exists(shown)
    if reason := _why_not_ours(out):
        message = f"exists and {reason}, so it is not replaced even with --overwrite; choose another name"
        raise OutputError(message, where=shown, code="not_a_bundle")


def _why_not_ours(out: Path) -> str:
    """Why a folder must not be replaced; empty for a bundle of any version or damage with nothing besides."""
    if out.is_symlink() or not out.is_dir():
        return "is a link" if out.is_symlink() else "is not a folder"
    try:
        if (out / MANIFEST).lstat().st_size > MANIFEST_LIMIT:
            return "is not an edgediff bundle"
        data = load_plain(read_text(out / MANIFEST), where=str(out))
        listed = {entry["path"] for entry in data["files"]} | {MANIFEST}
        present = scan_folder(out, str(out))
        known = {"schema_version", "graphs"} <= set(data) and bool({"program", "programs"} & set(data))
    except (OSError, ConfigError, BundleError, KeyError, TypeError):
        return "is not an edgediff bundle"
    if not known:
        return "is not an edgediff bundle"
    others = sorted(set(present) - listed)
    return f"holds a file that is not the bundle's own ('{printable(others[0])}')" if others else ""


def update_manifest(
    bundle: Bundle,
    *,
    parity: Parity | None = None,
    quality: Mapping[str, Quality] | None = None,
    comparison: Sequence[Comparison] = (),
    profile: Mapping[str, LatencyTable] | None = None,
) -> Bundle:
    """Rewrites manifest.json, atomically, with this evidence over what is on disk now.

    Parity replaces what was there; quality and profile replace that of the same programs, a comparison that of the
    same pair. The new file is written beside the bundle and renamed into it under a lock: a reader sees the old
    manifest or the new one, and of two writers neither loses what the other wrote.
    Raises BundleError (`value`) for a value that JSON has not, (`evidence`) for evidence there that is damaged,
    OutputError; the file then is as it was.
    """
    shown, where = str(bundle.folder), f"{bundle.folder}/{MANIFEST}"
    new = Evidence(
        parity=parity, quality=dict(quality or {}), comparison=tuple(comparison), profile=dict(profile or {})
    )
    with as_bundle_error(), writing(shown), locked(bundle.folder):
        current = read_manifest(bundle.folder, shown)
        merged = merge_evidence(read_evidence(current.evidence, where), new)
        manifest = current.model_copy(update={"evidence": json.loads(merged.to_json())})
        unfinished = bundle.folder.with_name(f".{bundle.folder.name}.manifest-")
        write_text_atomic(bundle.folder / MANIFEST, _checked_text(manifest, where), unfinished=unfinished)
        _fsync_folder(bundle.folder)
    return replace(bundle, manifest=manifest)


def _write_manifest(folder: Path, manifest: Manifest, shown: str) -> None:
    write_text_atomic(folder / MANIFEST, _checked_text(manifest, f"{shown}/{MANIFEST}"))


def _checked_text(manifest: Manifest, where: str) -> str:
    """The manifest as text that a reader accepts."""
    try:
        text = manifest.to_json()
    except ValueError as error:
        raise broken("value", where, f"holds a value that JSON has not: {error}") from error
    parse_manifest(text, where)
    return text


def _exit_on_signal(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


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
