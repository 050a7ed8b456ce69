"""Which weights take how many bits: one format for all, or a choice per layer by measured sensitivity.

For each layer l of the denoiser its weights alone are coded in a probe format p, and the mean squared error D_l of
the network's output (after guidance) is measured on calls along the calibration trajectories. Errors of layers hardly
interact and grow with the square of the weights' error, so that a format f costs

    D_l(f) = D_l ||W_l - Q_f(W_l)||^2 / ||W_l - Q_p(W_l)||^2

and the whole network the sum over layers. Formats are raised from the smallest, each time the one that saves most
error per bit, along the lower convex hull of every layer, until the mean reaches the budget. Measuring takes one pass
of the network per layer; the errors of formats take none. Sizes count tables and scales.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgediff.documents.plan import Plan, WeightPlan
from edgediff.documents.recipe import Recipe
from edgediff.documents.weight_format import parse_format
from edgediff.errors import ConfigError
from edgediff.plugins import Progress
from edgediff.runtime.precision import weight_bits
from edgediff.sampling.trace import Trace, asked_guidance, own_denoiser, record_trace
from edgediff.weight_codes import MIN_WEIGHTS, decode, encode

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

CALLS = 4  # network calls that sensitivity is measured on, spread over the trajectory
PROMPTS = 2


@dataclass(frozen=True)
class Layer:
    """One weight: its output error in the probe format, and per format its squared weight error and its bits."""

    name: str
    count: int
    probe_loss: float
    errors: Mapping[str, float]
    bits: Mapping[str, int]
    probe: str

    def loss(self, chosen: str) -> float:
        """The predicted output error of a format."""
        return self.probe_loss * self.errors[chosen] / self.errors[self.probe] if self.errors[self.probe] else 0.0


def plan_weights(pipeline: Pipeline, recipe: Recipe, plan: Plan, progress: Progress | None = None) -> Plan:
    """The plan with the recipe's `[weights]` decided: unchanged where it asks for no format. Raises ConfigError where
    they contradict a backend's precision."""
    table = recipe.weights
    _check_bits(recipe, plan)
    if table.format:
        return plan.model_copy(update={"weights": WeightPlan(format=table.format)})
    if table.bits is None:
        return plan
    small = recipe.calibration.model_copy(update={"prompts": min(PROMPTS, recipe.calibration.prompts)})
    trace = record_trace(pipeline, recipe.model_copy(update={"calibration": small}), progress)
    cut = {cut.unit for cut in plan.cuts}
    layers = measure_layers(pipeline, recipe, trace, table.choices, skip=cut, progress=progress)
    chosen = choose_formats(layers, table.bits)
    spent = sum(layer.bits[chosen[layer.name]] for layer in layers)
    mean = spent / sum(layer.count for layer in layers)
    rest = min(table.choices, key=lambda word: abs(parse_format(word).bits - table.bits))  # type: ignore[operator]
    return plan.model_copy(update={"weights": WeightPlan(format=rest, layers=chosen, bits=round(mean, 4))})


def _check_bits(recipe: Recipe, plan: Plan) -> None:
    """A precision that says in how many bits weights are stored goes with no other number of bits."""
    table = recipe.weights
    words = [table.format] if table.format else [] if table.bits is None else list(table.choices)
    for name, backend in plan.backends.items():
        bits = weight_bits(backend.precision)
        for word in words:
            found = parse_format(word)
            if bits is not None and (found.kind, found.bits, found.sparse) != ("w", bits, 0):
                raise ConfigError(
                    f"[weights] codes weights as '{word}', and precision '{backend.precision}' of backend '{name}' "
                    f"stores them as w{bits}; write precision = \"fp16\" (or another floating one) for '{word}', or "
                    "leave [weights] out",
                    where=f"recipe '{recipe.name}'",
                    code="format",
                )


