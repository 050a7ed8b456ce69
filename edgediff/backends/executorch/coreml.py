"""Core ML as a delegate of ExecuTorch: the converter in it made to do what `backends/coreml` has it do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgediff.backends.coreml.convert import fp16_selector, keep_gelu_form, quiet_converter


@contextlib.contextmanager
def watch_core_ml() -> Iterator[None]:
    """Within it the converter is silent, heeds gelu's form, and keeps the sinusoid of a timestep in fp32: in fp16 a
    step of 801 has no neighbour nearer than half a step. ExecuTorch has no setting for that."""
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend

    read = CoreMLBackend.model_compute_precision_from_compile_specs

    def chosen(specs: Any) -> Any:
        found = read(specs)
        if found is not ct.precision.FLOAT16:
            return found
        return ct.transform.FP16ComputePrecision(fp16_selector({"time"}, lambda value: value.rank == 1))

    CoreMLBackend.model_compute_precision_from_compile_specs = staticmethod(chosen)
    keep_gelu_form()
    try:
        with quiet_converter():
            yield
    finally:
        CoreMLBackend.model_compute_precision_from_compile_specs = staticmethod(read)
