"""Conditional convolutions routed by the timestep: exact when merged, trained, saved, and a graph for each phase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgediff.distill import distill_network, load_samples, prepare_folder
from edgediff.distill.checkpoint import read_losses
from edgediff.distill.experts import GAIN, Experts, RoutedNetwork, find_experts, phase_of
from edgediff.distill.tapped import TappedNetwork
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable, Recipe, SamplerTable, StageTable
from edgediff.errors import MethodError, ModelError, PlanError
from edgediff.flow import build, plan_build
from edgediff.graph.schedule import HOLD, Row, Schedule, split_phases
from edgediff.networks import evaluate
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.pipeline.distilled import PHASES, Phases, hash_file, read_distilled
from edgediff.runtime import open_session
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import step_table
from edgediff.variants import cut_network, load_network, load_phases
from edgediff.verify import verify_bundle
from tests.tiny import cached_exports, tiny_pipeline, write_tiny_model

CUTS = ("mid_block.resnets.1", "down_blocks.2.resnets.0")
KEPT, GONE = "mid_block.resnets.0.conv1", ("mid_block.resnets.1.conv1", "mid_block.resnets.1.conv2")
TABLE = DistillTable(steps=6, batch=4, rate=1e-4, warm_up=1, probe_every=3, phases=2, task=0.0)
CALLS = 4
PLAIN = Recipe(name="plain", sampler=SamplerTable(steps=CALLS))


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
    for index in range(4):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}\n", encoding="utf-8")
    return folder


def distil(pipeline: Pipeline, data: Path, out: Path, **options: object) -> Path:
    prepare_folder(out, resume=bool(options.get("resume")))
    cuts = [Cut(unit=unit, by="hand", score=0.0) for unit in CUTS]
    table = options.pop("table", TABLE)
    distill_network(pipeline, cuts, table, load_samples(pipeline, data), out, device="cpu", **options)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def distilled(pipeline, data, tmp_path_factory) -> Path:
    return distil(pipeline, data, tmp_path_factory.mktemp("distilled") / "out")


def routed(pipeline: Pipeline, phases: int = 3) -> RoutedNetwork:
    """With shares drawn by lot, as if trained."""
    network, graph = cut_network(pipeline.denoiser, pipeline.graph, CUTS)
    experts = Experts(network, pipeline.denoiser, find_experts(pipeline.denoiser, graph), phases)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in experts.shares.values():
            value.copy_(torch.randn(value.shape, generator=generator) / GAIN)
    return RoutedNetwork(experts, graph, (), 1000)


def inputs(pipeline: Pipeline, count: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(6)
    sample = torch.randn(count, *pipeline.latent, generator=generator)
    times = torch.tensor([999.0, 0.0, 500.0, 20.0, 666.0, 334.0])[:count]
    return sample, times, pipeline.encode(["a"]).expand(count, -1, -1)


def test_experts_are_the_removed_kernels_of_the_stage(pipeline):
    groups = find_experts(pipeline.denoiser, pipeline.graph.with_cuts(CUTS))
    assert groups[KEPT] == GONE
    assert all(name.split(".")[0] == one.split(".")[0] for name, group in groups.items() for one in group)
    assert not any(name.startswith(CUTS) for name in groups)
    with pytest.raises(MethodError, match="no convolution that was cut has the shape of one that stays"):
        find_experts(pipeline.denoiser, pipeline.graph.with_cuts(["mid_block.attentions.0"]))


def test_phases_are_equal_parts_of_the_timesteps_the_noisiest_first():
    times = torch.tensor([999.0, 750.0, 749.0, 500.0, 499.0, 0.0])
    assert phase_of(times, 1000, 4).tolist() == [0, 0, 1, 1, 2, 3]
    record = Phases(count=4, times=1000, names=("a",), weights="0" * 64)
    assert [record.at(float(time)) for time in times] == [0, 0, 1, 1, 2, 3]


def test_before_training_it_is_the_cut_network(pipeline):
    network, graph = cut_network(pipeline.denoiser, pipeline.graph, CUTS)
    experts = Experts(network, pipeline.denoiser, find_experts(pipeline.denoiser, graph), 2)
    given = inputs(pipeline)
    with torch.no_grad():
        ours = RoutedNetwork(experts, graph, (), 1000)(*given)[0]
        wanted = TappedNetwork(network, graph, ())(*given)[0]
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)


class Mixed(nn.Module):
    """What the paper describes: every sample mixes its own kernel while it runs."""

    def __init__(self, own: nn.Conv2d, kernels: torch.Tensor, shares: torch.Tensor, phases: torch.Tensor) -> None:
        super().__init__()
        self.own, self.kernels, self.shares, self.place = own, kernels, shares, phases

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        rows = []
        for one, phase in zip(value, self.place, strict=True):
            kernel = self.own.weight + torch.einsum("e,eoihw->oihw", GAIN * self.shares[phase], self.kernels)
            rows.append(nn.functional.conv2d(one[None], kernel, self.own.bias, padding=self.own.padding))
        return torch.cat(rows)


def test_merged_kernels_are_exactly_the_routed_network(pipeline):
    network = routed(pipeline)
    given = inputs(pipeline)
    place = phase_of(given[1], 1000, 3)
    body, experts = network.network.body, network.network
    with torch.no_grad():
        ours = network(*given)[0]
        merged = [experts.merge(phase) for phase in range(3)]
        own = {name: body.get_parameter(name).clone() for name in merged[0]}
        for index, phase in enumerate(place.tolist()):
            body.load_state_dict(merged[phase], strict=False)
            one = {name: value[index : index + 1] for name, value in zip(network.graph.inputs, given, strict=True)}
            alone = evaluate(body, network.graph, network.graph.live(), one)[0]
            torch.testing.assert_close(ours[index : index + 1], alone, atol=2e-5, rtol=1e-4)
        body.load_state_dict(own, strict=False)
        for name in experts.names:
            parent, _, last = name.rpartition(".")
            key = name.replace(".", "/")
            conv = body.get_submodule(name)
            body.get_submodule(parent)._modules[last] = Mixed(conv, experts.kernels[key], experts.shares[key], place)
        dynamic = TappedNetwork(body, network.graph, ())(*given)[0]
    torch.testing.assert_close(ours, dynamic, atol=2e-5, rtol=1e-4)
    whole = TappedNetwork(*cut_network(pipeline.denoiser, pipeline.graph, CUTS), ())(*given)[0]
    assert not torch.allclose(ours, whole, atol=1e-3), "the experts count"


def test_training_moves_shares_and_kernels(pipeline, distilled):
    record = read_distilled(distilled)
    assert record.phases is not None
    assert record.phases.count == 2
    assert record.fingerprint != record.weights
    curve = read_losses(distilled / "losses.jsonl")
    assert curve[-1]["probe"] < curve[0]["probe"]
    network, graph = load_network(distilled / "unet", pipeline.graph)
    assert sum(p.numel() for p in network.parameters()) == graph.parameters(), "nothing is added to a call"
    later = load_phases(load_pipeline(distilled).distilled, network)["phase1"]
    names = {n for n, p in later.named_parameters() if not torch.equal(p, network.get_parameter(n))}
    assert names == set(record.phases.names)
    shared = {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in later.parameters()}
    assert len(shared) == len(list(network.parameters())) - len(names)


def test_killed_and_resumed_ends_byte_identical(pipeline, data, distilled, tmp_path):
    class Killed(Exception):
        pass

    def kill(text: str, done: int, total: int) -> None:
        if done == 5:
            raise Killed

    torch.set_num_threads(1)
    with pytest.raises(Killed):
        distil(pipeline, data, tmp_path / "out", progress=kill, every=2)
    distil(pipeline, data, tmp_path / "out", resume=True, every=2)
    for name in ("distilled.json", "losses.jsonl", "phases.safetensors", "unet/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (distilled / name).read_bytes(), name


def test_a_graph_for_each_phase(distilled, tmp_path):
    with cached_exports():
        bundle = build(distilled, recipe=PLAIN, target="host", out=tmp_path / "b", backends=["eager"])
    plan = bundle.plan
    assert plan.schedule.calls == ("full", "full", "full_phase1", "full_phase1")
    assert str(plan.schedule) == "FFGG"
    assert plan.graphs["full"].macs == plan.graphs["full_phase1"].macs
    report = verify_bundle(bundle)
    assert report.ok, report
    pipeline = load_pipeline(distilled)
    network, graph = load_network(distilled / "unet", pipeline.graph)
    phases = load_phases(pipeline.distilled, network)
    rollout = Rollout(pipeline, ["a"], [3], graph=graph, network=network, phases=phases)
    drawn = rollout.run(step_table(pipeline, "ddim", CALLS), plan.schedule, plan.guidance)[0]
    *_, last = open_session(bundle, "eager").steps("a", seed=3)
    torch.testing.assert_close(torch.from_numpy(last.latent).reshape(drawn.shape), drawn, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_phases_share_what_they_can(distilled, tmp_path):
    """Slow for its two exports."""
    pipeline = load_pipeline(distilled)
    network, _ = load_network(distilled / "unet", pipeline.graph)
    bundle = build(distilled, recipe=PLAIN, target="host", out=tmp_path / "b", backends=["onnxruntime"])
    report = verify_bundle(bundle)
    assert report.ok, report
    weights = (bundle.folder / "onnxruntime/unet/weights.bin").stat().st_size
    twice = sum(network.get_parameter(name).nbytes for name in pipeline.distilled.record.phases.names)
    own = sum(p.nbytes for p in network.parameters())
    assert weights < own + twice + 4096 * len(list(network.parameters())), "only the conditional kernels come twice"


def test_phases_and_reuse(distilled):
    """Rows are split by phase; what is calibrated on one network is refused; a graph each must be allowed."""
    both = Schedule(
        rows={"a": Row(), "b": Row(hold=("mid_block",)), "c": Row(network="untouched")},
        calls=("a", "b", "a", HOLD, "c"),
    )
    split = split_phases(both, (0, 0, 1, 1, 1))
    assert split.calls == ("a", "b", "a_phase1", HOLD, "c")
    assert split.rows["a_phase1"] == Row(network="phase1")
    for name, reuse, error in (
        ("calibrated", {"kind": "linear_forecast", "share": 0.5}, "is calibrated on one network, and this one has 2"),
        ("narrow", None, "max_graphs = 1, but the schedule runs 2 networks"),
    ):
        stages = (StageTable.model_validate(reuse),) if reuse else ()
        recipe = PLAIN.model_copy(update={"name": name, "reuse": stages, "max_graphs": 3 if reuse else 1})
        with pytest.raises((MethodError, PlanError), match=error):
            plan_build(distilled, recipe=recipe, target="host")
    recipe = PLAIN.model_copy(update={"reuse": (StageTable.model_validate({"kind": "switch"}),)})
    assert plan_build(distilled, recipe=recipe, target="host").schedule.calls == ("light", "light", "whole", "whole")


def test_damaged_phases_are_refused(pipeline, data, tmp_path):
    folder = distil(pipeline, data, tmp_path / "out")
    whole = (folder / PHASES).read_bytes()
    (folder / PHASES).write_bytes(whole[:-1] + b"x")
    with pytest.raises(ModelError, match="has other bytes than distilled.json says"):
        load_pipeline(folder)
    record = read_distilled_text(folder)
    (folder / "distilled.json").write_text(record.replace(hash_of(whole, tmp_path), hash_file(folder / PHASES)))
    load_pipeline(folder)
    (folder / PHASES).unlink()
    with pytest.raises(ModelError, match="the distilled weights are missing"):
        load_pipeline(folder)


def read_distilled_text(folder: Path) -> str:
    return (folder / "distilled.json").read_text(encoding="utf-8")


def hash_of(data: bytes, folder: Path) -> str:
    (folder / "copy").write_bytes(data)
    return hash_file(folder / "copy")
