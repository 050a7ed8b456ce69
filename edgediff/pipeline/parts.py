"""The parts of a model on disk: which classes a part may be of, its files, and their loading without pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from edgediff.errors import ModelError, first_line
from edgediff.networks import find_class, part_classes

if TYPE_CHECKING:
    from torch import nn

DECODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
PARTS = {  # beside the denoiser, whose classes are its family's
    "vae": DECODERS,
    "vqvae": DECODERS,
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a folder in diffusers layout. Raises ModelError when there is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(
            "is no diffusers folder: model_index.json is missing; convert single-file checkpoints with "
            "diffusers' from_single_file(...).save_pretrained(...) first",
            where=str(folder),
            code="missing_part",
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"is not JSON: {error}", where=str(path), code="syntax") from error
    return index


def is_listed(index: dict[str, Any], part: str) -> bool:
    """Whether the index names a class for the part; diffusers writes `[null, null]` for one that is left out."""
    listed = index.get(part)
    return listed is not None and listed != [None, None]


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration. Raises ModelError when it is missing or not JSON."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ModelError("scheduler/scheduler_config.json is missing", where=str(folder), code="missing_part")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"is not JSON: {error}", where=str(path), code="syntax") from error
    return config


def check_part(folder: Path, index: dict[str, Any], part: str) -> list[Path]:
    """The part's safetensors files, after checking that the part is there and of a known class."""
    listed = index.get(part)
    if not isinstance(listed, list) or len(listed) != 2 or not isinstance(listed[1], str):
        raise ModelError(f"model_index.json has no '{part}'", where=str(folder), code="missing_part")
    known = PARTS[part] if part in PARTS else part_classes().get(part, ())
    if listed[1] not in known:
        allowed = " or ".join(known)
        raise ModelError(
            f"'{part}' is a {listed[1]}; edgediff takes {allowed}",
            where=str(folder / "model_index.json"),
            code="wrong_class",
        )
    if not (folder / part).is_dir():
        raise ModelError(f"the folder '{part}/' is missing", where=str(folder), code="missing_part")
    if part == "tokenizer":
        return []
    files = sorted(path for path in (folder / part).glob("*.safetensors"))
    if not files:
        pickles = [path.name for pattern in PICKLES for path in (folder / part).glob(pattern)]
        hint = (
            f"'{pickles[0]}' is a pickle, which can run code when opened; save again with safe_serialization=True"
            if pickles
            else "weights as .safetensors are missing"
        )
        raise ModelError(hint, where=str(folder / part), code="pickle" if pickles else "missing_part")
    return files


def make_part(part: str, config: dict[str, Any]) -> nn.Module:
    """The part with random weights, from its configuration, which names a denoiser's class; another part's without
    `_class_name` is the first known one."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "text_encoder":
        module: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
    elif part in PARTS:
        module = getattr(diffusers, config.get("_class_name", PARTS[part][0])).from_config(config)
    else:
        family, class_name, _ = find_class(config["_class_name"])
        module = family.make(class_name, config)
    return module.eval().requires_grad_(False)


def load_part(folder: Path, part: str, class_name: str) -> nn.Module:
    """A part beside the denoiser in fp32 on the CPU, for evaluation. Raises ModelError for files that do not fit."""
    import diffusers
    import torch
    import transformers

    loader = getattr(transformers if part == "text_encoder" else diffusers, class_name)

    def load(path: Path) -> Any:
        return loader.from_pretrained(str(path), use_safetensors=True, torch_dtype=torch.float32)

    return _loaded(folder, part, class_name, load)


def load_denoiser(folder: Path, part: str, class_name: str) -> nn.Module:
    """The denoiser in fp32 on the CPU, for evaluation, as its family loads it. Raises ModelError for files that do not
    fit the class."""
    family, class_name, _ = find_class(class_name)
    return _loaded(folder, part, class_name, lambda path: family.load(class_name, path))


def _loaded(folder: Path, part: str, class_name: str, load: Callable[[Path], Any]) -> nn.Module:
    try:
        with quiet_libraries():
            module = load(folder / part)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"'{part}' cannot be loaded as {class_name}: {first_line(error)}", where=str(folder / part)
        ) from error
    result: nn.Module = module.eval().requires_grad_(False)
    return result


class quiet_libraries:
    """Within it, diffusers and transformers say nothing below an error."""

    def __enter__(self) -> None:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        self._modules = (diffusers_logging, transformers_logging)
        self._before = [module.get_verbosity() for module in self._modules]
        for module in self._modules:
            module.set_verbosity_error()
            module.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        for module, level in zip(self._modules, self._before, strict=True):
            module.set_verbosity(level)
            module.enable_progress_bar()


def read_licence(folder: Path) -> str:
    """The `license:` line of the model card, if the folder has one."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "unknown"


def hash_files(files: list[Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.parent.name}/{file.name}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()
