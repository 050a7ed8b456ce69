"""The table `[executorch]` of a target."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from edgediff.documents.target import BackendTable


class Settings(BackendTable):
    """`delegate` is `xnnpack` (the default), `coreml`, `vulkan`, `ethos-u` or `qnn`; with `fallback`, operators that
    it cannot take may run elsewhere (XNNPACK, then the CPU's own kernels), else they are an error. `format`: `ptd`
    keeps XNNPACK's weights in a file of their own. `query_chunk` queries of attention at a time (0: all) bound its
    memory. `chip` is the delegate's word for the hardware (`ethos-u85-256`, `SM8650`), where it wants one; `system`
    and `memory` are Vela's words for what is around an Ethos-U (empty: what ExecuTorch takes for the chip). There
    precision `w8a16` halves the rate of `w8a8`, and is 12 dB nearer to fp32 (Ethos-U85; smaller ones leave parts of a
    graph with it to the CPU).
    """

    renamed: ClassVar[dict[str, str]] = {
        **BackendTable.renamed,
        "activation_bits": 'write precision = "w8a8" for 8, "w8a16" for 16',
    }

    format: Literal["pte", "ptd"] = "pte"
    fallback: bool = False
    query_chunk: int = Field(default=0, ge=0)
    chip: str = ""
    system: str = ""
    memory: str = ""
