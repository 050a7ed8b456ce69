"""What the Kotlin tests read beside tests/golden: a real bundle, and what Python makes of it.

`python tests/kotlin_vectors.py [FOLDER]` writes `glyph.edgediff` (built once, a minute; built again when the format of
bundles changes) and `glyph.json` to FOLDER, `build/kotlin` by default. Too large and too dependent on versions for
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
from edgediff.config import write_text_atomic
from edgediff.errors import EdgeDiffError
from edgediff.runtime import open_session

ROOT = Path(__file__).parent.parent
CASES = (("red heart", "", 0), ("grinning cat", "red", 2**32 + 5))
PROMPTS = ("", "red heart", "x" * 10_000, "a photo of " * 910, "\u202e\u05dc\u05d1 \u05d0\u05d3\u05d5\u05dd", "❤️ 🎉")
FORMAT = ("manifest.py", "program.py", "steps.py", "backends/onnxruntime.py")  # what decides how a bundle looks


def main(folder: Path) -> None:
    """Writes both."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = open_or_build(folder / "glyph.edgediff")
    session = open_session(bundle)
    cases = []
    for prompt, negative, seed in CASES:
        *_, last = session.steps(prompt, negative, seed)
        pixels = session.decode(last.latent)
        cases.append({
            "prompt": prompt, "negative_prompt": negative, "seed": str(seed), "shape": list(pixels.shape),
            "latent": [float(value) for value in last.latent.ravel()],
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
        })  # fmt: skip
    tokenizer, stage = bundle.tokenizer(), bundle.manifest.program.tokenize
    assert tokenizer is not None and stage is not None
    ids: list[dict[str, Any]] = [
        {"text": text, "max_length": stage.length, "ids": tokenizer.encode(text, stage.length)} for text in PROMPTS
    ]
    write_text_atomic(folder / "glyph.json", json.dumps({"cases": cases, "ids": ids}))


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
