"""The training of scenes: curriculum, pool, times, and a run that stops and goes on."""

import json

import pytest
import torch

from edgediff.embedded.scenes import autoencoder, export, train
from edgediff.embedded.scenes import pool as pools
from edgediff.embedded.scenes.autoencoder import start_vae
from edgediff.embedded.scenes.denoiser import draw_ids, draw_times, train_scenes
from edgediff.embedded.scenes.export import export_model, read_progress
from edgediff.embedded.scenes.pool import REUSE, WINDOW, Pool, wanted_chunks
from edgediff.embedded.scenes.scene import draw_scene
from edgediff.embedded.scenes.schedule import STAGES, Endless, find_stage
from edgediff.embedded.training_settings import Settings, TrainingError


@pytest.fixture(scope="module")
def vae():
    return start_vae().eval().requires_grad_(False)


def settings(folder, steps):
    return Settings("denoiser", folder, Endless(None, steps), 4, 1e-3, workers=2)


def test_the_curriculum_goes_from_one_to_two_to_all():
    one, two, _ = (stage.samples for stage in STAGES)
    places = (0, one - 1, one, one + two - 1, one + two, 10**9)
    assert [find_stage(n).name for n in places] == ["one", "one", "two", "two", "all", "all"]
    assert find_stage(0).pairs == 0 and find_stage(one).relations == 0 and find_stage(10**9).empty == 0.15


def test_an_endless_budget_keeps_its_rate_until_it_ends():
    assert [Endless(1.0).progress(10**6, seconds) for seconds in (0.0, 3599.0, 3600.0)] == [0.0, 0.0, 1.0]


def test_the_window_grows_slides_and_follows_from_the_samples_alone():
    assert list(wanted_chunks(0, 10)) == [0]
    assert list(wanted_chunks(REUSE * 10, 10)) == [0, 1]
    assert list(wanted_chunks(REUSE * 10 * 100, 10)) == list(range(100 - WINDOW + 1, 101))


def test_the_pool_holds_its_window_and_deletes_what_left_it(tmp_path, vae):
    pool = Pool(vae, tmp_path, seed=0, chunk=4)
    pool.advance(0)
    assert [len(scene.things) for scene in pool.scenes] == [1] * 4 and pool.latents.shape == (4, 4, 16, 16)
    first = pool.latents.clone()
    again = Pool(vae, tmp_path, seed=0, chunk=4)
    again.advance(0)
    assert torch.equal(first, again.latents)
    pool.advance(REUSE * 4 * (WINDOW + 1))
    assert len(pool.scenes) == 4 * WINDOW
    assert sorted(p.name for p in tmp_path.glob("*.npy"))[0] == "chunk-000002.npy"


def test_latents_are_those_of_their_scenes(tmp_path, vae):
    pool = Pool(vae, tmp_path, seed=1, chunk=4)
    pool.advance(0)
    direct = pools.encode_scenes(vae, pool.scenes[2:3])
    assert torch.allclose(pool.latents[2:3], direct, atol=0.1)
    assert not torch.allclose(pool.latents[1:2], direct, atol=0.1)


def test_times_lie_where_objects_are_decided():
    times = draw_times(4000, torch.Generator().manual_seed(0))
    shares = [float(((times >= a) & (times < b)).float().mean()) for a, b in ((0, 250), (250, 700), (700, 1000))]
    assert shares == pytest.approx([0.15, 0.6, 0.25], abs=0.01)


def test_captions_follow_the_stage():
    scenes, generator = [draw_scene(0, i) for i in range(200)], torch.Generator().manual_seed(0)
    empty = draw_ids(scenes[:1], STAGES[0], generator).new_tensor([1998] + [1999] * 23)
    shares = [float((draw_ids(scenes, stage, generator) == empty).all(1).float().mean()) for stage in STAGES]
    assert shares == pytest.approx([0.1, 0.1, 0.15], abs=0.06)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, vae):
    whole = train_scenes(vae, settings(tmp_path / "whole", 4), chunk=8)
    train_scenes(vae, settings(tmp_path / "parts", 2), chunk=8)
    parts = train_scenes(vae, settings(tmp_path / "parts", 4), chunk=8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    progress = read_progress(settings(tmp_path / "parts", 4))
    assert (progress["samples"], progress["steps"], progress["stage"]) == (16, 4, "one")


def test_exported_weights_begin_a_new_work_folder_where_they_had_come_to(tmp_path):
    vae = start_vae().eval().requires_grad_(False)
    train_scenes(vae, settings(tmp_path / "old", 1), chunk=8)
    size = export_model(start_vae(), settings(tmp_path / "old", 1), tmp_path / "weights")
    assert size <= 25_000_000
    train_scenes(vae, settings(tmp_path / "new", 1), tmp_path / "weights", chunk=8)
    assert read_progress(settings(tmp_path / "new", 1))["samples"] == 8
    assert json.loads((tmp_path / "weights" / "progress.json").read_text())["samples"] == 4


def test_exporting_without_a_checkpoint_says_what_to_run(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to export; run `python -m edgediff.embedded.scenes.train"):
        export_model(start_vae(), settings(tmp_path, 1), tmp_path / "weights")


def test_the_program_trains_the_autoencoder_freezes_it_and_goes_on_to_the_denoiser(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(autoencoder, "TEST_COUNT", 4)
    monkeypatch.setattr(autoencoder, "NORMAL_COUNT", 4)
    monkeypatch.setattr(train_scenes, "__defaults__", (None, 8))
    arguments = ["all", "--work", str(tmp_path), "--vae-steps", "1", "--steps", "1", "--batch", "4"]
    train.main(arguments)
    assert "dB over 4 scenes" in capsys.readouterr().out
    frozen = (tmp_path / "vae-frozen.pt").read_bytes()
    train.main([*arguments[:-3], "2", *arguments[-2:]])
    assert "dB" not in capsys.readouterr().out and (tmp_path / "vae-frozen.pt").read_bytes() == frozen
    state = torch.load(tmp_path / "vae-frozen.pt", weights_only=True)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())


def test_an_autoencoder_that_was_exported_alone_is_tuned_further_and_is_not_frozen_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TEST_COUNT", 4)
    monkeypatch.setattr(autoencoder, "TEST_COUNT", 4)
    monkeypatch.setattr(autoencoder, "NORMAL_COUNT", 4)
    batch = ["--batch", "4", "--workers", "1"]
    weights = str(tmp_path / "weights")
    train.main(["vae", "--work", str(tmp_path / "old"), "--vae-steps", "2", *batch])
    train.main(["export-vae", "--work", str(tmp_path / "old"), "--out", weights, *batch])
    progress = json.loads((tmp_path / "weights" / "progress.json").read_text())
    assert (progress["samples"], progress["vae_steps"], progress["vae_samples"]) == (0, 2, 8)
    train.main(["vae", "--work", str(tmp_path / "new"), "--from-weights", weights, "--vae-steps", "1", *batch])
    exported = autoencoder.start_vae(tmp_path / "weights").state_dict()
    tuned = torch.load(tmp_path / "new" / "vae.pt", weights_only=True)["average"]
    glyph = start_vae().state_dict()
    name = "decoder.conv_out.weight"
    assert 0 < (tuned[name] - exported[name]).abs().max() < (tuned[name] - glyph[name]).abs().max()
