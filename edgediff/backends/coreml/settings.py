"""The table `[coreml]` of a target."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgediff.documents.target import BackendTable, UnitName
from edgediff.runtime.precision import Precision


class Settings(BackendTable):
    """`deployment` is the oldest release that must run the programs: iOS 18 has several functions over one set of
    weights, and attention as one operation. `attention`: that operation (`sdpa`); per head with channels first, for
    the Neural Engine (`split_einsum`, `query_chunk` queries at a time; 0: all); two products and a softmax
    (`original`, for the GPU). `islands` are the parts left in fp32 in an fp16 program (`auto`: chosen by measured
    parity). `cache`: cached features cross as inputs and outputs (`io`), or stay inside as Core ML's state, which is
    fp16 and iOS 18's (`state`). `chunks` 2 makes the denoiser two packages of about half the weights, which small
    phones load where they cannot load the whole.
    """

    precision: Precision = "fp16"
    unit: UnitName = "npu"
    format: Literal["mlpackage"] = "mlpackage"
    deployment: Literal["iOS16", "iOS17", "iOS18"] = "iOS18"
    attention: Literal["sdpa", "split_einsum", "original"] = "sdpa"
    query_chunk: int = Field(default=0, ge=0)
    islands: Literal["auto"] | tuple[Literal["time", "norm", "softmax"], ...] = "auto"
    cache: Literal["io", "state"] = "io"
    chunks: Literal[1, 2] = 1
