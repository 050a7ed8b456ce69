"""One small valid bundle, and every way to break it that the readers must notice.

A bundle here is a `Tree`: plain data, so that the Kotlin and Swift readers can be shown the same trees.
`python tests/hostile.py` writes them to `tests/golden/manifest.json` and `tests/golden/manifest_cases.json`;
test_bundle asserts that those are up to date.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.config import dump_json
from edgediff.documents.plan import (
    BackendPlan,
    Cost,
    EqualCompute,
    GraphPlan,
    GuidancePlan,
    ModelRef,
    Plan,
    SamplerPlan,
)
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.runtime.manifest import (
    Artifact,
    Decode,
    Encode,
    FileEntry,
    Graph,
    Manifest,
    Program,
    ProgramRow,
    Source,
    TensorSpec,
    Tokenize,
)
from edgediff.runtime.steps import Update

GOLDEN = Path(__file__).parent / "golden"
LATENT, WIDTH, LENGTH, CARRY = (4, 8, 8), 4, 6, (2, 4, 4)
CALLS = (("full", 3.0), ("shallow", 3.0), (None, None), ("shallow", None))


# The valid bundle


@dataclass
class Tree:
    """Files of a bundle by path, and links by path: their targets, relative to the link's own folder."""

    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(dict(self.files), dict(self.links))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for path, data in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        for path, target in self.links.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(target)
        return folder

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.files["manifest.json"])

    @manifest.setter
    def manifest(self, value: dict[str, Any]) -> None:
        self.files["manifest.json"] = (json.dumps(value, sort_keys=True) + "\n").encode()


def make_program(mode: str = "batched", calls: tuple[tuple[str | None, float | None], ...] = CALLS) -> Program:
    """A DDIM-like program; each call is (graph or None, guidance or None)."""
    rows = tuple(
        ProgramRow(
            graph=graph,
            guidance=guidance,
            timestep=float(750 - 250 * index),
            update=Update(x=(1.0 + 0.1 * index,), e=(-0.2 - 0.05 * index,)),
        )
        for index, (graph, guidance) in enumerate(calls)
    )
    return Program(
        tokenize=Tokenize(folder="tokenizer", length=LENGTH),
        encode=Encode(graph="text_encoder", input="input_ids", output="last_hidden_state"),
        decode=Decode(graph="vae_decoder", input="z", output="image", scale=2.0, shift=0.25),
        latent=LATENT,
        init_scale=1.0,
        sampler="ddim",
        steps=len(rows),
        mode=mode,
        rows=rows,
    )


def make_manifest(
    mode: str = "batched",
    calls: tuple[tuple[str | None, float | None], ...] = CALLS,
    files: tuple[FileEntry, ...] = (),
) -> Manifest:
    """Two denoiser graphs that share a carry: `full` writes it, `shallow` reads it."""
    carry = TensorSpec(name="mid", dtype="float32", shape=("batch", *CARRY))
    sample = TensorSpec(name="sample", dtype="float32", shape=("batch", *LATENT))
    inputs = (
        sample,
        TensorSpec(name="timestep", dtype="float32", shape=(1,)),
        TensorSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", LENGTH, WIDTH)),
    )
    output = sample.model_copy(update={"name": "noise_pred"})
    graphs = {
        "full": Graph(
            component="unet",
            inputs=inputs,
            carries_out={"mid": "cache_out_mid"},
            parameters=2000,
            macs=64000,
            outputs=(output, carry.model_copy(update={"name": "cache_out_mid"})),
            artifacts=_onnx("unet/full"),
        ),
        "shallow": Graph(
            component="unet",
            inputs=(*inputs, carry.model_copy(update={"name": "cache_in_mid"})),
            carries_in={"mid": "cache_in_mid"},
            outputs=(output,),
            parameters=500,
            macs=16000,
            artifacts=_onnx("unet/shallow"),
        ),
        "text_encoder": Graph(
            component="text_encoder",
            inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, LENGTH)),),
            outputs=(TensorSpec(name="last_hidden_state", dtype="float32", shape=(1, LENGTH, WIDTH)),),
            artifacts=_onnx("text_encoder"),
        ),
        "vae_decoder": Graph(
            component="vae_decoder",
            inputs=(TensorSpec(name="z", dtype="float32", shape=(1, *LATENT)),),
            outputs=(TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16)),),
            artifacts=_onnx("vae_decoder"),
        ),
    }
    return Manifest(
        kind="text-to-image",
        name="red-panda",
        carries={"mid": carry},
        graphs=graphs,
        program=make_program(mode, calls),
        files=files,
        tools={"edgediff": "0.1.0"},
        source=Source(model="random:tiny", weights="0" * 64, licence="Apache-2.0"),
    )


