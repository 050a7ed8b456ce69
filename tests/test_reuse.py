"""Schedules from the literature: their letters, what their graphs compute, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from edgediff.errors import ConfigError, MethodError, PlanError
from edgediff.graph.schedule import HOLD, wire_schedule
from edgediff.plugins import load_plugin
from edgediff.reuse import Setting, magcache, smoothcache
from edgediff.reuse._keys import centre_keys, spread_keys, uniform_keys
from edgediff.reuse.taylorseer import taylor_weights
from edgediff.runtime.steps import StepRow, StepTable, Update
from tests.tiny import tiny_pipeline
from tests.tiny_families import family_pipeline


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny")).graph


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return family_pipeline(tmp_path_factory.mktemp("dit") / "dit", "dit").graph


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    return family_pipeline(tmp_path_factory.mktemp("ddpm") / "ddpm", "ddpm").graph


def setting_of(graph, calls: int, measured=None) -> Setting:
    row = StepRow(timestep=0.0, update=Update(x=(1.0,), e=(1.0,)))
    table = StepTable(sampler="hand", steps=calls, init_scale=1.0, rows=(row,) * calls)
    return Setting(graph, table, (2.0,) * calls, measured=measured or {})


def propose(kind: str, graph, calls: int, measured=None, **options):
    plugin = load_plugin("reuse", kind)
    return plugin.propose(plugin.Spec.model_validate(options), setting_of(graph, calls, measured))


def layers_run(graph, schedule, row: str) -> set[str]:
    return {graph.by_name[name].layer or name for name in wire_schedule(schedule, graph)[row].live.run}


def kinds_run(graph, schedule, row: str) -> set[str]:
    live = wire_schedule(schedule, graph)[row].live
    return {graph.by_name[name].kind for name in graph.computed(live)}


# -- keys -----------------------------------------------------------------------------------------


def test_non_uniform_keys_of_deepcache():
    assert centre_keys(50, 10, 15, 1.4, released=True) == (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)
    assert centre_keys(50, 10, 15, 1.4, released=False) == (0, 6, 11, 14, 15, 19, 24, 29, 35, 42)
    with pytest.raises(MethodError, match="lie around 0 with power 1.01"):
        centre_keys(3, 3, 0, 1.01, released=False)
    with pytest.raises(MethodError, match="centre = 50: it needs 0 to 49"):
        centre_keys(50, 10, 50, 1.4, released=False)


@pytest.mark.parametrize("mode", ["uniform", "front_dense", "back_dense", "both_ends", "prefix"])
@pytest.mark.parametrize(("calls", "count"), [(50, 10), (50, 1), (7, 7), (20, 13), (5, 2)])
def test_every_mode_gives_that_many_keys_from_0(mode, calls, count):
    keys = spread_keys(mode, calls, count, 1.7, 1)
    assert keys[0] == 0 and len(set(keys)) == count and list(keys) == sorted(keys) and keys[-1] < calls


def test_modes_are_dense_where_they_say():
    front, back = (np.array(spread_keys(mode, 50, 10, 1.8)) for mode in ("front_dense", "back_dense"))
    both = np.array(spread_keys("both_ends", 50, 10, 1.8))
    assert front.mean() < np.array(uniform_keys(50, 10)).mean() < back.mean()
    assert {0, 1} <= set(both) and 49 in both and np.diff(both).max() > 2 * np.diff(both).min()
    assert spread_keys("prefix", 20, 6, 1.0, 4)[:4] == (0, 1, 2, 3)
    with pytest.raises(MethodError, match="prefix = 9: it needs 1 to 6"):
        spread_keys("prefix", 20, 6, 1.0, 9)
    with pytest.raises(MethodError, match="21 computed calls: it needs 1 to 20"):
        uniform_keys(20, 21)


# -- U-Nets ---------------------------------------------------------------------------------------


def test_deepcache_forms(unet):
    assert str(propose("deepcache", unet, 10, interval=3)) == "FssFssFssF"
    released = propose("deepcache", unet, 50, interval=5, mode="released", centre=15)
    assert [i for i, name in enumerate(released.calls) if name == "full"] == [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]
    signed = propose("deepcache", unet, 50, interval=5, mode="non_uniform")
    assert signed.calls.count("full") == 10 and signed.rows == released.rows
    with pytest.raises(ValidationError, match="greater than 1"):
        propose("deepcache", unet, 50, power=0.9)


def test_faster_diffusion_runs_the_decoder_alone(unet):
    schedule = propose("faster_diffusion", unet, 50)
    assert str(schedule)[:12] == "FFFFdFddddFd" and schedule.calls.count("full") == 9
    wiring = wire_schedule(schedule, unet)["decoder"]
    assert all(unet.by_name[n].block.startswith(("up_blocks", "conv_out", "time_embedding")) for n in wiring.live.run)
    assert "conv_in" in wiring.reads, "a decoder call reads no latent"
    assert not any("sample" in unet.by_name[n].reads for n in wiring.live.run if n != "time_embedding")
    assert str(propose("faster_diffusion", unet, 6, interval=2)) == "FdFdFd"
    assert str(propose("faster_diffusion", unet, 6, keys=[0, 1, 4])) == "FFddFd"


def test_inheritance_at_three_levels(unet):
    block = propose("inherit", unet, 9, share=0.34)
    assert str(block) == "FiiFiiFii"
    assert layers_run(unet, block, "inherit") >= {"up_blocks.2.layers.0", "conv_out"}
    layer = propose("inherit", unet, 9, level="layer", names=["mid_block.layers.1"], mode="front_dense")
    wired = wire_schedule(layer, unet)["inherit"]
    assert wired.reads == ("mid_block.resnets.1",) and str(layer).startswith("FFi")
    unit = propose("inherit", unet, 9, level="unit", form="change")
    assert not kinds_run(unet, unit, "inherit") & {"self_attention", "cross_attention", "feed_forward"}
    assert all(carry.endswith("+") for carry in wire_schedule(unit, unet)["inherit"].reads)
    assert str(propose("inherit", unet, 9, mode="prefix", prefix=3)) == "FFFiiiiii"


def test_tgate_looks_at_no_text_after_the_gate(unet):
    schedule = propose("tgate", unet, 10, gate=4, warm_up=1, self_interval=3, late_interval=2)
    assert str(schedule) == "FFsFghghgh" and schedule.unguided == (4, 5, 6, 7, 8, 9)
    wired = wire_schedule(schedule, unet)
    for row in ("gated", "gated_sparse"):
        assert "cross_attention" not in kinds_run(unet, schedule, row)
        computed = unet.computed(wired[row].live)
        assert not any("encoder_hidden_states" in unet.by_name[n].reads for n in computed)
    assert "self_attention" in kinds_run(unet, schedule, "gated")
    assert propose("tgate", unet, 10, guidance_off=False).unguided == ()
    assert str(propose("tgate", unet, 10)) == "FFFFgggggg"


def test_output_hold_and_gate_presets(unet):
    assert str(propose("output_hold", unet, 8, count=3)) == "F.F..F.."
    assert str(propose("output_hold", unet, 5, keys=[0, 3])) == "F..F."
    released = propose("gates", unet, 50, preset="dipgo-sd15-50-p0.80")
    assert [i for i, name in enumerate(released.calls) if name != HOLD] == [0, 7, 13, 19, 20, 21, 26, 32, 39, 48]


def test_guidance_interval(unet):
    schedule = propose("guidance_interval", unet, 11, interval=[0.2, 0.5])
    assert str(schedule) == "F" * 11 and schedule.unguided == (0, 1, 6, 7, 8, 9, 10)


# -- DiTs -----------------------------------------------------------------------------------------


def test_fora_holds_branches_before_their_gates(dit):
    schedule = propose("fora", dit, 8, interval=3)
    assert str(schedule) == "FFrrFrrF", "a key call is one from which a multiple of 3 remain"
    wired = wire_schedule(schedule, dit)["reuse"]
    assert kinds_run(dit, schedule, "reuse") >= {"modulation", "residual"}
    assert len(wired.reads) == 2 * 3 and not {"attention_branch", "mlp_branch"} & kinds_run(dit, schedule, "reuse")


def test_delta_dit_skips_rear_then_front(dit):
    schedule = propose("delta_dit", dit, 8, interval=2, switch=4, share=0.67)
    assert str(schedule) == "FfFfFrFr"
    wired = wire_schedule(schedule, dit)
    for row, skipped in (("front", (1, 2)), ("rear", (0, 1))):
        blocks = {dit.by_name[name].block for name in dit.computed(wired[row].live)}
        assert not blocks & {f"transformer_blocks.{index}" for index in skipped}
        assert len(wired[row].reads) == 2 * len(skipped)
    with pytest.raises(MethodError, match="switch = 9: it needs 0 to 8"):
        propose("delta_dit", dit, 8, switch=9)


# -- calibrated -----------------------------------------------------------------------------------


def test_smoothcache_scan_takes_the_largest_lag_that_fits():
    errors = [[0.1, 0.3, 0.1], [0.5, 0.1, 0.9], [0.9] * 3, [0.1, 0.1], [0.1], []]
    assert smoothcache.scan(errors, 0.2) == [True, False, False, False, True, True]
    assert smoothcache.scan(errors, 0.0) == [True] * 6
    assert smoothcache.scan([[0.1], [0.1], []], 0.2) == [True, False, True]


def test_smoothcache_rows_are_kinds_that_are_reused(dit, unet):
    often, never = [[0.0], [0.0], [0.0], []], [[9.0], [9.0], [9.0], []]
    measured = {"errors": {"self_attention": often, "feed_forward": never}}
    schedule = propose("smoothcache", dit, 4, measured)
    assert schedule.calls == ("full", "reuse_self_attention", "full", "full")
    assert "attention_branch" not in kinds_run(dit, schedule, "reuse_self_attention")
    kinds = dict.fromkeys(("self_attention", "cross_attention", "feed_forward"), often)
    schedule = propose("smoothcache", unet, 4, {"errors": kinds})
    row = schedule.rows["reuse_self_attention_cross_attention_feed_forward"]
    assert row.delta and not row.hold
    with pytest.raises(MethodError, match="another network or step count"):
        propose("smoothcache", unet, 5, {"errors": kinds})


def test_magcache_decides_as_the_paper_does(dit, unet):
    spec = magcache.Spec(error=0.24, longest=3, retention=0.2)
    # R = 1.1, 1.21: 0.1 + 0.21 is above 0.24 at the second skip
    assert magcache.decide([1.0, 1.0, 1.1, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], spec) == [
        True,
        True,
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    ratios = {"ratios": [1.0] * 6}
    assert str(propose("magcache", unet, 6, ratios, longest=2)) == "F..F.."
    schedule = propose("magcache", dit, 6, ratios, longest=2)
    assert str(schedule) == "FrrFrr"
    assert kinds_run(dit, schedule, "residual") == {"conditioning", "patch_embedding", "final"}
    with pytest.raises(MethodError, match="another network or step count"):
        propose("magcache", unet, 7, ratios)


# -- TaylorSeer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylor_weights_continue_what_the_paper_can(order):
    """With gaps of 1 the differences are those of a polynomial; D_m x^m / m! is exact up to a line, as published."""
    keys = [4, 5, 6, 7]
    weights = taylor_weights(keys, 9, order)
    assert len(weights) == order + 1 and sum(weights) == pytest.approx(1.0)
    if order:
        values = [3.0 - 0.5 * key for key in reversed(keys)]
        assert sum(w * v for w, v in zip(weights, values, strict=False)) == pytest.approx(3.0 - 0.5 * 9)
    if order == 2:  # y + 2 (y - y1) + (2^2 / 2) (y - 2 y1 + y2)
        assert weights == pytest.approx((5.0, -6.0, 2.0))


def test_taylor_weights_divide_by_the_gaps():
    assert taylor_weights([0], 2, 3) == (1.0,)
    assert taylor_weights([0, 4], 6, 1) == pytest.approx((1.5, -0.5))


def test_taylorseer_forecasts(unet, dit):
    schedule = propose("taylorseer", unet, 10, interval=3, order=2)
    assert str(schedule) == "FFF..F..F." and {f.what for f in schedule.forecasts} == {"output"}
    assert [len(f.weights) for f in schedule.forecasts] == [3, 3, 3, 3, 3]
    deep = propose("taylorseer", unet, 10, interval=3, order=1, what="features")
    assert str(deep) == "FFFffFffFf" and len(wire_schedule(deep, unet)["forecast"].reads) == 1
    branches = propose("taylorseer", dit, 6, interval=3, first=2, what="features")
    assert len(wire_schedule(branches, dit)["forecast"].reads) == 6
    assert propose("taylorseer", unet, 10, interval=3, order=0).forecasts == ()


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fora", "delta_dit"])
def test_methods_for_dits_refuse_unets(kind, unet):
    with pytest.raises(MethodError, match=rf"{kind} works on units of role stream, and this unet2d network has none"):
        propose(kind, unet, 8)


@pytest.mark.parametrize("kind", ["deepcache", "faster_diffusion", "tgate"])
def test_methods_for_unets_refuse_dits(kind, dit):
    with pytest.raises(
        MethodError, match=rf"{kind} works on units of role (resnet|cross-attention), and this dit network has none"
    ):
        propose(kind, dit, 8)


def test_a_network_without_text_has_no_tgate(ddpm):
    with pytest.raises(MethodError, match="role cross-attention, and this unet2d network has none"):
        propose("tgate", ddpm, 8)
    reused = propose("smoothcache", ddpm, 3, {"errors": {"self_attention": [[0.0], [0.0], []]}})
    assert reused.rows["reuse_self_attention"].delta == tuple(u.name for u in ddpm.of_role("self-attention"))
    assert str(propose("faster_diffusion", ddpm, 4, interval=2)) == "FdFd"
    assert str(propose("inherit", ddpm, 4, level="unit", share=0.5)) == "FiFi"


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        ("output_hold", {}, ValidationError, "give either 'keys' .* or 'count'"),
        ("output_hold", {"count": 9}, MethodError, "9 computed calls: it needs 1 to 8"),
        ("output_hold", {"keys": [1, 2]}, MethodError, "the first key must be 0"),
        ("output_hold", {"keys": [0, 9]}, MethodError, "the sampler makes 8 calls"),
        ("faster_diffusion", {}, MethodError, "published encoder keys are for 50 calls, the sampler makes 8"),
        ("faster_diffusion", {"keys": [0], "interval": 2}, ValidationError, "not both"),
        ("tgate", {"gate": 8}, MethodError, "gate = 8: it needs 1 to 7"),
        ("gates", {"preset": "dipgo-sd15-50-p0.80"}, MethodError, "is for 50 network calls; the sampler makes 8"),
        ("gates", {"preset": "dipgo-sd15"}, ValidationError, "did you mean 'dipgo-sd15-50-p0.80'"),
        ("gates", {"file": "nowhere.json"}, ConfigError, "there is no such file"),
        (
            "inherit",
            {"level": "block", "names": ["mid_block.resnets.0"]},
            MethodError,
            "'mid_block.resnets.0' is no block",
        ),
        ("inherit", {"names": ["mid_blok"]}, PlanError, "did you mean 'mid_block'"),
        ("inherit", {"form": "change"}, MethodError, "is for units"),
        ("inherit", {"level": "unit", "form": "change", "names": ["conv_in"]}, MethodError, "no residual stream"),
        ("taylorseer", {"what": "features", "branch": 99}, MethodError, "branch = 99 is deeper"),
        ("guidance_interval", {"interval": [0.5, 0.5]}, ValidationError, "0 <= start < end <= 1"),
    ],
)
def test_bad_input_says_what_is_allowed(kind, options, error, words, unet):
    with pytest.raises(error, match=words):
        propose(kind, unet, 8, **options)


def test_what_was_never_measured_is_refused(unet):
    for kind in ("smoothcache", "magcache", "dip_go"):
        with pytest.raises(MethodError, match="another network or step count"):
            propose(kind, unet, 6)
