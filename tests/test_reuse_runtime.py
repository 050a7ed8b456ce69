"""Every method from recipe to bundle: the runtime's eager backend draws what a rollout drew for the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import edgediff as ed
from edgediff.documents.recipe import Recipe, load_recipe
from edgediff.runtime import open_session
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import step_table
from tests.tiny import tiny_pipeline
from tests.tiny_families import family_pipeline

CALLS = 6
TRAINING = {"iterations": 2, "batch": 1, "rate": 50.0, "warm_up": 1, "width": 8, "ratio": 0.5}
UNET = (
    ("deepcache", {"interval": 3, "mode": "non_uniform"}),
    ("faster_diffusion", {"interval": 2}),
    ("inherit", {"level": "unit", "form": "change", "share": 0.5}),
    ("inherit", {"level": "block", "mode": "back_dense", "share": 0.5}),
    ("tgate", {"gate": 3, "warm_up": 0, "self_interval": 2}),
    ("taylorseer", {"interval": 2, "order": 2, "first": 2}),
    ("taylorseer", {"interval": 2, "order": 1, "first": 2, "what": "features"}),
    ("smoothcache", {"threshold": 0.5}),
    ("magcache", {"error": 1.0}),
    ("guidance_interval", {"interval": [0.3, 0.7]}),
    ("output_hold", {"keys": [0, 2, 3]}),
    ("dip_go", TRAINING),
)
DIT = (
    ("fora", {"interval": 2}),
    ("delta_dit", {"interval": 2}),
    ("smoothcache", {"threshold": 0.5}),
    ("magcache", {"error": 1.0}),
    ("taylorseer", {"interval": 2, "order": 1, "first": 2, "what": "features"}),
    ("dip_go", TRAINING),
)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return family_pipeline(tmp_path_factory.mktemp("dit") / "dit", "dit")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path / "cache"))


def check_equal(pipeline, prompt: str, kind: str, options, folder) -> None:
    recipe = Recipe.model_validate(
        {
            "name": kind,
            "sampler": {"kind": "ddim", "steps": CALLS},
            "guidance": {"scale": 3.0},
            "calibration": {"prompts": 2},
            "reuse": [{"kind": kind, **options}],
            "max_graphs": 4,
        }
    )
    bundle = ed.build(pipeline, recipe=recipe, out=folder / "one.edgediff", backends=["eager"])
    plan = bundle.plan
    assert plan.cost.macs < plan.cost.reference_macs, "the method saves something"
    steps = list(open_session(bundle, "eager").steps(prompt, seed=3))
    table = step_table(pipeline, "ddim", CALLS)
    drawn = Rollout(pipeline, [prompt], [3]).run(table, plan.schedule, plan.guidance)
    np.testing.assert_allclose(np.asarray(steps[-1].latent).reshape(drawn[0].shape), drawn[0].numpy(), atol=2e-5)
    whole = Rollout(pipeline, [prompt], [3]).run(table, None, plan.guidance.reference)
    assert not torch.allclose(drawn, whole, atol=1e-6), "and it is not the full run"


@pytest.mark.parametrize(("kind", "options"), UNET, ids=lambda value: value if isinstance(value, str) else "")
def test_unet_methods(kind, options, unet, tmp_path):
    check_equal(unet, "a fox", kind, options, tmp_path)


@pytest.mark.parametrize(("kind", "options"), DIT, ids=lambda value: value if isinstance(value, str) else "")
def test_dit_methods(kind, options, dit, tmp_path):
    check_equal(dit, "goldfish", kind, options, tmp_path)


@pytest.mark.parametrize("name", ["tgate", "taylorseer", "smoothcache", "dipgo"])
def test_recipes_of_the_package(name):
    recipe = load_recipe(name)
    assert recipe.name == name and len(recipe.reuse) == 1
    from edgediff.flow import check_methods

    check_methods(recipe)
