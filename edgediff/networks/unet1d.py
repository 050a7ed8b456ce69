"""UNet1DModel as Dance Diffusion uses it: sound, `[batch, channels, samples]`, unconditional.

The time is a Fourier embedding (no network of its own) that the first block reads beside its input, at every sample.
A *layer* is a residual pair of convolutions with the attention over all samples behind it; a block of the down path
halves the samples first, one of the up path doubles them last. Its first layer joins the skip from the down path.

The order of operations is that of diffusers' own forward but for the resampling: diffusers fills a dense kernel
`[channels, channels, 8]` with one filter on its diagonal at every call; here that filter runs over each channel by
itself, which is the same sum without the zeros, `channels` times less work, and a constant to every exporter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError
from edgediff.graph.units import Cutting, Role, Unit
from edgediff.networks import NetworkClass, module_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.networks import Sizes

CLASSES = {"UNet1DModel": NetworkClass("unconditional-audio")}
ROLES: dict[str, Role] = {
    "time_embedding": "embedding",
    "resnet": "resnet",
    "spatial_attention": "self-attention",
    "sampler": "sampler",
}
INPUTS = ("sample", "timestep")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("fourier",),
    "use_timestep_embedding": (False,),
    "out_block_type": (None,),
    "mid_block_type": ("UNetMidBlock1D",),
    "downsample_each_block": (False,),
}
FIRST, DOWN = "DownBlock1DNoSkip", ("DownBlock1D", "AttnDownBlock1D")
LAST, UP = "UpBlock1DNoSkip", ("AttnUpBlock1D", "UpBlock1D")


def describe_units(model: nn.Module) -> tuple[tuple[Unit, ...], tuple[str, ...], str]:
    """Units in execution order, input names, and the unit whose value is the output.

    Raises ModelError for options and blocks that no network for sound uses.
    """
    network: Any = model
    _check_options(network.config)
    units = [Unit("time_embedding", "time_embedding", ("timestep", "sample"), block="time_embedding")]
    stream, skips = "sample", []
    for index, block in enumerate(network.down_blocks):
        for unit in _block_units(block, f"down_blocks.{index}", stream, beside="time_embedding" if not index else None):
            units.append(unit)
            stream = unit.name
        skips.append(stream)
    for unit in _block_units(network.mid_block, "mid_block", stream):
        units.append(unit)
        stream = unit.name
    for index, block in enumerate(network.up_blocks):
        last = index == len(network.up_blocks) - 1
        for unit in _block_units(block, f"up_blocks.{index}", stream, beside=skips.pop(), last=last):
            units.append(unit)
            stream = unit.name
    return tuple(units), INPUTS, stream


def run_unit(model: nn.Module, unit: Unit, reads: Sequence[Tensor]) -> Tensor:
    """The unit's output `[batch, *unit.shape]` from the values of `unit.reads`."""
    result: Tensor = _RUN[unit.kind](model, unit, *reads)
    return result


def pass_unit(model: nn.Module, unit: Unit, streams: Sequence[Tensor]) -> Tensor:
    """What is left of a cut unit: its input, or a layer's 1x1 convolution of the joined stream and skip."""
    import torch

    value = streams[0] if len(streams) == 1 else torch.cat(list(streams), dim=1)
    if unit.cutting != "shortcut":
        return value
    shortcut: Any = model.get_submodule(unit.name).conv_skip
    result: Tensor = shortcut(value)
    return result


def stream_parameters(model: nn.Module, unit: Unit) -> list[nn.Parameter]:
    """The parameters that stay when the unit is cut."""
    return module_parameters(model, [f"{unit.name}.conv_skip"]) if unit.cutting == "shortcut" else []


def unit_modules(unit: Unit) -> tuple[str, ...]:
    """Names of the modules that belong to the unit alone."""
    return ("time_proj",) if unit.kind == "time_embedding" else (unit.name,)


def latent_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels and samples."""
    return int(config["in_channels"]), int(config["sample_size"])


def example_inputs(model: nn.Module, sizes: Sizes, batch: int = 1) -> dict[str, Tensor]:
    """Seeded standard normal sound of `sizes.width` samples, and a time between 0 and 1, on the model's device."""
    import torch

    network: Any = model
    parameter = next(network.parameters())
    sample = torch.randn(batch, network.config.in_channels, sizes.width, generator=torch.Generator().manual_seed(1))
    return {
        "sample": sample.to(parameter.device, parameter.dtype),
        "timestep": torch.full((1,), 0.5, device=parameter.device),
    }


