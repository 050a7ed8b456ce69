"""Every way to break the valid bundle that the readers must notice, and the golden files of it.

`python -m tests.hostile` writes `tests/golden/manifest.json` and `manifest_cases.json`; test_bundle asserts
that those are up to date.
"""

from __future__ import annotations

import base64
import io
import pickle
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgediff.config import dump_json
from tests.hostile_changes import Case, add, both, drop, link, list_only, put, raw, text
from tests.hostile_rules import RULE_CASES
from tests.valid_bundle import (
    CARRY,
    LATENT,
    LENGTH,
    WIDTH,
    Tree,
    make_manifest,
    make_plan,
    valid_parts,
    valid_tree,
)

__all__ = [
    "CARRY",
    "CASES",
    "GOLDEN",
    "LATENT",
    "LENGTH",
    "WIDTH",
    "ZIP_CASES",
    "Case",
    "Tree",
    "ZipCase",
    "make_manifest",
    "make_plan",
    "render_golden",
    "valid_parts",
    "valid_tree",
]

GOLDEN = Path(__file__).parent / "golden"
LARGE = ("deep", "text_long", "evidence_text_long")


def _torch_zip() -> bytes:
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle.dumps({}, protocol=2))
        return stream.getvalue()


_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
_WHOLE = valid_tree().files["manifest.json"]
_NAME = '"name": "red-panda"'
_EVIDENCE = '"evidence": {}'

