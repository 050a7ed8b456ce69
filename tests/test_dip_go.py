"""DiP-GO: gate tables and their arithmetic, the SuperNet against what ships, training that resumes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from edgediff.documents.plan import GuidancePlan
from edgediff.errors import ConfigError, MethodError
from edgediff.graph.schedule import HOLD, wire_schedule
from edgediff.reuse import Setting, dip_go, gates
from edgediff.reuse._gates import GateTable, Gating, choose_gates
from edgediff.reuse._pruner import PrunerNetwork
from edgediff.reuse._supernet import SuperNet, ssim_loss
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import guidance_calls, step_table
from tests.tiny import tiny_pipeline
from tests.tiny_families import family_pipeline

CALLS = 5
QUICK = {"iterations": 4, "batch": 1, "rate": 50.0, "warm_up": 1, "explore": 0.5, "width": 8}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path / "cache"))


def setting_of(pipeline, calls: int = CALLS, scale: float = 3.0, max_graphs: int = 3) -> Setting:
    table = step_table(pipeline, "ddim", calls)
    return Setting(pipeline.graph, table, guidance_calls(scale, (0.0, 1.0), calls), max_graphs)


def rollout_of(pipeline, prompts: int = 2) -> Rollout:
    return Rollout(pipeline, ["a fox", "a red apple"][:prompts], range(prompts))


# -- gates ----------------------------------------------------------------------------------------


def test_blocks_and_dead_block_propagation(pipeline):
    gating = Gating(pipeline.graph)
    down = ("down_blocks.0", "down_blocks.1", "down_blocks.2")
    assert gating.blocks == (*down, "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2")
    assert gating.propagate((1, 1, 1, 1, 1, 1, 0)) == gating.off, "nothing reads what the last block would"
    assert gating.propagate((1, 1, 1, 1, 1, 0, 1)) == (1, 0, 0, 0, 0, 0, 1)
    assert gating.macs(gating.off) == 0 and gating.macs(gating.full) == pipeline.graph.macs()
    assert gating.weights()[-1] > 0.99 and gating.weights()[-2] < gating.weights()[-1]


@pytest.mark.slow
def test_the_shares_of_sd15_are_those_of_the_paper():
    """gamma with cascade of the nine blocks; the paper leaves the products of attention out."""
    from diffusers import UNet2DConditionModel

    from edgediff.networks import Sizes, unit_graph
    from edgediff.pipeline import ARCHITECTURES

    config = json.loads((ARCHITECTURES / "sd15.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config["unet"])
    graph = unit_graph(network, Sizes(64, 64, 77))
    counted = tuple(replace(unit, macs=unit.macs - unit.attention_macs) for unit in graph.units)
    gating = Gating(replace(graph, units=counted))
    assert gating.macs(gating.full) / 1e9 == pytest.approx(338.832, rel=1e-3)
    expected = (0.0972, 0.0924, 0.0928, 0.0112, 0.0178, 0.0670, 0.3816, 0.7076, 0.9997)
    # liveness of units is finer: a downsampler whose only reader is off dies with it, 0.3 % of a call
    assert gating.weights() == pytest.approx(expected, abs=4e-3)
    table = [gating.full if i in (0, 7, 13, 19, 20, 21, 26, 32, 39, 48) else gating.off for i in range(50)]
    assert gating.kept(tuple(table), [1] * 50) == pytest.approx(0.2)


def test_a_table_meets_its_budget_and_leaves_no_room(pipeline):
    gating = Gating(pipeline.graph)
    generator = torch.Generator().manual_seed(0)
    passes = [2] * 12
    for budget in (0.15, 0.3, 0.55, 0.9, 1.0):
        for limit in (1, 2, 4):
            scores = torch.rand(12, len(gating.blocks), generator=generator).tolist()
            table = choose_gates(gating, scores, passes, budget, limit)
            patterns = {row for row in table if any(row)}
            kept = gating.kept(table, passes)
            assert kept <= budget + 1e-9 and len(patterns) <= limit and table[0] == gating.full
            room = (budget - kept) * gating.macs(gating.full) * sum(passes)
            steps = [gating.macs(new) - gating.macs(row) for row in table[1:] for new in patterns]
            assert not any(0 < step * 2 <= room - 1e-3 for step in steps), "a call could have computed more"
            wire_schedule(gating.schedule_of(table), pipeline.graph)


def test_scores_decide_which_calls_run(pipeline):
    gating = Gating(pipeline.graph)
    scores = [[0.9 if call in (0, 3, 4) else 0.1] * len(gating.blocks) for call in range(8)]
    table = choose_gates(gating, scores, [1] * 8, 3 / 8, 2)
    assert str(gating.schedule_of(table)) == "F..FF..."
    with pytest.raises(MethodError, match="a budget of 0.100 of the MACs is below the cheapest table, .*: 0.125"):
        choose_gates(gating, scores, [1] * 8, 0.1, 2)


def test_tables_go_through_files(pipeline, tmp_path):
    setting, gating = setting_of(pipeline), Gating(pipeline.graph)
    rows = (gating.full, gating.off, (1, 0, 0, 0, 0, 0, 1), gating.off, gating.full)
    path = tmp_path / "gates.json"
    path.write_text(GateTable(blocks=gating.blocks, gates=rows, source="by hand").to_json(), encoding="utf-8")
    assert str(gates.propose(gates.Spec(file=str(path)), setting)) == "F.p.F"
    with pytest.raises(MethodError, match="has 5 calls, the sampler makes 7"):
        gates.propose(gates.Spec(file=str(path)), setting_of(pipeline, 7))
    path.write_text(path.read_text().replace("down_blocks.1", "down_blokcs.1"), encoding="utf-8")
    with pytest.raises(MethodError, match="no block 'down_blokcs.1'; did you mean 'down_blocks.1'"):
        gates.propose(gates.Spec(file=str(path)), setting)
    path.write_text('{"blocks": ["mid_block"], "gates": [[1], [2]]}', encoding="utf-8")
    with pytest.raises(ConfigError, match="row 1 of 'gates' needs a 0 or 1"):
        gates.propose(gates.Spec(file=str(path)), setting)
    with pytest.raises(ValidationError, match="row 0 of 'gates' must be all 1"):
        GateTable(blocks=("mid_block",), gates=((0,), (1,)))


# -- the pruner network ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["attention", "linear", "none"])
def test_training_starts_from_the_full_model(encoder):
    keep = PrunerNetwork(3, 4, 8, encoder)()
    assert keep.shape == (3, 4) and torch.allclose(keep, torch.full((3, 4), 0.7311), atol=1e-4)


@pytest.mark.parametrize(("encoder", "acts"), [("attention", True), ("none", False)])
def test_the_encoder_lets_a_block_see_the_others(encoder, acts):
    torch.manual_seed(0)
    pruner = PrunerNetwork(2, 3, 16, encoder)
    torch.nn.init.normal_(pruner.last)
    before = pruner().detach()
    with torch.no_grad():
        pruner.queries[0, 1] += 1.0
    change = (pruner().detach() - before).abs()
    assert change[0, 1] > 1e-4 and bool(change[0, 0] > 1e-6) is acts and change[1].max() == 0.0


# -- the SuperNet ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_supernet_draws_what_ships(pipeline, scale):
    rollout, setting, gating = rollout_of(pipeline), setting_of(pipeline, scale=scale), Gating(pipeline.graph)
    keep = torch.full((CALLS, len(gating.blocks)), 0.6)
    whole = (gating.full,) * CALLS
    mixed = (gating.full, gating.off, (1, 0, 0, 0, 0, 0, 1), gating.full, gating.off)
    for checkpointed in (False, True):
        supernet = SuperNet(rollout, gating, setting.table, setting.guidance, checkpointed=checkpointed)
        for table in (whole, mixed):
            expected = rollout.run(setting.table, gating.schedule_of(table), setting.guidance)
            for explored in (set(), {1, 2, 3, 4}):
                found = supernet.sample([0, 1], keep, table, explored)
                assert torch.allclose(found, expected, atol=1e-5)
    untouched = rollout.run(setting.table, None, setting.guidance)
    assert torch.equal(supernet.sample([0, 1], keep, whole, set()), untouched), "all gates on is the network itself"


def test_gradients_are_those_of_the_mixture(pipeline):
    """At the last call, where nothing later depends on it, the loss is a function of one mixture that can be made by
    hand: d latent / d gate = d/dg of conv_out(g block + (1 - g) cache), by a central difference."""
    rollout, setting, gating = rollout_of(pipeline, 1), setting_of(pipeline, 2, 1.0), Gating(pipeline.graph)
    supernet = SuperNet(rollout, gating, setting.table, setting.guidance)
    last, table = len(gating.blocks) - 1, (gating.full, gating.full)
    keep = torch.full((2, len(gating.blocks)), 0.6, requires_grad=True)
    supernet.sample([0], keep, table, {1}).sum().backward()
    assert keep.grad is not None and keep.grad[0].abs().max() == 0.0, "the first call has no cache to choose"
    from edgediff.networks import evaluate

    graph, deep = pipeline.graph, [u.name for u in pipeline.graph.units if u.block == "up_blocks.2"][-1]
    first, second = setting.table.rows
    inputs = dict(rollout.given)
    with torch.no_grad():
        start = rollout.starts(slice(0, 1)).clone()
        times = [torch.full((1,), row.timestep) for row in (first, second)]
        output, before = evaluate(
            pipeline.denoiser, graph, graph.live(), {"sample": start, "timestep": times[0], **inputs}, {}, (deep,)
        )
        latent = first.update.x[0] * start + first.update.e[0] * output
        _, now = evaluate(
            pipeline.denoiser, graph, graph.live(), {"sample": latent, "timestep": times[1], **inputs}, {}, (deep,)
        )
        unit, family = graph.by_name["conv_out"], __import__("edgediff.networks.unet2d", fromlist=["run_unit"])

        def end(gate: float) -> float:
            value = gate * now[deep] + (1 - gate) * before[deep]
            return float(second.update.e[0] * family.run_unit(pipeline.denoiser, unit, [value]).double().sum())

        slope = (end(1.005) - end(0.995)) / 0.01
    assert float(keep.grad[1, last]) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_only_explored_calls_teach_gates_that_are_off(pipeline):
    rollout, setting, gating = rollout_of(pipeline, 1), setting_of(pipeline), Gating(pipeline.graph)
    supernet = SuperNet(rollout, gating, setting.table, setting.guidance)
    table = (gating.full, *(gating.off,) * (CALLS - 1))
    for explored in (set(), {2}):
        keep = torch.full((CALLS, len(gating.blocks)), 0.4, requires_grad=True)
        loss = supernet.sample([0], keep, table, explored).square().sum()
        if not explored:
            assert not loss.requires_grad
            continue
        loss.backward()
        rows = keep.grad.abs().sum(dim=1)
        assert rows[2] > 0 and rows[[0, 1, 3, 4]].sum() == 0


def test_ssim_of_equal_pictures_is_one_and_agrees_with_the_metric():
    from edgediff.metrics import ssim

    one = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    other = (one + 0.1 * torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert float(ssim_loss(one, one)) == pytest.approx(0.0, abs=1e-5)
    expected = ssim(one[0].permute(1, 2, 0).numpy(), other[0].permute(1, 2, 0).numpy(), 1.0)
    assert 1.0 - float(ssim_loss(one, other)) == pytest.approx(expected, abs=1e-3)


# -- training -------------------------------------------------------------------------------------


def test_one_training_serves_every_ratio(pipeline):
    setting = setting_of(pipeline)
    spec = dip_go.Spec(**QUICK)
    told = []
    measured = dip_go.measure(spec, rollout_of(pipeline), setting, lambda *report: told.append(report))
    assert told[-1] == ("training gates", 4, 4) and len(measured["log"]) == 4
    assert json.loads(json.dumps(measured)) == measured
    assert measured["log"][0] == {"error": 0.0, "kept": 1.0, "rows": 1}
    assert min(min(row) for row in measured["keep"]) < 0.7, "the sparsity term moves gates"
    setting = replace(setting, measured=measured)
    for ratio in (0.0, 0.3, 0.6):
        schedule = dip_go.propose(dip_go.Spec(**QUICK, ratio=ratio), setting)
        wirings = wire_schedule(schedule, pipeline.graph)
        macs = sum(pipeline.graph.macs(wirings[name].live) for name in schedule.calls if name != HOLD)
        assert macs <= (1 - ratio) * CALLS * pipeline.graph.macs() + 1
        assert len(wirings) <= 3
        table = dip_go.export_gates(dip_go.Spec(**QUICK, ratio=ratio), setting)
        assert table.blocks == Gating(pipeline.graph).blocks and len(table.gates) == CALLS
    with pytest.raises(MethodError, match="below the cheapest table"):
        dip_go.propose(dip_go.Spec(**QUICK, ratio=0.9), setting)
    with pytest.raises(MethodError, match="another network or step count"):
        dip_go.propose(spec, replace(setting_of(pipeline, 6), measured=measured))
    assert dip_go.basis(spec) == dip_go.basis(dip_go.Spec(**QUICK, ratio=0.1, checkpointed=False))


def test_a_training_that_was_killed_goes_on(pipeline, monkeypatch):
    monkeypatch.setattr(dip_go, "SAVE_EVERY", 2)
    setting, spec = setting_of(pipeline), dip_go.Spec(**QUICK, loss="latent")
    whole = dip_go.measure(spec, rollout_of(pipeline), setting)
    killed = dip_go.Training(spec, rollout_of(pipeline), setting)
    for _ in range(3):
        killed.step()
    resumed = dip_go.Training(spec, rollout_of(pipeline), setting)
    assert resumed.done == 2
    while resumed.done < spec.iterations:
        resumed.step()
    assert resumed.finish() == whole
    assert dip_go.Training(spec, rollout_of(pipeline), setting).done == 0, "a finished training leaves no checkpoint"


def test_the_rate_warms_up_and_falls():
    spec = dip_go.Spec(iterations=100, warm_up=10, rate=2.0)
    rates = [dip_go.rate_at(spec, index) for index in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(2.0, rel=0.05) and rates[-1] < 0.01


def test_a_dit_trains_too(tmp_path):
    pipeline = family_pipeline(tmp_path / "dit", "dit")
    table = step_table(pipeline, "ddim", 3)
    setting = Setting(pipeline.graph, table, (2.0,) * 3)
    assert Gating(pipeline.graph).blocks == tuple(f"transformer_blocks.{index}" for index in range(3))
    rollout = Rollout(pipeline, ["goldfish", "hen"], range(2))
    measured = dip_go.measure(dip_go.Spec(**QUICK), rollout, setting)
    schedule = dip_go.propose(dip_go.Spec(**QUICK, ratio=0.5), replace(setting, measured=measured))
    assert torch.isfinite(rollout.run(table, schedule, GuidancePlan(mode="batched", calls=(2.0,) * 3))).all()


def test_pictures_too_small_for_ssim_are_refused(tmp_path):
    pipeline = family_pipeline(tmp_path / "pixel", "dit-pixel")
    setting = Setting(pipeline.graph, step_table(pipeline, "ddim", 3), (None,) * 3)
    with pytest.raises(MethodError, match='8 x 8 are too small for SSIM\'s window of 11; set loss = "latent"'):
        dip_go.measure(dip_go.Spec(**QUICK), Rollout(pipeline, ["3"], [0]), setting)
