"""What lowering Stable Diffusion 1.5 (random weights) to ONNX Runtime costs: time, memory, disk, parity, latency.

    python benchmarks/claims/sd15_build.py [--precision fp32|fp16|w8a8] [--threads 2] [--rounds 5]

Two graphs, DeepCache's. Lowering and running are processes of their own, so that each has its own peak memory.
Full and shallow are timed in turn, so that both see the same neighbours; the ratio is that of medians, its spread
that of the ratios of neighbouring runs. Prints JSON. Takes about ten minutes and 6 GB of memory on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.metrics import psnr
from edgediff.runtime.manifest import Artifact, Graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "fp16", "w8a8"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", choices=("lower", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps({"lower": lower, "run": run}[args.stage](args)))
        return
    with tempfile.TemporaryDirectory(prefix="sd15-") as folder:
        found = {"precision": args.precision, "threads": args.threads}
        for stage in ("lower", "run"):
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage, "--out", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=2))


def lower(args: argparse.Namespace) -> dict:
    """Load, plan, lower (timed one by one), then what PyTorch makes of one input of each graph."""
    import torch

    from edgediff.backends.eager import eager_runners
    from edgediff.backends.onnxruntime import lower as lower_graphs
    from edgediff.documents.recipe import Recipe
    from edgediff.documents.target import Target
    from edgediff.flow import plan_pipeline
    from edgediff.pipeline import load_pipeline
    from edgediff.variants import build_variants

    torch.set_num_threads(args.threads)
    clock = [(time.perf_counter(), time.process_time())]

    def lap() -> dict[str, float]:
        clock.append((time.perf_counter(), time.process_time()))
        return {"wall": round(clock[-1][0] - clock[-2][0], 1), "cpu": round(clock[-1][1] - clock[-2][1], 1)}

    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "reuse": [{"kind": "deepcache", "interval": 2, "branch": 0}],
            "precision": args.precision,
        }
    )
    target = Target(name="bench", backends=("onnxruntime",))
    pipeline = load_pipeline("random:sd15")
    seconds = {"load": lap()}
    variants = build_variants(pipeline, plan_pipeline(pipeline, recipe, target))
    seconds["plan"], before = lap(), peak_gb()
    artifacts = lower_graphs(variants, target, args.out)
    seconds["lower"], after = lap(), peak_gb()
    save_reference(args.out, variants, artifacts.graphs, eager_runners(variants, args.threads))
    seconds["reference"] = lap()
    files = {str(path.relative_to(args.out)): path.stat().st_size for path in sorted(args.out.glob("onnxruntime/*/*"))}
    return {"seconds": seconds, "peak_gb": {"loaded": before, "lowered": after}, "bytes": files}


def save_reference(out: Path, variants, artifacts, runners) -> None:
    generator = np.random.default_rng(0)
    for name, variant in variants.graphs.items():
        graph = Graph(component=variant.component, inputs=variant.inputs, outputs=variant.outputs, macs=variant.macs)
        (out / f"{name}.graph.json").write_text(graph.to_json())
        (out / f"{name}.artifact.json").write_text(artifacts[name].to_json())
        inputs = {}
        for spec in variant.inputs:
            shape = spec.sized(1)
            is_id = spec.dtype == "int64"
            drawn = generator.integers(0, 49000, shape) if is_id else generator.standard_normal(shape)
            inputs[spec.name] = drawn.astype(spec.dtype)
        if "timestep" in inputs:
            inputs["timestep"][:] = 801.0
        outputs = runners[name].run(inputs)
        np.savez(
            out / f"{name}.npz",
            **{f"in.{k}": v for k, v in inputs.items()},
            **{f"out.{k}": v for k, v in outputs.items()},
        )


def run(args: argparse.Namespace) -> dict:
    """Parity of every graph, and the denoiser's two graphs timed in turn. No torch here."""
    from edgediff.backends.onnxruntime import open_runner

    parity, load, inputs, runners = {}, {}, {}, {}
    for name in ("text_encoder", "vae_decoder", "full", "shallow"):
        graph = Graph.model_validate_json((args.out / f"{name}.graph.json").read_text())
        artifact = Artifact.model_validate_json((args.out / f"{name}.artifact.json").read_text())
        saved = dict(np.load(args.out / f"{name}.npz"))
        inputs[name] = {key[3:]: value for key, value in saved.items() if key.startswith("in.")}
        start = time.perf_counter()
        runner = open_runner(args.out, graph, artifact, batch=1, threads=args.threads)
        load[name] = round(time.perf_counter() - start, 2)
        found = runner.run(inputs[name])
        parity[name] = {
            key: round(psnr(saved[f"out.{key}"], value, float(np.abs(saved[f"out.{key}"]).max()), cap=200), 1)
            for key, value in found.items()
        }
        if name in ("full", "shallow"):
            runners[name] = runner
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(args.rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(inputs[name])
            times[name].append(time.perf_counter() - start)
    ratios = np.array(times["shallow"]) / np.array(times["full"])
    return {
        "psnr_db": parity,
        "load_seconds": load,
        "peak_gb": peak_gb(),
        "seconds": {
            name: {"median": round(float(np.median(t)), 3), "all": [round(x, 3) for x in t]}
            for name, t in times.items()
        },
        "shallow_over_full": {
            "of_medians": round(float(np.median(times["shallow"]) / np.median(times["full"])), 3),
            "low": round(float(ratios.min()), 3),
            "high": round(float(ratios.max()), 3),
        },
    }


def peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    main()
