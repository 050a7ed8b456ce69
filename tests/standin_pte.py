"""The one-line graphs of `program_cases` as methods of ExecuTorch programs, so that the C++ runner can be shown the
same programs as Kotlin and Swift."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from program_cases import Letters, ProgramCase
from safetensors.numpy import save_file

from edgediff.config import dump_json
from edgediff.runtime.manifest import BATCH, Artifact, Graph, Manifest, TensorSpec
from edgediff.runtime.rng import Rng


class Denoiser(torch.nn.Module):
    """`full` or `shallow`, for the inputs that the graph has."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.names = [spec.name for spec in graph.inputs]
        self.values = int(np.prod(graph.inputs[0].shape[1:]))

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = dict(zip(self.names, inputs, strict=True))
        sample, time = given["sample"], given["timestep"].reshape(1, 1, 1, 1) / 10000
        condition = sample[:, :1, :1, :1] * 0.0
        if "class_labels" in given:
            condition = condition + given["class_labels"].to(torch.float32).reshape(-1, 1, 1, 1) / 100 * 0.05
        if "encoder_hidden_states" in given:
            condition = condition + 0.05 * given["encoder_hidden_states"][:, 1, :1].reshape(-1, 1, 1, 1)
        if "cache_in_mid" in given:
            mid = given["cache_in_mid"].reshape(sample.shape[0], -1)
            tiled = mid.repeat(1, self.values // mid.shape[1]).reshape(sample.shape)
            return 0.2 * sample + 0.1 * tiled + condition
        mid = 0.5 * sample.reshape(sample.shape[0], -1)[:, :32].reshape(-1, 2, 4, 4) + time
        return 0.3 * sample + condition + time, mid


class Heavy(Denoiser):
    """The same with 67 MB of weights."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.up, self.down = torch.nn.Linear(self.values, 1 << 15), torch.nn.Linear(1 << 15, self.values)

    def forward(self, *inputs: torch.Tensor) -> Any:
        sample = inputs[self.names.index("sample")]
        first, *others = super().forward(*inputs)
        more = self.down(torch.nn.functional.relu(self.up(sample.flatten(1))))
        return (first + 0.1 * more.reshape(sample.shape), *others)


class TextEncoder(torch.nn.Module):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.to(torch.float32).unsqueeze(-1) / 10 + torch.arange(4, dtype=torch.float32) / 100


class Decoder(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :3].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 2


class Convolutions(torch.nn.Module):
    """A decoder with the operators of a real one, random weights: convolutions, SiLU, attention, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.Conv2d(32, 3, 3, padding=1)
        self.query, self.key, self.value = (torch.nn.Linear(32, 32) for _ in range(3))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.silu(self.first(z))
        tokens = wide.flatten(2).transpose(1, 2)
        weights = torch.bmm(self.query(tokens), self.key(tokens).transpose(1, 2)).mul(0.1).softmax(-1)
        mixed = torch.bmm(weights, self.value(tokens)).transpose(1, 2).reshape(wide.shape)
        return self.last(torch.nn.functional.interpolate(wide + mixed, scale_factor=2.0, mode="nearest"))


def lower(manifest: Manifest, file: Path, *, delegate: bool, **others: torch.nn.Module) -> Path:
    """Writes the graphs as methods `<graph>`, at batch 1, and `<graph>_batch2`; with `delegate`, XNNPACK takes what it
    can. `others` stand in for stand-ins."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge, to_edge_transform_and_lower

    modules: dict[str, torch.nn.Module] = {"text_encoder": TextEncoder(), "vae_decoder": Decoder(), **others}
    methods: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, graph in manifest.graphs.items():
            module = modules.get(name) or Denoiser(graph)
            sizes = (1, 2) if any(BATCH in spec.shape for spec in graph.inputs) else (1,)
            for batch in sizes:
                example = tuple(torch.ones(s.sized(batch), dtype=getattr(torch, s.dtype)) for s in graph.inputs)
                method = name if batch == 1 else f"{name}_batch2"
                methods[method] = torch.export.export(module.eval(), example, strict=False)
        partitioner = {name: [XnnpackPartitioner()] for name in methods}
        edge = to_edge_transform_and_lower(methods, partitioner=partitioner) if delegate else to_edge(methods)
        file.write_bytes(edge.to_executorch().buffer)
    return file


def write_bundle(case: ProgramCase, folder: Path, pte: Path) -> Path:
    """The case's manifest with its graphs in `pte`, and the golden ids; no more than a runner reads."""
    artifact = {
        name: Artifact(file="executorch/graphs.pte", function=name, precision="fp32") for name in case.manifest.graphs
    }
    graphs = {
        name: graph.model_copy(update={"artifacts": {"executorch": artifact[name]}})
        for name, graph in case.manifest.graphs.items()
    }
    manifest = case.manifest.model_copy(update={"graphs": graphs})
    (folder / "executorch").mkdir(parents=True)
    (folder / "executorch" / "graphs.pte").write_bytes(pte.read_bytes())
    (folder / "manifest.json").write_text(dump_json(manifest.model_dump(mode="json", exclude_none=True)))
    if manifest.program.encode:
        (folder / "golden").mkdir()
        ids = np.array([Letters().encode("a", manifest.program.tokenize.length)])
        save_file({"0.in.input_ids": ids}, folder / "golden" / "text_encoder.safetensors")
    return folder


def write_inputs(case: ProgramCase, file: Path) -> Path:
    """What `Session.steps` would draw and encode, for `--inputs`."""
    program, rng = case.manifest.program, Rng(case.seed, case.manifest.rng.kind)
    shape = (1, *program.latent)
    guided = any(row.guidance is not None for row in program.rows)
    tensors = {"latent": np.asarray(rng.normal(shape), np.float32) * np.float32(program.init_scale)}
    noises = [np.asarray(rng.normal(shape), np.float32)[0] for row in program.rows if row.update.noise]
    if noises:
        tensors["noise"] = np.stack(noises)
    if program.encode:
        texts = ([case.negative_prompt] if guided else []) + [case.prompt]
        tensors["input_ids"] = np.array([Letters().encode(text, program.tokenize.length) for text in texts])
    if program.classes:
        found = program.classes.find(case.prompt)
        tensors["class_labels"] = np.array(([program.classes.null] if guided else []) + [found])
    save_file(tensors, file)
    return file


def write_golden(manifest: Manifest, folder: Path, pte: Path) -> None:
    """Golden files whose answers are those of ExecuTorch's Python bindings on this machine."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(pte)
    generator = np.random.default_rng(0)
    (folder / "golden").mkdir(exist_ok=True)
    for name, graph in manifest.graphs.items():
        batched = any(BATCH in spec.shape for spec in graph.inputs)
        tensors: dict[str, Any] = {}
        for call, batch in enumerate((1, 2) if batched else (1,)):
            inputs = [_example(spec, batch, generator) for spec in graph.inputs]
            method = program.load_method(name if batch == 1 else f"{name}_batch2")
            outputs = method.execute([torch.from_numpy(value) for value in inputs])
            for side, specs, values in (("in", graph.inputs, inputs), ("out", graph.outputs, outputs)):
                tensors |= {
                    f"{call}.{side}.{spec.name}": np.array(value) for spec, value in zip(specs, values, strict=True)
                }
        save_file(tensors, folder / "golden" / f"{name}.safetensors")


def _example(spec: TensorSpec, batch: int, generator: np.random.Generator) -> np.ndarray:
    if spec.dtype == "int64":
        return generator.integers(0, 3, spec.sized(batch))
    return np.asarray(generator.standard_normal(spec.sized(batch)), spec.dtype)
