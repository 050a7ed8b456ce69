"""The trained DiT on digits: it draws what is asked for, and schedules keep its pictures as they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.claims.digits_dit import ASSET, CLASSES, SCALE, Judge
from edgediff.graph.schedule import full_schedule
from edgediff.pipeline import load_pipeline
from edgediff.plugins import load_plugin
from edgediff.reuse import Setting
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import guidance_calls, step_table

PICTURES, STEPS = 40, 10


@pytest.fixture(scope="module")
def run():
    """Runs a reuse method (None: everything always) and returns final latents."""
    pipeline = load_pipeline(ASSET)
    table, guidance = step_table(pipeline, "ddim", STEPS), guidance_calls(SCALE, (0.0, 1.0), STEPS)
    prompts = [str(index % CLASSES) for index in range(PICTURES)]
    rollout = Rollout(pipeline, prompts, range(PICTURES), batch=PICTURES)

    def call(kind=None, **options):
        schedule = None if kind is None else full_schedule(STEPS)
        if kind not in (None, "full"):
            plugin = load_plugin("reuse", kind)
            setting = Setting(pipeline.graph, table, guidance)
            schedule = plugin.propose(plugin.Spec.model_validate(options), setting)
        return rollout.run(table, schedule, guidance)

    return call


@pytest.fixture(scope="module")
def untouched(run):
    return run()


def psnr(found, reference):
    return 10 * float(torch.log10(4.0 / ((found - reference) ** 2).mean()))


def test_running_everything_is_the_untouched_network_bit_for_bit(run, untouched):
    assert torch.equal(run("full"), untouched)


def test_it_draws_the_digit_that_is_asked_for_far_more_often_than_by_chance(untouched):
    """48 of 100 by the bench; guessing is right for 10."""
    pytest.importorskip("sklearn")
    asked = np.arange(PICTURES) % CLASSES
    assert Judge().figures(untouched, asked, None)["right"] > 0.3


@pytest.mark.parametrize(
    ("kind", "options", "floor"),
    [
        ("fora", {"interval": 2}, 25.0),
        ("delta_dit", {"interval": 2}, 25.0),
        ("output_hold", {"count": 5}, 20.0),
        ("taylorseer", {"interval": 2}, 25.0),
    ],
)
def test_schedules_change_pictures_a_little(run, untouched, kind, options, floor):
    found = psnr(run(kind, **options).clamp(-1, 1), untouched.clamp(-1, 1))
    assert floor < found < 80.0
