"""What each rewrite is worth on ExecuTorch's XNNPACK: delegate calls, operators outside, and time of one graph.

    python benchmarks/claims/executorch_rewrites.py [--model glyph] [--graph shallow] [--rounds 30] [--threads 1]

The graph is DeepCache's, untouched first, then with one rewrite more at a time in their order; all programs are timed
in turn in one process. The ratio is to the untouched program, its spread that of neighbouring runs. Prints a table.
Takes five minutes for `shallow` on two cores, half an hour for `full`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.backends import executorch
from edgediff.backends._capture import capture_program
from edgediff.backends.executorch.delegates import find_delegate
from edgediff.backends.executorch.lowering import Method, write_program
from edgediff.backends.executorch.rewrite import REWRITES, rewrite_program
from edgediff.documents.recipe import Recipe
from edgediff.documents.target import Target
from edgediff.flow import plan_pipeline
from edgediff.metrics import psnr
from edgediff.pipeline import load_pipeline
from edgediff.runtime.manifest import Artifact, Graph
from edgediff.variants import build_variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glyph")
    parser.add_argument("--graph", default="shallow")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    recipe = Recipe.model_validate({"name": "bench", "reuse": [{"kind": "deepcache", "interval": 2, "branch": 0}]})
    target = Target.model_validate({"name": "bench", "backends": ["executorch"]})
    pipeline = load_pipeline(args.model)
    variant = build_variants(pipeline, plan_pipeline(pipeline, recipe, target)).graphs[args.graph]
    typed = Graph(component=variant.component, inputs=variant.inputs, outputs=variant.outputs)
    inputs = {spec.name: value.numpy() for spec, value in zip(variant.inputs, variant.example, strict=True)}
    expected = variant.module(*variant.example)[0].detach().numpy()
    delegate, rows, runners = find_delegate(target.backend("executorch"), "fp32"), [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in range(len(REWRITES) + 1):
            program = capture_program(variant, 1)
            program = rewrite_program(program, REWRITES[:count]) if count else program
            path = Path(folder) / f"{count}.pte"
            found = write_program([Method(args.graph, program)], delegate, path)[args.graph]
            artifact = Artifact(file=path.name, function=args.graph, precision="fp32")
            runners.append(executorch.open_runner(path.parent, typed, artifact, batch=1, threads=args.threads))
            made = next(iter(runners[-1].run(inputs).values()))
            error = psnr(expected, made, float(np.abs(expected).max()), cap=200)
            name = f"+ {REWRITES[count - 1]}" if count else "untouched"
            rows.append((name, sum(found.delegates.values()), sum(found.outside.values()), error))
            print(*rows[-1], file=sys.stderr)
        times = np.empty((args.rounds, len(runners)))
        for turn in range(args.rounds):
            for index, runner in enumerate(runners):
                start = time.perf_counter()
                runner.run(inputs)
                times[turn, index] = time.perf_counter() - start
    ratios = times / times[:, :1]
    head = f"{'rewrite':<14}{'delegate calls':>15}{'outside':>9}{'PSNR dB':>9}{'ms':>8}{'to untouched':>14}"
    print(f"{head}  (10 to 90 %)")
    for (name, calls, outside, error), each, ratio in zip(rows, times.T, ratios.T, strict=True):
        low, high = np.percentile(ratio, (10, 90))
        line = f"{name:<14}{calls:>15}{outside:>9}{error:>9.1f}{np.median(each) * 1e3:>8.2f}{np.median(ratio):>14.2f}"
        print(f"{line}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
