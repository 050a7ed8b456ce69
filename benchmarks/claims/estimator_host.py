"""How far estimates for this machine are from what its graphs take: every graph of a bundle of `glyph`.

    edgediff build glyph --out G && python benchmarks/claims/estimator_host.py G [G2 ...]

Calibrates first, unless --keep (single operators, one thread), then runs each graph of each bundle in ONNX Runtime
with one thread. Processor time, so that other work on the machine does not count; the first quartile of the runs on
both sides.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgediff.bundle import open_bundle
from edgediff.documents.target import load_target
from edgediff.estimate import estimate_plan
from edgediff.estimate.coefficients import host_file
from edgediff.flow import component_operators
from edgediff.pipeline import load_pipeline
from edgediff.profiling.calibrate import calibrate_host

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def measure(file: Path, batch: int) -> float:
    """Processor milliseconds of one call."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = {}
    for tensor in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in tensor.shape]
        feed[tensor.name] = np.ones(shape, TYPES[tensor.type])
    session.run(None, feed)
    samples = []
    for _ in range(12):
        start = time.process_time()
        session.run(None, feed)
        samples.append((time.process_time() - start) * 1e3)
    return float(np.quantile(samples, 0.25))


def main() -> None:
    folders = [one for one in sys.argv[1:] if one != "--keep"]
    if "--keep" not in sys.argv or not host_file().is_file():
        calibrate_host()
    pipeline = load_pipeline("glyph")
    parts = component_operators(pipeline)
    wrong = []
    for folder in folders:
        bundle = open_bundle(folder)
        found = estimate_plan(bundle.plan, pipeline.graph, load_target("host"), "onnxruntime", components=parts)
        for name, interval in found.graphs.items():
            graph, _, batch = name.partition("@")
            artifact = bundle.manifest.graphs[graph].artifacts["onnxruntime"]
            taken = measure(Path(folder) / artifact.file, int(batch or 1))
            wrong.append(abs(interval.p50 / taken - 1))
            inside = interval.low <= taken <= interval.high
            print(
                f"{Path(folder).name:20}{name:16}measured {taken:8.2f} ms, estimated {interval.p50:8.2f} "
                f"({interval.low:.2f} to {interval.high:.2f}), off by {wrong[-1]:.0%}{'' if inside else ', outside'}"
            )
    print(f"median absolute error {np.median(wrong):.1%} over {len(wrong)} graphs")


if __name__ == "__main__":
    main()
