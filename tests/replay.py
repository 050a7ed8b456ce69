"""Records what every shipped recipe plans for `glyph`, so that a refactor can be held against it.

    python -m tests.replay [RECIPE ...]        minutes to an hour: everything is measured again

`tests/golden/replay/plans.json.gz` holds each recipe's plan and the rows of its program (or the error that planning
ends with); `measured.json.gz` what scoring and calibration found, by the name of its file in the cache folder. The
test plans again from what was measured, so it takes seconds and sees every decision; what was measured is recorded
anew only when a method or a recipe changes what it asks for, and then the commit says why.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgediff import flow
from edgediff.documents.recipe import list_recipes, load_recipe
from edgediff.errors import EdgeDiffError
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.runtime.manifest import ProgramRow
from edgediff.sampling.rows import program_rows
from edgediff.sampling.trace import step_table

FOLDER = Path(__file__).parent / "golden" / "replay"
TOOLS = ("edgediff", "torch", "diffusers")
HASHES = ("recipe", "target")  # of a file's text, which may say the same in other words


def plan_recipe(pipeline: Pipeline, recipe: str) -> dict[str, Any]:
    """The plan and the rows of a recipe for `host`, or the error's code and text. Weights in 8 bits with floating
    arithmetic are Core ML's."""
    backend = "coreml" if load_recipe(recipe).precision == "w8" else "onnxruntime"
    try:
        plan = flow.plan_build(pipeline, recipe=recipe, target="host", backends=(backend,))
    except EdgeDiffError as error:
        return {"error": error.code, "message": str(error)}
    table = step_table(pipeline, plan.sampler.kind, plan.sampler.steps)
    rows = program_rows(table, plan.schedule, plan.guidance)
    decided = {key: value for key, value in plan.model_dump(mode="json").items() if key not in HASHES}
    return {"plan": decided, "rows": [_plain(row) for row in rows]}


def _plain(row: ProgramRow) -> dict[str, Any]:
    """A row, with the weights of held guidance under the name that format 1 had for them."""
    held = None if row.held is None else list(row.held.weights)
    return {**row.model_dump(mode="json"), "held_guidance": held}


def read_golden(name: str) -> dict[str, Any]:
    with gzip.open(FOLDER / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def write_golden(name: str, value: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    (FOLDER / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def fill_cache(folder: Path, measured: dict[str, Any]) -> None:
    """Lays measurements where scoring and calibration look for them."""
    for name, value in measured["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def read_cache(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))}


def main(recipes: list[str]) -> None:
    plans = read_golden("plans") if recipes else {}
    kept = read_golden("measured")["files"] if recipes else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEDIFF_CACHE"] = folder
        pipeline = load_pipeline("glyph")
        for name in recipes or list_recipes():
            plans[name] = plan_recipe(pipeline, name)
            print(name, plans[name].get("error", "planned"), flush=True)
        tools = {name: importlib.metadata.version(name) for name in TOOLS}
        write_golden("measured", {"tools": tools, "files": {**kept, **read_cache(Path(folder))}})
    write_golden("plans", plans)


if __name__ == "__main__":
    main(sys.argv[1:])
