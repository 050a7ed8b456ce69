"""The network family `mixer`: `edgediff.networks.Family` says what each member is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.graph.units import Role, Unit
from edgediff.networks import NetworkClass, Sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = {"MixerDenoiser": NetworkClass("unconditional-image", part="mixer")}
ROLES: dict[str, Role] = {"time": "embedding", "entry": "entry", "layer": "feed-forward", "exit": "exit"}


def describe_units(model: nn.Module) -> tuple[tuple[Unit, ...], tuple[str, ...], str]:
    units = [
        Unit("time", "time", ("timestep", "sample"), block="time"),
        Unit("entry", "entry", ("sample",), block="entry"),
    ]
    stream = "entry"
    network: Any = model
    for index, _ in enumerate(network.layers):
        name = f"layers.{index}"
        units.append(Unit(name, "layer", (stream, "time"), (stream,), "identity", block=name, layer=name))
        stream = name
    units.append(Unit("exit", "exit", (stream, "sample"), block="exit"))
    return tuple(units), ("sample", "timestep"), "exit"


def run_unit(model: nn.Module, unit: Unit, reads: Sequence[Tensor]) -> Tensor:
    network: Any = model
    match unit.kind:
        case "time":
            found: Tensor = network.embed(reads[0], reads[1].shape[0])
        case "entry":
            found = network.entry(reads[0].flatten(1))
        case "layer":
            found = network.get_submodule(unit.name)(*reads)
        case _:
            found = network.exit(reads[0]).reshape(reads[1].shape)
    return found


def forward(model: nn.Module, sample: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = model(sample, timestep)
    return found


def example_inputs(model: nn.Module, sizes: Sizes, batch: int = 1) -> dict[str, Tensor]:
    import torch

    network: Any = model
    parameter = next(network.parameters())
    shape = (batch, network.config["in_channels"], sizes.height, sizes.width)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return {
        "sample": sample.to(parameter.device, parameter.dtype),
        "timestep": torch.full((1,), 501.0, device=parameter.device),
    }


def make(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    from edgediff_outside.network import MixerDenoiser

    return MixerDenoiser(dict(config))


def load(class_name: str, folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    network = make(class_name, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network
