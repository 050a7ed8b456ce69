"""Stable Diffusion 1.5 at 512 x 512, 20 calls with guidance, on many targets: time of an image and memory. No model is
loaded: the operators are those of the calibration data.

    python benchmarks/claims/estimator_sd15.py [TARGET ...]
"""

from __future__ import annotations

import sys

from edgediff.documents.target import load_target
from edgediff.estimate import estimate_graph
from edgediff.estimate.memory import BYTES, PROCESS_MB
from edgediff.estimate.rows import load_graphs

STEPS = 20
CASES = (
    ("iphone_12", "coreml", "fp16"),
    ("iphone_13", "coreml", "fp16"),
    ("iphone_12", "coreml", "w8"),
    ("iphone_15_pro", "coreml", "fp16"),
    ("ipad_pro_m4", "coreml", "fp16"),
    ("galaxy_s23", "onnxruntime", "fp16"),
    ("galaxy_s24", "onnxruntime", "fp16"),
    ("galaxy_s24", "onnxruntime", "w8a8"),
    ("galaxy_s25", "onnxruntime", "fp16"),
    ("snapdragon_7_gen_3", "onnxruntime", "fp16"),
    ("pixel_9", "executorch", "fp32"),
    ("rk3588", "executorch", "fp32"),
    ("h200", "cuda", "fp16"),
)


def main() -> None:
    graphs = {name: load_graphs()[f"stable_diffusion_v1_5/{name}"] for name in ("text_encoder", "unet", "vae")}
    for name, backend, precision in CASES:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        target = load_target(name)
        unet = estimate_graph(graphs["unet"], target, backend, precision, batch=2)
        rest = [estimate_graph(graphs[part], target, backend, precision) for part in ("text_encoder", "vae")]
        ends = ("low", "p50", "high")
        low, middle, high = ((STEPS * getattr(unet, e) + sum(getattr(one, e) for one in rest)) / 1e3 for e in ends)
        size, values = BYTES[precision]
        weights = sum(table.parameters for table in graphs.values()) * size / 1e6
        apart = max(table.parameters for table in graphs.values()) * size / 1e6
        peak = max(graphs["unet"].peak_values * 2, graphs["vae"].peak_values) * values / 1e6
        room = (target.memory_ceiling_gb or 0) * 1000
        whole, single = PROCESS_MB + weights + peak, PROCESS_MB + apart + peak
        fits = "fits" if whole <= room else "one component at a time" if single <= room else "does not fit"
        print(
            f"{name:20}{backend:12}{precision:6}{middle:8.1f} s ({low:.1f} to {high:.1f}), "
            f"unet@2 {unet.p50:7.0f} ms, {whole:6.0f} MB of {room:.0f}: {fits}"
        )


if __name__ == "__main__":
    main()
