"""A number or it did not happen, a replay or it was not a refactor: every shipped recipe plans on `glyph` what it
planned when `tests/golden/replay` was recorded (`python -m tests.replay`)."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from edgediff.documents.recipe import list_recipes
from edgediff.pipeline import load_pipeline
from tests.replay import fill_cache, plan_recipe, read_golden

PLANS, MEASURED = read_golden("plans"), read_golden("measured")
NOT_RECORDED = ("dipgo", "ld-pruner")  # what they measure takes an hour and more of two cores: record them by hand


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("glyph")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The recorded measurements are the cache; whatever would measure anew fails instead."""
    fill_cache(tmp_path, MEASURED)
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
    asked = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: MEASURED["tools"].get(name) or asked(name))
    for place in ("edgediff.sampling.rollout.Rollout.__init__", "edgediff.sampling.trace.record_trace"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("asks for a measurement that was not recorded"))


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Places at which two JSON values differ: numbers by more than rounding, all else at all."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{where}.{key} is gone" for key in old.keys() - new.keys() if old[key] not in (None, [], {})]
        both = [found for key in old.keys() & new.keys() for found in differences(old[key], new[key], f"{where}.{key}")]
        return gone + both
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for i in range(len(old)) for found in differences(old[i], new[i], f"{where}[{i}]")]
    if isinstance(old, float) and isinstance(new, int | float):
        return [] if new == pytest.approx(old, rel=1e-7, abs=1e-10) else [f"{where}: {old} is {new} now"]
    return [] if old == new else [f"{where}: {old!r} is {new!r} now"]


def test_every_shipped_recipe_was_recorded():
    assert sorted([*PLANS, *NOT_RECORDED]) == list_recipes()


@pytest.mark.parametrize("recipe", sorted(PLANS))
def test_a_recipe_plans_what_it_planned(recipe, pipeline, measured):
    assert not differences(PLANS[recipe], plan_recipe(pipeline, recipe))


def test_the_replay_sees_a_number_that_moved():
    assert differences({"rows": [{"e": [0.5]}]}, {"rows": [{"e": [0.5000001]}]})
    assert not differences({"rows": [{"e": [0.5]}]}, {"rows": [{"e": [0.5 + 1e-12]}], "more": 1})
    assert differences({"cuts": [1]}, {})
