"""What each delegate of an ExecuTorch program computes at each precision that it serves."""

from __future__ import annotations

from collections.abc import Mapping

from edgediff.backends.executorch.settings import Settings
from edgediff.errors import BackendError, unknown

DEFAULT = "xnnpack"
SERVED: dict[str, dict[str, str]] = {
    "xnnpack": {
        "fp32": "all in fp32",
        "fp16": "the denoiser in fp16 behind its time embedding, text encoder and decoder in fp32",
        "w8a8": "convolutions and linear layers of the denoiser in 8-bit integers, scales from calibration; the rest "
        "in fp32",
        "w4a8": "linear layers of the denoiser from 4-bit weights with a scale per group, their inputs in 8 bits, "
        "scaled as they come; the rest in fp32; wants [weights] format w4/32 or another group",
    },
    "coreml": {"fp32": "all in fp32", "fp16": "all in fp16 but the sinusoid of the timestep"},
    "vulkan": {"fp32": "all in fp32", "fp16": "all in fp16"},
    "ethos-u": {
        "w8a8": "all in 8-bit integers, scales from calibration, but the sinusoid of the timestep and the look-up of "
        "tokens",
        "w8a16": "the same with activations in 16-bit integers",
    },
    "qnn": {"fp16": "all in fp16"},
}


def delegate_name(table: Settings) -> str:
    """The delegate of a target's `[executorch]` table. Raises BackendError for an unknown one."""
    name = table.delegate or DEFAULT
    if name not in SERVED:
        raise BackendError(unknown("delegate", name, SERVED), where="[executorch]", code="delegate")
    return name


def precisions(table: Settings) -> Mapping[str, str]:
    """What each precision that the target's delegate serves computes."""
    return SERVED[delegate_name(table)]
