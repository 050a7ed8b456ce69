"""What Stable Diffusion 1.5's denoiser (random weights) costs on the way to Core ML, and how it fares there.

    python benchmarks/claims/coreml_sd15.py [--format palette6] [--attention sdpa] [--deployment iOS18] [--batch 1]
                                      [--cache state] [--chunks 2]

Two functions, DeepCache's, in one package, or in two chunks. Lowering and evaluating are processes of their own, so
that each has its own peak memory. Prints JSON: seconds (wall, and of the processor), peak memory, bytes of the package
and of its full function alone, parity of both functions with `edgediff.mil` against PyTorch (fp16 with rounding),
seconds per evaluated step. PSNR of random weights in few bits says nothing about trained ones. Takes 3 to 8 minutes and
8 GB of memory on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.metrics import psnr
from edgediff.runtime.manifest import Artifact, Graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="", help="weight format, such as palette6; none: fp16")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--deployment", default="iOS18")
    parser.add_argument("--batch", type=int, default=1, choices=(1, 2))
    parser.add_argument("--cache", default="io", choices=("io", "state"))
    parser.add_argument("--chunks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stages", default="lower,reference,run")
    parser.add_argument("--stage", choices=("lower", "reference", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="keep the files here (default: a temporary folder)")
    args = parser.parse_args()
    if args.stage:
        print(json.dumps({"lower": lower, "reference": reference, "run": run}[args.stage](args)))
        return
    with tempfile.TemporaryDirectory(prefix="sd15-") as folder:
        keys = ("format", "attention", "deployment", "batch", "cache", "chunks", "threads")
        found = {key: getattr(args, key) for key in keys}
        for stage in args.stages.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage]
            command += [] if args.out else ["--out", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=2))


def make_variants(args: argparse.Namespace):
    """The plan and its denoiser graphs, nothing else."""
    from edgediff.documents.recipe import Recipe
    from edgediff.documents.target import parse_target
    from edgediff.flow import plan_pipeline
    from edgediff.pipeline import load_pipeline
    from edgediff.planning.weight_bits import plan_weights
    from edgediff.variants import build_variants

    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "reuse": [{"kind": "deepcache", "interval": 2, "branch": 0}],
            "precision": "fp16",
            "weights": {"format": args.format},
        }
    )
    guidance = "batched" if args.batch == 2 else "sequential"
    table = {
        "attention": args.attention,
        "deployment": args.deployment,
        "guidance": guidance,
        "cache": args.cache,
        "chunks": args.chunks,
    }
    target = parse_target({"name": "bench", "backends": ["coreml"], "coreml": table}, where="t")
    pipeline = load_pipeline("random:sd15")
    plan = plan_weights(pipeline, recipe, plan_pipeline(pipeline, recipe, target))
    variants = build_variants(pipeline, plan)
    return replace(variants, graphs=variants.denoisers()), target


def lower(args: argparse.Namespace) -> dict:
    """Lowering alone is timed; the model is loaded before."""
    import torch

    from edgediff.backends.coreml import lower as lower_graphs

    torch.set_num_threads(args.threads)
    variants, target = make_variants(args)
    before = peak_gb()
    start, processor = time.perf_counter(), time.process_time()
    artifacts = lower_graphs(variants, target, args.out)
    wall, cpu = time.perf_counter() - start, time.process_time() - processor
    for name, variant in variants.graphs.items():
        graph = Graph(component=variant.component, inputs=variant.inputs, outputs=variant.outputs)
        (args.out / f"{name}.graph.json").write_text(graph.to_json())
        (args.out / f"{name}.artifact.json").write_text(artifacts.graphs[name].to_json())
    return {
        "seconds": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
        "peak_gb": {"loaded": before, "lowered": peak_gb()},
        "bytes": {path.name: folder_bytes(path) for path in sorted((args.out / "coreml").iterdir())},
        "weights_of_one_function": {
            file: weights_read(args.out / file, "full")
            for file in (artifacts.graphs["full"].file, *artifacts.graphs["full"].chunks)
        },
    }


def weights_read(path: Path, function: str) -> int:
    """Bytes in the weights file that one function names: what it would take alone."""
    from edgediff.mil import open_package

    package, seen = open_package(path), {}
    for operation in package.block(function if function in package.functions else "main").operations:
        values = (
            [operation.attributes["val"]]
            if operation.type == "const"
            else [argument.value for one in operation.inputs.values() for argument in one.arguments]
        )
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                blob = value.blobFileValue
                seen[blob.offset] = package.blob(blob.fileName).raw(blob.offset).nbytes
    return sum(seen.values())


def reference(args: argparse.Namespace) -> dict:
    """What PyTorch makes of one input of each graph."""
    import torch

    from edgediff.backends.eager import eager_runners

    torch.set_num_threads(args.threads)
    variants, _ = make_variants(args)
    generator, seconds = np.random.default_rng(0), {}
    for name, runner in eager_runners(variants, args.threads).items():
        inputs = {
            spec.name: generator.standard_normal(spec.sized(args.batch)).astype(spec.dtype)
            for spec in variants.graphs[name].inputs
        }
        inputs["timestep"][:] = 801.0
        start = time.perf_counter()
        outputs = runner.run(inputs)
        seconds[name] = round(time.perf_counter() - start, 2)
        saved = {f"in.{key}": value for key, value in inputs.items()}
        np.savez(args.out / f"{name}.npz", **saved, **{f"out.{key}": value for key, value in outputs.items()})
    return {"seconds": seconds, "peak_gb": peak_gb()}


def run(args: argparse.Namespace) -> dict:
    """Parity and time of the evaluator: first call (weights read and widened), then once more."""
    from edgediff.backends.coreml import open_runner

    found: dict = {"psnr_db": {}, "seconds": {}}
    for name in ("shallow", "full"):
        graph = Graph.model_validate_json((args.out / f"{name}.graph.json").read_text())
        artifact = Artifact.model_validate_json((args.out / f"{name}.artifact.json").read_text())
        saved = dict(np.load(args.out / f"{name}.npz"))
        inputs = {key[3:]: value for key, value in saved.items() if key.startswith("in.")}
        runner, times = open_runner(args.out, graph, artifact, batch=args.batch, threads=args.threads), []
        for _ in range(2):
            start, processor = time.perf_counter(), time.process_time()
            outputs = runner.run(inputs)
            wall, cpu = time.perf_counter() - start, time.process_time() - processor
            times.append({"wall": round(wall, 2), "cpu": round(cpu, 2)})
        found["seconds"][name] = {"first": times[0], "again": times[1]}
        found["psnr_db"][name] = {
            key: round(psnr(saved[f"out.{key}"], value, float(np.abs(saved[f"out.{key}"]).max()), cap=200), 1)
            for key, value in outputs.items()
        }
    return {**found, "peak_gb": peak_gb()}


def folder_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    main()
