"""Step tables against the schedulers of diffusers, and the golden file that Kotlin and Swift read.

`EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_sampler.py` writes tests/golden/steps.json anew.
"""

from __future__ import annotations

import inspect
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import scheduling_ddpm

from edgediff.errors import SamplerError
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import Step, StepRow, StepTable, run_steps
from edgediff.sampling.table import SAMPLERS, extract_step_table, make_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
GOLDEN = Path(__file__).parent / "golden" / "steps.json"
SD15 = {  # scheduler/scheduler_config.json of Stable Diffusion 1.5
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PIXELS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": True}
SHAPE = (1, 4, 8, 8)
CASES: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "config": SD15} for kind in SAMPLERS},
    "pndm_runge_kutta": {"kind": "pndm", "config": {**SD15, "skip_prk_steps": False}},
    "ddim_eta": {"kind": "ddim", "config": SD15, "eta": 1.0},
    "ddim_clip": {"kind": "ddim", "config": PIXELS},
    "ddpm_clip": {"kind": "ddpm", "config": PIXELS},
    "heun_clip": {"kind": "heun", "config": PIXELS},
    "dpmpp_2m_v": {"kind": "dpmpp_2m", "config": {**SD15, "prediction_type": "v_prediction"}},
    "ddim_hold": {"kind": "ddim", "config": SD15, "holds": [2, 3, 5, 7]},
    "unipc_hold": {"kind": "unipc", "config": SD15, "holds": [1, 4, 6]},
}


def supports(kind: str, prediction: str) -> bool:
    return prediction != "sample" or kind not in ("pndm", "euler_ancestral")


def worst_against_diffusers(scheduler: Any, table: StepTable, steps: int, **options: float) -> float:
    """Runs diffusers as its pipelines do, in float32 with a generator, and the table in float64 beside it.

    Returns the largest difference relative to the largest value so far. Both draw noise from generators with
    one seed, so a draw too many or too few shows.
    """
    theirs, ours, data = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": theirs}
    scheduler.set_timesteps(steps)
    outputs = torch.randn((len(scheduler.timesteps), *SHAPE), generator=data)
    reference = torch.randn(SHAPE, generator=theirs) * getattr(scheduler, "init_noise_sigma", 1.0)
    latent = torch.randn(SHAPE, generator=ours).double() * table.init_scale
    scales = []
    ran = run_steps(table, latent, lambda i, *_: outputs[i].double(), lambda: torch.randn(SHAPE, generator=ours))
    worst, peak = 0.0, float(reference.abs().max())
    for index, timestep in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scales.append(float((scheduler.scale_model_input(reference, timestep) / reference).mean()))
        reference = scheduler.step(outputs[index], timestep, reference, **options).prev_sample
        step = next(ran)
        assert step.timestep == float(timestep)
        peak = max(peak, float(reference.abs().max()))
        worst = max(worst, float((step.latent - reference).abs().max()) / peak)
    assert next(ran, None) is None
    np.testing.assert_allclose([row.input_scale for row in table.rows][: len(scales)], scales, rtol=1e-5)
    return worst


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_tables_follow_diffusers_on_the_config_of_sd15(kind: str, steps: int):
    table = extract_step_table(make_scheduler(kind, SD15), steps)
    assert (table.sampler, table.steps) == (kind, steps)
    assert worst_against_diffusers(make_scheduler(kind, SD15), table, steps) < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_prediction_and_spacing_follows_diffusers(kind: str, prediction: str, spacing: str):
    config = {**SD15, "prediction_type": prediction, "timestep_spacing": spacing}
    if not supports(kind, prediction):
        with pytest.raises(SamplerError, match=r"row 0 of 12 steps\): cannot take this step: prediction_type"):
            extract_step_table(make_scheduler(kind, config), 12)
        return
    table = extract_step_table(make_scheduler(kind, config), 12)
    assert worst_against_diffusers(make_scheduler(kind, config), table, 12) < 1e-5


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "lcm", "heun"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_clipping_follows_diffusers_and_is_one_op_in_the_row(kind: str, prediction: str):
    config = {**PIXELS, "prediction_type": prediction, "clip_sample_range": 1.5}
    table = extract_step_table(make_scheduler(kind, config), 12)
    clips = [row.update.clip for row in table.rows]
    assert all(clip is not None and clip.limit == 1.5 for clip in clips)
    assert worst_against_diffusers(make_scheduler(kind, config), table, 12) < 1e-5


