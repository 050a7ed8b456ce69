"""What the Kotlin tests read beside tests/golden: a real bundle, and what Python makes of it.

`python -m tests.kotlin_vectors [FOLDER]` writes to FOLDER, `build/kotlin` by default: `glyph.edgediff` (built once, a
minute; built again when the format of bundles changes) and `glyph.json`; and `manifests.json`, manifests with
every value in turn replaced by others, and what the reader says of each. Too large and too dependent on versions for
tests/golden. `make test` calls it before Maven.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import edgediff
from edgediff.bundle import Bundle, open_bundle
from edgediff.bundle.reader import parse_manifest
from edgediff.config import write_text_atomic
from edgediff.errors import EdgeDiffError
from edgediff.runtime import open_session
from tests.hostile import valid_tree
from tests.program_cases import make_cases

ROOT = Path(__file__).parent.parent
CASES = (("red heart", "", 0), ("grinning cat", "red", 2**32 + 5))
PROMPTS = ("", "red heart", "x" * 10_000, "a photo of " * 910, "\u202e\u05dc\u05d1 \u05d0\u05d3\u05d5\u05dd", "❤️ 🎉")
PROGRAMS = ("mixed", "held_scale_minus_one", "clipped", "blended")  # of which the program alone is changed
WHOLE = ("classes_by_name", "pixels", "two_encoders", "masked_picture", "flagged", "preview_by_weights")
PARTS = ("conditions", "encoders", "decoder", "picture", "safety", "preview", "programs", "default")
ABSENT = {"absent": True}
OTHERS: tuple[Any, ...] = (ABSENT, None, True, -1, 3, 1.5, "", "shallow", "../x", [], [1.0, -1.0], ["batch", 2], {})
FORMAT = ("runtime/manifest.py", "runtime/steps.py", "bundle/assemble.py")  # what decides how a bundle looks


def main(folder: Path) -> None:
    """Writes all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "manifests.json", json.dumps(change_manifests()))
    bundle = open_or_build(folder / "glyph.edgediff")
    session = open_session(bundle)
    cases = []
    for prompt, negative, seed in CASES:
        *_, last = session.steps(prompt, negative, seed)
        pixels = session.decode(last.latent)
        cases.append(
            {
                "prompt": prompt,
                "negative_prompt": negative,
                "seed": str(seed),
                "shape": list(pixels.shape),
                "latent": [float(value) for value in last.latent.ravel()],
                "pixels": base64.b64encode(pixels.tobytes()).decode(),
            }
        )
    (tokenizer,) = bundle.tokenizers().values()
    (spec,) = bundle.manifest.tokenizers.values()
    ids: list[dict[str, Any]] = [
        {"text": text, "max_length": spec.length, "ids": tokenizer.encode(text, spec.length)} for text in PROMPTS
    ]
    write_text_atomic(folder / "glyph.json", json.dumps({"cases": cases, "ids": ids}))


def change_manifests() -> list[dict[str, Any]]:
    """`[{"valid", "cases": [[path, value, code]]}]`; a value of `{"absent": true}` takes the key away. All of the
    valid bundle's manifest; its graphs once more with a state; of manifests that say more, that."""
    found = [_change(valid_tree().files["manifest.json"].decode(), ()), _change(_stateful(), ("graphs",))]
    for case in make_cases():
        if case.name in PROGRAMS:
            found.append(_change(case.manifest.to_json(), ("programs", "main")))
        elif case.name in WHOLE:
            found += [_change(case.manifest.to_json(), (part,)) for part in PARTS]
    return [one for one in found if one["cases"]]


def _stateful() -> str:
    """The valid manifest with its carry in a state of one file."""
    tree = valid_tree().manifest
    for name, tensor in (("full", "cache_out_mid"), ("shallow", "cache_in_mid")):
        artifact = tree["graphs"][name]["artifacts"]["onnxruntime"]
        artifact.update(file="onnxruntime/unet/full.onnx", function=name, states={tensor: "mid"})
    return json.dumps(tree)


def _change(valid: str, below: tuple[str | int, ...]) -> dict[str, Any]:
    cases = []
    for path in _places(json.loads(valid), ()):
        if path[: len(below)] != below:
            continue
        for value in OTHERS:
            tree = json.loads(valid)
            at = tree
            for part in path[:-1]:
                at = at[part]
            if value == ABSENT:
                del at[path[-1]]
            else:
                at[path[-1]] = value
            cases.append([list(path), value, _code(json.dumps(tree))])
    return {"valid": valid, "cases": cases}


def _places(value: Any, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """The path of everything in a JSON value; of a list's items the first three."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:3] if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in inner:
        found += _places(item, (*path, key))
    return found


def _code(text: str) -> str:
    try:
        parse_manifest(text, "manifest.json")
    except EdgeDiffError as error:
        return error.code
    return "no error"


def open_or_build(folder: Path) -> Bundle:
    """The bundle at `folder`, built unless it is there, sound, and younger than the code that writes bundles."""
    code = max((ROOT / "edgediff" / name).stat().st_mtime for name in FORMAT)
    if (folder / "manifest.json").is_file() and (folder / "manifest.json").stat().st_mtime > code:
        try:
            return open_bundle(folder)
        except EdgeDiffError:
            pass
    print("building glyph for the Kotlin tests (about a minute, once)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return edgediff.build("glyph", recipe="deepcache", target="host", out=folder)  # two graphs and a carry


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "kotlin")
