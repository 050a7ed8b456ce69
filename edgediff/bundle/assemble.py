"""Plan and lowered graphs into the manifest: the program that every runtime interprets."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.documents.plan import Plan
from edgediff.graph.schedule import carry_name
from edgediff.runtime.manifest import (
    BATCH,
    Decode,
    DenoiserSource,
    Encode,
    FileEntry,
    Graph,
    Manifest,
    Program,
    Source,
    TensorSpec,
    Tokenize,
)
from edgediff.runtime.steps import StepTable
from edgediff.sampling.rows import program_rows
from edgediff.sampling.trace import step_table

if TYPE_CHECKING:
    from edgediff.backends import Artifacts
    from edgediff.pipeline import Pipeline
    from edgediff.variants import Variants

TOOLS = ("torch", "diffusers", "transformers", "numpy")


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
    return Manifest(
        kind=pipeline.kind,
        name=name,
        profile=tables[0] if tables else None,
        carries=_carries(plan, variants),
        graphs=graphs,
        program=_program(pipeline, plan, step_table(pipeline, plan.sampler.kind, plan.sampler.steps)),
        files=files,
        tools=tools,
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


def write_parts(pipeline: Pipeline, plan: Plan, folder: Path) -> None:
    """Writes what is not a graph: the plan, the tokenizer, the licence texts."""
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    if pipeline.tokenizer_folder is None:
        return
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        source = pipeline.tokenizer_folder / name
        if source.is_file():
            shutil.copyfile(source, folder / "tokenizer" / name)
    licences = [path for path in pipeline.tokenizer_folder.parent.glob("*LICENSE*") if path.is_file()]
    licences += [path for path in pipeline.tokenizer_folder.parent.glob("OFL*") if path.is_file()]
    if licences:
        (folder / "LICENSES").mkdir()
        for path in licences:
            shutil.copyfile(path, folder / "LICENSES" / path.name)


def _carries(plan: Plan, variants: Variants) -> dict[str, TensorSpec]:
    """Every carry that some graph reads, with the shape of the unit that it is."""
    names = sorted({carry for graph in plan.graphs.values() for carry in graph.reads})
    return {
        carry_name(carry): TensorSpec(
            name=carry_name(carry),
            dtype="float32",
            shape=(BATCH, *variants.graph.by_name[carry.rstrip("+")].shape),
        )
        for carry in names
    }


def _program(pipeline: Pipeline, plan: Plan, table: StepTable) -> Program:
    rows = program_rows(table, plan.schedule, plan.guidance)
    has_text = pipeline.text_encoder is not None
    return Program(
        tokenize=Tokenize(folder="tokenizer", length=pipeline.tokens) if has_text else None,
        encode=Encode(graph="text_encoder", input="input_ids", output="last_hidden_state") if has_text else None,
        classes=pipeline.classes,
        decode=Decode(
            graph="vae_decoder" if pipeline.vae is not None else None,
            input="z",
            output="image",
            scale=pipeline.scale,
            shift=pipeline.shift,
            sample_rate=pipeline.sample_rate,
        ),
        latent=pipeline.latent,
        init_scale=table.init_scale,
        sampler=table.sampler,
        steps=table.steps,
        mode=plan.guidance.mode,
        rows=rows,
    )
