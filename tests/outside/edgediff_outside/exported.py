"""The backend `exported`: `torch.export` programs, a file per graph and batch. `edgediff.backends.Backend` says what
each member is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgediff.backends import Artifacts, check_precision
from edgediff.documents.target import BackendTable
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import BATCH, Artifact, Graph

if TYPE_CHECKING:
    from edgediff.documents.target import Target
    from edgediff.variants import Variant, Variants

NAME = "exported"


class Settings(BackendTable):
    """The table `[exported]` of a target. Weights are rounded to `decimals`."""

    format: Literal["pt2"] = "pt2"
    decimals: int = Field(default=6, ge=1, le=8)


def precisions(table: Settings) -> Mapping[str, str]:
    return {"fp32": f"all in fp32, from weights of {table.decimals} decimals"}


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    settings = target.settings(NAME, Settings)
    check_precision(NAME, variants.plan.backends[NAME].precision, precisions(settings))
    graphs = {name: _write(variant, settings, out) for name, variant in variants.graphs.items()}
    return Artifacts(NAME, graphs, {"torch": importlib.metadata.version("torch")})


def _write(variant: Variant, settings: Settings, out: Path) -> Artifact:
    import torch

    (out / NAME).mkdir(exist_ok=True)
    files = []
    for batch in (1, 2) if variant.inputs[0].shape[0] == BATCH else (1,):
        example = tuple(
            value.repeat(batch, *[1] * (value.dim() - 1)) if spec.shape[0] == BATCH else value
            for value, spec in zip(variant.example, variant.inputs, strict=True)
        )
        program = torch.export.export(variant.module, example)
        for name, value in program.state_dict.items():
            program.state_dict[name] = torch.nn.Parameter(value.round(decimals=settings.decimals), requires_grad=False)
        files.append(f"{NAME}/{variant.name}_{batch}.{settings.format}")
        torch.export.save(program, out / files[-1])
    return Artifact(file=files[0], precision="fp32", data=tuple(files[1:]))


def open_runner(
    folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None
) -> ProgramRunner:
    import torch

    file = (artifact.file, *artifact.data)[batch - 1]
    return ProgramRunner(torch.export.load(folder / file).module(), graph)


class ProgramRunner:
    """One program, numpy in and out."""

    def __init__(self, module: Any, graph: Graph) -> None:
        self._module = module
        self._inputs, self._outputs = [one.name for one in graph.inputs], [one.name for one in graph.outputs]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        import torch

        with torch.inference_mode():
            values = self._module(*(torch.from_numpy(inputs[name].copy()) for name in self._inputs))
        return {name: value.numpy().copy() for name, value in zip(self._outputs, values, strict=True)}
