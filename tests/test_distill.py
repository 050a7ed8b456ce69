"""Distillation: losses, draws, samples, and a run that was killed ends as one that was not."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgediff.distill import distill_network, load_samples, prepare_folder
from edgediff.distill.checkpoint import LossLog, load_state, read_losses, save_state
from edgediff.distill.draws import draw_step
from edgediff.distill.losses import FeatureWeights, Outputs, distillation_loss
from edgediff.distill.pairs import find_pairs, read_picture
from edgediff.distill.tapped import TappedNetwork, choose_taps
from edgediff.distill.training import Noising, Place, Training, rate_at
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable, Recipe
from edgediff.errors import ConfigError, EdgeDiffError, MethodError, ModelError, OutputError
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.pipeline.distilled import read_distilled
from edgediff.variants import cut_network, load_network
from tests.tiny import tiny_pipeline, write_tiny_model

CUTS = ("down_blocks.1.layers.0", "up_blocks.1.layers.1")
QUICK = DistillTable(steps=4, batch=4, rate=1e-3, warm_up=2, probe_every=2)


def cuts() -> list[Cut]:
    return [Cut(unit=unit, by="hand", score=0.0) for unit in CUTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return tiny_pipeline(model)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(generator.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}\n", encoding="utf-8")
    return folder


def distil(pipeline: Pipeline, data: Path, out: Path, table: DistillTable = QUICK, **options: object) -> bytes:
    prepare_folder(out, resume=False)
    distill_network(pipeline, cuts(), table, load_samples(pipeline, data), out, device="cpu", **options)  # type: ignore[arg-type]
    return (out / "unet" / "model.safetensors").read_bytes()


# -- losses ---------------------------------------------------------------------------------------


def test_the_loss_is_the_weighed_sum_of_its_parts():
    one, two, target = (torch.full((2, 4, 2, 2), value) for value in (1.0, 3.0, 0.0))
    features = (torch.zeros(2, 3), torch.zeros(2, 5)), (torch.full((2, 3), 2.0), torch.full((2, 5), 10.0))
    table = DistillTable(task=1.0, output=0.5, feature=0.1, features="plain")
    weights = FeatureWeights("plain", 2, torch.device("cpu"))
    found = distillation_loss(Outputs(one, features[0]), Outputs(two, features[1]), target, weights, table)
    torch.testing.assert_close(found, torch.tensor([1.0 + 0.5 * 4.0 + 0.1 * 104.0, 1.0, 4.0, 104.0]))


def test_normalised_terms_are_relative_to_the_teachers_features():
    teacher = (torch.full((2, 3), 2.0), torch.full((2, 5), 10.0))
    weights = FeatureWeights("normalised", 2, torch.device("cpu"))
    weights.update(teacher)
    torch.testing.assert_close(weights.values(), torch.tensor([1 / 4, 1 / 100]))
    weights.update((teacher[0] * 3, teacher[1]))  # the mean runs slowly: 0.99 * 4 + 0.01 * 36
    torch.testing.assert_close(weights.values(), torch.tensor([1 / 4.32, 1 / 100]))
    root = FeatureWeights("normalised_root", 2, torch.device("cpu"))
    root.update(teacher)
    torch.testing.assert_close(root.values(), torch.tensor([1 / 2, 1 / 10]))
    plain = FeatureWeights("plain", 2, torch.device("cpu"))
    plain.update(teacher)
    torch.testing.assert_close(plain.values(), torch.ones(2))


def test_taps_are_the_ends_of_blocks_in_both_networks(pipeline):
    taps = choose_taps(pipeline.graph, "block")
    assert taps[0] == "down_blocks.0.downsamplers.0"
    assert [pipeline.graph.by_name[tap].block for tap in taps] == [
        "down_blocks.0",
        "down_blocks.1",
        "down_blocks.2",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.2",
    ]
    assert set(taps) < set(choose_taps(pipeline.graph, "layer"))
    network, graph = cut_network(pipeline.denoiser, pipeline.graph, CUTS)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 16, 16)
    with torch.no_grad():
        whole, cut = TappedNetwork(pipeline.denoiser, pipeline.graph, taps), TappedNetwork(network, graph, taps)
        theirs, ours = whole(*inputs), cut(*inputs)
        own = pipeline.denoiser(inputs[0], inputs[1], inputs[2], return_dict=False)[0]
    assert [t.shape for t in theirs] == [t.shape for t in ours]
    torch.testing.assert_close(theirs[0], own, rtol=0, atol=0)
    assert torch.equal(theirs[1], ours[1]), "before the first cut nothing differs"
    assert not torch.equal(theirs[2], ours[2])


def test_the_target_is_what_the_network_predicts(pipeline):
    latents, noise, times = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    from diffusers import DDPMScheduler

    for kind in ("epsilon", "v_prediction", "sample"):
        config = {**pipeline.scheduler, "prediction_type": kind}
        other = Pipeline(**{**vars(pipeline), "scheduler": config})
        scheduler = DDPMScheduler.from_config(config)
        noisy, target = Noising(other, torch.device("cpu")).add(latents, noise, times)
        torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, times))
        wanted = {"epsilon": noise, "sample": latents, "v_prediction": scheduler.get_velocity(latents, noise, times)}
        torch.testing.assert_close(target, wanted[kind])


def test_rates_warm_up_and_fall():
    table = DistillTable(steps=100, rate=1.0, warm_up=10)
    assert rate_at(table, 0) == pytest.approx(0.1)
    assert rate_at(table, 50) == pytest.approx(0.5)
    assert rate_at(table, 99) < 0.001
    assert rate_at(table.model_copy(update={"schedule": "constant"}), 99) == 1.0


def test_a_table_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="a batch of 8 does not divide into 3 parts"):
        DistillTable(batch=8, accumulate=3)
    with pytest.raises(ValueError, match="every loss has weight 0"):
        DistillTable(task=0, output=0, features="none")


# -- draws ----------------------------------------------------------------------------------------


def test_a_draw_is_a_function_of_seed_and_step():
    options = {"batch": 8, "samples": 20, "latent": (4, 2, 2), "times": 1000, "empty_share": 0.5}
    one, two = draw_step(0, 3, **options), draw_step(0, 3, **options)
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    for other in (draw_step(1, 3, **options), draw_step(0, 4, **options)):
        assert not torch.equal(one.noise, other.noise)
    assert sorted(time // 125 for time in one.times.tolist()) == list(range(8)), "one time from each eighth"
    rows = [row for step in range(5) for row in draw_step(0, step, **options).rows.tolist()]
    assert sorted(rows[:20]) == list(range(20)), "an epoch has every sample once"
    assert rows[:20] != rows[20:]


def test_parts_of_a_draw_make_it_up():
    whole = draw_step(0, 0, 8, 20, (4, 2, 2), times=1000, empty_share=0.1)
    parts = [whole.part(index, 2) for index in range(2)]
    assert torch.equal(torch.stack([part.rows for part in parts], 1).flatten(), whole.rows)


# -- samples --------------------------------------------------------------------------------------


def test_folder_shard_and_list_give_the_same_pairs(data, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for path in sorted(data.iterdir()):
            archive.add(path, path.name)
    listed = tmp_path / "listed"
    listed.mkdir()
    rows = []
    for path in sorted(data.glob("*.png")):
        (listed / path.name).write_bytes(path.read_bytes())
        rows.append(json.dumps({"file_name": path.name, "text": f"picture {path.stem}"}))
    (listed / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = [find_pairs(place) for place in (data, tmp_path / "0.tar", listed)]
    for pairs in found:
        assert [pair.caption for pair in pairs] == [f"picture {index}" for index in range(6)]
        assert pairs[3].picture.read() == (data / "3.png").read_bytes()


def test_pictures_are_cut_to_the_middle(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    [pair] = find_pairs(tmp_path)
    assert torch.equal(read_picture(pair.picture, (10, 10)), torch.ones(3, 10, 10))


def broken_shard(folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.png")
        entry.size = 5000
        archive.addfile(entry, io.BytesIO(bytes(5000)))
    (folder / "0.tar").write_bytes(buffer.getvalue()[:3000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "has no pictures with captions"),
        (lambda f: (f / "a.png").write_bytes(b"x"), r"picture 'a.png' has no caption; write one to 'a.txt'"),
        (lambda f: [(f / "a.png").write_bytes(b"x"), (f / "a.txt").write_bytes(b"\xff")], "'a.txt' is not UTF-8"),
        (lambda f: (f / "metadata.jsonl").write_text("{}"), r'line 1 is not {"file_name"'),
        (
            lambda f: (f / "metadata.jsonl").write_text('{"file_name": "b.png", "text": ""}'),
            "'b.png', which is not there",
        ),
        (lambda f: (f / "0.tar").write_bytes(b"not a tar"), "is not an uncompressed tar shard"),
        (broken_shard, "shard|cut short"),
    ],
)
def test_bad_pairs_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(MethodError, match=message):
        find_pairs(tmp_path)


def test_a_file_that_is_no_picture_is_named_when_it_is_drawn(pipeline, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    samples = load_samples(pipeline, tmp_path)
    with pytest.raises(MethodError, match="'a.png' is not a picture that can be read"):
        samples.draw(torch.tensor([0]), torch.tensor([0.0]), torch.device("cpu"))


def test_glyph_brings_its_own_set(tmp_path, monkeypatch):
    """Latents come from the cache, where the font would otherwise be needed."""
    from safetensors.torch import save_file

    from edgediff.embedded.glyphs import load_glyphs
    from edgediff.pipeline.tokenizers import load_tokenizer

    glyph, glyphs = load_pipeline("glyph"), load_glyphs()
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGEDIFF_EMOJI_FONT", str(tmp_path / "no font"))
    with pytest.raises(EdgeDiffError, match="Noto Color Emoji was not found"):
        load_samples(glyph, None)
    latents = torch.arange(len(glyphs), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 16, 16).contiguous()
    monkeypatch.setattr("edgediff.distill.samples.latents_path", lambda pipeline, mark: tmp_path / "l.safetensors")
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    samples = load_samples(glyph, None)
    assert len(samples) == len(glyphs)
    row = next(index for index, one in enumerate(glyphs) if one.alternatives)
    tokenizer = load_tokenizer(glyph.tokenizer_folder)
    texts = [glyphs[row].primary, *glyphs[row].alternatives]
    for pick, text in ((0.0, texts[0]), (0.85, texts[0]), (0.87, texts[1]), (0.99, texts[-1])):
        drawn, ids = samples.draw(torch.tensor([row]), torch.tensor([pick]), torch.device("cpu"))
        assert drawn.unique().tolist() == [row]
        assert ids[0].tolist() == tokenizer.encode(text, glyph.tokens)


def test_other_models_bring_no_samples(pipeline):
    with pytest.raises(MethodError, match="brings no training set; give pictures with captions"):
        load_samples(pipeline, None)
    with pytest.raises(MethodError, match="there is no such folder"):
        load_samples(pipeline, "nowhere")


# -- training -------------------------------------------------------------------------------------


def test_a_distilled_network_is_written_whole(pipeline, data, tmp_path):
    out = tmp_path / "out"
    table = QUICK.model_copy(update={"steps": 12, "task": 0.0, "probe_every": 4})  # a random teacher predicts no noise
    distil(pipeline, data, out, table)
    assert sorted(path.name for path in out.iterdir()) == ["distilled.json", "losses.jsonl", "unet"]
    record = read_distilled(out)
    assert [cut.unit for cut in record.cuts] == list(CUTS)
    assert record.settings == table
    assert record.base.weights == pipeline.weights
    network, graph = load_network(out / "unet", pipeline.graph)
    before, _ = cut_network(pipeline.denoiser, pipeline.graph, CUTS)
    assert {n: v.shape for n, v in network.state_dict().items()} == {n: v.shape for n, v in before.state_dict().items()}
    assert sum(p.numel() for p in network.parameters()) == graph.parameters() < pipeline.graph.parameters()
    curve = read_losses(out / "losses.jsonl")
    assert [row["step"] for row in curve] == [0, 4, 8, 12]
    assert curve[-1]["probe"] < curve[0]["probe"]
    assert curve[-1]["loss"] < curve[1]["loss"]
    assert record.probe == (curve[0]["probe"], curve[-1]["probe"])


def test_the_base_is_left_as_it_was(pipeline, data, tmp_path):
    before = {name: value.clone() for name, value in pipeline.denoiser.state_dict().items()}
    distil(pipeline, data, tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in pipeline.denoiser.state_dict().items())
    assert not any(p.requires_grad for p in pipeline.denoiser.parameters())


def test_accumulated_parts_make_the_same_step(pipeline, data, tmp_path):
    """Up to rounding; the feature weights run over parts, so they are left out."""
    runs = []
    for parts in (1, 4):
        table = QUICK.model_copy(update={"accumulate": parts, "features": "plain"})
        distil(pipeline, data, tmp_path / str(parts), table)
        runs.append(load_network(tmp_path / str(parts) / "unet", pipeline.graph)[0].state_dict())
    assert all(torch.allclose(a, runs[1][name], atol=2e-4) for name, a in runs[0].items())


def test_bf16_trains_fp32_weights(pipeline, data, tmp_path):
    distil(pipeline, data, tmp_path / "out", QUICK.model_copy(update={"precision": "bf16"}))
    network, _ = load_network(tmp_path / "out" / "unet", pipeline.graph)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import torch
torch.set_num_threads(1)
from edgediff import flow
flow.distill_model(
    sys.argv[1], recipe=Path(sys.argv[2]) / "recipe.toml", out=Path(sys.argv[2]) / "killed", data=sys.argv[3],
    device="cpu", checkpoint_every=3, progress=lambda text, done, total: print(text, done, flush=True),
)
"""
RECIPE = """
name = "hand"
[sampler]
steps = 2
[calibration]
prompts = 1
[[prune]]
kind = "bk_sdm"
preset = "small"
[distill]
steps = 12
batch = 4
warm_up = 2
probe_every = 2
"""


