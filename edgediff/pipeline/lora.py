"""LoRA weights, fused into the denoiser before it is cut: W + scale * (alpha / rank) * B A.

Read are diffusers' own format (`unet.<module>.lora_A.weight`, `lora_B`), its older ones (`lora.down`, and the
attention processors' `to_q_lora.down`), and that of kohya's scripts (`lora_unet_...lora_down.weight` with `alpha`).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgediff.errors import ModelError, unknown
from edgediff.pipeline.distilled import Lora, hash_file

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

METADATA = "lora_adapter_metadata"  # where diffusers writes alpha, as JSON
_DOWN = r"(?:lora_A|lora\.down|lora_down)"
_UP = r"(?:lora_B|lora\.up|lora_up)"
_KEY = re.compile(
    rf"^(?P<module>.+?)[._]?(?:(?P<down>{_DOWN})(?:\.\w+)?\.weight|(?P<up>{_UP})(?:\.\w+)?\.weight|(?P<alpha>alpha))$"
)


@dataclass
class LoraPair:
    """One target's factors: `down` `[rank, in, ...]`, `up` `[out, rank, ...]`; alpha None is the rank."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    keys: list[str] = field(default_factory=list)


def load_lora(path: Path, network: nn.Module) -> dict[str, LoraPair]:
    """Module name -> factors. Raises ModelError: no safetensors, keys of another kind (a text encoder's among
    them), targets that the network has not, half a pair, shapes that do not fit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"is not a safetensors file of LoRA weights: {error}", where=str(path)) from error
    return read_lora(state, network, alphas=about, where=str(path))


def read_lora(
    state: Mapping[str, Tensor], network: nn.Module, *, alphas: Mapping[str, object] | None = None, where: str = "LoRA"
) -> dict[str, LoraPair]:
    """As `load_lora`, of tensors that are loaded. `alphas`: diffusers' metadata."""
    modules = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    flat = {name.replace(".", "_"): name for name in modules}
    pairs: dict[str, LoraPair] = {}
    for key, tensor in state.items():
        found = _KEY.match(key)
        if found is None:
            raise ModelError(f"key '{key}' is not of a LoRA format that is read here", where=where, code="lora")
        name = _target(found["module"], modules, flat, where)
        pair = pairs.setdefault(name, LoraPair())
        pair.keys.append(key)
        if found["down"]:
            pair.down = tensor
        elif found["up"]:
            pair.up = tensor
        else:
            pair.alpha = float(tensor)
    for name, pair in pairs.items():
        if pair.alpha is None and alphas:
            pair.alpha = _listed_alpha(alphas, name)
        _check_pair(name, pair, modules[name], where)
    return pairs


def fuse_lora(network: nn.Module, pairs: Mapping[str, LoraPair], scale: float = 1.0) -> nn.Module:
    """A copy of the network with the LoRA added to its weights; the other weights are shared."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    fused: nn.Module = copy.deepcopy(network, memo=dict(shared))
    with torch.no_grad():
        for name, pair in pairs.items():
            module = fused.get_submodule(name)
            weight: Tensor = module.weight  # type: ignore[assignment]
            module.weight = nn.Parameter(weight + scale * _change(pair, weight), requires_grad=weight.requires_grad)
    return fused


def fuse_pipeline(
    pipeline: Pipeline, path: Path, scale: float, kept: Container[str] | None = None
) -> tuple[Pipeline, Lora]:
    """The pipeline with the LoRA in its denoiser, to be cut and to teach; and the record of it. `kept` names the
    modules that a cut will leave (None: all): targets elsewhere are listed as lost."""
    pairs = load_lora(path, pipeline.denoiser)
    lost = () if kept is None else tuple(sorted(name for name in pairs if name not in kept))
    record = Lora(file=path.name, sha256=hash_file(path), scale=scale, targets=len(pairs), lost=lost)
    return replace(pipeline, denoiser=fuse_lora(pipeline.denoiser, pairs, scale)), record


def _target(word: str, modules: Mapping[str, nn.Module], flat: Mapping[str, str], where: str) -> str:
    if word.startswith(("text_encoder", "lora_te")):
        raise ModelError(
            f"'{word}' is a target in the text encoder; only the denoiser's LoRA is fused: remove those keys, or fuse "
            "with diffusers and save the pipeline",
            where=where,
            code="lora",
        )
    name = word.removeprefix("unet.").removeprefix("lora_unet_").replace(".processor.", ".")
    name = flat.get(name, name)
    if name not in modules:
        raise ModelError(unknown("LoRA target", name, modules), where=where, code="lora")
    return name


def _listed_alpha(about: Mapping[str, object], name: str) -> float | None:
    pattern = about.get("unet.alpha_pattern")
    value = pattern.get(name) if isinstance(pattern, dict) else None
    value = about.get("unet.lora_alpha") if value is None else value
    return float(value) if isinstance(value, int | float) else None


def _check_pair(name: str, pair: LoraPair, module: nn.Module, where: str) -> None:
    if pair.down is None or pair.up is None:
        raise ModelError(f"'{name}' has one factor of two: {', '.join(pair.keys)}", where=where, code="lora")
    weight: Tensor = module.weight  # type: ignore[assignment]
    if pair.down.shape[0] != pair.up.shape[1] or _change(pair, weight).shape != weight.shape:
        raise ModelError(
            f"the factors of '{name}', {list(pair.down.shape)} and {list(pair.up.shape)}, do not make its weight "
            f"{list(weight.shape)}",
            where=where,
            code="lora",
        )


def _change(pair: LoraPair, weight: Tensor) -> Tensor:
    """(alpha / rank) * B A in the weight's dtype; a convolution's factors are a k x k and a 1 x 1."""
    assert pair.down is not None and pair.up is not None
    rank = pair.down.shape[0]
    product = pair.up.float().flatten(1) @ pair.down.float().flatten(1)
    if product.numel() == weight.numel() and product.shape[0] == weight.shape[0]:
        product = product.view_as(weight)
    return ((rank if pair.alpha is None else pair.alpha) / rank * product).to(weight)
