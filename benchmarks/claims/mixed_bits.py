"""Bits chosen per layer against the same bits for every layer: how far the latents of `glyph` stray from the untouched
model's, on prompts that the choice has not seen.

    python benchmarks/claims/mixed_bits.py [--bits 3 4] [--steps 20] [--calibration 1] [--prompts 2]

For each budget B: every layer in palette<B>, and `[precision] bits` at exactly the size that this takes. Prints JSON:
bits per weight of both (tables included), PSNR of the latents over the whole trajectory, at the last step and at the
worst one, and the gain in dB. Random seeds are fixed. Three minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.documents.recipe import Recipe
from edgediff.documents.weight_format import parse_format
from edgediff.metrics import psnr
from edgediff.pipeline import load_pipeline
from edgediff.planning.weight_bits import choose_formats, measure_layers
from edgediff.sampling.trace import asked_guidance, calibration_prompts, record_trace, sample_latents, step_table
from edgediff.weight_codes import decode, encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=1, help="prompts that sensitivity is measured on")
    parser.add_argument("--prompts", type=int, default=2, help="prompts that the result is measured on")
    args = parser.parse_args()
    pipeline = load_pipeline("glyph")
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "sampler": {"kind": "ddim", "steps": args.steps},
            "guidance": {"scale": 2.0},
            "calibration": {"prompts": args.calibration},
        }
    )
    start, processor = time.perf_counter(), time.process_time()
    trace = record_trace(pipeline, recipe)
    layers = measure_layers(pipeline, recipe, trace, recipe.weights.choices)
    seconds = {"wall": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - processor, 1)}
    print(f"{len(layers)} layers measured: {seconds}", file=sys.stderr)
    table = recipe.calibration.model_copy(update={"prompts": args.prompts, "seed": 100})
    prompts = calibration_prompts(pipeline, table)
    assert not set(prompts) & set(trace.prompts)
    reference = trajectory(pipeline, recipe, prompts, {})
    count = sum(layer.count for layer in layers)
    found = []
    for bits in args.bits:
        uniform = {layer.name: f"palette{bits}" for layer in layers}
        size = sum(layer.bits[uniform[layer.name]] for layer in layers)
        mixed = choose_formats(layers, size / count)
        row = {"bits": bits, "formats": dict(Counter(mixed.values()))}
        for name, chosen in (("uniform", uniform), ("mixed", mixed)):
            spent = sum(layer.bits[chosen[layer.name]] for layer in layers) / count
            made = trajectory(pipeline, recipe, prompts, chosen)
            row[name] = {"bits_per_weight": round(spent, 4), **compare(reference, made)}
        row["gain_db"] = {
            key: round(row["mixed"][key] - row["uniform"][key], 2) for key in ("trajectory_db", "last_db", "worst_db")
        }
        found.append(row)
    print(json.dumps({"steps": args.steps, "prompts": prompts, "measuring_seconds": seconds, "rows": found}, indent=2))


def trajectory(pipeline, recipe, prompts, formats) -> np.ndarray:
    """What the network is fed at every call, and the last latent: [calls + 1, prompts, ...]."""
    modules = dict(pipeline.denoiser.named_modules())
    kept = {}
    for name, word in formats.items():
        module = modules[name.removesuffix(".weight")]
        kept[name] = module.weight.data
        half = module.weight.data.numpy().astype(np.float16)
        module.weight.data = torch.from_numpy(decode(encode(half, parse_format(word))).astype(np.float32))
    try:
        table = step_table(pipeline, recipe.sampler.kind, recipe.sampler.steps)
        guidance, seen = asked_guidance(pipeline, recipe.guidance, len(table.rows)), []
        seeds = range(100, 100 + len(prompts))
        last = sample_latents(pipeline, table, guidance, prompts, seeds, on_input=lambda x: seen.append(x.clone()))
    finally:
        for name, value in kept.items():
            modules[name.removesuffix(".weight")].weight.data = value
    return torch.stack([*seen[1:], last]).numpy()


def compare(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    steps = [psnr(a, b, float(np.abs(a).max()), cap=200) for a, b in zip(reference, found, strict=True)]
    whole = psnr(reference, found, float(np.abs(reference).max()), cap=200)
    return {"trajectory_db": round(whole, 2), "last_db": round(steps[-1], 2), "worst_db": round(min(steps), 2)}


if __name__ == "__main__":
    main()
