"""What pictures of the embedded model can and cannot tell: fewer steps, and two cuts at equal MACs.

    python benchmarks/claims/glyph_judge.py steps [--count 256] [--steps 1 2 3 4 5 10] [--bundle BUNDLE ...]
    python benchmarks/claims/glyph_judge.py cuts --work FOLDER [--count 256] [--sampler-steps 5]

`steps` draws with the untouched network by fewer and fewer DDIM steps without guidance, and with each bundle as it is,
all from the same noise: retrieval@1, and the PSNR to the real glyphs (drawn from Noto Color Emoji, which it needs). A
judge that could tell a good sampler from a bad one would score fewer steps lower. `cuts` puts BK-SDM's handcrafted cut
beside LAPTOP-Diff's at the same MACs, before any training, and the untouched network by as few steps as cost no more;
captions, noise and sampler are those of pruning_table.py. Prints JSON. Each takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.claims.pruning_table import Pictures
from edgediff.bundle import open_bundle
from edgediff.documents.recipe import Recipe
from edgediff.embedded.evaluation import choose_prompts, generate_pictures
from edgediff.embedded.glyphs import draw_glyphs, load_glyphs
from edgediff.embedded.judge import load_judge
from edgediff.metrics import psnr
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.plugins import load_plugin
from edgediff.sampling.trace import record_trace, step_table
from edgediff.variants import cut_network


def measure_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    prompts = choose_prompts(args.count)
    texts = {glyph.primary: glyph.text for glyph in load_glyphs()}
    real = draw_glyphs([texts[prompt] for prompt in prompts])
    rows = []
    for steps in args.steps:
        pictures = generate_pictures(prompts, steps=steps, guidance=1.0)
        rows.append({"what": f"untouched, {steps} DDIM steps, no guidance", **_score(pictures, prompts, real)})
    for name in args.bundle:
        bundle = open_bundle(name)
        pictures = np.stack([np.asarray(bundle.generate(prompt, seed=i)) for i, prompt in enumerate(prompts)])
        rows.append({"what": Path(name).stem, **_score(pictures, prompts, real)})
    return rows


def _score(pictures: np.ndarray[Any, Any], prompts: list[str], real: np.ndarray[Any, Any]) -> dict[str, float]:
    to_real = [psnr(glyph, picture, 255.0) for glyph, picture in zip(real, pictures, strict=True)]
    found = load_judge().retrieval_at_1(pictures, prompts)
    return {"retrieval_at_1": round(found, 3), "psnr_to_real_db": round(float(np.mean(to_real)), 2)}


def measure_cuts(args: argparse.Namespace) -> list[dict[str, Any]]:
    args.work.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline("glyph")
    whole = pipeline.graph
    pictures = Pictures(pipeline, args.work, args.sampler_steps, args.count)
    handcrafted = load_plugin("prune", "bk_sdm").preset_cuts(whole, "small")
    share = whole.with_cuts(handcrafted).macs() / whole.macs()
    rows = []
    for method, units in (("bk_sdm", handcrafted), ("laptop", _laptop_cut(pipeline, share))):
        network, cut = cut_network(pipeline.denoiser, whole, units)
        drawn = pictures.draw(lambda index, network=network, cut=cut: (network, cut))
        sizes = {"parameters": cut.parameters() / whole.parameters(), "macs": cut.macs() / whole.macs()}
        rows.append({"what": method, **sizes, **_figures(pictures, drawn)})
    steps = int(share * args.sampler_steps)
    drawn = pictures.draw(lambda index: (pipeline.denoiser, whole), step_table(pipeline, "ddim", steps))
    macs = steps / args.sampler_steps
    rows.append({"what": f"untouched, {steps} steps", "parameters": 1.0, "macs": macs, **_figures(pictures, drawn)})
    return rows


def _laptop_cut(pipeline: Pipeline, macs: float) -> tuple[str, ...]:
    """LAPTOP-Diff's layers under a budget of MACs, calibrated as pruning_table.py calibrates."""
    recipe = {
        "name": "equal-macs",
        "sampler": {"kind": "ddim", "steps": 10},
        "guidance": {"scale": 1.0},
        "calibration": {"prompts": 8},
    }
    laptop = load_plugin("prune", "laptop")
    spec = laptop.Spec.model_validate({"budget": {"macs": macs}})
    scores = laptop.score(spec, pipeline, record_trace(pipeline, Recipe.model_validate(recipe)))
    return tuple(cut.unit for cut in laptop.propose(spec, scores, pipeline.graph))


def _figures(pictures: Pictures, drawn: np.ndarray[Any, Any]) -> dict[str, Any]:
    found = pictures.scorer.figures(drawn, pictures.reference).data
    return {key: found[key] for key in ("retrieval_at_1", "psnr_db", "frechet")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "cuts"))
    parser.add_argument("--count", type=int, default=256, help="how many captions")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4, 5, 10])
    parser.add_argument("--bundle", nargs="*", default=[], help="bundles to draw with beside them")
    parser.add_argument("--sampler-steps", type=int, default=5, help="of the cuts' pictures")
    parser.add_argument("--work", type=Path, default=Path("build/glyph_judge"), help="where pictures are kept")
    args = parser.parse_args()
    print(json.dumps(measure_steps(args) if args.what == "steps" else measure_cuts(args), indent=2))


if __name__ == "__main__":
    main()
