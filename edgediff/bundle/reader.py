"""The strict reader: the manifest first, its version before all else, then every file that it lists."""

from __future__ import annotations

import math
import os
import stat
import sys
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

from pydantic import RootModel, ValidationError

from edgediff.bundle.files import MANIFEST, check_files, check_hashes, not_a_file, scan_folder
from edgediff.bundle.refusals import as_bundle_error, broken, format_size, reading
from edgediff.config import Limits, check_plain, load_plain, parse, read_text
from edgediff.errors import ConfigError
from edgediff.runtime.manifest import SCHEMA_MAJOR, Manifest, check_version

MANIFEST_LIMIT = 16 << 20  # bytes; a thousand rows with four graphs are below 1 MB
# What the Kotlin reader takes too: whole numbers of any size where the model does not bound them.
LIMITS = Limits(bytes=MANIFEST_LIMIT, depth=400, whole=math.inf, real=sys.float_info.max)


def check_folder(folder: Path, shown: str, verify: bool) -> Manifest:
    """The manifest of a folder that is a sound bundle, called `shown` in errors. Raises BundleError."""
    with as_bundle_error(), reading(shown):
        manifest = read_manifest(folder, shown)
        present = scan_folder(folder, shown)
        check_files(manifest, folder, present, shown)
        if verify:
            check_hashes(manifest, folder, shown)
    return manifest


def read_manifest(folder: Path, shown: str) -> Manifest:
    """The manifest, parsed and checked. The version comes first: a manifest from the future says so."""
    file, where = folder / MANIFEST, f"{shown}/{MANIFEST}"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        hint = "; unpack it first: edgediff unpack" if folder.is_file() and zipfile.is_zipfile(folder) else ""
        raise broken("not_a_bundle", shown, f"is not an edgediff bundle: it {what}{hint}")
    if not os.path.lexists(file):
        raise broken("not_a_bundle", shown, f"is not an edgediff bundle: it has no {MANIFEST}")
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise not_a_file(MANIFEST, status, shown)
    if status.st_size > MANIFEST_LIMIT:
        message = f"is {format_size(status.st_size)}; a manifest is at most {format_size(MANIFEST_LIMIT)}"
        raise broken("size", where, message)
    return parse_manifest(read_text(file, limits=LIMITS), where)


def parse_manifest(text: str, where: str) -> Manifest:
    plain = load_plain(text, where=where, limits=LIMITS, values=False)
    data = parse(plain, RootModel[dict[str, Any]], where=where).root
    version = data.get("schema_version")
    if not isinstance(version, str) or len(version) > 16:
        message = f"schema_version must be a text like '{SCHEMA_MAJOR}.0', which every manifest states"
        raise broken("version", where, message)
    check_version(version, where)
    try:
        check_plain(data, where=where, limits=LIMITS)
    except ConfigError as error:
        message = f"holds a number or a text that JSON cannot hold ({error.message})"
        raise broken("syntax", where, message) from error
    try:
        manifest = parse(data, Manifest, where=where)
    except ConfigError as error:
        newer = version != f"{SCHEMA_MAJOR}.0" and error.code == "unknown_key"
        hint = f"; the manifest is of schema {version}, which is newer: update edgediff" if newer else ""
        raise broken(error.code, where, f"{error.message}{hint}") from None
    _check_types(text, where)
    manifest.check(where=where)
    check_names([entry.path for entry in manifest.files], where)
    return manifest


def _check_types(text: str, where: str) -> None:
    """No text where a number belongs: Kotlin and Swift would refuse it, so this reader does too."""
    try:
        Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"'{key}' = {first['input']!r:.60}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise broken("value", where, message) from None


def check_names(paths: list[str], where: str) -> None:
    """No two paths that are one file where case is ignored; the manifest is not its own entry."""
    seen: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen:
            message = f"'{seen[key]}' and '{path}' are one file where case is ignored; rename one"
            raise broken("path", where, message)
        seen[key] = path
    if MANIFEST in seen:
        raise broken("file", where, f"lists '{seen[MANIFEST]}', but cannot hold its own hash")
