"""Convolutions and linear layers in 8 bits, through PT2E: weights with a scale per output channel, activations with
one scale per tensor.

Scales of activations come from calibration trajectories, for inputs and outputs of a layer alike. What is between
layers (norms, softmax, sums) stays fp32, and so do layers that are hardly any of the work but all of the signal: those
with fewer than 16 channels on either side (the first and the last), and those that see one vector per picture (the
time embedding). Our choice. That is `w8a8`; `w4a8` has weights of 4 bits in linear layers alone, in groups, with
activations of 8 bits whose scales are taken from each token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgediff.backends.executorch.rewrite import FIXED
from edgediff.errors import BackendError

ATEN = torch.ops.aten
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
NARROW = 16  # channels

Call = tuple[torch.Tensor, ...]


def quantize_program(program: Any, calls: Sequence[Call], *, name: str = "") -> Any:
    """The exported program with quantize and dequantize around its layers. `calls` are inputs along calibration
    trajectories.

    Raises BackendError (code `calibration`) when no calls are given.
    """
    if not calls:
        raise BackendError(
            f"graph '{name}' in w8a8 needs calibration data and has none: build it with `edgediff build`, which makes "
            "pictures of calibration prompts, or give Variants.calibration",
            code="calibration",
        )
    return run_pt2e(program, LayerQuantizer(), calls)


def run_pt2e(program: Any, quantizer: Quantizer, calls: Sequence[Call]) -> Any:
    """Prepares, runs the calls through the observers, converts, exports again."""
    example = program.example_inputs[0]
    with torch.no_grad():
        prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
        for call in calls:
            prepared(*call)
        return torch.export.export(convert_pt2e(prepared), example, strict=False)


def group_linears(module: nn.Module, example: Call, group: int) -> nn.Module:
    """A copy whose linear layers have weights of 4 bits with a scale per `group` inputs, and take their inputs in 8
    bits with scales from each token (torchao's 8da4w, symmetric weights). Its other tensors are the module's own.

    Left out: what `worth_bits` leaves out, and layers whose inputs the group does not divide. Raises BackendError (code
    `precision`) when no layer is left.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    made = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    chosen = {
        layer
        for layer, places in _linear_places(made, example).items()
        if places > 1 and layer.in_features % group == 0 and min(layer.weight.shape) >= NARROW
    }
    if not chosen:
        message = f"no linear layer here takes weights in groups of {group}: their inputs are no multiple of it"
        raise BackendError(f"{message}; choose another [weights] format", code="precision")
    bits = torch.int4  # type: ignore[attr-defined]
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=bits, weight_granularity=PerGroup(group))
    quantize_(made, config, filter_fn=lambda layer, name: layer in chosen)
    return made


def _linear_places(module: nn.Module, example: Call) -> dict[nn.Linear, int]:
    """Linear layer -> at how many places of a picture or a text it is applied."""
    found: dict[nn.Linear, int] = {}

    def note(layer: Any, inputs: Any) -> None:
        found[layer] = max(inputs[0].shape[1:-1], default=1)

    hooks = [one.register_forward_pre_hook(note) for one in module.modules() if isinstance(one, nn.Linear)]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class LayerQuantizer(Quantizer):
    """Annotates the layers that are worth it; see the module's text."""

    def __init__(self) -> None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config

        super().__init__()
        self._config = get_symmetric_quantization_config(is_per_channel=True)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in LAYERS and worth_bits(node):
                source, weight = node.args[0], node.args[1]
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={source: self._config.input_activation, weight: self._config.weight},
                    output_qspec=self._config.output_activation,
                    _annotated=True,
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing can be wrong with a graph that only we annotate."""


def worth_bits(node: fx.Node) -> bool:
    """Whether a layer has weights of the network, at least `NARROW` channels, and more than one place per picture."""
    source: Any = node.args[0]
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or str(weight.target).startswith(FIXED):
        return False
    shape, kernel = source.meta["val"].shape, weight.meta["val"].shape if "val" in weight.meta else None
    if kernel is None:
        kernel = getattr(node.graph.owning_module, str(weight.target)).shape
    places: Any = shape[2:] if node.target is ATEN.conv2d.default else shape[1:-1]
    return min(kernel[:2]) >= NARROW and bool(places) and max(places) > 1
