"""One small valid bundle as plain data, which `hostile` breaks and `small_bundle` brings to life."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.documents.plan import (
    BackendPlan,
    Cost,
    EqualCompute,
    GraphPlan,
    GuidancePlan,
    ModelRef,
    Plan,
    SamplerPlan,
)
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.runtime.manifest import (
    Added,
    Artifact,
    CarrySpec,
    Decoder,
    Encoder,
    Fed,
    FileEntry,
    Graph,
    Init,
    Manifest,
    Program,
    ProgramRow,
    Scale,
    Source,
    TensorSpec,
    Text,
    TextOutput,
    TokenizerSpec,
)
from edgediff.runtime.steps import Update

LATENT, WIDTH, LENGTH, CARRY = (4, 8, 8), 4, 6, (2, 4, 4)
CALLS = (("full", 3.0), ("shallow", 3.0), (None, None), ("shallow", None))
FAST = (("full", None), ("shallow", None))
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


# The valid bundle


@dataclass
class Tree:
    """Files of a bundle by path, and links by path: their targets, relative to the link's own folder."""

    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(dict(self.files), dict(self.links))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for path, data in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        for path, target in self.links.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(target)
        return folder

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.files["manifest.json"])

    @manifest.setter
    def manifest(self, value: dict[str, Any]) -> None:
        self.files["manifest.json"] = (json.dumps(value, separators=(",", ":")) + "\n").encode()


Calls = tuple[tuple[str | None, float | None], ...]


def make_program(mode: str = "batched", calls: Calls = CALLS) -> Program:
    """A DDIM-like program; each call is (graph or None, guidance or None)."""
    rows = tuple(
        ProgramRow(
            graph=graph,
            guidance=guidance,
            timestep=float(750 - 250 * index),
            update=Update(x=(1.0 + 0.1 * index,), e=(-0.2 - 0.05 * index,)),
        )
        for index, (graph, guidance) in enumerate(calls)
    )
    scales = [guidance for _, guidance in calls if guidance is not None]
    return Program(
        takes=("prompt", "negative_prompt") if scales else ("prompt",),
        latent=LATENT,
        init=Init(noise=1.0),
        sampler="ddim",
        steps=len(rows),
        mode=mode,
        guidance=Scale.fixed(scales[0]) if scales else None,
        rows=rows,
    )


def make_tokenizer() -> TokenizerSpec:
    """The tokenizer of `valid_parts`."""
    return TokenizerSpec(
        kind="clip",
        vocab="tokenizer/vocab.json",
        merges="tokenizer/merges.txt",
        length=LENGTH,
        begin=BEGIN,
        end=END,
        pad=END,
        unknown=END,
        added=(Added(content=BEGIN, ids=(1,)), Added(content=END, ids=(2,))),
    )


def make_graphs() -> dict[str, Graph]:
    """Two denoiser graphs that share a carry: `full` writes it, `shallow` reads it; a text encoder; a decoder."""
    carry = TensorSpec(name="mid", dtype="float32", shape=("batch", *CARRY))
    sample = TensorSpec(name="sample", dtype="float32", shape=("batch", *LATENT))
    inputs = (
        sample,
        TensorSpec(name="timestep", dtype="float32", shape=(1,)),
        TensorSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", LENGTH, WIDTH)),
    )
    output = sample.model_copy(update={"name": "noise_pred"})
    return {
        "full": Graph(
            component="unet",
            inputs=inputs,
            carries_out={"mid": "cache_out_mid"},
            parameters=2000,
            macs=64000,
            outputs=(output, carry.model_copy(update={"name": "cache_out_mid"})),
            artifacts=_onnx("unet/full"),
        ),
        "shallow": Graph(
            component="unet",
            inputs=(*inputs, carry.model_copy(update={"name": "cache_in_mid"})),
            carries_in={"mid": "cache_in_mid"},
            outputs=(output,),
            parameters=500,
            macs=16000,
            artifacts=_onnx("unet/shallow"),
        ),
        "text_encoder": Graph(
            component="text_encoder",
            inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, LENGTH)),),
            outputs=(TensorSpec(name="last_hidden_state", dtype="float32", shape=(1, LENGTH, WIDTH)),),
            artifacts=_onnx("text_encoder"),
        ),
        "vae_decoder": Graph(
            component="vae_decoder",
            inputs=(TensorSpec(name="z", dtype="float32", shape=(1, *LATENT)),),
            outputs=(TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16)),),
            artifacts=_onnx("vae_decoder"),
        ),
    }


