"""LD-Pruner's cut of the embedded model, recovered: time of a call on ONNX Runtime, and pictures, beside the untouched.

    python benchmarks/claims/operators_recovered.py cut --work FOLDER [--latency 0.66] [--by per_ms] [--draws 8]
    python benchmarks/claims/operators_recovered.py time --work FOLDER [--pairs 200]
    python benchmarks/claims/operators_recovered.py recover --work FOLDER [--steps 300] [--seed 0]
    python benchmarks/claims/operators_recovered.py table --work FOLDER  writes operators_recovered.json

`cut` chooses under a budget of time (of units and operators timed through PyTorch here), `time` builds both networks
for ONNX Runtime and runs their graphs by turns, one sample and one thread, `recover` distils and draws. The aim is
at least 30 % less measured time at a Frechet distance within 5 % of the untouched network's; the second half is no
test, since the committed cut is within 5 % before any training (`before` in the JSON). Pictures are those of
pruning_table.py: the same captions, noise and sampler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.claims.pruning_table import Pictures, write_json
from edgediff.distill import distill_network, load_samples, prepare_folder
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable, Recipe
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.pipeline.distilled import RECORD
from edgediff.plugins import load_plugin
from edgediff.sampling.trace import record_trace
from edgediff.variants import cut_network, load_network

HERE = Path(__file__).parent
GRAPH = "full"


def choose_cuts(args: argparse.Namespace) -> None:
    pipeline = load_pipeline("glyph")
    graph, ld_pruner = pipeline.graph, load_plugin("prune", "ld_pruner")
    spec = ld_pruner.Spec(budget={"latency": args.latency}, by=args.by, seeds=args.draws, steps=4)
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "sampler": {"kind": "ddim", "steps": 4},
            "guidance": {"scale": 1.0},
            "calibration": {"prompts": 8},
        }
    )
    started = time.monotonic()
    scores = ld_pruner.score(spec, pipeline, record_trace(pipeline, recipe))
    cuts = ld_pruner.propose(spec, scores, graph)
    cut = graph.with_cuts(one.unit for one in cuts)
    kinds = Counter((graph.operators if c.unit in graph.operators else graph.by_name)[c.unit].kind for c in cuts)
    write_json(
        args.work / "operators-cut.json",
        {
            "cuts": [one.model_dump(mode="json") for one in cuts],
            "latency": args.latency,
            "by": args.by,
            "seeds": args.draws,
            "kinds": dict(kinds),
            "scored": len(scores.values),
            "checks": scores.checks,
            "parameters": cut.parameters() / graph.parameters(),
            "macs": cut.macs() / graph.macs(),
            "predicted_time": spec.budget.measure(cut, scores.costs) / spec.budget.measure(graph, scores.costs),
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def read_cuts(work: Path) -> list[Cut]:
    found = json.loads((work / "operators-cut.json").read_text(encoding="utf-8"))
    return [Cut.model_validate(row) for row in found["cuts"]]


def time_graphs(args: argparse.Namespace) -> None:
    """CPU milliseconds of one call of each network's graph on ONNX Runtime, one thread, by turns. CPU time, because on
    a machine that others use a clock on the wall times them too; its ratio is kept beside."""
    pipeline = load_pipeline("glyph")
    runners = [_open_graph(pipeline, cuts) for cuts in ((), read_cuts(args.work))]
    inputs = {
        "sample": np.random.default_rng(0).standard_normal((1, *pipeline.latent), dtype=np.float32),
        "timestep": np.array([501.0], np.float32),
        "encoder_hidden_states": pipeline.encode(["red heart"]).numpy(),
    }
    taken: list[list[float]] = [[], []]
    walls: list[list[float]] = [[], []]
    for turn in range(args.pairs + 10):
        for runner, found, wall in zip(runners, taken, walls, strict=True):
            start = time.process_time(), time.perf_counter()
            runner.run(inputs)
            if turn >= 10:
                found.append(1e3 * (time.process_time() - start[0]))
                wall.append(time.perf_counter() - start[1])
    low, middle, high = statistics.quantiles([ours / whole for whole, ours in zip(*taken, strict=True)], n=4)
    write_json(
        args.work / "operators-time.json",
        {
            "pairs": args.pairs,
            "median": middle,
            "quartile_low": low,
            "quartile_high": high,
            "of_least": min(taken[1]) / min(taken[0]),
            "untouched_cpu_ms": statistics.median(taken[0]),
            "wall_median": statistics.median(ours / whole for whole, ours in zip(*walls, strict=True)),
        },
    )


def _open_graph(pipeline: Pipeline, cuts: Any) -> Any:
    """The denoiser's graph as `edgediff build` lowers it; what is trained later does not change its time."""
    from edgediff.backends import Artifacts
    from edgediff.backends.onnxruntime import lower, open_runner
    from edgediff.bundle.assemble import make_manifest
    from edgediff.documents.target import load_target
    from edgediff.flow import plan_pipeline
    from edgediff.planning.planner import make_plan
    from edgediff.scoring.scores import Scores, StageScores
    from edgediff.variants import build_variants

    target, steps = load_target("host"), {"kind": "ddim", "steps": 2}
    plain = Recipe.model_validate({"name": "plain", "sampler": steps, "guidance": {"scale": 1.0}})
    if not cuts:
        plan = plan_pipeline(pipeline, plain, target, backends=("onnxruntime",))
    else:
        stage = {"kind": "ld_pruner", "budget": {"latency": 1.0}}
        recipe = Recipe.model_validate({**plain.model_dump(mode="json"), "prune": [stage]})
        scored = StageScores(values={c.unit: c.score for c in cuts}, selection=tuple(c.unit for c in cuts))
        plan = make_plan(pipeline, Scores(pipeline.graph, (scored,)), recipe, target, backends=("onnxruntime",))
    folder = Path(tempfile.mkdtemp())
    variants = build_variants(pipeline, plan)
    lowered: Artifacts = lower(variants, target, folder)
    graph = make_manifest(pipeline, plan, variants, [lowered], name="time").graphs[GRAPH]
    return open_runner(folder, graph, graph.artifacts["onnxruntime"], batch=1, threads=1)