def measure_layers(
    pipeline: Pipeline,
    recipe: Recipe,
    trace: Trace,
    choices: Sequence[str],
    *,
    skip: set[str] = frozenset(),  # type: ignore[assignment]
    progress: Progress | None = None,
) -> list[Layer]:
    """Sensitivity of every linear and convolution weight of the untouched denoiser that is large enough to code.

    `skip` names units that are cut. The network is as it was when this returns.
    """
    probe = sorted(choices, key=lambda word: parse_format(word).bits)[(len(choices) - 1) // 2]
    run = _runner(pipeline, recipe, trace)
    reference = run()
    weights = [
        (name, module)
        for name, module in pipeline.denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        and module.weight.numel() >= MIN_WEIGHTS
        and not any(name == unit or name.startswith(f"{unit}.") for unit in skip)
    ]
    layers = []
    for index, (name, module) in enumerate(weights):
        kept = module.weight.data
        half = kept.numpy().astype(np.float16)
        coded = {word: _coded(half, word) for word in {*choices, probe}}
        errors = {word: float(((value - kept.numpy()) ** 2).sum()) for word, value in coded.items()}
        module.weight.data = torch.from_numpy(coded[probe])
        try:
            loss = float(((run() - reference) ** 2).mean())
        finally:
            module.weight.data = kept
        sizes = {word: parse_format(word).size_bits(tuple(half.shape)) for word in choices}
        layers.append(Layer(f"{name}.weight", half.size, loss, errors, sizes, probe))
        if progress is not None:
            progress("measuring how layers take fewer bits", index + 1, len(weights))
    return layers


def choose_formats(layers: Sequence[Layer], mean_bits: float) -> dict[str, str]:
    """Layer -> format with the least predicted error whose bits per weight come to `mean_bits` at most (or to the
    smallest formats', where these are more)."""
    chosen: dict[str, str] = {}
    spent, budget = 0, mean_bits * sum(layer.count for layer in layers)
    steps: list[tuple[float, int, int]] = []  # (- error saved per bit, layer, position on its hull)
    hulls = [_hull(layer) for layer in layers]
    for index, (layer, hull) in enumerate(zip(layers, hulls, strict=True)):
        chosen[layer.name] = hull[0]
        spent += layer.bits[hull[0]]
        _push(steps, layer, hull, index, 0)
    while steps:
        _, index, place = heapq.heappop(steps)
        layer, hull = layers[index], hulls[index]
        more = layer.bits[hull[place + 1]] - layer.bits[hull[place]]
        if spent + more > budget:
            continue  # a smaller layer may still fit
        spent += more
        chosen[layer.name] = hull[place + 1]
        _push(steps, layer, hull, index, place + 1)
    return chosen


def _push(steps: list[tuple[float, int, int]], layer: Layer, hull: list[str], index: int, place: int) -> None:
    if place + 1 < len(hull):
        low, high = hull[place], hull[place + 1]
        gain = (layer.loss(low) - layer.loss(high)) / max(layer.bits[high] - layer.bits[low], 1)
        heapq.heappush(steps, (-gain, index, place))


def _hull(layer: Layer) -> list[str]:
    """The formats on the lower convex hull of error over bits, from the smallest."""
    hull: list[str] = []
    for word in sorted(layer.bits, key=lambda word: (layer.bits[word], layer.loss(word))):
        if hull and layer.loss(word) >= layer.loss(hull[-1]):
            continue
        while len(hull) >= 2 and _slope(layer, hull[-2], hull[-1]) >= _slope(layer, hull[-1], word):
            hull.pop()
        hull.append(word)
    return hull


def _slope(layer: Layer, low: str, high: str) -> float:
    """Error per bit from one format to the next: negative, and rising along a convex hull."""
    return (layer.loss(high) - layer.loss(low)) / max(layer.bits[high] - layer.bits[low], 1)


def _coded(half: Any, word: str) -> Any:
    """The weights that a format stands for, fp32; in fp16 where its groups do not fit."""
    encoded = encode(half, parse_format(word))
    return np.ascontiguousarray((half if encoded is None else decode(encoded)).astype(np.float32))


def _runner(pipeline: Pipeline, recipe: Recipe, trace: Trace) -> Callable[[], Tensor]:
    """Computes the guided outputs of the calls that stand for the trajectory."""
    network = own_denoiser(pipeline)
    total = len(trace.timesteps)
    scales = asked_guidance(pipeline, recipe.guidance, total)
    picked = sorted({round(float(place)) for place in np.linspace(0, total - 1, min(CALLS, total))})
    given, null = pipeline.conditions(list(trace.prompts))
    both = {name: torch.cat([empty.expand_as(given[name]), given[name]]) for name, empty in null.items()}

    def run() -> Tensor:
        outputs = []
        with torch.inference_mode():
            for index in picked:
                sample, time, scale = trace.inputs[:, index], trace.timesteps[index], scales[index]
                side = given if scale is None else both
                value = sample if scale is None else torch.cat([sample, sample])
                found = network(value, time[None], side)
                if scale is not None:
                    empty, text = found.chunk(2)
                    found = empty + scale * (text - empty)
                outputs.append(found)
        return torch.cat(outputs)

    return run
