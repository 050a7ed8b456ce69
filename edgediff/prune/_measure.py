"""The output loss over a pipeline's calibration batch, with what was measured kept on disk."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from edgediff.prune._memo import Memo
from edgediff.prune._prefix import OutputLoss, calibration_batch, digest_inputs

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.sampling.trace import Trace


def open_output_loss(pipeline: Pipeline, trace: Trace, timesteps: int, memory_gb: float) -> tuple[OutputLoss, Memo]:
    """The loss of cuts on this trace. The memo, to be used as a context manager around the measuring, is shared
    by all recipes that measure the same cuts on the same inputs, whatever their method and budget."""
    inputs = calibration_batch(trace, timesteps)
    parameter = next(pipeline.denoiser.parameters())
    memo = Memo(
        {
            "what": "output loss",
            "weights": pipeline.weights,
            "inputs": digest_inputs(inputs),
            "cuts": sorted(pipeline.graph.cuts),
            "device": parameter.device.type,
            "dtype": str(parameter.dtype),
            "torch": importlib.metadata.version("torch"),
        }
    )
    return OutputLoss(pipeline.denoiser, pipeline.graph, inputs, memory_gb=memory_gb, memo=memo), memo