def make_plan() -> Plan:
    """The plan that the valid program follows."""
    calls = tuple(name or HOLD for name, _ in CALLS)
    return Plan(
        model=ModelRef(id="random:tiny", kind="text-to-image", denoiser="unet2d", weights="0" * 64),
        recipe_name="by hand",
        recipe="1" * 64,
        target_name="This machine",
        target="2" * 64,
        sampler=SamplerPlan(kind="ddim", steps=4, calls=4),
        guidance=GuidancePlan(mode="batched", calls=tuple(scale for _, scale in CALLS)),
        schedule=Schedule(rows={"full": Row(), "shallow": Row(hold=("mid",))}, calls=calls),
        graphs={
            "full": GraphPlan(row="full", writes=("mid",), macs=64000, parameters=2000),
            "shallow": GraphPlan(row="shallow", reads=("mid",), macs=16000, parameters=500),
        },
        backends={"onnxruntime": BackendPlan(precision="fp32")},
        cost=Cost(macs=176000, reference_macs=512000, equal_compute=EqualCompute(sampler="ddim", steps=1, macs=128000)),
    )


def valid_parts() -> dict[str, bytes]:
    """Files of the valid bundle but for its manifest. The graphs are stand-ins that no runtime could load."""
    onnx = {
        f"onnxruntime/{name}.onnx": f"graph {name}\n".encode()
        for name in ("unet/full", "unet/shallow", "text_encoder", "vae_decoder")
    }
    return {
        **onnx,
        "onnxruntime/weights.bin": bytes(range(256)) * 8,
        "plan.json": make_plan().to_json().encode(),
        "tokenizer/vocab.json": b'{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}\n',
        "tokenizer/merges.txt": b"#version: 0.2\n",
    }


def valid_tree() -> Tree:
    """The valid bundle."""
    parts = valid_parts()
    entries = tuple(
        FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(parts.items())
    )
    return Tree({**parts, "manifest.json": make_manifest(files=entries).to_json().encode()})


def _onnx(name: str) -> dict[str, Artifact]:
    file = Artifact(file=f"onnxruntime/{name}.onnx", precision="fp32", data=("onnxruntime/weights.bin",))
    return {"onnxruntime": file}


# Ways to break it

Change = Callable[[Tree], None]


@dataclass(frozen=True)
class Case:
    """A broken bundle: the code of its error, and words that the message must hold."""

    name: str
    code: str
    text: str
    change: Change

    def tree(self) -> Tree:
        tree = valid_tree()
        self.change(tree)
        return tree


def put(key: str, value: Any) -> Change:
    """Sets a key of the manifest: `program.rows.1.graph`."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        at: Any = manifest
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in parents:
            at = at[part]
        at[last] = value
        tree.manifest = manifest

    return change


def drop(key: str) -> Change:
    """Removes a top-level key of the manifest."""

    def change(tree: Tree) -> None:
        tree.manifest = {name: value for name, value in tree.manifest.items() if name != key}

    return change


def text(old: str, new: str) -> Change:
    """Replaces text of the manifest, once."""

    def change(tree: Tree) -> None:
        before = tree.files["manifest.json"].decode()
        assert old in before, old
        tree.files["manifest.json"] = before.replace(old, new, 1).encode()

    return change


def raw(path: str, data: bytes | None) -> Change:
    """Writes a file behind the manifest's back; None removes it."""

    def change(tree: Tree) -> None:
        tree.files.pop(path, None)
        if data is not None:
            tree.files[path] = data

    return change


