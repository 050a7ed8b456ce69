"""UNet2DConditionModel (Stable Diffusion 1.x, 2.x and SDXL) and UNet2DModel (DDPM, LDM: unconditional).

The order of operations is that of diffusers' own forward, so that a run of all units gives the same
bits. A *layer* is a resnet with the transformer behind it (the mid block's first resnet is a layer of
its own); below it, units are the resnet, the projections around a transformer, and the self-attention,
cross-attention and feed-forward of each transformer block. An unconditional network has one attention over
all places behind a resnet, its norm and residual included, in place of a transformer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError
from edgediff.graph.units import Role, Unit
from edgediff.networks import NetworkClass, module_parameters
from edgediff.networks._unet_options import check_options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.networks import Sizes

CLASSES = {
    "UNet2DConditionModel": NetworkClass(
        "text-to-image",
        needs=("vae", "text_encoder", "tokenizer"),
        may=(),
        conditions={"encoder_hidden_states": "text"},
    ),
    "UNet2DModel": NetworkClass("unconditional-image"),
}
ROLES: dict[str, Role] = {
    "time_embedding": "embedding",
    "conv_in": "entry",
    "sampler": "sampler",
    "resnet": "resnet",
    "projection_in": "projection",
    "projection_out": "projection",
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "feed_forward": "feed-forward",
    "spatial_attention": "self-attention",
    "conv_out": "exit",
}
INPUTS_ALONE = ("sample", "timestep")
INPUTS = (*INPUTS_ALONE, "encoder_hidden_states")
INPUTS_XL = (*INPUTS, "text_embeds", "time_ids")
ATTENTION = {"attn1": "self_attention", "attn2": "cross_attention", "ff": "feed_forward"}
NORMS = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}


def describe_units(model: nn.Module) -> tuple[tuple[Unit, ...], tuple[str, ...], str]:
    """Units in execution order, input names, and the unit whose value is the output.

    Raises ModelError for options that no release of these networks uses.
    """
    check_options(model)
    network: Any = model
    inputs = _inputs(network)
    time_reads = ("timestep", "sample", *inputs[3:])
    units = [
        Unit("time_embedding", "time_embedding", time_reads, block="time_embedding"),
        Unit("conv_in", "conv_in", ("sample",), block="conv_in"),
    ]
    stream, skips = "conv_in", ["conv_in"]
    for index, block in enumerate(network.down_blocks):
        for unit in _down_units(block, f"down_blocks.{index}", stream):
            units.append(unit)
            stream = unit.name
            if _closes_layer(block, unit):
                skips.append(stream)
    if network.mid_block is not None:
        for unit in _mid_units(network.mid_block, stream):
            units.append(unit)
            stream = unit.name
    for index, block in enumerate(network.up_blocks):
        for unit in _up_units(block, f"up_blocks.{index}", stream, skips):
            units.append(unit)
            stream = unit.name
    units.append(Unit("conv_out", "conv_out", (stream,), block="conv_out"))
    return tuple(units), inputs, "conv_out"


def run_unit(model: nn.Module, unit: Unit, reads: Sequence[Tensor]) -> Tensor:
    """The unit's output `[batch, *unit.shape]` from the values of `unit.reads`."""
    result: Tensor = _RUN[unit.kind](model, unit, *reads)
    return result


def pass_unit(model: nn.Module, unit: Unit, streams: Sequence[Tensor]) -> Tensor:
    """What is left of a cut unit: its input, or a resnet's 1x1 shortcut of the joined stream and skip."""
    import torch

    value = streams[0] if len(streams) == 1 else torch.cat(list(streams), dim=1)
    if unit.cutting != "shortcut":
        return value
    shortcut: Any = model.get_submodule(unit.name).conv_shortcut
    result: Tensor = shortcut(value)
    return result


def stream_parameters(model: nn.Module, unit: Unit) -> list[nn.Parameter]:
    """The parameters that stay when the unit is cut."""
    return module_parameters(model, [f"{unit.name}.conv_shortcut"]) if unit.cutting == "shortcut" else []


def unit_modules(unit: Unit) -> tuple[str, ...]:
    """Names of the modules that belong to the unit alone."""
    parent, _, last = unit.name.rpartition(".")
    match unit.kind:
        case "time_embedding":
            return ("time_proj", "time_embedding", "add_time_proj", "add_embedding")
        case "conv_out":
            return ("conv_norm_out", "conv_act", "conv_out")
        case "projection_in":
            return (f"{parent}.norm", unit.name)
        case "self_attention" | "cross_attention" | "feed_forward":
            return (f"{parent}.{NORMS[last]}", unit.name)
        case _:
            return (unit.name,)


