"""The one-line graphs of `program_cases` as methods of ExecuTorch programs, so that the C++ runner can be shown the
same programs as Kotlin and Swift."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from edgediff.runtime.conditions import used_encoders
from edgediff.runtime.manifest import BATCH, Artifact, Classes, Graph, Manifest, TensorSpec
from tests.program_cases import Letters, ProgramCase
from tests.valid_bundle import valid_parts

Inputs = dict[str, torch.Tensor]


class StandIn(torch.nn.Module):
    """One graph of the docstring of `program_cases`, for the inputs that it has, its outputs in its order."""

    def __init__(self, name: str, graph: Graph) -> None:
        super().__init__()
        self.name = name
        self.inputs, self.outputs = [[spec.name for spec in side] for side in (graph.inputs, graph.outputs)]

    def forward(self, *inputs: torch.Tensor) -> Any:
        made = self.make(dict(zip(self.inputs, inputs, strict=True)))
        return tuple(made[name] for name in self.outputs)

    def make(self, inputs: Inputs) -> Inputs:
        return STAGES[self.name](inputs) if self.name in STAGES else self._denoise(inputs)

    def _denoise(self, inputs: Inputs) -> Inputs:
        sample, time = inputs["sample"], inputs["timestep"].reshape(1, 1, 1, 1) / 10000
        rest = 0.05 * _condition(inputs).reshape(-1, 1, 1, 1) + _pictured(inputs)
        if self.name == "shallow":
            mid = inputs["cache_in_mid"].reshape(sample.shape[0], -1)
            tiled = mid.repeat(1, sample[0].numel() // mid.shape[1]).reshape(sample.shape)
            return {"noise_pred": 0.2 * sample + 0.1 * tiled + rest}
        mid = 0.5 * sample.reshape(sample.shape[0], -1)[:, :32].reshape(-1, 2, 4, 4) + time
        return {"noise_pred": 0.3 * sample + rest + time, "cache_out_mid": mid}


class Heavy(StandIn):
    """The same with 67 MB of weights."""

    def __init__(self, name: str, graph: Graph) -> None:
        super().__init__(name, graph)
        values = int(np.prod(graph.inputs[0].shape[1:]))
        self.up, self.down = torch.nn.Linear(values, 1 << 15), torch.nn.Linear(1 << 15, values)

    def make(self, inputs: Inputs) -> Inputs:
        made, sample = super().make(inputs), inputs["sample"]
        more = self.down(torch.nn.functional.relu(self.up(sample.flatten(1))))
        return {**made, "noise_pred": made["noise_pred"] + 0.1 * more.reshape(sample.shape)}


def _condition(inputs: Inputs) -> torch.Tensor:
    """c, one number for each side."""
    total = inputs["sample"][:, 0, 0, 0] * 0.0
    for name, read in CONDITIONS.items():
        if name in inputs:
            total = total + read(inputs[name].to(torch.float32))
    return total


def _pictured(inputs: Inputs) -> torch.Tensor | float:
    """p, as large as the sample."""
    parts = {"image_latents": 10, "masked_image_latents": 15, "mask": 20}
    return sum((inputs[name] / part for name, part in parts.items() if name in inputs), start=0.0)


def _text_encoder_2(inputs: Inputs) -> Inputs:
    ids, mask = inputs["input_ids"].to(torch.float32), inputs["attention_mask"].to(torch.float32)
    hidden = mask.unsqueeze(-1) * (ids.unsqueeze(-1) / 7 + torch.arange(4, dtype=torch.float32) / 50)
    pooled = (mask * ids).sum(1, keepdim=True) / 20 + torch.arange(4, dtype=torch.float32).reshape(1, 4) / 10
    return {"hidden": hidden, "pooled": pooled}


def _vae_encoder(inputs: Inputs) -> Inputs:
    pixels = inputs["pixels"][:, :, ::2, ::2]
    channels = torch.arange(4, dtype=torch.float32).reshape(1, 4, 1, 1)
    mean = torch.cat([pixels, pixels[:, :1]], 1) / 2 + channels / 10
    return {"mean": mean, "deviation": 0.1 + mean.abs() / 5}


CONDITIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "encoder_hidden_states": lambda value: value[:, 1, 0] + value[:, 2, 0] / 2 + value[:, 1, -1] / 4,
    "class_labels": lambda value: value / 100,
    "attention_mask": lambda value: value.sum(1) / 10,
    "guidance": lambda value: value / 10,
    "text_embeds": lambda value: value[:, -1],
    "time_ids": lambda value: value.sum(1) / 1000,
}
STAGES: dict[str, Callable[[Inputs], Inputs]] = {
    "text_encoder": lambda inputs: {
        "last_hidden_state": inputs["input_ids"].to(torch.float32).unsqueeze(-1) / 10
        + torch.arange(4, dtype=torch.float32) / 100
    },
    "text_encoder_2": _text_encoder_2,
    "vae_encoder": _vae_encoder,
    "vae_decoder": lambda inputs: {
        "image": inputs["z"][:, :3].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 2
    },
    "small": lambda inputs: {"rgb": inputs["z"][:, :3] / 3},
    "safety": lambda inputs: {"score": inputs["image"].amax().reshape(1, 1)},
}


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

    methods: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, graph in manifest.graphs.items():
            module = others.get(name) or StandIn(name, graph)
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
    """A whole bundle of the case's manifest with its graphs in `pte`, and the golden ids of its encoders."""
    graphs = {
        name: graph.model_copy(
            update={
                "artifacts": {"executorch": Artifact(file="executorch/graphs.pte", function=name, precision="fp32")}
            }
        )
        for name, graph in case.manifest.graphs.items()
    }
    manifest = case.manifest.model_copy(update={"graphs": graphs})
    parts = {path: data for path, data in valid_parts().items() if not path.startswith("onnxruntime/")}
    for path, data in {**parts, "executorch/graphs.pte": pte.read_bytes()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for encoder in manifest.encoders.values():
        ids = np.array([Letters().encode("a", manifest.tokenizers[encoder.tokenizer].length)])
        (folder / "golden").mkdir(exist_ok=True)
        save_file({f"0.in.{encoder.ids}": ids}, folder / "golden" / f"{encoder.graph}.safetensors")
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return seal(folder)


def seal(folder: Path) -> Path:
    """Lists all files of the folder in its manifest, as they now are."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    found = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path != file}
    manifest["files"] = [
        {"path": path.relative_to(folder).as_posix(), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in found.items()
    ]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_inputs(case: ProgramCase, file: Path) -> Path:
    """What the case is asked to make, for `--inputs`: the runner's host turns texts into ids."""
    manifest, program = case.manifest, case.manifest.program(case.program)
    texts = [case.prompt] if not case.negative_prompt else [case.negative_prompt, case.prompt]
    tensors = {what: value for what, value in case.arguments().items() if isinstance(value, np.ndarray)}
    tensors = {what: np.asarray(value, np.float32) for what, value in tensors.items()}
    for name in used_encoders(manifest, program):
        length = manifest.tokenizers[manifest.encoders[name].tokenizer].length
        tensors[f"input_ids.{name}"] = np.array([Letters().encode(text, length) for text in texts])
    for condition in manifest.conditions.values():
        if isinstance(condition, Classes):
            tensors["class_label"] = np.array([condition.find(case.prompt)])
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
    seal(folder)


def _example(spec: TensorSpec, batch: int, generator: np.random.Generator) -> np.ndarray:
    if spec.dtype == "int64":
        return generator.integers(0, 3, spec.sized(batch))
    return np.asarray(generator.standard_normal(spec.sized(batch)), spec.dtype)