def recover(args: argparse.Namespace) -> None:
    pipeline, cuts = load_pipeline("glyph"), read_cuts(args.work)
    pictures = Pictures(pipeline, args.work, args.sampler_steps, args.prompts)
    before = args.work / "operators-before.json"
    if not before.is_file():
        network = cut_network(pipeline.denoiser, pipeline.graph, [cut.unit for cut in cuts])
        write_json(before, pictures.figures_of(network, "before-operators"))
    table = DistillTable(
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        precision="bf16",
        seed=args.seed,
        probe_every=max(1, args.steps // 10),
    )
    out = args.work / "networks" / f"operators-{args.steps}-{args.seed}"
    if not (out / RECORD).is_file():
        resume = out.is_dir() and any(out.iterdir())
        prepare_folder(out, resume=resume)
        distill_network(pipeline, cuts, table, load_samples(pipeline, None), out, device="cpu", every=50, resume=resume)
    network = load_network(out / "unet", pipeline.graph)
    write_json(
        args.work / f"operators-run-{args.steps}-{args.seed}.json",
        {
            "settings": table.model_dump(mode="json"),
            "after": pictures.figures_of(network, out.name),
            "reference": pictures.scorer.figures(pictures.reference).data,
            "prompts": args.prompts,
            "sampler_steps": args.sampler_steps,
            "curve": [json.loads(line) for line in (out / "losses.jsonl").read_text(encoding="utf-8").splitlines()],
        },
    )


def write_table(args: argparse.Namespace) -> None:
    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    runs = [read(path) for path in sorted(args.work.glob("operators-run-*.json"))]
    found = {name: read(args.work / f"operators-{name}.json") for name in ("cut", "time", "before")}
    write_json(HERE / "operators_recovered.json", {**found, "runs": runs})
    whole = runs[0]["reference"]["frechet"]
    print(
        f"time of a call: {found['time']['median']:.3f} of the untouched "
        f"({found['time']['quartile_low']:.3f} to {found['time']['quartile_high']:.3f})"
    )
    print(f"Frechet: untouched {whole:.4f}, after the cut {found['before']['frechet']:.4f}")
    for run in runs:
        after = run["after"]
        print(
            f"{run['settings']['steps']} steps, seed {run['settings']['seed']}: {after['frechet']:.4f} "
            f"({after['frechet'] / whole - 1:+.1%}), retrieval@1 {after['retrieval_at_1']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cut", "time", "recover", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.66)
    parser.add_argument("--by", default="per_ms")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--sampler-steps", type=int, default=5)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"cut": choose_cuts, "time": time_graphs, "recover": recover, "table": write_table}[args.what](args)


if __name__ == "__main__":
    main()
