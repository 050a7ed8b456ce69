"""Our DeepCache draws what the authors' own helper makes of the same pipeline: pip install "edgediff[bench]"."""

from __future__ import annotations

import pytest
import torch

from edgediff.pipeline import GLYPH, load_pipeline
from edgediff.reuse import Setting, deepcache
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import guidance_calls, step_table
from tests.tiny import tiny_pipeline

CALLS, SCALE = 10, 3.0


@pytest.mark.deepcache
@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("model", ["tiny", "glyph"])
def test_same_latents_as_the_published_helper(model, interval, tmp_path):
    from DeepCache import DeepCacheSDHelper
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = tiny_pipeline(tmp_path / "tiny") if model == "tiny" else load_pipeline("glyph")
    prompt = "red heart"
    rollout = Rollout(pipeline, [prompt], [4])
    table = step_table(pipeline, "ddim", CALLS)
    setting = Setting(pipeline.graph, table, guidance_calls(SCALE, (0.0, 1.0), CALLS))
    schedule = deepcache.propose(deepcache.Spec(interval=interval), setting)
    ours = rollout.run(table, schedule, setting.guidance)
    untouched = rollout.run(table, None, setting.guidance)

    theirs = StableDiffusionPipeline.from_pretrained(
        tmp_path / "tiny" if model == "tiny" else GLYPH, dtype=torch.float32
    )
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    helper = DeepCacheSDHelper(pipe=theirs)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    with torch.no_grad():
        drawn = theirs(
            prompt,
            num_inference_steps=CALLS,
            guidance_scale=SCALE,
            output_type="latent",
            latents=rollout.starts(slice(0, 1)).clone(),
        ).images
    helper.disable()
    scale = untouched.abs().max()
    assert (drawn - ours).abs().max() < 1e-4 * scale
    assert (drawn - untouched).abs().max() > 1e-3 * scale, "the helper did cache something"
