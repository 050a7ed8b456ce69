"""A diffusion pipeline, loaded: the only importer of diffusers' pipelines.

MODEL is `glyph` (the trained model in this package), `random:sd15` (a real architecture with random
weights, for costs), a local folder in diffusers layout, a folder of `edgediff distill`, or a hub id. Which parts a
model has, and what its denoiser is given, the network family of its denoiser says (`networks.NetworkClass`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import ModelError, did_you_mean
from edgediff.graph.units import UnitGraph
from edgediff.networks import NetworkClass, Sizes, find_class, part_classes, unit_graph
from edgediff.pipeline.distilled import DistilledFolder, is_distilled, read_distilled
from edgediff.pipeline.parts import (
    check_part,
    hash_files,
    is_listed,
    load_denoiser,
    load_part,
    make_part,
    quiet_libraries,
    read_index,
    read_licence,
    read_scheduler,
)
from edgediff.runtime.manifest import Classes, Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["GLYPH", "Pipeline", "architecture_names", "load_pipeline", "quiet_libraries"]

GLYPH = Path(__file__).parents[1] / "embedded" / "glyph"
ARCHITECTURES = Path(__file__).parent / "architectures"  # configurations that `random:` stands for
HUB_FILES = ["model_index.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]
HUB_LEFT_OUT = ["safety_checker/*", "feature_extractor/*", "*.fp16.safetensors", "*.non_ema.safetensors"]
BESIDE = ("vae", "vqvae", "text_encoder")  # random weights are drawn in this order, the denoiser's first


@dataclass
class Pipeline:
    """A loaded pipeline in fp32 on the CPU, its modules in evaluation mode and without gradients.

    `vae` is None where the network works on pixels; `text_encoder` and `tokenizer_folder` are None where there is no
    text, and `classes` is None where there are no classes.
    `latent` is the latent's shape without the batch, of sound `(channels, samples)`; `sample_rate` is samples a second,
    None for pictures. `scheduler` the scheduler's configuration;
    `weights` the SHA-256 over all weights, by which plans and bundles know the model again. With `distilled` the
    rest is the untouched model, which stays the reference, and `variants` takes the cut denoiser from that folder.
    """

    id: str
    kind: Kind
    denoiser: nn.Module
    vae: Any
    text_encoder: Any
    tokenizer_folder: Any
    tokens: int
    scheduler: dict[str, Any]
    latent: tuple[int, ...]
    weights: str
    revision: str | None = None
    licence: str = "unknown"
    denoiser_name: str = "unet"
    classes: Classes | None = None
    distilled: DistilledFolder | None = None
    sample_rate: int | None = None
    _graph: UnitGraph | None = field(default=None, repr=False)

    @property
    def about(self) -> NetworkClass:
        """What its family says of models with such a denoiser."""
        return find_class(type(self.denoiser).__name__)[2]

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
            if module is not None:
                module.to(device)
        return self

    @property
    def sizes(self) -> Sizes:
        return Sizes.of(self.latent, self.tokens)

    @property
    def scale(self) -> float:
        """What the latent is multiplied with before it is decoded."""
        return 1.0 / float(getattr(self.vae.config, "scaling_factor", 1.0)) if self.vae is not None else 1.0

    @property
    def shift(self) -> float:
        """What is added to the scaled latent before it is decoded."""
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0) if self.vae is not None else 0.0

    @property
    def can_guide(self) -> bool:
        """Whether there is an empty prompt, or a class of no class, to guide away from."""
        return self.kind == "text-to-image" or (self.classes is not None and self.classes.null is not None)

    def need_text(self, what: str) -> None:
        """Raises ModelError unless this is a text-to-image model; `what` begins the sentence."""
        if self.text_encoder is None:
            raise ModelError(f"{what} needs a text-to-image model; '{self.id}' is {self.kind}", code="kind")

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings `[n, tokens, width]` of the prompts."""
        import torch

        from edgediff.pipeline.tokenizers import load_tokenizer

        self.need_text("encoding a prompt")
        tokenizer = load_tokenizer(self.tokenizer_folder)
        ids = torch.tensor([tokenizer.encode(prompt, self.tokens) for prompt in prompts])
        with torch.no_grad():
            result: Tensor = self.text_encoder(ids.to(self.device)).last_hidden_state
        return result

    def conditions(self, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the denoiser reads beside sample and timestep, by input name: one row per prompt; and the one row of
        the empty prompt.

        A prompt of a class-to-image model is a class's name or number, and its empty row the class of no class.
        Nothing is read of the prompts of an unconditional model. Raises ConfigError for a class that is none.
        """
        import torch

        given: dict[str, Tensor] = {}
        empty: dict[str, Tensor] = {}
        for name, source in self.about.conditions.items():
            if source == "text":
                given[name], empty[name] = self.encode(prompts), self.encode([""])
            elif self.classes is not None:
                given[name] = torch.tensor([self.classes.find(prompt) for prompt in prompts], device=self.device)
                if self.classes.null is not None:
                    empty[name] = torch.tensor([self.classes.null], device=self.device)
        return given, empty

    def decode(self, latents: Tensor) -> Tensor:
        """Images `[n, channels, height, width]` in about [-1, 1]; of a network on pixels the latents themselves."""
        import torch

        if self.vae is None:
            return latents
        with torch.no_grad():
            result: Tensor = self.vae.decode(latents * self.scale + self.shift, return_dict=False)[0]
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
            where=str(folder),
            code="other_model",
        )
    return replace(base, distilled=DistilledFolder(folder, record))


def architecture_names() -> list[str]:
    """Names after `random:`."""
    return sorted(path.stem for path in ARCHITECTURES.glob("*.json"))


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
    index = read_index(folder)
    denoiser, *beside = wanted = _wanted_parts(folder, index)
    files = [file for part in wanted for file in check_part(folder, index, part)]
    parts = {denoiser: load_denoiser(folder, denoiser, index[denoiser][1])}
    parts |= {part: load_part(folder, part, index[part][1]) for part in beside if part != "tokenizer"}
    text_encoder = parts.get("text_encoder")
    return _assemble(
        name,
        denoiser,
        parts,
        read_scheduler(folder),
        hash_files(files),
        revision=revision,
        licence="OFL-1.1" if folder == GLYPH else read_licence(folder),
        labels=index.get("id2label"),
        tokenizer_folder=folder / "tokenizer" if text_encoder is not None else None,
        tokens=_token_count(folder, text_encoder) if text_encoder is not None else 0,
    )


def _wanted_parts(folder: Path, index: dict[str, Any]) -> list[str]:
    """Names of the parts, the denoiser first. Raises ModelError for one that is missing in the index."""
    places = part_classes()
    denoiser = next((part for part in places if is_listed(index, part)), None)
    if denoiser is None:
        others = [
            f"{part} ({listed[1]})" for part, listed in index.items() if isinstance(listed, list) and all(listed[1:2])
        ]
        raise ModelError(
            f"model_index.json has no {' or '.join(repr(part) for part in sorted(places, reverse=True))}, where "
            f"denoisers lie; it names {', '.join(others) or 'no parts'}. A network of another family comes with the "
            "package of that family",
            where=str(folder),
            code="missing_part",
        )
    check_part(folder, index, denoiser)
    about = find_class(str(index[denoiser][1]))[2]
    return [denoiser, *about.needs, *(part for part in about.may if is_listed(index, part))]


def _assemble(
    name: str,
    part: str,
    parts: Mapping[str, nn.Module],
    scheduler: dict[str, Any],
    weights: str,
    *,
    tokenizer_folder: Path | None,
    revision: str | None,
    licence: str,
    tokens: int,
    labels: object = None,
) -> Pipeline:
    network: Any = parts[part]
    family, _, about = find_class(type(network).__name__)
    family.describe_units(network)
    config: Mapping[str, Any] = network.config
    if config.get("sample_size") is None:
        message = f"'{name}' does not say its size; write sample_size into {part}/config.json"
        raise ModelError(message, code="unsupported")
    latent = family.latent_shape(config)
    sound = about.kind == "unconditional-audio"
    if sound and not config.get("sample_rate"):
        message = f"'{name}' does not say its sample rate; write sample_rate into {part}/config.json"
        raise ModelError(message, code="unsupported")
    vae: Any = parts.get("vae", parts.get("vqvae"))
    if vae is not None and vae.config.latent_channels != latent[0]:
        raise ModelError(
            f"'{name}' makes latents of {latent[0]} channels, its decoder takes {vae.config.latent_channels}",
            code="wrong_class",
        )
    return Pipeline(
        id=name,
        kind=about.kind,
        denoiser=network,
        vae=vae,
        text_encoder=parts.get("text_encoder"),
        tokenizer_folder=tokenizer_folder,
        tokens=tokens,
        scheduler=scheduler,
        latent=latent,
        weights=weights,
        revision=revision,
        licence=licence,
        denoiser_name=part,
        classes=_classes(about, config, labels),
        sample_rate=int(config["sample_rate"]) if sound else None,
    )


def _classes(about: NetworkClass, config: Mapping[str, Any], labels: object) -> Classes | None:
    """The classes, where the denoiser is given one: the number after the last is the class of no class. Each is called
    by the first of its names; one that several classes share gets the class's number behind it."""
    given = [name for name, source in about.conditions.items() if source == "class"]
    if not given:
        return None
    count = int(config[about.classes])
    names: list[str] = []
    if isinstance(labels, dict) and all(str(index) in labels for index in range(count)):
        names = [str(labels[str(index)]).split(",")[0].strip() for index in range(count)]
        names = [name if names.count(name) == 1 else f"{name} {index}" for index, name in enumerate(names)]
    return Classes(count=count, null=count, names=tuple(names))


def _random_pipeline(architecture: str) -> Pipeline:
    import torch

    path = ARCHITECTURES / f"{architecture}.json"
    if not path.is_file():
        message = f"unknown architecture '{architecture}'{did_you_mean(architecture, architecture_names())}"
        raise ModelError(message, code="unknown_model")
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        denoiser = next(part for part in part_classes() if part in config)
        wanted = [denoiser, *(part for part in BESIDE if part in config)]
        parts = {part: make_part(part, config[part]) for part in wanted}
    tokenizer = GLYPH / "tokenizer" if "text_encoder" in parts else None
    return _assemble(
        f"random:{architecture}",
        denoiser,
        parts,
        config["scheduler"],
        hashlib.sha256(f"seed 0 {text}".encode()).hexdigest(),
        tokenizer_folder=tokenizer,
        revision=None,
        licence=config["licence"],
        tokens=config.get("tokens", 0),
    )


def _token_count(folder: Path, text_encoder: Any) -> int:
    from edgediff.pipeline.tokenizers import read_length

    positions = int(text_encoder.config.max_position_embeddings)
    return min(read_length(folder / "tokenizer") or positions, positions)