# -- description ----------------------------------------------------------------------------------


def _check_options(config: Any) -> None:
    for key, allowed in OPTIONS.items():
        if config.get(key, allowed[0]) not in allowed:
            message = f"UNet1DModel option {key} = {config[key]!r} is not described (allowed: {allowed})"
            raise ModelError(message, code="unsupported")
    paths = ((FIRST, *config.down_block_types[1:]), (*config.up_block_types[:-1], LAST))
    for have, wanted, known in zip((config.down_block_types, config.up_block_types), paths, (DOWN, UP), strict=True):
        if tuple(have) != wanted or not set(wanted) - {FIRST, LAST} <= set(known):
            message = f"UNet1DModel with blocks {tuple(have)} is not described; {FIRST} first, {LAST} last, and between"
            raise ModelError(f"{message} them {', '.join((*DOWN, *UP))} are", code="unsupported")
    width = config.get("time_embedding_dim") or 2 * config.block_out_channels[0]
    if config.extra_in_channels != width:
        message = f"the first block takes {config.extra_in_channels} channels of time (extra_in_channels), the time has"
        raise ModelError(f"{message} {width}; set time_embedding_dim in config.json to match", code="unsupported")


def _block_units(
    block: Any, name: str, stream: str, *, beside: str | None = None, last: bool = False
) -> Iterator[Unit]:
    """`beside` is what the first layer reads joined to the stream: the time, or a skip."""
    if hasattr(block, "down"):
        yield Unit(f"{name}.down", "sampler", (stream,), block=name, layer=f"{name}.down")
        stream = f"{name}.down"
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for index, (resnet, attention) in enumerate(zip(block.resnets, attentions, strict=True)):
        layer, unit = f"{name}.layers.{index}", f"{name}.resnets.{index}"
        streams = (stream, beside) if beside and not index else (stream,)
        ends = beside == "time_embedding" and not index, last and index == len(block.resnets) - 1
        cutting: Cutting = "protected" if any(ends) else _cutting(resnet, streams)
        yield Unit(unit, "resnet", streams, () if cutting == "protected" else streams, cutting, name, layer)
        stream = unit
        if attention is not None:
            unit = f"{name}.attentions.{index}"
            yield Unit(unit, "spatial_attention", (stream,), (stream,), "identity", name, layer)
            stream = unit
    if hasattr(block, "up"):
        yield Unit(f"{name}.up", "sampler", (stream,), block=name, layer=f"{name}.up")


def _cutting(resnet: Any, streams: tuple[str, ...]) -> Cutting:
    """A layer that joins a skip and keeps its width has no convolution that would stand in for it."""
    if resnet.has_conv_skip:
        return "shortcut"
    return "identity" if len(streams) == 1 else "protected"


# -- execution ------------------------------------------------------------------------------------


def _run_time(model: Any, unit: Unit, timestep: Tensor, sample: Tensor) -> Tensor:
    """`[batch, channels]`."""
    result: Tensor = model.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype)
    return result


def _run_resnet(model: nn.Module, unit: Unit, *streams: Tensor) -> Tensor:
    import torch

    value = streams[0]
    if len(streams) == 2:
        beside = streams[1] if streams[1].dim() == 3 else streams[1][..., None].expand(-1, -1, value.shape[2])
        value = torch.cat([value, beside], dim=1)
    result: Tensor = model.get_submodule(unit.name)(value)
    return result


def _run_attention(model: nn.Module, unit: Unit, value: Tensor) -> Tensor:
    result: Tensor = model.get_submodule(unit.name)(value)
    return result


def _run_sampler(model: nn.Module, unit: Unit, value: Tensor) -> Tensor:
    """Half or twice the samples, each channel by the module's filter."""
    from torch.nn import functional

    module: Any = model.get_submodule(unit.name)
    channels = value.shape[1]
    kernel = module.kernel.to(value).expand(channels, 1, -1)
    if unit.name.endswith(".down"):
        value = functional.pad(value, (module.pad,) * 2, module.pad_mode)
        return functional.conv1d(value, kernel, stride=2, groups=channels)
    value = functional.pad(value, ((module.pad + 1) // 2,) * 2, module.pad_mode)
    return functional.conv_transpose1d(value, kernel, stride=2, padding=module.pad * 2 + 1, groups=channels)


_RUN: dict[str, Any] = {
    "time_embedding": _run_time,
    "resnet": _run_resnet,
    "spatial_attention": _run_attention,
    "sampler": _run_sampler,
}
