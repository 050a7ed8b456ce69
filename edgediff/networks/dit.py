"""DiTTransformer2DModel: class-conditional diffusion transformers (DiT, arXiv 2212.09748), in latents or in pixels.

With x the tokens, c the conditioning and s, b, g the scales, shifts and gates that adaLN-Zero makes of c, block i is

    modulation  (b1, s1, g1, b2, s2, g2) of c            attn_add  x' = x + g1 attn
    attn        attention((1 + s1) norm(x) + b1)         mlp_add   x'' = x' + g2 mlp
    mlp         feed-forward((1 + s2) norm(x') + b2)

in the order of operations of diffusers' own forward, so that a run of all units gives the same bits. Attention and
feed-forward are units before their gates: held, they are taken with the gates of the current step (FORA, arXiv
2407.01425). The two residual additions are what passes the tokens on: cut, or with a cached change (Delta-DiT, arXiv
2406.01125), they are the identity plus that change, and liveness leaves out what fed them.

Every block of diffusers' class has an embedding of timestep and class of its own. That of the first block, which the
final layer reads too, is the unit `conditioning`; those of the others belong to their `modulation`. A network that
puts out twice its input channels has learned variances: its output here is the first half, the noise, which is what
DiTPipeline hands to samplers as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError
from edgediff.graph.units import Role, Unit
from edgediff.networks import NetworkClass

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.networks import Sizes

CLASSES = {
    "DiTTransformer2DModel": NetworkClass(
        "class-to-image",
        part="transformer",
        conditions={"class_labels": "class"},
        classes="num_embeds_ada_norm",
        saved_as=("Transformer2DModel",),  # published DiTs are older than their class
    )
}
ROLES: dict[str, Role] = {
    "conditioning": "embedding",
    "patch_embedding": "entry",
    "modulation": "modulation",
    "attention_branch": "self-attention",
    "mlp_branch": "feed-forward",
    "residual": "stream",
    "final": "exit",
}
INPUTS = ("sample", "timestep", "class_labels")
FIRST = "transformer_blocks.0"
PARTS = {"modulation": (), "attn": ("attn1",), "attn_add": (), "mlp": ("norm3", "ff"), "mlp_add": ()}


def describe_units(model: nn.Module) -> tuple[tuple[Unit, ...], tuple[str, ...], str]:
    """Units in execution order, input names, and the unit whose value is the output.

    Raises ModelError for a network without blocks, or whose output is neither as wide as its input nor twice that.
    """
    network: Any = model
    wide, narrow = network.out_channels, network.config.in_channels
    if wide not in (narrow, 2 * narrow):
        message = f"DiTTransformer2DModel puts out {wide} channels for {narrow}; {narrow} or {2 * narrow} are described"
        raise ModelError(message, code="unsupported")
    if not len(network.transformer_blocks):
        raise ModelError("DiTTransformer2DModel has no transformer blocks", code="unsupported")
    units = [
        Unit("conditioning", "conditioning", ("timestep", "class_labels"), block="conditioning"),
        Unit("patch_embedding", "patch_embedding", ("sample",), block="patch_embedding"),
    ]
    stream = "patch_embedding"
    for index, _ in enumerate(network.transformer_blocks):
        units += _block_units(f"transformer_blocks.{index}", stream)
        stream = units[-1].name
    units.append(Unit("final", "final", (stream, "conditioning"), block="final"))
    return tuple(units), INPUTS, "final"


def run_unit(model: nn.Module, unit: Unit, reads: Sequence[Tensor]) -> Tensor:
    """The unit's output `[batch, *unit.shape]` from the values of `unit.reads`."""
    result: Tensor = _RUN[unit.kind](model, unit, *reads)
    return result


def unit_modules(unit: Unit) -> tuple[str, ...]:
    """Names of the modules that belong to the unit alone."""
    match unit.kind:
        case "conditioning":
            return (f"{FIRST}.norm1.emb",)
        case "patch_embedding":
            return ("pos_embed",)
        case "final":
            return ("norm_out", "proj_out_1", "proj_out_2")
        case "modulation" if unit.block == FIRST:
            return (f"{unit.block}.norm1.linear",)
        case "modulation":
            return (f"{unit.block}.norm1",)
    last = unit.name.rpartition(".")[2]
    return tuple(f"{unit.block}.{module}" for module in PARTS[last])