@pytest.mark.parametrize("steps", [4, 8, 25, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pndm_with_its_runge_kutta_warm_up(steps: int, prediction: str):
    config = {**SD15, "skip_prk_steps": False, "prediction_type": prediction}
    table = extract_step_table(make_scheduler("pndm", config), steps)
    assert len(table.rows) == steps + 9
    assert worst_against_diffusers(make_scheduler("pndm", config), table, steps) < 1e-5


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta: float):
    table = extract_step_table(make_scheduler("ddim", SD15), 20, eta=eta)
    assert table.is_stochastic
    assert worst_against_diffusers(make_scheduler("ddim", SD15), table, 20, eta=eta) < 1e-5


@pytest.mark.parametrize(
    ("kind", "steps", "extra"),
    [
        ("ddim", 1000, {"timestep_spacing": "trailing"}),
        ("dpmpp_2m_karras", 100, {}),
        ("unipc", 100, {}),
        ("heun", 100, {}),
        ("dpmpp_2m", 20, {"solver_order": 3}),
        ("unipc", 20, {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
        ("unipc", 20, {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", 20, {"final_sigmas_type": "sigma_min", "use_lu_lambdas": True}),
        ("euler", 20, {"use_karras_sigmas": True}),
        ("euler", 20, {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("flow_match_euler", 20, {"shift": 3.0}),
        ("flow_match_euler", 20, {"stochastic_sampling": True}),
        ("ddim", 20, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
)
def test_other_step_counts_and_options(kind: str, steps: int, extra: dict[str, Any]):
    config = {**SD15, **extra}
    if "solver_order" in extra and kind == "dpmpp_2m":
        scheduler = type(make_scheduler(kind)).from_config(config)
        table = extract_step_table(scheduler, steps)
        assert table.sampler == "DPMSolverMultistepScheduler"
        assert worst_against_diffusers(scheduler, table, steps) < 1e-5
        return
    table = extract_step_table(make_scheduler(kind, config), steps)
    assert worst_against_diffusers(make_scheduler(kind, config), table, steps) < 1e-5


def test_recurrences_are_as_short_as_the_samplers_are():
    reach = {}
    for kind in SAMPLERS:
        rows = extract_step_table(make_scheduler(kind, SD15), 30).rows
        reach[kind] = (max(len(r.update.x) for r in rows), max(len(r.update.e) for r in rows))
    assert reach == {
        "ddim": (1, 1),
        "ddpm": (1, 1),
        "euler": (1, 1),
        "euler_ancestral": (1, 1),
        "lcm": (1, 1),
        "flow_match_euler": (1, 1),
        "heun": (2, 2),
        "dpmpp_2m": (2, 2),
        "dpmpp_2m_karras": (2, 2),
        "unipc": (3, 3),
        "pndm": (2, 5),
        "ipndm": (5, 4),
    }


def run_fixed(table: StepTable, latent: np.ndarray, outputs: list[np.ndarray]) -> Iterator[Step]:
    """Every output and noise given beforehand, in the latent's precision."""
    return run_steps(
        table,
        latent,
        lambda i, *_: outputs[i].astype(latent.dtype),
        lambda: outputs[0].astype(latent.dtype),
    )


def test_float32_loses_no_more_in_a_table_than_in_diffusers():
    """The rows of UniPC and of Karras's sigmas mix large coefficients; the phone computes in float32."""
    for kind in SAMPLERS:
        table = extract_step_table(make_scheduler(kind, SD15), 50)
        latent = Rng(0).normal(SHAPE) * np.float32(table.init_scale)
        outputs = [Rng(i).normal(SHAPE) for i in range(len(table.rows))]
        single_run, double_run = (run_fixed(table, latent.astype(t), outputs) for t in (np.float32, np.float64))
        for single, double in zip(single_run, double_run, strict=True):
            assert single.latent.dtype == np.float32
            size = max(float(np.abs(double.latent).max()), table.init_scale)
            assert np.abs(single.latent - double.latent).max() < 2e-6 * size, (kind, single.index)


def test_the_scheduler_and_its_module_are_left_alone():
    scheduler = make_scheduler("ddpm", SD15)
    before, source = scheduler.timesteps.clone(), scheduling_ddpm.randn_tensor
    extract_step_table(scheduler, 10)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.alphas_cumprod.dtype == torch.float32
    assert scheduling_ddpm.randn_tensor is source


@pytest.mark.parametrize("kind", SAMPLERS)
def test_extraction_gives_numpy_nothing_to_warn_of(kind: str):
    scheduler = make_scheduler(kind, SD15)  # diffusers' own constructors (Heun, Euler ancestral) still do
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_step_table(scheduler, 5)
    assert type(getattr(scheduler, "alphas_cumprod", None)) in (torch.Tensor, type(None))


def test_extraction_takes_well_under_a_second():
    start = time.perf_counter()
    extract_step_table(make_scheduler("unipc", SD15), 50)
    assert time.perf_counter() - start < 1.0


def test_flow_match_with_a_dynamic_shift_takes_mu():
    scheduler = make_scheduler("flow_match_euler", {"use_dynamic_shifting": True})
    with pytest.raises(SamplerError, match=r"cannot lay out these steps: `mu` must be passed"):
        extract_step_table(scheduler, 4)
    shifted = extract_step_table(scheduler, 4, mu=1.0)
    assert shifted.rows[1].timestep > extract_step_table(scheduler, 4, mu=0.5).rows[1].timestep


def test_unknown_samplers_and_bad_configs_are_named():
    with pytest.raises(SamplerError) as error:
        make_scheduler("dmp_2m")
    assert str(error.value).startswith("unknown sampler 'dmp_2m'; did you mean 'dpmpp_2m'? (allowed: ddim, ddpm,")
    with pytest.raises(SamplerError, match="DDIMScheduler refuses this scheduler config: cosine is not"):
        make_scheduler("ddim", {"beta_schedule": "cosine"})


@pytest.mark.parametrize(
    ("kind", "config", "steps", "message"),
    [
        ("ddim", {}, 0, "steps = 0; it must be a whole number of at least 1"),
        ("ddim", {}, 2.5, "steps = 2.5; it must be a whole number"),
        ("ddim", {}, True, "steps = True; it must be a whole number"),
        ("euler", {}, 1001, "steps = 1001, but the model was trained with 1000; ask for at most 1000"),
        ("ddim", {"num_train_timesteps": 50}, 51, "steps = 51, but the model was trained with 50"),
        ("ddim", {}, 1000, "DDIMScheduler (ddim, row 0 of 1000 steps): cannot take this step: a timestep lies past"),
        ("lcm", {}, 100, "LCMScheduler (lcm): cannot lay out these steps: "),
        ("unipc", {}, 1000, "two steps share a timestep (ask for fewer steps)"),
        ("ddim", {"thresholding": True}, 4, "DDIMScheduler (ddim): 'thresholding' is a quantile over the whole"),
        ("ddpm", {"variance_type": "learned_range"}, 4, "variance_type 'learned_range' reads a second network"),
        ("pndm", {"skip_prk_steps": False}, 3, "its Runge-Kutta warm-up takes 4 steps, and steps = 3; ask for at"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4, "has no signal left"),
    ],
)
def test_what_has_no_step_table_is_refused(kind: str, config: dict[str, Any], steps: Any, message: str):
    with pytest.raises(SamplerError) as error:
        extract_step_table(make_scheduler(kind, {**SD15, **config}), steps)
    assert message in str(error.value)


def test_eta_is_refused_where_the_sampler_has_none():
    with pytest.raises(SamplerError, match=r"EulerDiscreteScheduler \(euler\): its step takes no 'eta'"):
        extract_step_table(make_scheduler("euler", SD15), 4, eta=1.0)


class Squares(DDIMScheduler):
    """Not linear: the check must see it."""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **_: Any) -> Any:
        return (sample * sample.abs() + model_output,)


class OwnNoise(DDIMScheduler):
    """Draws its noise where the probe does not look."""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **_: Any) -> Any:
        return (sample + model_output + torch.randn(sample.shape),)


class DrawsTwice(DDIMScheduler):
    """Two draws a step do not fit a row."""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **_: Any) -> Any:
        from diffusers.schedulers import scheduling_ddim

        return (sample + scheduling_ddim.randn_tensor(()) + scheduling_ddim.randn_tensor(()),)


@pytest.mark.parametrize("kind", [Squares, OwnNoise])
def test_a_sampler_that_is_not_linear_is_found_out(kind: type):
    with pytest.raises(SamplerError) as error:
        extract_step_table(kind(), 4)
    assert f"{kind.__name__} ({kind.__name__}, row " in str(error.value)
    assert "not linear with at most a clamp, or draws noise past" in str(error.value)


def test_two_draws_in_a_step_are_refused(monkeypatch: pytest.MonkeyPatch):
    from diffusers.schedulers import scheduling_ddim

    monkeypatch.setattr(DrawsTwice, "__module__", scheduling_ddim.__name__)
    with pytest.raises(SamplerError, match="it draws noise twice in one step"):
        extract_step_table(DrawsTwice(), 4)


def fake_network(row: StepRow, scaled: np.ndarray) -> np.ndarray:
    """s / (1 + |s|) + timestep / 4000: no function that two languages could round differently."""
    return scaled / (1 + abs(scaled)) + row.timestep / 4000


def golden_case(name: str, case: dict[str, Any]) -> dict[str, Any]:
    holds, seed, shape = case.get("holds", []), 3, (1, 2, 2, 2)
    table = extract_step_table(make_scheduler(case["kind"], case["config"]), 8, eta=case.get("eta", 0.0))
    rng = Rng(seed)
    latent = rng.normal(shape).astype(np.float64) * table.init_scale
    ran = run_steps(
        table,
        latent,
        lambda i, row, scaled: None if i in holds else fake_network(row, scaled),
        lambda: rng.normal(shape).astype(np.float64),
    )
    latents = [[float(f"{value:.9g}") for value in step.latent.ravel()] for step in ran]
    return {
        "name": name,
        "seed": seed,
        "shape": list(shape),
        "holds": holds,
        "table": table.model_dump(mode="json", exclude_none=True),
        "latents": latents,
    }


def write_golden() -> None:
    """JSON with one case a line."""
    about = (
        "Step tables of 8 steps, and what they do to a latent: x_0 = init_scale * the first draw of rng.py's "
        "mt19937 stream of 'seed'; each row that has noise takes the stream's next draw; 'network' is the "
        "prediction, except at the rows in 'holds', which hold the last one. latents[i] is x_{i+1}, computed in "
        "float64. Written by EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_sampler.py"
    )
    network = "e = s / (1 + |s|) + timestep / 4000, with s = input_scale * x_i, for every element"
    cases = ",\n".join("  " + json.dumps(golden_case(name, case)) for name, case in CASES.items())
    head = f' "about": {json.dumps(about)},\n "network": {json.dumps(network)},\n "cases": [\n'
    GOLDEN.write_text("{\n" + head + cases + "\n ]\n}\n", encoding="utf-8")


def assert_close(ours: Any, golden: Any, where: str) -> None:
    """Equal, with numbers to 1e-6 relative (and 1e-9 absolute): libraries may differ in the last bits."""
    if isinstance(golden, dict):
        assert ours.keys() == golden.keys(), where
        for key in golden:
            assert_close(ours[key], golden[key], f"{where}.{key}")
    elif isinstance(golden, list):
        assert len(ours) == len(golden), where
        for i, (a, b) in enumerate(zip(ours, golden, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    elif isinstance(golden, float):
        assert ours == pytest.approx(golden, rel=1e-6, abs=1e-9), where
    else:
        assert ours == golden, where


def test_the_golden_file_holds_what_the_schedulers_give():
    if os.environ.get("EDGEDIFF_WRITE_GOLDEN"):
        write_golden()
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    assert [case["name"] for case in golden] == list(CASES)
    for case in golden:
        ours = json.loads(json.dumps(golden_case(case["name"], CASES[case["name"]])))
        assert_close(ours, case, case["name"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "holds" not in case])
def test_golden_trajectories_are_those_of_diffusers(name: str):
    golden = next(c for c in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"] if c["name"] == name)
    case, rng = CASES[name], Rng(golden["seed"])
    scheduler = make_scheduler(case["kind"], case["config"])
    scheduler.set_timesteps(8)
    options = {"eta": case["eta"]} if "eta" in case else {}
    latent = torch.from_numpy(rng.normal(golden["shape"])) * golden["table"]["init_scale"]
    noisy = [row["update"]["noise"] != 0 for row in golden["table"]["rows"]]
    module = inspect.getmodule(type(scheduler))
    peak = 0.0
    with pytest.MonkeyPatch.context() as patch:
        for index, timestep in enumerate(scheduler.timesteps):
            noise = torch.from_numpy(rng.normal(golden["shape"])) if noisy[index] else torch.zeros(golden["shape"])
            patch.setattr(module, "randn_tensor", lambda *_, noise=noise, **__: noise, raising=False)
            scale = getattr(scheduler, "scale_model_input", lambda x, _: x)
            s = scale(latent, timestep)
            output = s / (1 + s.abs()) + float(timestep) / 4000
            latent = scheduler.step(output, timestep, latent, return_dict=False, **options)[0]
            expected = torch.tensor(golden["latents"][index])
            peak = max(peak, float(expected.abs().max()))
            assert float((latent.ravel() - expected).abs().max()) < 1e-5 * peak, index