TEXT_CASES = (
    ("no_manifest", "not_a_bundle", "has no manifest.json", raw("manifest.json", None)),
    # What is no JSON, or no object
    ("truncated", "syntax", "is not JSON", raw("manifest.json", _WHOLE[:-40])),
    ("empty", "syntax", "is not JSON", raw("manifest.json", b"")),
    ("two_values", "syntax", "is not JSON", raw("manifest.json", _WHOLE + b"{}")),
    ("nul_after", "syntax", "is not JSON", raw("manifest.json", _WHOLE + b"\0")),
    ("not_utf8", "syntax", "is not UTF-8", raw("manifest.json", b'{"name": "\xff"}')),
    ("utf8_surrogate", "syntax", "is not UTF-8", raw("manifest.json", b'{"name": "\xed\xa0\x80"}')),
    ("utf8_overlong", "syntax", "is not UTF-8", raw("manifest.json", b'{"name": "\xc0\xaf"}')),
    ("utf8_too_high", "syntax", "is not UTF-8", raw("manifest.json", b'{"name": "\xf4\x90\x80\x80"}')),
    ("byte_order_mark", "syntax", "byte-order mark", raw("manifest.json", b"\xef\xbb\xbf" + _WHOLE)),
    ("nan", "syntax", "NaN is not a JSON number", text('"scale": 2.0', '"scale": NaN')),
    ("infinity", "syntax", "-Infinity is not a JSON number", text('"scale": 2.0', '"scale": -Infinity')),
    ("infinite", "syntax", "as a number", text(_EVIDENCE, '"evidence": {"p50": 1e999}')),
    ("number_of_41", "syntax", "a number of 41 characters", text('"scale": 2.0', f'"scale": 2.{"0" * 39}')),
    ("many_digits", "syntax", "a number of 5000 characters", text('"steps": 4', f'"steps": {"9" * 5000}')),
    ("leading_zero", "syntax", "is not JSON", text('"steps": 4', '"steps": 04')),
    ("plus", "syntax", "is not JSON", text('"steps": 4', '"steps": +4')),
    ("no_fraction", "syntax", "is not JSON", text('"scale": 2.0', '"scale": 2.')),
    ("no_exponent", "syntax", "is not JSON", text('"scale": 2.0', '"scale": 2e')),
    ("last_comma", "syntax", "is not JSON", text(_EVIDENCE, '"evidence": {},')),
    ("comment", "syntax", "is not JSON", text(_EVIDENCE, '"evidence": {} // none')),
    ("form_feed", "syntax", "is not JSON", text(_EVIDENCE, '"evidence":\f{}')),
    ("single_quotes", "syntax", "is not JSON", text(_NAME, "'name': 'a'")),
    ("control_in_text", "syntax", "is not JSON", text("red-panda", "red\npanda")),
    ("unknown_escape", "syntax", "is not JSON", text("red-panda", "red\\xpanda")),
    ("deep", "syntax", "nested", raw("manifest.json", b'{"evidence":' + b"[" * 200_000)),
    ("deep_33", "syntax", "nested", text(_EVIDENCE, f'"evidence": {{"a": {"[" * 31}{"]" * 31}}}')),
    ("key_twice", "syntax", "'name' is given twice", text(_NAME, '"name": "a", "name": "b"')),
    ("key_twice_escaped", "syntax", "'name' is given twice", text(_NAME, '"name": "a", "n\\u0061me": "b"')),
    ("key_twice_inside", "syntax", "'a' is given twice", text(_EVIDENCE, '"evidence": {"a": {"a": 1, "a": 1}}')),
    ("lone_surrogate", "syntax", "JSON cannot hold", text("red-panda", "\\ud800")),
    ("lone_surrogate_key", "syntax", "JSON cannot hold", text(_EVIDENCE, '"evidence": {"\\udfff\\ud800": 1}')),
    ("text_long", "syntax", "a text of 65537", put("source.model", "x" * 65_537)),
    ("evidence_text_long", "syntax", "a text of 65537", put("evidence.notes", "\U0001f43c" * 65_537)),
    ("list", "value", "a manifest is an object", raw("manifest.json", b"[]")),
    ("number", "value", "a manifest is an object", raw("manifest.json", b"2.0")),
    # Versions
    ("version_1", "version", "build the bundle again", both(put("schema_version", "1.0"), put("shards", 3))),
    ("version_3", "version", "update edgediff", both(put("schema_version", "3.0"), put("shards", 3))),
    ("version_first", "version", "update edgediff", both(put("schema_version", "3.0"), drop("programs"))),
    ("version_missing", "version", "every manifest states", drop("schema_version")),
    ("version_null", "version", "every manifest states", put("schema_version", None)),
    ("version_number", "version", "every manifest states", put("schema_version", 2.0)),
    ("version_word", "version", "cannot be read", put("schema_version", "latest")),
    ("version_major_alone", "version", "cannot be read", put("schema_version", "2")),
    ("version_zeros", "version", "cannot be read", put("schema_version", "2.00")),
    ("version_line", "version", "cannot be read", put("schema_version", "2.0\n")),
    ("version_digits", "version", "cannot be read", put("schema_version", "2.\u0661")),
    ("version_long", "version", "update edgediff", put("schema_version", "1" * 5000 + ".0")),
)
FILE_CASES = (
    ("missing_file", "missing_file", "'tokenizer/merges.txt' is missing", raw("tokenizer/merges.txt", None)),
    ("missing_folder", "missing_file", "is a folder", list_only("onnxruntime/unet")),
    ("size", "size", "has 13 bytes, the manifest says 14", raw("tokenizer/merges.txt", b"#version: 0.2")),
    ("hash", "hash", "changed or damaged", raw("tokenizer/merges.txt", b"#version: 0.3\n")),
    ("unlisted", "unlisted", "'tokenizer/notes.txt'", raw("tokenizer/notes.txt", b"mine")),
    ("unlisted_hidden", "unlisted", "'.DS_Store'", raw(".DS_Store", b"\0\0\0\1")),
    ("unlisted_case", "unlisted", "'tokenizer/Vocab.json'", raw("tokenizer/Vocab.json", b"{}")),
    # Links
    ("link_file", "link", "is a link", link("tokenizer/merges.txt", "vocab.json")),
    ("link_outside", "link", "is a link", link("tokenizer/merges.txt", "/etc/hostname")),
    ("link_folder", "link", "'tokenizer' is a link", link("tokenizer", "../elsewhere")),
    ("link_dangling", "link", "is a link", link("onnxruntime/weights.bin", "nowhere")),
    ("link_manifest", "link", "'manifest.json' is a link", link("manifest.json", "plan.json")),
    ("link_unlisted", "link", "is a link", link("extra", "plan.json")),
    # Pickles, listed or not
    ("pickle_name", "pickle", "safetensors", add("onnxruntime/extra.pt", b"weights")),
    ("pickle_capitals", "pickle", "safetensors", add("onnxruntime/extra.CKPT", b"weights")),
    ("pickle_unlisted", "pickle", "safetensors", raw("onnxruntime/extra.pkl", b"weights")),
    ("pickle_stream", "pickle", "safetensors", add("extra.bin", pickle.dumps({"weight": [1, 2, 3]}, protocol=4))),
    ("pickle_legacy", "pickle", "safetensors", add("pytorch_model.bin", _LEGACY + bytes(64))),
    ("pickle_zip", "pickle", "safetensors", add("pytorch_model.bin", _torch_zip())),
    # Which of two faults is the first
    ("rule_before_file", "program", "'none'", both(raw("tokenizer/merges.txt", None), put("default", "none"))),
    ("link_before_missing", "link", "'extra'", both(raw("tokenizer/merges.txt", None), link("extra", "plan.json"))),
    ("missing_before_unlisted", "missing_file", "merges", both(raw("a", b""), raw("tokenizer/merges.txt", None))),
)