def example_inputs(model: nn.Module, sizes: Sizes, batch: int = 1) -> dict[str, Tensor]:
    """Seeded inputs of the right shapes on the model's device: standard normal samples, classes below the count."""
    import torch

    network: Any = model
    generator = torch.Generator().manual_seed(1)
    parameter = next(network.parameters())
    sample = torch.randn(batch, network.config.in_channels, sizes.height, sizes.width, generator=generator)
    labels = torch.randint(network.config.num_embeds_ada_norm, (batch,), generator=generator)
    return {
        "sample": sample.to(parameter.device, parameter.dtype),
        "timestep": torch.full((1,), 501.0, device=parameter.device),
        "class_labels": labels.to(parameter.device),
    }


def _block_units(block: str, stream: str) -> Iterator[Unit]:
    attention, feed_forward, given = f"{block}.attention", f"{block}.feed_forward", f"{block}.modulation"
    reads = ("conditioning",) if block == FIRST else ("timestep", "class_labels")
    yield Unit(given, "modulation", reads, block=block)
    yield Unit(f"{block}.attn", "attention_branch", (stream, given), block=block, layer=attention)
    added = (stream, f"{block}.attn", given)
    yield Unit(f"{block}.attn_add", "residual", added, (stream,), "identity", block, attention)
    stream = f"{block}.attn_add"
    yield Unit(f"{block}.mlp", "mlp_branch", (stream, given), block=block, layer=feed_forward)
    added = (stream, f"{block}.mlp", given)
    yield Unit(f"{block}.mlp_add", "residual", added, (stream,), "identity", block, feed_forward)


# -- execution ------------------------------------------------------------------------------------


def _embed(embedder: Any, timestep: Tensor, labels: Tensor) -> Tensor:
    dtype = next(embedder.parameters()).dtype
    result: Tensor = embedder(timestep.expand(labels.shape[0]), labels, hidden_dtype=dtype)
    return result


def _run_conditioning(model: Any, unit: Unit, timestep: Tensor, labels: Tensor) -> Tensor:
    return _embed(model.get_submodule(f"{FIRST}.norm1.emb"), timestep, labels)


def _run_patch_embedding(model: Any, unit: Unit, sample: Tensor) -> Tensor:
    result: Tensor = model.pos_embed(sample)
    return result


def _run_modulation(model: Any, unit: Unit, *reads: Tensor) -> Tensor:
    norm: Any = model.get_submodule(f"{unit.block}.norm1")
    conditioning = reads[0] if unit.block == FIRST else _embed(norm.emb, *reads)
    result: Tensor = norm.linear(norm.silu(conditioning))
    return result


def _run_attention(model: Any, unit: Unit, tokens: Tensor, modulation: Tensor) -> Tensor:
    block: Any = model.get_submodule(unit.block)
    shift, scale, *_ = modulation.chunk(6, dim=1)
    result: Tensor = block.attn1(block.norm1.norm(tokens) * (1 + scale[:, None]) + shift[:, None])
    return result


def _run_mlp(model: Any, unit: Unit, tokens: Tensor, modulation: Tensor) -> Tensor:
    block: Any = model.get_submodule(unit.block)
    shift, scale = modulation.chunk(6, dim=1)[3:5]
    result: Tensor = block.ff(block.norm3(tokens) * (1 + scale[:, None]) + shift[:, None])
    return result


def _run_residual(model: Any, unit: Unit, tokens: Tensor, branch: Tensor, modulation: Tensor) -> Tensor:
    gate = modulation.chunk(6, dim=1)[2 if unit.name.endswith(".attn_add") else 5]
    return gate.unsqueeze(1) * branch + tokens


def _run_final(model: Any, unit: Unit, tokens: Tensor, conditioning: Tensor) -> Tensor:
    import torch
    from torch.nn import functional

    shift, scale = model.proj_out_1(functional.silu(conditioning)).chunk(2, dim=1)
    tokens = model.proj_out_2(model.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
    side, patch, channels = int(tokens.shape[1] ** 0.5), model.config.patch_size, model.out_channels
    patches = tokens.reshape(-1, side, side, patch, patch, channels)
    pixels = torch.einsum("nhwpqc->nchpwq", patches).reshape(-1, channels, side * patch, side * patch)
    return pixels[:, : model.config.in_channels]


_RUN: dict[str, Any] = {
    "conditioning": _run_conditioning,
    "patch_embedding": _run_patch_embedding,
    "modulation": _run_modulation,
    "attention_branch": _run_attention,
    "mlp_branch": _run_mlp,
    "residual": _run_residual,
    "final": _run_final,
}
