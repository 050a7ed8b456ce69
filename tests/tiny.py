"""A tiny text-to-image model in diffusers layout: random weights, three levels, made in a second.

Every weight is drawn from one seed, so the folder's hash is the same on every machine of one torch version.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from edgediff.backends import lower_variants
from edgediff.backends.onnxruntime import export as _onnx_export
from edgediff.documents.plan import (
    BackendPlan,
    Cost,
    Cut,
    EqualCompute,
    GraphPlan,
    GuidancePlan,
    ModelRef,
    Plan,
    SamplerPlan,
)
from edgediff.documents.target import load_target
from edgediff.graph.schedule import HOLD, Row, Schedule, wire_schedule
from edgediff.pipeline import Pipeline, load_pipeline, quiet_libraries
from edgediff.variants import Variant, build_variants

if TYPE_CHECKING:
    from edgediff.bundle import Bundle

TOKENS, WIDTH = 16, 16
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 32,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


def write_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Writes the model to `folder` and returns it. Another seed gives other weights of the same shapes."""
    words = _vocabulary()
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        **ends,
    )
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        parts = {"unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE), "text_encoder": CLIPTextModel(text)}
        for name, module in parts.items():
            module.save_pretrained(folder / name)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "tokenizer" / "vocab.json", {word: index for index, word in enumerate(words)})
    _write_json(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": TOKENS})
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write_json(folder / "model_index.json", INDEX)
    return folder


def tiny_pipeline(folder: Path, *, seed: int = 0) -> Pipeline:
    """The model of `write_tiny_model`, written to `folder` unless it is there, and loaded."""
    if not (folder / "model_index.json").is_file():
        write_tiny_model(folder, seed=seed)
    return load_pipeline(folder)


def tiny_plan(
    pipeline: Pipeline,
    backends: dict[str, BackendPlan],
    *,
    calls: tuple[str, ...] = ("full", "shallow", "full", HOLD, "shallow"),
    cuts: tuple[str, ...] = (),
    mode: str = "batched",
    scale: float | None = 4.0,
) -> Plan:
    """A DeepCache-like plan by hand: `shallow` holds all below the outermost resolution."""
    rows = {"full": Row(), "shallow": Row(hold=("up_blocks.1",))}
    schedule = Schedule(rows={name: rows[name] for name in rows if name in calls}, calls=calls)
    cut = pipeline.graph.with_cuts(cuts)
    graphs = {
        name: GraphPlan(
            row=name,
            reads=wiring.reads,
            writes=wiring.writes,
            macs=cut.macs(wiring.live),
            parameters=cut.parameters(wiring.live),
        )
        for name, wiring in wire_schedule(schedule, cut).items()
    }
    macs = pipeline.graph.macs()
    return Plan(
        model=ModelRef(id=pipeline.id, kind=pipeline.kind, denoiser=pipeline.denoiser_name, weights=pipeline.weights),
        recipe_name="tiny",
        recipe="0" * 64,
        target_name="host",
        target="0" * 64,
        sampler=SamplerPlan(kind="ddim", steps=len(calls), calls=len(calls)),
        guidance=GuidancePlan(mode=mode, calls=(scale,) * len(calls)),  # type: ignore[arg-type]
        cuts=tuple(Cut(unit=unit, by="hand", score=0.0) for unit in cuts),
        schedule=schedule,
        graphs=graphs,
        backends=backends,
        cost=Cost(macs=macs, reference_macs=macs, equal_compute=EqualCompute(sampler="ddim", steps=1, macs=macs)),
    )


def tiny_bundle(out: Path, pipeline: Pipeline, backends: dict[str, BackendPlan], **options: Any) -> Bundle:
    """A whole bundle at `out`, by the same calls as `flow.build`; `options` are those of `tiny_plan`."""
    from edgediff.bundle import BundleWriter
    from edgediff.bundle.assemble import make_manifest, write_parts
    from edgediff.verify import eager_recordings, write_golden

    plan = tiny_plan(pipeline, backends, **options)
    variants = build_variants(pipeline, plan)
    with BundleWriter(out) as writer, cached_exports():
        lowered = lower_variants(variants, load_target("host"), writer.folder)
        write_parts(pipeline, plan, writer.folder)
        manifest = make_manifest(pipeline, plan, variants, lowered, name=out.stem)
        write_golden(writer.folder / "golden", [eager_recordings(pipeline, variants, manifest, whole=False)])
        return writer.commit(manifest)


_PROGRAMS: dict[tuple[Any, ...], Any] = {}
_PACKAGES: dict[tuple[Any, ...], tuple[tempfile.TemporaryDirectory[str], Any]] = {}


@contextmanager
def cached_exports() -> Iterator[None]:
    """Within it a graph that this process has exported before is cloned: torch.export takes seconds a graph."""
    export = _onnx_export.export_graph

    def cached(variant: Variant) -> Any:
        mark = float(sum(parameter.double().sum() for parameter in variant.module.parameters()))
        key = (variant.name, variant.inputs, variant.outputs, variant.parameters, variant.macs, mark)
        if key not in _PROGRAMS:
            _PROGRAMS[key] = export(variant)
        return _PROGRAMS[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_onnx_export, "export_graph", cached)
        yield


@contextmanager
def cached_conversions() -> Iterator[None]:
    """Within it a graph that this process has converted for Core ML before is copied: a conversion takes seconds."""
    from edgediff.backends import coreml

    convert = coreml._convert

    def cached(variant: Variant, batch: int, path: Path, precision: str, table: Any, islands: Any) -> Any:
        mark = float(sum(parameter.double().sum() for parameter in variant.module.parameters()))
        form = table.deployment, table.attention, table.query_chunk
        key = (variant.name, variant.inputs, variant.outputs, batch, precision, form, islands, mark)
        if key not in _PACKAGES:
            folder = tempfile.TemporaryDirectory()
            found = convert(variant, batch, Path(folder.name) / "one.mlpackage", precision, table, islands)
            _PACKAGES[key] = folder, found
        folder, found = _PACKAGES[key]
        shutil.copytree(Path(folder.name) / "one.mlpackage", path)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreml, "_convert", cached)
        yield


def _vocabulary() -> list[str]:
    """CLIP's 256 byte letters, the same at the end of a word, start and end of the text; no merges."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [*map(chr, shown), *(chr(256 + index) for index in range(len(hidden)))]
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