def add(path: str, data: bytes) -> Change:
    """Adds a file and lists it as it should be."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        entry = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        tree.manifest = {**manifest, "files": [*manifest["files"], entry]}
        tree.files[path] = data

    return change


def list_only(path: str) -> Change:
    """Lists a file of that path, and writes none."""

    def change(tree: Tree) -> None:
        manifest = tree.manifest
        tree.manifest = {**manifest, "files": [*manifest["files"], {"path": path, "bytes": 1, "sha256": "0" * 64}]}

    return change


def unlist(path: str) -> Change:
    def change(tree: Tree) -> None:
        manifest = tree.manifest
        tree.manifest = {**manifest, "files": [entry for entry in manifest["files"] if entry["path"] != path]}

    return change


def link(path: str, target: str) -> Change:
    """Puts a link where a file or a folder was."""

    def change(tree: Tree) -> None:
        tree.files = {name: data for name, data in tree.files.items() if not f"{name}/".startswith(f"{path}/")}
        tree.links[path] = target

    return change


def both(*changes: Change) -> Change:
    def change(tree: Tree) -> None:
        for each in changes:
            each(tree)

    return change


def _torch_zip() -> bytes:
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle.dumps({}, protocol=2))
        return stream.getvalue()


_ROW = {"graph": "shallow", "guidance": 3.0, "timestep": 0.0, "update": {"x": [1.0], "e": [-0.1]}}
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)

CASES = tuple(
    Case(*row)
    for row in (
        ("no_manifest", "not_a_bundle", "has no manifest.json", raw("manifest.json", None)),
        # What is no JSON, or no object
        ("truncated", "syntax", "is not JSON", raw("manifest.json", valid_tree().files["manifest.json"][:-40])),
        ("empty", "syntax", "is not JSON", raw("manifest.json", b"")),
        ("not_utf8", "syntax", "is not UTF-8", raw("manifest.json", b'{"name": "\xff"}')),
        ("nan", "syntax", "NaN is not a JSON number", text('"init_scale": 1.0', '"init_scale": NaN')),
        ("infinite", "syntax", "JSON cannot hold", both(put("profile", {"p50": 7}), text('"p50": 7', '"p50": 1e999'))),
        ("many_digits", "syntax", "is not JSON", text('"steps": 4', f'"steps": {"9" * 5000}')),
        ("deep", "syntax", "is not JSON", raw("manifest.json", b'{"parity":' + b"[" * 200_000)),
        ("key_twice", "syntax", "'name' is given twice", text('"name": "red-panda"', '"name": "a", "name": "b"')),
        ("lone_surrogate", "syntax", "JSON cannot hold", text("red-panda", "\\ud800")),
        ("list", "value", "valid dictionary", raw("manifest.json", b"[]")),
        # Versions
        ("version_2", "version", "update edgediff", both(put("schema_version", "2.0"), put("shards", 3))),
        ("version_missing", "version", "every manifest states", drop("schema_version")),
        ("version_number", "version", "every manifest states", put("schema_version", 1.0)),
        ("version_word", "version", "cannot be read", put("schema_version", "latest")),
        ("version_long", "version", "every manifest states", put("schema_version", "1" * 5000 + ".0")),
        # Keys and values
        ("unknown_key", "unknown_key", "did you mean 'graphs'", put("graphz", {})),
        ("unknown_key_inside", "unknown_key", "did you mean 'guidance'", put("program.rows.0.guidanse", 3.0)),
        (
            "unknown_key_newer",
            "unknown_key",
            "schema 1.7, which is newer",
            both(put("schema_version", "1.7"), put("shards", 3)),
        ),
        ("missing_key", "value", "'program' is missing", drop("program")),
        ("no_rows", "value", "program.rows", put("program.rows", [])),
        ("text_for_number", "value", "files.0.bytes", put("files.0.bytes", "15")),
        ("true_for_number", "value", "program.steps", put("program.steps", True)),
        ("negative_size", "value", "files.0.bytes", put("files.0.bytes", -1)),
        ("short_hash", "value", "files.0.sha256", put("files.0.sha256", "abc")),
        ("rate_of_pictures", "value", "which is for sound", put("program.decode.sample_rate", 8000)),
        ("no_rate_of_sound", "value", "which sound needs", put("kind", "unconditional-audio")),
        ("unknown_kind", "value", "kind", put("kind", "text-to-text")),
        (
            "source_denoiser",
            "value",
            "source.denoiser.folder",
            put("source.denoiser", {"folder": 3, "weights": "0" * 64}),
        ),
        ("unknown_rng", "value", "rng.kind", put("rng.kind", "xorshift")),
        # Paths
        ("path_absolute", "path", "never absolute", list_only("/etc/passwd")),
        ("path_parent", "path", "never leaves it", list_only("../outside.bin")),
        ("path_parent_inside", "path", "never leaves it", list_only("tokenizer/../../outside.bin")),
        ("path_dot", "path", "never leaves it", list_only("tokenizer/./vocab.json")),
        ("path_double_slash", "path", "never leaves it", list_only("tokenizer//vocab.json")),
        ("path_empty", "path", "is relative", list_only("")),
        ("path_backslash", "path", "forward slashes", list_only("..\\outside.bin")),
        ("path_drive", "path", "is relative", list_only("C:outside.bin")),
        ("path_nul", "path", "control characters", list_only("a.onnx\0.txt")),
        ("path_case", "path", "one file where case is ignored", list_only("PLAN.json")),
        (
            "path_unicode",
            "path",
            "one file where case is ignored",
            both(list_only("caf\u00e9"), list_only("cafe\u0301")),
        ),
        ("path_artifact", "path", "never leaves it", put("graphs.full.artifacts.onnxruntime.file", "../full.onnx")),
        ("path_data", "path", "never absolute", put("graphs.full.artifacts.onnxruntime.data", ["/dev/zero"])),
        ("path_chunk", "path", "never leaves it", put("graphs.full.artifacts.onnxruntime.chunks", ["a/../../b"])),
        ("path_tokenizer", "path", "never leaves it", put("program.tokenize.folder", "..")),
        # What the manifest must keep to itself: Manifest.check
        ("file_twice", "file", "listed twice", list_only("plan.json")),
        ("file_manifest", "file", "its own hash", list_only("manifest.json")),
        ("file_plan", "file", "plan 'plan.json'", both(unlist("plan.json"), raw("plan.json", None))),
        ("file_artifact", "file", "onnxruntime/weights.bin", unlist("onnxruntime/weights.bin")),
        ("file_tokenizer", "file", "'vocabulary'", put("program.tokenize.folder", "vocabulary")),
        ("graph_row", "graph", "did you mean 'shallow'", put("program.rows.1.graph", "shalow")),
        ("graph_decode", "graph", "'vae'", put("program.decode.graph", "vae")),
        ("tensor_encode", "tensor", "'ids'", put("program.encode.input", "ids")),
        ("tensor_carry", "tensor", "'mid'", put("graphs.full.carries_out.mid", "mid")),
        ("carry_unknown", "carry", "unknown carry 'low'", put("graphs.full.carries_out.low", "cache_out_mid")),
        ("carry_shape", "carry", "differ in type or shape", put("carries.mid.shape", ["batch", 9, 4, 4])),
        ("carry_guidance", "carry", "written without guidance", put("program.rows.0.guidance", None)),
        ("carry_first", "carry_before_write", "before any row writes it", put("program.rows.0", _ROW)),
        ("hold_first", "carry_before_write", "before any graph has run", put("program.rows.0.graph", None)),
        (
            "mix_early",
            "carry_before_write",
            "mixes 2 values of 'mid', of which 1",
            put("program.rows.1.mix.mid", [2.0, -1.0]),
        ),
        ("mix_unread", "carry", "does not read", put("program.rows.0.mix.mid", [1.0])),
        ("mix_empty", "carry", "from nothing", put("program.rows.1.mix.mid", [])),
        ("mix_hold", "carry", "holds the output and mixes", put("program.rows.2.mix.mid", [1.0])),
        (
            "guidance_held_first",
            "carry_before_write",
            "0 before it are guided",
            both(put("program.rows.0.guidance", None), put("program.rows.0.held_guidance", [3.0])),
        ),
        ("guidance_held_twice", "guidance", "no guidance of its own", put("program.rows.1.held_guidance", [3.0])),
        ("guidance_held_empty", "guidance", "weights", put("program.rows.3.held_guidance", [])),
        ("history", "history", "row 1", put("program.rows.1.update.e", [1.0, 1.0, 1.0])),
        (
            "history_clip",
            "history",
            "above 0",
            put("program.rows.1.update.clip", {"x": 1.0, "e": 1.0, "limit": 0.0, "weight": 1.0}),
        ),
        (
            "state_stranger",
            "carry",
            "is no carry of it",
            put("graphs.full.artifacts.onnxruntime.states", {"noise_pred": "mid"}),
        ),
        (
            "state_of_one",
            "carry",
            "and not for others",
            put("graphs.full.artifacts.onnxruntime.states", {"cache_out_mid": "mid"}),
        ),
        (
            "state_mixed",
            "carry",
            "its newest value only",
            both(
                put("graphs.full.artifacts.onnxruntime.states", {"cache_out_mid": "mid"}),
                put("graphs.shallow.artifacts.onnxruntime.states", {"cache_in_mid": "mid"}),
                put("graphs.shallow.artifacts.onnxruntime.file", "onnxruntime/unet/full.onnx"),
                put("program.rows.1.mix.mid", [0.5]),
            ),
        ),
        (
            "file_chunk",
            "file",
            "unet/rest.onnx",
            put("graphs.full.artifacts.onnxruntime.chunks", ["onnxruntime/unet/rest.onnx"]),
        ),
        # Files
        ("missing_file", "missing_file", "'tokenizer/merges.txt' is missing", raw("tokenizer/merges.txt", None)),
        ("missing_folder", "missing_file", "is a folder", list_only("onnxruntime/unet")),
        ("size", "size", "has 13 bytes, the manifest says 14", raw("tokenizer/merges.txt", b"#version: 0.2")),
        ("hash", "hash", "changed or damaged", raw("tokenizer/merges.txt", b"#version: 0.3\n")),
        ("unlisted", "unlisted", "'tokenizer/notes.txt'", raw("tokenizer/notes.txt", b"mine")),
        ("unlisted_hidden", "unlisted", "'.DS_Store'", raw(".DS_Store", b"\0\0\0\1")),
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
    )
)


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
        ("absolute", "path", "never absolute", (("/etc/cron.d/job", b"x", _FILE),)),
        ("parent", "path", "never leaves it", (("../outside.txt", b"x", _FILE),)),
        ("backslash", "path", "forward slashes", (("..\\outside.txt", b"x", _FILE),)),
        ("drive", "path", "is relative", (("C:/outside.txt", b"x", _FILE),)),
        ("nul", "path", "control characters", (("plan.json\0", b"x", _FILE),)),
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
        if case.name == "deep":  # 200 kB of brackets, which a reader's test makes by itself
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
