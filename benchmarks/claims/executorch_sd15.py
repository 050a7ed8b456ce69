"""Stable Diffusion 1.5's denoiser (random weights) on ExecuTorch's XNNPACK: cost of lowering, parity, and its time
beside ONNX Runtime's.

    python benchmarks/claims/executorch_sd15.py [--precision fp32] [--query-chunk 0] [--graphs full,shallow]

Two graphs, DeepCache's, in one program. Lowering, the reference and running are processes of their own, so that each
has its own peak memory. Both runtimes run the same graph on the same threads in turn; the ratio is that of medians,
its spread that of the ratios of neighbouring runs. `best_over_gemm` is the better runtime's rate over that of a large
matrix product in PyTorch, the best of those taken between the turns. That product is MKL's, a low yardstick on AMD's
processors: on a Zen 5 OpenBLAS and ONNX Runtime's own product are over twice as fast. Prints JSON. Takes about
15 minutes and 14 GB with both graphs on both runtimes; `--stages lower,reference,run` needs 9 GB, `--graphs shallow`
2 GB at the last stage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.claims.sd15_build import peak_gb, save_reference
from edgediff.metrics import psnr
from edgediff.runtime.manifest import Artifact, Graph

STAGES = ("lower", "reference", "run", "compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--query-chunk", type=int, default=0)
    parser.add_argument("--graphs", default="full,shallow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="keep the files here (default: a temporary folder)")
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(globals()[args.stage](args)))
        return
    with tempfile.TemporaryDirectory(prefix="sd15-") as folder:
        found = {key: getattr(args, key) for key in ("precision", "query_chunk", "graphs", "threads")}
        for stage in args.stages.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage]
            command += [] if args.out else ["--out", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            print(stage, json.dumps(found[stage]), file=sys.stderr)
    print(json.dumps(found, indent=2))


def make_variants(args: argparse.Namespace, backend: str):
    from edgediff.documents.recipe import Recipe
    from edgediff.documents.target import parse_target
    from edgediff.flow import plan_pipeline
    from edgediff.pipeline import load_pipeline
    from edgediff.variants import build_variants

    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "reuse": [{"kind": "deepcache", "interval": 2, "branch": 0}],
            "precision": args.precision if backend == "executorch" else "fp32",
        }
    )
    table = {"guidance": "sequential"}
    tables = {"onnxruntime": table, "executorch": {**table, "query_chunk": args.query_chunk}}
    target = parse_target({"name": "bench", "backends": [backend], **tables}, where="t")
    pipeline = load_pipeline("random:sd15")
    variants = build_variants(pipeline, plan_pipeline(pipeline, recipe, target))
    return replace(variants, graphs=variants.denoisers()), target


def lower(args: argparse.Namespace) -> dict:
    """Lowering alone is timed; the model is loaded before."""
    import torch

    from edgediff.backends.executorch import lower as lower_graphs

    torch.set_num_threads(args.threads)
    variants, target = make_variants(args, "executorch")
    before, start, processor = peak_gb(), time.perf_counter(), time.process_time()
    artifacts = lower_graphs(variants, target, args.out)
    wall, cpu = time.perf_counter() - start, time.process_time() - processor
    for name, artifact in artifacts.graphs.items():
        (args.out / f"{name}.executorch.json").write_text(artifact.to_json())
    files = {path.name: path.stat().st_size for path in sorted((args.out / "executorch").iterdir())}
    parameters = {name: variants.graphs[name].parameters for name in artifacts.graphs}
    return {
        "seconds": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
        "peak_gb": {"loaded": before, "lowered": peak_gb()},
        "bytes": files,
        "parameters": parameters,
        "graphs": {
            name: one.model_dump(include={"delegates", "outside", "memory_bytes"})
            for name, one in artifacts.graphs.items()
        },
    }


def reference(args: argparse.Namespace) -> dict:
    """What PyTorch makes of one input of each graph, and the same graphs for ONNX Runtime."""
    import torch

    from edgediff.backends.eager import eager_runners
    from edgediff.backends.onnxruntime import lower as lower_graphs

    torch.set_num_threads(args.threads)
    variants, target = make_variants(args, "onnxruntime")
    artifacts = lower_graphs(variants, target, args.out)
    save_reference(args.out, variants, artifacts.graphs, eager_runners(variants, args.threads))
    return {"peak_gb": peak_gb()}


def open_graph(args: argparse.Namespace, backend: str, name: str):
    from edgediff.plugins import load_plugin

    graph = Graph.model_validate_json((args.out / f"{name}.graph.json").read_text())
    suffix = "executorch" if backend == "executorch" else "artifact"
    artifact = Artifact.model_validate_json((args.out / f"{name}.{suffix}.json").read_text())
    return load_plugin("backends", backend).open_runner(args.out, graph, artifact, batch=1, threads=args.threads)


def load_inputs(args: argparse.Namespace, name: str):
    saved = dict(np.load(args.out / f"{name}.npz"))
    return (
        {key[3:]: value for key, value in saved.items() if key.startswith("in.")},
        {key[4:]: value for key, value in saved.items() if key.startswith("out.")},
    )


def run(args: argparse.Namespace) -> dict:
    """Parity, load and peak memory of ExecuTorch alone, graph by graph."""
    found: dict = {"psnr_db": {}, "load_seconds": {}, "seconds": {}, "peak_gb": {}}
    for name in sorted(args.graphs.split(","), reverse=True):
        inputs, outputs = load_inputs(args, name)
        start = time.perf_counter()
        runner = open_graph(args, "executorch", name)
        found["load_seconds"][name] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        made = runner.run(inputs)
        found["seconds"][name] = round(time.perf_counter() - start, 2)
        found["psnr_db"][name] = {
            key: round(psnr(outputs[key], value, float(np.abs(outputs[key]).max()), cap=200), 1)
            for key, value in made.items()
        }
        found["peak_gb"][name] = peak_gb()
    return found


def compare(args: argparse.Namespace) -> dict:
    """Both runtimes in turn on each graph, and the rate of a matrix product beside them."""
    found: dict = {"gemm_gflops": 0.0}
    for name in args.graphs.split(","):
        inputs, _ = load_inputs(args, name)
        macs = Graph.model_validate_json((args.out / f"{name}.graph.json").read_text()).macs
        runners = {backend: open_graph(args, backend, name) for backend in ("onnxruntime", "executorch")}
        times: dict[str, list[float]] = {backend: [] for backend in runners}
        for turn in range(args.rounds + 1):
            found["gemm_gflops"] = max(found["gemm_gflops"], round(gemm_rate(args.threads), 1))
            for backend, runner in runners.items():
                start = time.perf_counter()
                runner.run(inputs)
                if turn:
                    times[backend].append(time.perf_counter() - start)
        ratios = np.array(times["executorch"]) / np.array(times["onnxruntime"])
        found[name] = {
            "seconds": {
                key: {"median": round(float(np.median(t)), 3), "all": [round(x, 3) for x in t]}
                for key, t in times.items()
            },
            "executorch_over_onnxruntime": {
                "of_medians": round(float(np.median(times["executorch"]) / np.median(times["onnxruntime"])), 3),
                "low": round(float(ratios.min()), 3),
                "high": round(float(ratios.max()), 3),
            },
        }
        if macs:
            best = min(min(t) for t in times.values())
            found[name]["best_over_gemm"] = round(2 * macs / best / 1e9 / found["gemm_gflops"], 3)
        del runners
    return {**found, "peak_gb": peak_gb()}


def gemm_rate(threads: int, size: int = 2048) -> float:
    """GFLOP/s of a square matrix product, the best of four."""
    import torch

    torch.set_num_threads(threads)
    a, b, best = torch.randn(size, size), torch.randn(size, size), float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    main()
