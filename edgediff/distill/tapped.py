"""A network that also gives its features: taps are units of the graph, read as carries would be."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgediff.graph.units import UnitGraph
from edgediff.networks import evaluate

OUTSIDE = {"", "time_embedding", "conv_in", "conv_out"}


def choose_taps(graph: UnitGraph, level: str) -> tuple[str, ...]:
    """The last unit of every down, mid and up block (as in BK-SDM), or of every layer in them.

    A cut unit may be a tap: it passes its stream on, and that is what the block then gives.
    """
    last: dict[str, str] = {}
    for name in graph.live().run:
        unit = graph.by_name[name]
        if unit.block not in OUTSIDE:
            last[unit.layer if level == "layer" else unit.block] = name
    return tuple(last.values())


class TappedNetwork(nn.Module):
    """`forward(sample, timestep, text)` -> prediction and features, through the unit graph."""

    def __init__(self, network: nn.Module, graph: UnitGraph, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.graph, self.taps = network, graph, taps

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.graph.inputs, (sample, timestep, text), strict=True))
        value, written = evaluate(self.network, self.graph, self.graph.live(), inputs, writes=self.taps)
        return (value, *(written[tap] for tap in self.taps))

    def without_taps(self) -> TappedNetwork:
        """The same network, its prediction alone."""
        return TappedNetwork(self.network, self.graph, ())


def use_plain_attention(network: nn.Module) -> None:
    """Attention as plain matrix products: on a CPU its gradient is 1.6 times as fast."""
    from diffusers.models.attention_processor import AttnProcessor

    module: Any = network
    module.set_attn_processor(AttnProcessor())
