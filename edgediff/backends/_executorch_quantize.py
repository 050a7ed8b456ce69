"""Convolutions and linear layers in 8 bits, through PT2E: weights with a scale per output channel, activations with
one scale per tensor.

`static` scales of activations come from calibration trajectories, inputs and outputs of a layer alike; `dynamic` ones
are taken from each input when it is there, and outputs stay fp32. What is between layers (norms, softmax, sums) stays
fp32, and so do layers that are hardly any of the work but all of the signal: those with fewer than 16 channels on
either side (the first and the last), and those that see one vector per picture (the time embedding). Our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgediff.backends._executorch_rewrite import FIXED
from edgediff.errors import BackendError

ATEN = torch.ops.aten
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
NARROW = 16  # channels

Call = tuple[torch.Tensor, ...]


def quantize_program(program: Any, calls: Sequence[Call], *, dynamic: bool = False, name: str = "") -> Any:
    """The exported program with quantize and dequantize around its layers. `calls` are inputs along calibration
    trajectories.

    Raises BackendError (code `calibration`) where scales of activations are needed and no calls are given.
    """
    if not calls and not dynamic:
        raise BackendError(
            f"graph '{name}' in int8 needs calibration data and has none: build from a pipeline (`edgediff build` makes "
            'it from the recipe\'s calibration prompts), or set [executorch] activations = "dynamic" in the target',
            code="calibration",
        )
    return run_pt2e(program, LayerQuantizer(dynamic=dynamic), calls)


def run_pt2e(program: Any, quantizer: Quantizer, calls: Sequence[Call]) -> Any:
    """Prepares, runs the calls through the observers, converts, exports again."""
    example = program.example_inputs[0]
    with torch.no_grad():
        prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
        for call in calls or (example,):
            prepared(*call)
        return torch.export.export(convert_pt2e(prepared), example, strict=False)


class LayerQuantizer(Quantizer):
    """Annotates the layers that are worth it; see the module's text."""

    def __init__(self, *, dynamic: bool) -> None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config

        super().__init__()
        self._dynamic = dynamic
        self._config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in LAYERS and worth_bits(node):
                source, weight = node.args[0], node.args[1]
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={source: self._config.input_activation, weight: self._config.weight},
                    output_qspec=None if self._dynamic else self._config.output_activation,
                    _annotated=True,
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing can be wrong with a graph that only we annotate."""


def worth_bits(node: fx.Node) -> bool:
    """Whether a layer has weights of the network, at least `NARROW` channels, and more than one place per picture."""
    source, weight = node.args[0], node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or str(weight.target).startswith(FIXED):
        return False
    shape, kernel = source.meta["val"].shape, weight.meta["val"].shape if "val" in weight.meta else None
    if kernel is None:
        kernel = getattr(node.graph.owning_module, str(weight.target)).shape
    places = shape[2:] if node.target is ATEN.conv2d.default else shape[1:-1]
    return min(kernel[:2]) >= NARROW and bool(places) and max(places) > 1
