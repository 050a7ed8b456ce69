"""`glyph`'s graphs on Arm Ethos-U: what goes to the NPU, what Vela says of it, and what 8 bits cost.

    python benchmarks/claims/ethos_u.py table --target ethos_u85_2048 --target ethos_u55_256 --graph shallow
    python benchmarks/claims/ethos_u.py observers --graph shallow
    python benchmarks/claims/ethos_u.py pictures --recipe deepcache --prompts 4

Cycles, times and memory are Vela's estimates, made on no chip. Parity is PSNR in dB of the quantized program, run by
PyTorch (the numbers that Vela is given), against PyTorch in fp32, on calls that calibration did not see.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from executorch.backends.arm.quantizer.quantization_config import TOSAQuantizationConfig
from torchao.quantization.pt2e import MinMaxObserver

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.backends._capture import capture_program
from edgediff.backends.eager import eager_runners
from edgediff.backends.executorch import calibration_calls, ethos
from edgediff.backends.executorch.delegates import Delegate, find_delegate
from edgediff.backends.executorch.lowering import Method, write_program
from edgediff.backends.executorch.rewrite import rewrite_program
from edgediff.backends.executorch.settings import Settings
from edgediff.bundle.assemble import make_manifest
from edgediff.documents.recipe import CalibrationTable, load_recipe
from edgediff.documents.target import Target, load_target
from edgediff.embedded.judge import load_judge
from edgediff.flow import plan_pipeline
from edgediff.metrics import psnr
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.pipeline.tokenizers import load_tokenizer
from edgediff.runtime import Session
from edgediff.runtime.manifest import Manifest
from edgediff.sampling.trace import calibration_prompts
from edgediff.variants import Variant, Variants, build_variants
from edgediff.verify import record_calls

ARM_CONFIG = ethos.npu_config
PROMPTS = 3  # pictures whose calls are recorded; those of the last are for the comparison alone


def prepare(recipe: str, target: Target) -> tuple[Pipeline, Variants, Manifest]:
    """The graphs of `glyph` with the calls of three pictures."""
    pipeline = load_pipeline("glyph")
    variants = build_variants(pipeline, plan_pipeline(pipeline, load_recipe(recipe), target))
    manifest = make_manifest(pipeline, variants.plan, variants, (), name="glyph")
    calls = cache(partial(record_calls, pipeline, variants, manifest, prompts=PROMPTS))
    return pipeline, replace(variants, calibration=calls), manifest


def split_calls(variants: Variants, variant: Variant) -> tuple[list[Any], list[Any]]:
    """Calls of a graph to calibrate with, and those of the last picture."""
    calls = calibration_calls(variants, variant, 1)
    share = len(calls) // PROMPTS
    return calls[:-share], calls[-share:]


def quantize(variants: Variants, variant: Variant, delegate: Delegate) -> tuple[Any, Any, list[float], float]:
    """The program before and after, PSNR of each held-out call's first output, and seconds."""
    program = rewrite_program(capture_program(variant, 1), delegate.forms)
    calibration, held_out = split_calls(variants, variant)
    start = time.perf_counter()
    quantized = delegate.quantize(program, calibration, variant.name)
    seconds = time.perf_counter() - start
    exact, coarse = program.module(check_guards=False), quantized.module(check_guards=False)
    with torch.no_grad():
        found = [near(exact(*call)[0].numpy(), coarse(*call)[0].numpy()) for call in held_out]
    return program, quantized, found, seconds


def near(exact: Any, coarse: Any) -> float:
    """PSNR in dB, the largest magnitude of the exact values as peak, as `edgediff verify` has it."""
    return psnr(exact, coarse, float(np.abs(exact).max()))


def delegate_for(name: str, bits: int) -> tuple[Settings, Delegate]:
    """A target's table, and its delegate with activations of so many bits."""
    table = load_target(name).settings("executorch", Settings)
    return table, find_delegate(table, f"w8a{bits}")