def example_inputs(model: nn.Module, sizes: Sizes, batch: int = 1) -> dict[str, Tensor]:
    """Seeded standard normal inputs of the right shapes, on the model's device and in its dtype."""
    import torch

    network: Any = model
    generator = torch.Generator().manual_seed(1)
    parameter = next(network.parameters())

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(parameter.device, parameter.dtype)

    config = network.config
    inputs = {
        "sample": normal(batch, config.in_channels, sizes.height, sizes.width),
        "timestep": torch.full((1,), 501.0, device=parameter.device),
    }
    names = _inputs(network)
    if "encoder_hidden_states" in names:
        inputs["encoder_hidden_states"] = normal(batch, sizes.tokens, config.cross_attention_dim)
    if "text_embeds" in names:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        side = float(sizes.height * 8), float(sizes.width * 8)
        inputs["text_embeds"] = normal(batch, pooled)
        inputs["time_ids"] = torch.tensor([[*side, 0.0, 0.0, *side]], device=parameter.device).repeat(batch, 1)
    return inputs


# -- description ----------------------------------------------------------------------------------


def _inputs(network: Any) -> tuple[str, ...]:
    if type(network).__name__ == "UNet2DModel":
        return INPUTS_ALONE
    return INPUTS_XL if network.config.addition_embed_type == "text_time" else INPUTS


def _down_units(block: Any, name: str, stream: str) -> Iterator[Unit]:
    for index, _ in enumerate(block.resnets):
        for unit in _layer_units(block, name, index, stream, None):
            stream = unit.name
            yield unit
    if block.downsamplers is not None:
        yield _sampler_unit(block.downsamplers[0], f"{name}.downsamplers.0", stream, name)


def _mid_units(block: Any, stream: str) -> Iterator[Unit]:
    name = "mid_block"
    yield _resnet_unit(block.resnets[0], f"{name}.resnets.0", stream, None, name, f"{name}.layers.0")
    stream = f"{name}.resnets.0"
    for index, attention in enumerate(block.attentions):
        layer = f"{name}.layers.{index + 1}"
        for unit in _attention_units(attention, f"{name}.attentions.{index}", stream, name, layer):
            stream = unit.name
            yield unit
        resnet = f"{name}.resnets.{index + 1}"
        yield _resnet_unit(block.resnets[index + 1], resnet, stream, None, name, layer)
        stream = resnet


def _up_units(block: Any, name: str, stream: str, skips: list[str]) -> Iterator[Unit]:
    for index, _ in enumerate(block.resnets):
        for unit in _layer_units(block, name, index, stream, skips.pop()):
            stream = unit.name
            yield unit
    if block.upsamplers is not None:
        yield _sampler_unit(block.upsamplers[0], f"{name}.upsamplers.0", stream, name)


def _layer_units(block: Any, name: str, index: int, stream: str, skip: str | None) -> Iterator[Unit]:
    layer = f"{name}.layers.{index}"
    resnet = f"{name}.resnets.{index}"
    yield _resnet_unit(block.resnets[index], resnet, stream, skip, name, layer)
    if getattr(block, "attentions", None) is not None:
        attention = block.attentions[index]
        yield from _attention_units(attention, f"{name}.attentions.{index}", resnet, name, layer)


def _sampler_unit(sampler: Any, name: str, stream: str, block: str) -> Unit:
    """A convolution, or (`downsample_type` and `upsample_type` "resnet") a resnet that reads the time."""
    time = ("time_embedding",) if hasattr(sampler, "time_emb_proj") else ()
    return Unit(name, "sampler", (stream, *time), block=block, layer=name)


def _resnet_unit(resnet: Any, name: str, stream: str, skip: str | None, block: str, layer: str) -> Unit:
    streams = (stream,) if skip is None else (stream, skip)
    if resnet.conv_shortcut is not None:
        return Unit(name, "resnet", (*streams, "time_embedding"), streams, "shortcut", block, layer)
    if skip is not None:
        raise ModelError(f"resnet '{name}' joins a skip but has no shortcut convolution", code="unsupported")
    return Unit(name, "resnet", (*streams, "time_embedding"), streams, "identity", block, layer)


