"""A-SDM's multi-expert conditional convolutions, routed by the timestep (arXiv 2312.15516, 2406.00210).

A convolution that stays works with a mixture of kernels: its own, and as experts those of the removed convolutions
of its stage that have its shape,

    W_p = W + sum_e m[p, e] E_e          p: the phase of the timestep, m[p, e] = 0 at first

so that training starts at the cut network itself and a phase's kernel can be merged when it is saved: a phone never
mixes kernels, it runs a graph for each phase. The abstracts speak of several experts, of routing, and of the removed
convolutions' parameters; that routing looks at the timestep's phase alone and not at the features (which no static
graph could merge), is linear and without a sigmoid, and which kernels make a group, are our choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgediff.distill.tapped import TappedNetwork
from edgediff.errors import MethodError

if TYPE_CHECKING:
    from edgediff.graph.units import UnitGraph


GAIN = 10.0  # how much faster shares move than weights: all steps of AdamW have one size, and theirs start at 0


def find_experts(whole: nn.Module, cut: UnitGraph) -> dict[str, tuple[str, ...]]:
    """Convolution that stays -> removed ones of its block with the same kernel's shape; `whole` is the untouched
    network. Raises MethodError when no convolution has any."""
    live = set(cut.computed(cut.live()))
    stay: dict[tuple[object, ...], list[str]] = {}
    gone: dict[tuple[object, ...], list[str]] = {}
    for unit in cut.units:
        for operator in unit.operators:
            if operator.kind == "conv" and operator.name not in cut.by_name:
                module: nn.Conv2d = whole.get_submodule(operator.name)  # type: ignore[assignment]
                stays = unit.name in live and operator.name not in cut.cuts
                group = (unit.block, tuple(module.weight.shape))
                (stay if stays else gone).setdefault(group, []).append(operator.name)
    found = {name: tuple(gone[group]) for group, names in stay.items() if group in gone for name in names}
    if not found:
        raise MethodError(
            "phases need experts, and no convolution that was cut has the shape of one that stays in its block; set "
            "phases = 1, or cut whole resnets",
            code="no_experts",
        )
    return found


class Experts(nn.Module):
    """The cut network, and for every conditional convolution its experts `[experts, *kernel]` and how much of each a
    phase takes, `[phases, experts]`, kept over `GAIN`."""

    def __init__(self, body: nn.Module, whole: nn.Module, groups: Mapping[str, tuple[str, ...]], phases: int) -> None:
        super().__init__()
        self.body, self.phases, self.names = body, phases, tuple(groups)
        kernels = {
            name: torch.stack([whole.get_parameter(f"{one}.weight").detach() for one in group])
            for name, group in groups.items()
        }
        self.kernels = nn.ParameterDict({_key(name): nn.Parameter(value) for name, value in kernels.items()})
        self.shares = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(phases, len(value), device=value.device))
                for name, value in kernels.items()
            }
        )

    def merge(self, phase: int) -> dict[str, Tensor]:
        """Names of the body's parameters that depend on the phase, and their values in it."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            own = self.body.get_parameter(f"{name}.weight")
            share, kernels = GAIN * self.shares[_key(name)][phase], self.kernels[_key(name)]
            found[f"{name}.weight"] = own + (share.view(-1, 1, 1, 1, 1) * kernels).sum(0)  # fp32 under autocast too
        return found


class RoutedNetwork(TappedNetwork):
    """`forward(sample, timestep, text)` -> prediction and features: every sample through its phase's kernels. Of
    `times` training timesteps each phase has an equal part, the noisiest first."""

    network: Experts

    def __init__(self, experts: Experts, graph: UnitGraph, taps: tuple[str, ...], times: int) -> None:
        super().__init__(experts, graph, taps)
        self.times = times
        self._body = (TappedNetwork(experts.body, graph, taps),)  # in a tuple: its parameters are ours already

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        place = phase_of(timestep, self.times, self.network.phases)
        order: list[Tensor] = []
        parts: list[tuple[Tensor, ...]] = []
        for phase in range(self.network.phases):
            rows = (place == phase).nonzero().flatten()
            if len(rows):
                kernels = {f"network.{name}": value for name, value in self.network.merge(phase).items()}
                parts.append(functional_call(self._body[0], kernels, (sample[rows], timestep[rows], text[rows])))
                order.append(rows)
        back = torch.cat(order).argsort()
        return tuple(torch.cat(values)[back] for values in zip(*parts, strict=True))

    def without_taps(self) -> RoutedNetwork:
        return RoutedNetwork(self.network, self.graph, (), self.times)


def phase_of(timestep: Tensor, times: int, phases: int) -> Tensor:
    """`[n]` int64, 0 for the noisiest part of the training timesteps 0 to `times` - 1."""
    part = (timestep.double() * phases / times).floor().long().clamp(0, phases - 1)
    return phases - 1 - part


def _key(name: str) -> str:
    """A parameter's name has no dots."""
    return name.replace(".", "/")