def test_killed_and_resumed_ends_byte_identical(model, data, tmp_path, capsys):
    """kill -9 after a checkpoint and before the next one, then --resume on the command line."""
    from edgediff.cli.main import main

    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    words = ["distill", str(model), "--recipe", str(tmp_path / "recipe.toml"), "--data", str(data), "--device", "cpu"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path), str(data), str(Path(__file__).parents[1])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    for line in child.stdout:
        if line.split()[0] == "distilling" and int(line.split()[1]) >= 8:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(ModelError, match="is an unfinished distillation"):
        load_pipeline(tmp_path / "killed")
    assert main([*words, "--out", str(tmp_path / "killed")]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "killed"), "--resume"]) == 0
    assert "cuts, 12 steps on 6 pairs" in capsys.readouterr().out
    torch.set_num_threads(threads)
    for name in ("distilled.json", "losses.jsonl", "unet/model.safetensors", "unet/cuts.json", "unet/config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_a_checkpoint_of_another_task_is_refused(pipeline, data, tmp_path):
    samples, place = load_samples(pipeline, data), Place(tmp_path / "state.safetensors", tmp_path / "losses.jsonl")
    Training(pipeline, CUTS, QUICK, samples, place, device="cpu").save()
    resumed = Training(pipeline, CUTS, QUICK, samples, place, device="cpu", resume=True)
    assert resumed.step == 0
    other = QUICK.model_copy(update={"seed": 1})
    with pytest.raises(MethodError, match="is the checkpoint of another distillation"):
        Training(pipeline, CUTS, other, samples, place, device="cpu", resume=True)
    place.checkpoint.write_bytes(b"no")
    with pytest.raises(MethodError, match="is not a checkpoint"):
        Training(pipeline, CUTS, QUICK, samples, place, device="cpu", resume=True)


def test_the_state_is_written_whole(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(2)}, step=7, task="t")
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    tensors, step = load_state(path, task="t")
    assert step == 7
    assert torch.equal(tensors["a"], torch.ones(2))