def _attention_units(module: Any, name: str, stream: str, block: str, layer: str) -> Iterator[Unit]:
    if module is None:  # a mid block without attention
        return
    if not hasattr(module, "transformer_blocks"):
        yield Unit(name, "spatial_attention", (stream,), (stream,), "identity", block, layer)
        return
    residual = stream
    yield Unit(f"{name}.proj_in", "projection_in", (stream,), (stream,), "identity", block, layer)
    stream = f"{name}.proj_in"
    for index, _ in enumerate(module.transformer_blocks):
        for part, kind in ATTENTION.items():
            unit = f"{name}.transformer_blocks.{index}.{part}"
            text = ("encoder_hidden_states",) if part == "attn2" else ()
            yield Unit(unit, kind, (stream, *text), (stream,), "identity", block, layer)
            stream = unit
    reads = (stream, residual)
    yield Unit(f"{name}.proj_out", "projection_out", reads, (residual,), "identity", block, layer)


def _closes_layer(block: Any, unit: Unit) -> bool:
    """Whether a down block hands this unit's value to the up path."""
    if getattr(block, "attentions", None) is None:
        return unit.kind in ("sampler", "resnet")
    return unit.kind in ("sampler", "projection_out", "spatial_attention")


# -- execution ------------------------------------------------------------------------------------


def _run_time(model: Any, unit: Unit, timestep: Tensor, sample: Tensor, *extra: Tensor) -> Tensor:
    import torch

    times = timestep.expand(sample.shape[0])
    embedded = model.time_embedding(model.time_proj(times).to(dtype=sample.dtype))
    if extra:
        text_embeds, time_ids = extra
        sizes = model.add_time_proj(time_ids.flatten()).reshape((text_embeds.shape[0], -1))
        embedded = embedded + model.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(embedded.dtype))
    result: Tensor = embedded
    return result


def _run_module(model: nn.Module, unit: Unit, value: Tensor, *time: Tensor) -> Tensor:
    result: Tensor = model.get_submodule(unit.name)(value, *time)
    return result


def _run_resnet(model: nn.Module, unit: Unit, *reads: Tensor) -> Tensor:
    import torch

    *streams, time = reads
    value = streams[0] if len(streams) == 1 else torch.cat(streams, dim=1)
    result: Tensor = model.get_submodule(unit.name)(value, time)
    return result


def _run_projection_in(model: nn.Module, unit: Unit, value: Tensor) -> Tensor:
    transformer: Any = model.get_submodule(unit.name.rpartition(".")[0])
    batch, _, height, width = value.shape
    value = transformer.norm(value)
    if transformer.use_linear_projection:
        value = value.permute(0, 2, 3, 1).reshape(batch, height * width, value.shape[1])
        result: Tensor = transformer.proj_in(value)
        return result
    value = transformer.proj_in(value)
    return value.permute(0, 2, 3, 1).reshape(batch, height * width, value.shape[1])


def _run_projection_out(model: nn.Module, unit: Unit, value: Tensor, residual: Tensor) -> Tensor:
    transformer: Any = model.get_submodule(unit.name.rpartition(".")[0])
    batch, _, height, width = residual.shape
    if transformer.use_linear_projection:
        value = transformer.proj_out(value)
    value = value.reshape(batch, height, width, value.shape[-1]).permute(0, 3, 1, 2).contiguous()
    if not transformer.use_linear_projection:
        value = transformer.proj_out(value)
    return value + residual


def _run_attention(model: nn.Module, unit: Unit, value: Tensor, text: Tensor | None = None) -> Tensor:
    parent, _, part = unit.name.rpartition(".")
    block: Any = model.get_submodule(parent)
    normed = getattr(block, NORMS[part])(value)
    if part == "ff":
        result: Tensor = block.ff(normed) + value
    else:
        result = getattr(block, part)(normed, encoder_hidden_states=text) + value
    return result


def _run_conv_out(model: Any, unit: Unit, value: Tensor) -> Tensor:
    result: Tensor = model.conv_out(model.conv_act(model.conv_norm_out(value)))
    return result


_RUN: dict[str, Any] = {
    "time_embedding": _run_time,
    "conv_in": _run_module,
    "sampler": _run_module,
    "resnet": _run_resnet,
    "projection_in": _run_projection_in,
    "projection_out": _run_projection_out,
    "conv_out": _run_conv_out,
    "self_attention": _run_attention,
    "cross_attention": _run_attention,
    "feed_forward": _run_attention,
    "spatial_attention": _run_module,
}