CASES = (*(Case(*row) for row in TEXT_CASES), *RULE_CASES, *(Case(*row) for row in FILE_CASES))


# Packed bundles


@dataclass(frozen=True)
class ZipCase:
    """A broken zip: its code, words of its message, and the (name, data, mode) entries to add or put instead."""

    name: str
    code: str
    text: str
    entries: tuple[tuple[str, bytes, int], ...]

    def write(self, file: Path) -> Path:
        extra = {name for name, _, _ in self.entries}
        parts = [(path, data, stat.S_IFREG | 0o644) for path, data in valid_tree().files.items() if path not in extra]
        with zipfile.ZipFile(file, "w") as archive:
            for name, data, mode in (*parts, *self.entries):
                info = zipfile.ZipInfo(name.replace("\0", "?"))
                info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
                archive.writestr(info, data)
        if any("\0" in name for name in extra):  # zipfile would cut the name, so the bytes are put in after it
            file.write_bytes(file.read_bytes().replace(b"plan.json?", b"plan.json\0"))
        return file


_FILE = stat.S_IFREG | 0o644
ZIP_CASES = tuple(
    ZipCase(*row)
    for row in (
        ("absolute", "path", "never leaves it", (("/etc/cron.d/job", b"x", _FILE),)),
        ("parent", "path", "never leaves it", (("../outside.txt", b"x", _FILE),)),
        ("backslash", "path", "characters", (("..\\outside.txt", b"x", _FILE),)),
        ("drive", "path", "characters", (("C:/outside.txt", b"x", _FILE),)),
        ("nul", "path", "characters", (("plan.json\0", b"x", _FILE),)),
        ("link", "link", "is a link", (("tokenizer/link", b"/etc", stat.S_IFLNK | 0o777),)),
        ("device", "link", "special file", (("tokenizer/device", b"", stat.S_IFCHR | 0o666),)),
        ("twice", "archive", "twice", (("plan.json", b"{}", _FILE), ("plan.json", b"[]", _FILE))),
        ("case", "path", "case is ignored", (("plan.json", b"{}", _FILE), ("Plan.json", b"[]", _FILE))),
        ("file_and_folder", "archive", "both a file and a folder", (("a", b"", _FILE), ("a/b", b"", _FILE))),
        ("ratio", "limit", "times its packed size", (("zeros", bytes(8 << 20), _FILE),)),
        ("unlisted", "unlisted", "'notes.txt'", (("notes.txt", b"x", _FILE),)),
        ("pickle", "pickle", "safetensors", (("model.pt", b"x", _FILE),)),
        ("hash", "hash", "changed or damaged", (("tokenizer/merges.txt", b"#version: 0.3\n", _FILE),)),
    )
)


# Golden vectors


def render_golden() -> dict[str, str]:
    """The files of `tests/golden/` that this module owns.

    `manifest_cases.json`: `valid` maps paths to base64; each case lists what differs from it in `files` (null:
    removed) and its `links` (path to target). A manifest is given as text where it is UTF-8.
    """
    valid = valid_tree()
    cases = []
    for case in CASES:
        if case.name in LARGE:  # which a reader's test makes by itself
            continue
        tree = case.tree()
        names = sorted({*valid.files, *tree.files})
        changed = {
            name: _packed(tree.files.get(name)) for name in names if valid.files.get(name) != tree.files.get(name)
        }
        cases.append({"name": case.name, "code": case.code, "files": changed, "links": tree.links})
    files = {name: _packed(data) for name, data in valid.files.items()}
    golden = {"valid": {"files": files}, "cases": cases}
    return {"manifest.json": valid.files["manifest.json"].decode(), "manifest_cases.json": dump_json(golden)}


def _packed(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


if __name__ == "__main__":
    for name, content in render_golden().items():
        (GOLDEN / name).write_text(content, encoding="utf-8")
        print(GOLDEN / name)
