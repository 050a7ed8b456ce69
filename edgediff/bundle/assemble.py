"""Plan and lowered graphs into the manifest: the programs that every runtime interprets."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.documents.plan import Plan
from edgediff.graph.schedule import carry_name
from edgediff.pipeline.tokenizers import read_tokenizer
from edgediff.runtime.fields import Size
from edgediff.runtime.manifest import (
    BATCH,
    SCALE,
    CarrySpec,
    Condition,
    Decoder,
    DenoiserSource,
    Encoder,
    Fed,
    FileEntry,
    Graph,
    Init,
    Manifest,
    Program,
    Scale,
    Source,
    Takes,
    Text,
    TextOutput,
    TokenizerSpec,
)
from edgediff.sampling.rows import follow_scale, program_rows
from edgediff.sampling.trace import step_table

if TYPE_CHECKING:
    from edgediff.backends import Artifacts
    from edgediff.pipeline import Pipeline
    from edgediff.variants import Variants

TOOLS = ("torch", "diffusers", "transformers", "numpy")
TOKENIZER, ENCODER, DECODER = "tokenizer", "text_encoder", "vae_decoder"


def make_manifest(
    pipeline: Pipeline,
    plan: Plan,
    variants: Variants,
    lowered: Sequence[Artifacts],
    *,
    name: str,
    files: tuple[FileEntry, ...] = (),
) -> Manifest:
    """The manifest of a bundle; its `files` are filled in when the bundle is written."""
    graphs = {
        graph: Graph(
            component=variant.component,
            inputs=variant.inputs,
            outputs=variant.outputs,
            carries_in=variant.carries_in,
            carries_out=variant.carries_out,
            parameters=variant.parameters,
            macs=variant.macs,
            artifacts={one.backend: one.graphs[graph] for one in lowered},
        )
        for graph, variant in variants.graphs.items()
    }
    tools = {"edgediff": importlib.metadata.version("edgediff")}
    tools.update({tool: importlib.metadata.version(tool) for tool in TOOLS})
    for one in lowered:
        tools.update(one.tools)
    tables = [one.profile.model_dump(mode="json", exclude_none=True) for one in lowered if one.profile is not None]
    has_text = pipeline.text_encoder is not None
    return Manifest(
        name=name,
        makes="image" if pipeline.sample_rate is None else "audio",
        tokenizers=_tokenizers(pipeline) if has_text else {},
        carries=_carries(plan, variants),
        graphs=graphs,
        encoders={ENCODER: Encoder(tokenizer=TOKENIZER, graph=ENCODER, ids="input_ids")} if has_text else {},
        conditions=_conditions(pipeline),
        decoder=_decoder(pipeline),
        programs={title: _program(pipeline, one) for title, one in plan.programs().items()},
        default=plan.program,
        files=files or (FileEntry(path="plan.json", bytes=0, sha256="0" * 64),),
        tools=tools,
        evidence={"profile": {plan.program: tables[0]}} if tables else {},
        source=Source(
            model=pipeline.id,
            revision=pipeline.revision,
            weights=pipeline.weights,
            licence=pipeline.licence,
            denoiser=_denoiser_source(pipeline),
        ),
    )


def _denoiser_source(pipeline: Pipeline) -> DenoiserSource | None:
    if pipeline.distilled is None:
        return None
    return DenoiserSource(folder=str(pipeline.distilled.path), weights=pipeline.distilled.record.fingerprint)


def _tokenizers(pipeline: Pipeline) -> dict[str, TokenizerSpec]:
    return {TOKENIZER: read_tokenizer(pipeline.tokenizer_folder).spec(pipeline.tokens, TOKENIZER)}


def _conditions(pipeline: Pipeline) -> dict[str, Condition]:
    """Where each input of the denoiser's graphs comes from."""
    found: dict[str, Condition] = {
        "sample": Fed.model_validate({"from": "latent"}),
        "timestep": Fed.model_validate({"from": "timestep"}),
    }
    for name, source in pipeline.about.conditions.items():
        if source == "text":
            found[name] = Text(outputs=(TextOutput(encoder=ENCODER, output="last_hidden_state"),))
        elif pipeline.classes is not None:
            found[name] = pipeline.classes
    return found


def _decoder(pipeline: Pipeline) -> Decoder:
    ends = {"graph": DECODER, "input": "z", "output": "image"} if pipeline.vae is not None else {}
    return Decoder(**ends, scale=pipeline.scale, shift=pipeline.shift, sample_rate=pipeline.sample_rate)


def write_parts(pipeline: Pipeline, plan: Plan, folder: Path) -> None:
    """Writes what is not a graph: the plan, the tokenizer, the licence texts."""
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    if pipeline.tokenizer_folder is None:
        return
    read_tokenizer(pipeline.tokenizer_folder).write(folder / TOKENIZER)
    licences = [path for path in pipeline.tokenizer_folder.parent.glob("*LICENSE*") if path.is_file()]
    licences += [path for path in pipeline.tokenizer_folder.parent.glob("OFL*") if path.is_file()]
    if licences:
        (folder / "LICENSES").mkdir()
        for path in licences:
            shutil.copyfile(path, folder / "LICENSES" / path.name)


def _carries(plan: Plan, variants: Variants) -> dict[str, CarrySpec]:
    """Every carry that some graph reads, with the shape of the unit that it is."""
    names = sorted({carry for graph in plan.graphs.values() for carry in graph.reads})
    shapes: dict[str, tuple[Size, ...]] = {
        carry: (BATCH, *variants.graph.by_name[carry.rstrip("+")].shape) for carry in names
    }
    return {carry_name(carry): CarrySpec(dtype="float32", shape=shape) for carry, shape in shapes.items()}


def _program(pipeline: Pipeline, plan: Plan) -> Program:
    """The program of a plan with one program."""
    table = step_table(pipeline, plan.sampler.kind, plan.sampler.steps)
    rows = program_rows(table, plan.schedule, plan.guidance)
    guides = any(row.guidance is not None for row in rows)
    takes: list[Takes] = []
    if pipeline.text_encoder is not None or pipeline.classes is not None:
        takes.append("prompt")
    if pipeline.text_encoder is not None and guides:
        takes.append("negative_prompt")
    scales = {float(row.guidance) for row in rows if row.guidance is not None and row.guidance != SCALE}
    scale = Scale.fixed(scales.pop()) if len(scales) == 1 else None
    if scale is not None and (span := plan.guidance.range) is not None:
        rows = follow_scale(rows, scale.scale)
        scale = Scale(scale=scale.scale, low=span[0], high=span[1])
    return Program(
        takes=tuple(takes),
        latent=pipeline.latent,
        init=Init(noise=table.init_scale),
        sampler=table.sampler,
        steps=table.steps,
        mode=plan.guidance.mode,
        guidance=scale,
        rows=rows,
    )
