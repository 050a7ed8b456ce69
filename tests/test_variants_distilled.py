"""A distilled network as a MODEL: from its folder through plan and bundle to a picture, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable, Recipe, SamplerTable, StageTable
from edgediff.errors import ConfigError, ModelError, PlanError
from edgediff.flow import build, plan_build
from edgediff.pipeline import load_pipeline
from edgediff.pipeline.distilled import LOSSES, NETWORK, RECORD, WEIGHTS, Base, Distilled, hash_file
from edgediff.runtime import generate_steps
from edgediff.variants import build_variants, cut_network, load_network, save_network
from edgediff.verify import verify_bundle
from tests.tiny import cached_exports, write_tiny_model

CUTS = ("down_blocks.1.layers.0", "up_blocks.1.layers.1")
PRUNE = StageTable.model_validate({"kind": "bk_sdm", "preset": "small"})
RECIPE = Recipe(name="hand", sampler=SamplerTable(steps=3), prune=(PRUNE,), distill=DistillTable(steps=1))
PLAIN = Recipe(name="plain", sampler=SamplerTable(steps=3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


def write_distilled(base: Path, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """What `edgediff distill` would leave: a cut copy whose weights have moved."""
    pipeline = load_pipeline(base)
    network, graph = cut_network(pipeline.denoiser, pipeline.graph, CUTS)
    moved = {name: (value * 1.01).to(dtype) for name, value in network.state_dict().items()}
    network.load_state_dict(moved, assign=True)
    save_network(network, graph, folder / NETWORK)
    record = Distilled(
        base=Base(model=str(base), weights=pipeline.weights),
        recipe_name="hand",
        settings=DistillTable(steps=1),
        prune=(PRUNE.model_dump(mode="json"),),
        cuts=tuple(Cut(unit=u, by="hand", score=0.5) for u in CUTS),
        samples="none",
        weights=hash_file(folder / NETWORK / WEIGHTS),
    )
    (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    (folder / LOSSES).write_text("", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def distilled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_distilled(base, tmp_path_factory.mktemp("distilled"))


def test_the_pipeline_is_the_base_with_another_denoiser(base, distilled):
    whole, cut = load_pipeline(base), load_pipeline(distilled)
    assert cut.weights == whole.weights
    assert cut.id == str(base)
    assert cut.distilled is not None
    assert cut.graph.parameters() == whole.graph.parameters(), "the reference stays the untouched network"


def test_plans_are_deterministic_and_name_both_weights(base, distilled):
    plans = [plan_build(distilled, recipe=RECIPE, target="host") for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
    plan = plans[0]
    record = load_pipeline(distilled).distilled.record
    assert plan.model.weights == load_pipeline(base).weights
    assert plan.model.distilled == record.weights
    assert plan.cuts == record.cuts
    assert plan.cost.macs < plan.cost.reference_macs
    assert plan_build(distilled, recipe=PLAIN, target="host").cuts == record.cuts


def test_from_folder_to_picture(distilled, tmp_path):
    with cached_exports():
        bundle = build(distilled, recipe=RECIPE, target="host", out=tmp_path / "b", backends=["eager"])
    source = bundle.manifest.source
    assert source.denoiser is not None
    assert source.denoiser.folder == str(distilled)
    assert source.denoiser.weights == bundle.plan.model.distilled
    assert verify_bundle(bundle).ok
    pipeline = load_pipeline(distilled)
    variants = build_variants(pipeline, bundle.plan)
    own = load_network(distilled / NETWORK, pipeline.graph)[0].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in variants.network.state_dict().items())
    *_, picture = generate_steps(bundle, "a", seed=0, backend="eager")
    assert np.asarray(picture).std() > 0


def test_other_weights_do_not_fit_the_plan(base, distilled, tmp_path):
    plan = plan_build(distilled, recipe=PLAIN, target="host")
    with pytest.raises(PlanError, match="made for the distilled denoiser .* comes with the model's own denoiser"):
        build_variants(load_pipeline(base), plan)
    other = write_distilled(base, tmp_path, dtype=torch.float16)
    with pytest.raises(PlanError, match="comes with the distilled denoiser"):
        build_variants(load_pipeline(other), plan)


def test_half_precision_is_read_as_fp32(base, tmp_path):
    folder = write_distilled(base, tmp_path, dtype=torch.float16)
    network, _ = load_network(folder / NETWORK, load_pipeline(base).graph)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_recipe_that_cuts_otherwise_is_refused(base, distilled):
    other = Recipe(name="other", prune=(StageTable.model_validate({"kind": "bk_sdm", "preset": "base"}),))
    with pytest.raises(PlanError, match="recipe 'other' prunes otherwise than 'hand'"):
        plan_build(distilled, recipe=other, target="host")
    with pytest.raises(PlanError, match=r"has a \[distill\] table: first edgediff distill .* --recipe hand"):
        plan_build(base, recipe=RECIPE, target="host")


def test_damaged_folders_are_refused(base, tmp_path):
    folder = write_distilled(base, tmp_path / "a")
    weights = folder / NETWORK / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(ModelError, match="has other bytes than distilled.json says"):
        load_pipeline(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="the distilled weights are missing"):
        load_pipeline(folder)
    weights.write_bytes(whole)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record["base"]["weights"] = "0" * 64
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ModelError, match="was distilled from weights 000000000000"):
        load_pipeline(folder)
    record["cutz"] = []
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key 'cutz'; did you mean 'cuts'"):
        load_pipeline(folder)


def test_saved_networks_are_data_only(base, tmp_path):
    folder = write_distilled(base, tmp_path) / NETWORK
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "cuts.json", WEIGHTS]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}), encoding="utf-8")
    with pytest.raises(ModelError, match="unknown network class 'AutoencoderKL'"):
        load_network(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="is not a saved network"):
        load_network(folder)


def test_saving_replaces_a_network_whole(base, tmp_path):
    pipeline = load_pipeline(base)
    for cuts in (CUTS, CUTS[:1]):
        save_network(*cut_network(pipeline.denoiser, pipeline.graph, cuts), tmp_path / "unet")
        assert load_network(tmp_path / "unet", pipeline.graph)[1].cuts == pipeline.graph.expand(cuts)
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]
