"""A diffusion pipeline, loaded: the only importer of diffusers' pipelines.

MODEL is `glyph` (the trained model in this package), `random:sd15` (a real architecture with random
weights, for costs), a local folder in diffusers layout, a folder of `edgediff distill`, or a hub id.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.distilled import DistilledFolder, is_distilled, read_distilled
from edgediff.errors import ModelError, did_you_mean
from edgediff.networks import Sizes, family_of, unit_graph
from edgediff.plan import Kind
from edgediff.units import UnitGraph

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PACKAGE = Path(__file__).parent
GLYPH = PACKAGE / "embedded" / "glyph"
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HUB_FILES = ["model_index.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]
HUB_LEFT_OUT = ["safety_checker/*", "feature_extractor/*", "*.fp16.safetensors", "*.non_ema.safetensors"]


@dataclass
class Pipeline:
    """A loaded pipeline in fp32 on the CPU, its modules in evaluation mode and without gradients.

    `latent` is the latent's shape without the batch; `scheduler` the scheduler's configuration;
    `weights` the SHA-256 over all weights, by which plans and bundles know the model again. With `distilled` the
    rest is the untouched model, which stays the reference, and `variants` takes the cut denoiser from that folder.
    """

    id: str
    kind: Kind
    denoiser: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer_folder: Path
    tokens: int
    scheduler: dict[str, Any]
    latent: tuple[int, ...]
    weights: str
    revision: str | None = None
    licence: str = "unknown"
    denoiser_name: str = "unet"
    distilled: DistilledFolder | None = None
    _graph: UnitGraph | None = field(default=None, repr=False)

    @property
    def graph(self) -> UnitGraph:
        """The denoiser's unit graph at this pipeline's sizes."""
        if self._graph is None:
            self._graph = unit_graph(self.denoiser, self.sizes)
        return self._graph

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    def to(self, device: str | torch.device) -> Pipeline:
        """Moves every module, and returns the pipeline."""
        for module in (self.denoiser, self.vae, self.text_encoder):
            module.to(device)
        return self

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.latent[1], self.latent[2], self.tokens)

    @property
    def scale(self) -> float:
        """What the latent is multiplied with before it is decoded."""
        return 1.0 / float(getattr(self.vae.config, "scaling_factor", 1.0))

    @property
    def shift(self) -> float:
        """What is added to the scaled latent before it is decoded."""
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings `[n, tokens, width]` of the prompts."""
        import torch

        from edgediff.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.tokenizer_folder)
        ids = torch.tensor([tokenizer.encode(prompt, self.tokens) for prompt in prompts])
        with torch.no_grad():
            result: Tensor = self.text_encoder(ids.to(self.device)).last_hidden_state
        return result

    def conditions(self, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the denoiser reads beside sample and timestep, by input name: one row per prompt; and the one row
        of the empty prompt."""
        return {"encoder_hidden_states": self.encode(prompts)}, {"encoder_hidden_states": self.encode([""])}

    def decode(self, latents: Tensor) -> Tensor:
        """Images `[n, 3, height, width]` in about [-1, 1]."""
        import torch

        vae: Any = self.vae
        with torch.no_grad():
            result: Tensor = vae.decode(latents * self.scale + self.shift, return_dict=False)[0]
        return result


def load_pipeline(model: str | Path | Pipeline, *, revision: str | None = None) -> Pipeline:
    """Loads MODEL. Raises ModelError: nothing of that name, a part missing or of a wrong class, weights
    that are pickles, an architecture that is not described."""
    if isinstance(model, Pipeline):
        return model
    name = str(model)
    if name == "glyph":
        return _load_folder(GLYPH, name="glyph", revision=None)
    if name.startswith("random:"):
        return _random_pipeline(name.removeprefix("random:"))
    if is_distilled(Path(name)):
        return _load_distilled(Path(name))
    if Path(name).is_dir():
        return _load_folder(Path(name), name=name, revision=revision)
    if Path(name).exists():
        raise ModelError("is a file; a model is a folder in diffusers layout", where=name)
    return _load_hub(name, revision)


def _load_distilled(folder: Path) -> Pipeline:
    record = read_distilled(folder)
    base = load_pipeline(record.base.model, revision=record.base.revision)
    if base.weights != record.base.weights:
        raise ModelError(
            f"was distilled from weights {record.base.weights[:12]} of '{base.id}', which now has "
            f"{base.weights[:12]}; restore them, or distil again",
            where=str(folder), code="other_model",
        )
    return replace(base, distilled=DistilledFolder(folder, record))


def architecture_names() -> list[str]:
    """Names after `random:`."""
    return sorted(path.stem for path in (PACKAGE / "architectures").glob("*.json"))


def _load_hub(name: str, revision: str | None) -> Pipeline:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.count("/") != 1:
        known = ["glyph", *(f"random:{arch}" for arch in architecture_names())]
        raise ModelError(
            f"there is no model '{name}'{did_you_mean(name, known)}; "
            "or give a folder in diffusers layout, or a hub id such as owner/name",
            code="unknown_model",
        )
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_LEFT_OUT)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"hub model '{name}' cannot be had: {str(error).splitlines()[0]}; check the name and the network, "
            "log in for gated models, or download the folder and give its path",
            code="hub",
        ) from error
    return _load_folder(folder, name=name, revision=revision or folder.name)


def _load_folder(folder: Path, *, name: str, revision: str | None) -> Pipeline:
    index = _read_index(folder)
    files = [_check_part(folder, index, part) for part in ("unet", "vae", "text_encoder")]
    _check_part(folder, index, "tokenizer")
    parts = {part: _load_part(folder, part, index[part][1]) for part in ("unet", "vae", "text_encoder")}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    licence = "OFL-1.1" if folder == GLYPH else _licence(folder)
    return _assemble(
        name, parts, scheduler, _hash_files([file for found in files for file in found]),
        tokenizer_folder=folder / "tokenizer", revision=revision, licence=licence,
        tokens=_token_count(folder, parts["text_encoder"]),
    )


def _assemble(
    name: str, parts: dict[str, nn.Module], scheduler: dict[str, Any], weights: str, *,
    tokenizer_folder: Path, revision: str | None, licence: str, tokens: int,
) -> Pipeline:
    unet: Any = parts["unet"]
    family_of(unet).describe_units(unet)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return Pipeline(
        id=name, kind="text-to-image", denoiser=unet, vae=parts["vae"], text_encoder=parts["text_encoder"],
        tokenizer_folder=tokenizer_folder, tokens=tokens, scheduler=scheduler,
        latent=(unet.config.in_channels, height, width), weights=weights, revision=revision, licence=licence,
    )


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(
            "is no diffusers folder: model_index.json is missing; convert single-file checkpoints with "
            "diffusers' from_single_file(...).save_pretrained(...) first",
            where=str(folder), code="missing_part",
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"is not JSON: {error}", where=str(path), code="syntax") from error
    return index


def _check_part(folder: Path, index: dict[str, Any], part: str) -> list[Path]:
    """The part's safetensors files, after checking that the part is there and of a known class."""
    listed = index.get(part)
    if not isinstance(listed, list) or len(listed) != 2 or not isinstance(listed[1], str):
        raise ModelError(f"model_index.json has no '{part}'", where=str(folder), code="missing_part")
    if listed[1] not in PARTS[part]:
        allowed = " or ".join(PARTS[part])
        raise ModelError(
            f"'{part}' is a {listed[1]}; edgediff takes {allowed}",
            where=str(folder / "model_index.json"), code="wrong_class",
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
            if pickles else "weights as .safetensors are missing"
        )
        raise ModelError(hint, where=str(folder / part), code="pickle" if pickles else "missing_part")
    return files


def _load_part(folder: Path, part: str, class_name: str) -> nn.Module:
    import diffusers
    import torch
    import transformers

    loader = getattr(transformers if part == "text_encoder" else diffusers, class_name)
    try:
        with quiet_libraries():
            module = loader.from_pretrained(str(folder / part), use_safetensors=True, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"'{part}' cannot be loaded as {class_name}: {str(error).splitlines()[0]}", where=str(folder / part)
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


def _random_pipeline(architecture: str) -> Pipeline:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    path = PACKAGE / "architectures" / f"{architecture}.json"
    if not path.is_file():
        message = f"unknown architecture '{architecture}'{did_you_mean(architecture, architecture_names())}"
        raise ModelError(message, code="unknown_model")
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(config["unet"]),
            "vae": AutoencoderKL.from_config(config["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
        }
    for module in parts.values():
        module.eval().requires_grad_(False)
    return _assemble(
        f"random:{architecture}", parts, config["scheduler"], hashlib.sha256(f"seed 0 {text}".encode()).hexdigest(),
        tokenizer_folder=GLYPH / "tokenizer", revision=None, licence=config["licence"], tokens=config["tokens"],
    )


def _token_count(folder: Path, text_encoder: Any) -> int:
    path = folder / "tokenizer" / "tokenizer_config.json"
    limit = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
    positions = int(text_encoder.config.max_position_embeddings)
    return min(int(limit), positions) if limit else positions


def _licence(folder: Path) -> str:
    """The `license:` line of the model card, if the folder has one."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "unknown"


def _hash_files(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.parent.name}/{file.name}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()
