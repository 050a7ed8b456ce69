"""Which parts of an fp16 program are worth fp32, by measurement.

The sinusoid of the time embedding always is: it is a handful of operations, and timestep x frequency in fp16 costs
more than all the rest of the network together. Norms and softmax are tried, in graphs up to `MACS_LIMIT` (larger
ones would take minutes; name their islands in the target): the evaluator computes the program once more without
rounding the results of such operations, and where that brings the output `GAIN_DB` nearer to PyTorch's, the graph is
converted again with them in fp32. Inputs are the variant's example, at an early and a late timestep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgediff.backends.coreml.convert import NORM_OPERATIONS, SOFTMAX_OPERATIONS
from edgediff.runtime.manifest import BATCH

if TYPE_CHECKING:
    from edgediff.runtime.engine import Array
    from edgediff.variants import Variant

ALWAYS = ("time",)
GAIN_DB = 3.0
TRIED = {"norm": NORM_OPERATIONS, "softmax": SOFTMAX_OPERATIONS}
TIMESTEPS = (981.0, 21.0)
MACS_LIMIT = 20e9


def choose_islands(
    variant: Variant, batch: int, out: Path, convert: Callable[[tuple[str, ...], Path], None]
) -> tuple[str, ...]:
    """Writes the graph to `out` with the islands that pay, and returns them."""
    from edgediff import mil

    convert(ALWAYS, out)
    if count_macs(variant) * batch > MACS_LIMIT:
        return ALWAYS
    samples = example_calls(variant, batch)
    program = mil.load(out, cache_bytes=1 << 30)
    plain = worst_db(program, samples)
    chosen = [*ALWAYS]
    for island, kinds in TRIED.items():
        if kinds & {step.kind for step in program.function("main").steps}:
            program.unrounded = frozenset(kinds)
            if worst_db(program, samples) >= plain + GAIN_DB:
                chosen.append(island)
    if tuple(chosen) != ALWAYS:
        shutil.rmtree(out)
        convert(tuple(chosen), out)
    return tuple(chosen)


def count_macs(variant: Variant) -> int:
    """Multiply-accumulates of one sample, by tracing shapes where the variant does not know them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    if variant.macs:
        return variant.macs
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        example = [mode.from_tensor(tensor) for tensor in variant.example]
        with FlopCounterMode(display=False) as counter:
            variant.module(*example)
    return int(counter.get_total_flops()) // 2


def example_calls(variant: Variant, batch: int) -> list[tuple[dict[str, Array], list[Array]]]:
    """(inputs by name, PyTorch's outputs) of the variant's example; at two timesteps where it has one."""
    import torch

    times = TIMESTEPS if any(spec.name == "timestep" for spec in variant.inputs) else (0.0,)
    calls = []
    for time in times:
        inputs = {}
        for spec, tensor in zip(variant.inputs, variant.example, strict=True):
            value = torch.full_like(tensor, time) if spec.name == "timestep" else tensor
            inputs[spec.name] = torch.cat([value] * batch, spec.shape.index(BATCH)) if BATCH in spec.shape else value
        with torch.inference_mode():
            outputs = variant.module(*inputs.values())
        calls.append(({name: value.numpy() for name, value in inputs.items()}, [value.numpy() for value in outputs]))
    return calls


def worst_db(program: object, calls: Sequence[tuple[dict[str, Array], list[Array]]]) -> float:
    """The lowest PSNR over outputs and calls, the largest magnitude of the reference as peak."""
    worst = np.inf
    for inputs, references in calls:
        found = program.run("main", **inputs)  # type: ignore[attr-defined]
        for reference, value in zip(references, found.values(), strict=True):
            error = float(np.mean((reference.astype(np.float64) - value) ** 2))
            if not np.isfinite(error):
                return -np.inf
            peak = float(np.abs(reference).max()) or 1.0
            worst = min(worst, 10 * np.log10(peak**2 / error) if error else np.inf)
    return float(worst)