def test_the_log_forgets_what_was_killed(tmp_path):
    log = LossLog(tmp_path / "log", step=0)
    for step in (2, 4, 6):
        log.write({"step": step})
    with (tmp_path / "log").open("a") as stream:
        stream.write('{"step": 8')
    LossLog(tmp_path / "log", step=5).write({"step": 6.5})
    assert [row["step"] for row in read_losses(tmp_path / "log")] == [2, 4, 6.5]


def test_a_loss_that_is_not_finite_stops(pipeline, data, tmp_path):
    with pytest.raises(MethodError, match="the loss became"):
        distil(pipeline, data, tmp_path / "out", QUICK.model_copy(update={"rate": 1.0, "feature": 1e38}))
    assert not (tmp_path / "out" / "distilled.json").exists()


def test_nothing_to_recover(pipeline, data, tmp_path):
    with pytest.raises(MethodError, match="nothing is cut"):
        distill_network(pipeline, [], QUICK, load_samples(pipeline, data), tmp_path)


def test_the_folder_is_prepared_or_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not made by edgediff distill"):
        prepare_folder(tmp_path, resume=False, overwrite=True)
    with pytest.raises(OutputError, match="give one of them"):
        prepare_folder(tmp_path / "new", resume=True, overwrite=True)
    old = tmp_path / "old"
    prepare_folder(old, resume=False)
    (old / "losses.jsonl").write_text("")
    with pytest.raises(OutputError, match="--resume, or give --overwrite"):
        prepare_folder(old, resume=False)
    prepare_folder(old, resume=True)
    prepare_folder(old, resume=False, overwrite=True)
    assert list(old.iterdir()) == []
    (old / "distilled.json").write_text("{}")
    with pytest.raises(OutputError, match="nothing to resume"):
        prepare_folder(old, resume=True)


def test_a_recipe_without_tables_is_refused(model, tmp_path):
    from edgediff.flow import distill_model

    with pytest.raises(ConfigError, match=r"recipe 'x' has no \[distill\] table"):
        distill_model(model, recipe=Recipe(name="x"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_several_processes_share_a_step(model, data, tmp_path):
    """Two processes, started as `accelerate launch` starts them, end near the one-process result."""
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("steps = 12", "steps = 3"), encoding="utf-8")
    words = [str(model), "--recipe", str(tmp_path / "recipe.toml"), "--data", str(data), "--device", "cpu"]
    main = "import sys; from edgediff.cli.main import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "main.py").write_text(main, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    for name, command in (("one", [sys.executable]), ("two", launch)):
        full = [*command, str(tmp_path / "main.py"), "distill", *words, "--out", str(tmp_path / name)]
        done = subprocess.run(full, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_distilled(tmp_path / name) for name in ("one", "two"))
    assert (one.processes, two.processes) == (1, 2)
    graph = load_pipeline(model).graph
    ours, theirs = (load_network(tmp_path / name / "unet", graph)[0].state_dict() for name in ("one", "two"))
    assert all(torch.allclose(a, theirs[name], atol=2e-3) for name, a in ours.items())