def table(targets: Sequence[str], recipe: str, graphs: Sequence[str], bits: int) -> None:
    _, variants, _ = prepare(recipe, load_target(targets[0]))
    print(
        "| chip | graph | pieces on the NPU | operators on the CPU | MMACs | cycles | ms | memory KiB | "
        "PSNR dB: median, worst | quantizing, lowering s |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for graph in graphs or tuple(variants.plan.graphs):
        for name in targets:
            chip, delegate = delegate_for(name, bits)
            _, quantized, found, seconds = quantize(variants, variants.graphs[graph], delegate)
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder, delegate.watch() as seen:
                lowered = write_program([Method(graph, quantized)], delegate, Path(folder) / "x.pte", seen=seen)[graph]
            took = time.perf_counter() - start
            pieces, outside = seen.pieces[graph], sum(lowered.outside.values())
            memory = {key: max(one.memory_kib.get(key, 0.0) for one in pieces) for key in ethos.MEMORIES}
            cycles = sum(one.cycles for one in pieces)
            print(
                f"| {chip.chip} | {graph} | {len(pieces)} | {outside} | {sum(one.macs for one in pieces) / 1e6:.1f} | "
                f"{cycles:,} | {cycles / pieces[0].clock_mhz / 1e3:.3f} | "
                + ", ".join(f"{key} {kib:.0f}" for key, kib in memory.items() if kib)
                + f" | {np.median(found):.1f}, {min(found):.1f} | {seconds:.0f}, {took:.0f} |",
                flush=True,
            )


def observers(recipe: str, graphs: Sequence[str]) -> None:
    """At 8 bits Arm's histograms, which the backend takes, beside the extremes that calibration saw."""
    _, variants, _ = prepare(recipe, load_target("ethos_u85_2048"))
    _, delegate = delegate_for("ethos_u85_2048", 8)
    for graph in graphs or tuple(variants.plan.graphs):
        for name, config in (("histograms", ARM_CONFIG), ("extremes", extremes)):
            with mock.patch.object(ethos, "npu_config", config):
                _, _, found, seconds = quantize(variants, variants.graphs[graph], delegate)
            print(
                f"{graph}, {name}: PSNR median {np.median(found):.1f} dB, worst {min(found):.1f}; {seconds:.0f} s",
                flush=True,
            )


def extremes(bits: int) -> TOSAQuantizationConfig:
    found = ARM_CONFIG(bits)
    act = replace(found.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-16))
    return TOSAQuantizationConfig(act, act, found.weight, found.bias, "extremes")


class Simulated:
    """A quantized program, run by PyTorch."""

    def __init__(self, variant: Variant, program: Any) -> None:
        self._variant, self._module = variant, program.module(check_guards=False)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self._variant.inputs]
        with torch.no_grad():
            values = self._module(*tensors)
        return {spec.name: value.numpy() for spec, value in zip(self._variant.outputs, values, strict=True)}


def pictures(recipe: str, graphs: Sequence[str], count: int, bits: int) -> None:
    """Pictures with the named graphs in integers, beside those of PyTorch in fp32, both judged."""
    pipeline, variants, manifest = prepare(recipe, load_target("ethos_u85_2048"))
    _, delegate = delegate_for("ethos_u85_2048", bits)
    exact = eager_runners(variants)
    coarse: dict[str, Any] = dict(exact)
    for graph in graphs or tuple(variants.graphs):
        _, quantized, found, _ = quantize(variants, variants.graphs[graph], delegate)
        coarse[graph] = Simulated(variants.graphs[graph], quantized)
        print(f"{graph}: PSNR median {np.median(found):.1f} dB, worst {min(found):.1f}", flush=True)
    tokenizers = {name: load_tokenizer(pipeline.tokenizer_folder) for name in manifest.tokenizers}
    prompts = calibration_prompts(pipeline, CalibrationTable(prompts=PROMPTS + count))[PROMPTS:]
    made: dict[str, list[Any]] = {}
    for name, runners in (("fp32", exact), (f"w8a{bits}", coarse)):
        session = Session(manifest, tokenizers, runners)
        made[name] = [
            session.decode(list(session.steps(prompt, seed=seed))[-1].latent) for seed, prompt in enumerate(prompts)
        ]
    judge = load_judge()
    for name, images in made.items():
        print(f"{name}: retrieval@1 {judge.retrieval_at_1(np.stack(images), prompts):.3f} over {count} pictures")
    found = [psnr(a, b, 255.0) for a, b in zip(made["fp32"], made[f"w8a{bits}"], strict=True)]
    print(f"w8a{bits} against fp32, pictures: PSNR median {np.median(found):.1f} dB, worst {min(found):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("table", "observers", "pictures"))
    parser.add_argument("--recipe", default="deepcache")
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--graph", action="append", default=[])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="of activations")
    args = parser.parse_args()
    if args.what == "table":
        table(args.target or ["ethos_u85_2048", "ethos_u55_256"], args.recipe, args.graph, args.bits)
    elif args.what == "observers":
        observers(args.recipe, args.graph)
    else:
        pictures(args.recipe, args.graph, args.prompts, args.bits)


if __name__ == "__main__":
    main()
