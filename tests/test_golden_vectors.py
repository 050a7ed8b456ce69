"""Golden files that the Kotlin and Swift readers share and no other test owns.

`EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_golden_vectors.py` writes them anew. tests/golden/manifest_cases.json,
rng.json, steps.json and tokenizer.json belong to the tests of those modules.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.reader import parse_manifest
from edgediff.config import parse
from edgediff.runtime.latency import LatencyTable, graph_times, image_times
from tests.hostile import ZIP_CASES
from tests.program_cases import draw, make_cases, run_case

GOLDEN = Path(__file__).parent / "golden"
HALVES = (
    0.0,
    -0.0,
    1.0,
    -2.5,
    65504.0,
    65519.9,
    65520.0,
    6.1e-5,
    5.96e-8,
    2.98e-8,
    2.99e-8,
    1e-8,
    1e30,
    1.00048828125,
    1.00146484375,
    0.333251953125,
    2049.0,
    2051.0,
)


def make_programs() -> dict[str, Any]:
    about = "What Python makes of each program; its graphs are those of tests/program_cases.py"
    return {"about": about, "cases": [run_case(case) for case in make_cases()]}


def make_latency() -> dict[str, Any]:
    """Samples, and the table of them."""
    images = [round(1400 + 60 * float(value), 3) for value in draw(5, 7)]
    graphs = {"full@2": [20.5, 21.25, 19.75, 30.0], "vae_decoder": [3.1234]}
    table = LatencyTable(
        source="measured",
        end_to_end_ms=image_times(images),
        warmup=1,
        overhead_fraction=0.98,
        graphs={name: graph_times(times) for name, times in graphs.items()},
        device={"name": "Pixel 9", "backend": "onnxruntime", "cores": 8, "os": "Android 16", "memory_gb": 12.25},
        load_ms={"cold": 812.5, "warm": 300.25, "hashing": 95.0, "graphs": {"full@2": 250.125}},
        first_run_ms=1700.5,
        peak_rss_mb=410.2,
        base_rss_mb=88.1,
        bundle="glyph",
        measured_at="2026-01-02T03:04:05+00:00",
        samples={"end_to_end_ms": images, "graphs": graphs},
    )
    shares = 1 - sum(map(sum, graphs.values())) / sum(images)
    table = table.model_copy(update={"overhead_fraction": round(shares, 5)})
    return {"table": table.model_dump(mode="json", exclude_none=True)}


def make_zips() -> dict[str, Any]:
    """Entries to add to the valid bundle's zip, or to put in place of those of the same name."""
    cases = []
    for case in ZIP_CASES:
        entries = [
            {"name": name, "mode": mode, **({"zeros": len(data)} if len(data) > 1000 else {"data": _packed(data)})}
            for name, data, mode in case.entries
        ]
        cases.append({"name": case.name, "code": case.code, "entries": entries})
    return {"about": "deflated; zeros: that many zero bytes", "cases": cases}


def make_halves() -> dict[str, Any]:
    """float32 values and the bits of the nearest float16."""
    values = np.array([*HALVES, *(draw(3, 60) * 100), *(draw(4, 20) * 1e-5)], np.float32)
    with np.errstate(over="ignore"):
        bits = values.astype(np.float16).view(np.uint16)
    return {"bits32": [int(value) for value in values.view(np.uint32)], "bits16": [int(value) for value in bits]}


SAME = [
    ["batched", "guidance_of_the_program", "flagged", "not_flagged", "preview_by_weights", "preview_by_graph"],
    ["mixed", "mixed_sequential"],
    ["held_guidance", "held_guidance_sequential"],
]
FILES = {
    "programs.json": make_programs,
    "latency.json": make_latency,
    "zip_cases.json": make_zips,
    "halves.json": make_halves,
}


@pytest.mark.parametrize("name", FILES)
def test_golden_file_is_up_to_date(name: str) -> None:
    text = json.dumps(FILES[name](), separators=(",", ":"), ensure_ascii=False) + "\n"  # unsorted: maps have an order
    file = GOLDEN / name
    if os.environ.get("EDGEDIFF_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    have, want = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    assert have == want, f"{name} is out of date: EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_golden_vectors.py"


def test_programs_are_valid_and_move() -> None:
    """A program whose latent stays as it is, or that no reader would accept, shows nothing."""
    cases = json.loads((GOLDEN / "programs.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        manifest = parse_manifest(json.dumps(case["manifest"]), case["name"])
        assert len(case["latents"]) == len(manifest.program(case["program"]).rows)
        assert all(before != after for before, after in zip(case["latents"], case["latents"][1:], strict=False))
        assert len(set(case["pixels"])) > 8, case["name"]
        assert len(set(case["preview"])) > 6, case["name"]
    assert {case["flagged"] for case in cases} == {True, False}


def test_every_case_shows_something_of_its_own() -> None:
    """Two cases that come to the same latents would leave what tells them apart unseen; equal by meaning are those of
    batched and sequential mode, those that differ in what judges or shows the picture, and the asked scale that is
    the program's own."""
    cases = json.loads((GOLDEN / "programs.json").read_text(encoding="utf-8"))["cases"]
    same: dict[str, list[str]] = {}
    for case in cases:
        same.setdefault(json.dumps(case["latents"]), []).append(case["name"])
    assert sorted(sorted(names) for names in same.values() if len(names) > 1) == sorted(sorted(names) for names in SAME)


def test_latency_json_of_another_reader_is_ours() -> None:
    table = json.loads((GOLDEN / "latency.json").read_text(encoding="utf-8"))["table"]
    assert parse(table, LatencyTable, where="golden").end_to_end_ms.n == 7


def _packed(data: bytes) -> str:
    return base64.b64encode(data).decode()
