"""Options of diffusers' U-Nets that are described, and those that no release of such a model uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

CONDITIONAL: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "resnet_time_scale_shift": ("default",),
    "dual_cross_attention": (False,),
    "attention_type": ("default",),
    "time_embedding_act_fn": (None,),
    "class_embeddings_concat": (False,),
    "num_class_embeds": (None,),
}
# Fourier embeddings divide the output by the timestep and come with a sampler (SDE-VE) that has no step table.
UNCONDITIONAL: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
BLOCKS = {
    "UNet2DConditionModel": {
        "CrossAttnDownBlock2D",
        "DownBlock2D",
        "UNetMidBlock2DCrossAttn",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
    },
    "UNet2DModel": {"AttnDownBlock2D", "DownBlock2D", "UNetMidBlock2D", "AttnUpBlock2D", "UpBlock2D"},
}


def check_options(model: nn.Module) -> None:
    """Raises ModelError for an option or a block that the family does not describe."""
    config: Any = model.config
    name = type(model).__name__
    if name == "UNet2DModel":
        wanted = UNCONDITIONAL
    else:
        wanted = {**CONDITIONAL, "only_cross_attention": (False, [False] * len(config.down_block_types))}
    for key, allowed in wanted.items():
        value = config.get(key, allowed[0])
        if (list(value) if isinstance(value, tuple) else value) not in allowed:
            message = f"{name} option {key} = {value!r} is not described (allowed: {allowed})"
            raise ModelError(message, code="unsupported")
    mid = [config.mid_block_type] if config.mid_block_type else []
    for kind in (*config.down_block_types, *mid, *config.up_block_types):
        if kind not in BLOCKS[name]:
            known = ", ".join(sorted(BLOCKS[name]))
            raise ModelError(f"block type '{kind}' is not described (known: {known})", code="unsupported")
