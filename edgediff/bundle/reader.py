"""The strict reader: the manifest first, its version before all else, then every file that it lists."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

from pydantic import ValidationError

from edgediff.bundle.files import MANIFEST, check_files, check_hashes, not_a_file, scan_folder
from edgediff.bundle.refusals import as_bundle_error, broken, format_size, reading
from edgediff.config import describe_error
from edgediff.runtime.document import read_document
from edgediff.runtime.manifest import VERSION, Manifest, check_version
from edgediff.runtime.tokenizer import Tokenizer

MANIFEST_LIMIT = 16 << 20  # bytes; a thousand rows with four graphs are below 1 MB


def check_folder(folder: Path, shown: str, verify: bool) -> Manifest:
    """The manifest of a folder that is a sound bundle, called `shown` in errors. Raises BundleError."""
    with as_bundle_error(), reading(shown):
        manifest = read_manifest(folder, shown)
        present = scan_folder(folder, shown)
        check_files(manifest, folder, present, shown)
        if verify:
            check_hashes(manifest, folder, shown)
        for spec in manifest.tokenizers.values():
            Tokenizer.read(folder, spec)
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
    return parse_manifest(file.read_bytes(), where)


def parse_manifest(data: bytes | str, where: str) -> Manifest:
    """Steps 2 to 5 of reading. Raises BundleError under the first fault's code."""
    document = read_document(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, where)
    if not isinstance(document, dict):
        raise broken("value", where, f"holds a {type(document).__name__}; a manifest is an object, a valid dictionary")
    version = document.get("schema_version")
    if not isinstance(version, str):
        raise broken("version", where, f"schema_version must be a text like '{VERSION}', which every manifest states")
    check_version(version, where)
    try:
        manifest = Manifest.model_validate_json(json.dumps(document), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        refused = describe_error(error, Manifest, where=where, data=document)
        newer = version != VERSION and refused.code in ("unknown_key", "value")
        hint = f"; the manifest is of schema {version}, which is newer: update edgediff" if newer else ""
        raise broken(refused.code, where, f"{refused.message}{hint}") from None
    manifest.check(where=where)
    return manifest
