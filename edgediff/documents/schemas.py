"""JSON Schemas of what people and other programs write and read: recipe, target, plan and manifest.

`python -m edgediff.documents.schemas` writes them to `edgediff/documents/schemas/`; a test asserts that they are up to
date. A target's has the tables of edgediff's own
backends. They say what a key may hold. What must hold between keys is said by `Plan.check` and `Manifest.check`.
"""

from __future__ import annotations

from pathlib import Path

from edgediff.config import Model, dump_json, write_text_atomic
from edgediff.documents.plan import Plan
from edgediff.documents.recipe import Recipe
from edgediff.documents.target import Target, target_model
from edgediff.plugins import own_names
from edgediff.runtime.manifest import Manifest

FOLDER = Path(__file__).with_suffix("")
MODELS: dict[str, type[Model]] = {"manifest": Manifest, "plan": Plan, "recipe": Recipe, "target": Target}


def render_schema(name: str) -> str:
    """The schema (draft 2020-12) of one of `MODELS` as canonical JSON."""
    model = target_model(own_names("backends")) if name == "target" else MODELS[name]
    body = model.model_json_schema(by_alias=True, mode="validation")
    return dump_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **body})


def write_schemas(folder: Path = FOLDER) -> list[Path]:
    """Writes `<name>.schema.json` for each of `MODELS`. Raises OutputError."""
    written = []
    for name in MODELS:
        path = folder / f"{name}.schema.json"
        write_text_atomic(path, render_schema(name))
        written.append(path)
    return written


if __name__ == "__main__":
    for path in write_schemas():
        print(path)