def make_manifest(mode: str = "batched", calls: Calls = CALLS, files: tuple[FileEntry, ...] = ()) -> Manifest:
    """Two programs over the same graphs: `main` as asked for, and `fast`, which guides nothing."""
    return Manifest(
        name="red-panda",
        makes="image",
        tokenizers={"clip": make_tokenizer()},
        carries={"mid": CarrySpec(dtype="float32", shape=("batch", *CARRY))},
        graphs=make_graphs(),
        encoders={"text": Encoder(tokenizer="clip", graph="text_encoder", ids="input_ids")},
        conditions={
            "sample": Fed(source="latent"),
            "timestep": Fed(source="timestep"),
            "encoder_hidden_states": Text(outputs=(TextOutput(encoder="text", output="last_hidden_state"),)),
        },
        decoder=Decoder(graph="vae_decoder", input="z", output="image", scale=2.0, shift=0.25),
        programs={"main": make_program(mode, calls), "fast": make_program(mode, FAST)},
        default="main",
        files=files or list_files(),
        tools={"edgediff": "0.1.0"},
        source=Source(model="random:tiny", weights="0" * 64, licence="Apache-2.0", pipeline="StableDiffusionPipeline"),
    )


def make_plan() -> Plan:
    """The plan that the valid program follows."""
    calls = tuple(name or HOLD for name, _ in CALLS)
    return Plan(
        model=ModelRef(id="random:tiny", kind="text-to-image", denoiser="unet2d", weights="0" * 64),
        recipe_name="by hand",
        recipe="1" * 64,
        target_name="This machine",
        target="2" * 64,
        sampler=SamplerPlan(kind="ddim", steps=4, calls=4),
        guidance=GuidancePlan(mode="batched", calls=tuple(scale for _, scale in CALLS)),
        schedule=Schedule(rows={"full": Row(), "shallow": Row(hold=("mid",))}, calls=calls),
        graphs={
            "full": GraphPlan(row="full", writes=("mid",), macs=64000, parameters=2000),
            "shallow": GraphPlan(row="shallow", reads=("mid",), macs=16000, parameters=500),
        },
        backends={"onnxruntime": BackendPlan(precision="fp32")},
        cost=Cost(macs=176000, reference_macs=512000, equal_compute=EqualCompute(sampler="ddim", steps=1, macs=128000)),
    )


def valid_parts() -> dict[str, bytes]:
    """Files of the valid bundle but for its manifest. The graphs are stand-ins that no runtime could load."""
    onnx = {
        f"onnxruntime/{name}.onnx": f"graph {name}\n".encode()
        for name in ("unet/full", "unet/shallow", "text_encoder", "vae_decoder")
    }
    return {
        **onnx,
        "onnxruntime/weights.bin": bytes(range(256)) * 8,
        "plan.json": make_plan().to_json().encode(),
        "tokenizer/vocab.json": b'{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}\n',
        "tokenizer/merges.txt": b"#version: 0.2\n",
    }


def list_files() -> tuple[FileEntry, ...]:
    """The entries of `valid_parts`."""
    return tuple(
        FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(valid_parts().items())
    )


def valid_tree() -> Tree:
    """The valid bundle."""
    return Tree({**valid_parts(), "manifest.json": make_manifest().to_json().encode()})


def _onnx(name: str) -> dict[str, Artifact]:
    file = Artifact(file=f"onnxruntime/{name}.onnx", precision="fp32", data=("onnxruntime/weights.bin",))
    return {"onnxruntime": file}
