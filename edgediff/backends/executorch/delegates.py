"""What an ExecuTorch program may be handed to, ahead of time: one delegate per target, each with the forms it wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgediff.backends import check_precision
from edgediff.backends.executorch.rewrite import REWRITES
from edgediff.backends.executorch.served import delegate_name, precisions
from edgediff.errors import BackendError, unknown
from edgediff.plugins import import_or_explain

if TYPE_CHECKING:
    from edgediff.backends.executorch.ethos import Watch
    from edgediff.backends.executorch.settings import Settings


@dataclass(frozen=True)
class Delegate:
    """`partitioners` makes them anew for every method. `forms` are the rewrites of `_executorch_rewrite` that it
    wants. `backend_ids` are its names in a program. `may_leave`: operators may stay outside it. `halves`: for fp16 it
    wants a graph in halves, and text encoder and decoder stay fp32; others turn all fp32 graphs themselves. `quantize`
    makes integers of every component in the delegate's own way (program, calls, graph's name), `watch` is entered
    around lowering and keeps what the vendor's compiler says. `tools`: packages whose versions the manifest names."""

    name: str
    partitioners: Callable[[], list[Any]]
    forms: tuple[str, ...]
    backend_ids: tuple[str, ...]
    may_leave: bool
    halves: bool = False
    quantize: Callable[[Any, Sequence[Any], str], Any] | None = None
    watch: Callable[[], AbstractContextManager[Watch | None]] = nullcontext
    tools: tuple[str, ...] = ()


def find_delegate(table: Settings, precision: str) -> Delegate:
    """The delegate of a target's `[executorch]` table.

    Raises BackendError for an unknown one, for a precision that it has not, for what the installed ExecuTorch cannot
    lower to; MissingLibrary.
    """
    name = delegate_name(table)
    check_precision(f"executorch with delegate '{name}'", precision, precisions(table), where="[executorch]")
    return _MAKERS[name](table, precision)


def _xnnpack(table: Settings, precision: str) -> Delegate:
    return Delegate(
        "xnnpack",
        _xnnpack_partitioners,
        REWRITES,
        ("XnnpackBackend",),
        may_leave=True,
        halves=True,
    )


def _xnnpack_partitioners() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


def _coreml(table: Settings, precision: str) -> Delegate:
    """Core ML takes networks as they are; precision is its own affair (fp16 computes in halves, but for the
    sinusoid of a timestep)."""
    from edgediff.mil.package import import_coremltools

    import_coremltools("executorch")
    from edgediff.backends.executorch.coreml import watch_core_ml

    def make() -> list[Any]:
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        specs = CoreMLBackend.generate_compile_specs(
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18,
        )
        return [CoreMLPartitioner(compile_specs=specs), *_fallback(table)]

    return Delegate("coreml", make, ("identity",), ("CoreMLBackend",), table.fallback, watch=watch_core_ml)


def _vulkan(table: Settings, precision: str) -> Delegate:
    """Attention as PyTorch decomposes it holds infinities, which Vulkan's writer cannot spell."""

    def make() -> list[Any]:
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        options = {"force_fp16": True} if precision == "fp16" else {}
        return [VulkanPartitioner(options), *_fallback(table)]

    forms = ("attention", "split", "shapes", "identity")
    return Delegate("vulkan", make, forms, ("VulkanBackend",), table.fallback)


def _ethos_u(table: Settings, precision: str) -> Delegate:
    """With `fallback` the rest runs on the CPU's own kernels: beside an Ethos-U there need be no XNNPACK."""
    import_or_explain("tosa_serializer", needed_by="ethos-u")
    import_or_explain("ethosu.vela", needed_by="ethos-u")
    from edgediff.backends.executorch.ethos import compile_spec, quantize_for_npu, watch_vela

    compile_spec(table)  # an unknown chip is said now, not after calibration

    def make() -> list[Any]:
        from executorch.backends.arm.ethosu import EthosUPartitioner

        return [EthosUPartitioner(compile_spec(table))]

    def quantize(program: Any, calls: Sequence[Any], name: str) -> Any:
        return quantize_for_npu(program, calls, table, name, activation_bits=16 if precision == "w8a16" else 8)

    return Delegate(
        "ethos-u",
        make,
        REWRITES,
        ("EthosUBackend",),
        table.fallback,
        quantize=quantize,
        watch=watch_vela,
        tools=("tosa-tools", "ethos-u-vela"),
    )


def _qnn(table: Settings, precision: str) -> Delegate:
    """The wheel has the partitioner, and needs Qualcomm's SDK for all that it does."""
    import os

    if not os.environ.get("QNN_SDK_ROOT"):
        message = (
            "delegate 'qnn' needs the Qualcomm AI Engine Direct SDK: download it from Qualcomm, set QNN_SDK_ROOT to "
            "its folder, and build again; without it choose delegate 'xnnpack' (CPU) or backend 'onnxruntime'"
        )
        raise BackendError(message, where="[executorch]", code="delegate")

    def make() -> list[Any]:
        from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
        from executorch.backends.qualcomm.utils.utils import (
            generate_htp_compiler_spec,
            generate_qnn_executorch_compiler_spec,
        )

        chip = getattr(QcomChipset, table.chip, None)
        if chip is None:
            message = unknown("chip of delegate 'qnn'", table.chip, [one.name for one in QcomChipset])
            raise BackendError(message, where="[executorch]", code="delegate")
        options = generate_htp_compiler_spec(use_fp16=precision == "fp16")
        specs = generate_qnn_executorch_compiler_spec(soc_model=chip, backend_options=options)
        return [QnnPartitioner(specs), *_fallback(table)]

    return Delegate("qnn", make, ("split", "identity"), ("QnnBackend",), table.fallback)


def _fallback(table: Settings) -> list[Any]:
    return _xnnpack_partitioners() if table.fallback else []


_MAKERS: dict[str, Callable[[Settings, str], Delegate]] = {
    "xnnpack": _xnnpack,
    "coreml": _coreml,
    "vulkan": _vulkan,
    "ethos-u": _ethos_u,
    "qnn": _qnn,
}
