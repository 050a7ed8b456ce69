"""Programs that use everything a manifest of format 2.0 can say, and what Python's runtime makes of them.

`python make_programs.py` writes `programs.json` beside itself. A stand-in graph computes in float64 and rounds once, so
that every runtime gets the same float32. With n the elements of one sample, `in[i]` an input's element i mod its own n:

    encoder     out[i] = ids[i / width mod length] / 10 + (i mod width) / 100 + the mask's sum / 1000
    denoiser    out[i] = 0.3 latent[i] + t / 10000 + sum_k 0.01 (k + 1) other_k[i] + 0.1 carry[i]
                carry[i] = 0.5 latent[i] + t / 10000
    any other   out_j[i] = in[i in's n / out's n] / (j + 2)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.runtime.manifest import Graph, Manifest
from edgediff.runtime.session import Session
from edgediff.runtime.tokenizer import Tokenizer

HASH, EVERY = "0" * 64, 17  # of a latent's values the file keeps one in so many
VOCABULARY = {"a</w>": 0, "<b>": 1, "<e>": 2, "!": 3, "!</w>": 4, "b": 5, "b</w>": 6, "bb</w>": 7}
MERGES = (("b", "b</w>"),)
TOKENIZER = {
    "kind": "clip",
    "vocab": "tokenizer/vocab.json",
    "merges": "tokenizer/merges.txt",
    "length": 8,
    "begin": "<b>",
    "end": "<e>",
    "pad": "!",
    "unknown": "<e>",
}


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(component: str, file: str, inputs: list[Any], outputs: list[Any], **more: Any) -> dict[str, Any]:
    artifacts = {"onnxruntime": {"file": file, "precision": "fp32"}}
    return {"component": component, "inputs": inputs, "outputs": outputs, "artifacts": artifacts, **more}


def row(timestep: float, name: str | None = None, x: Any = (1.0,), e: Any = (-0.1,), **more: Any) -> dict[str, Any]:
    named = {} if name is None else {"graph": name}
    return {"timestep": timestep, "update": {"x": list(x), "e": list(e)}, **named, **more}


def bundle(name: str, graphs: dict[str, Any], programs: dict[str, Any], **more: Any) -> dict[str, Any]:
    paths = ["plan.json", *(one["artifacts"]["onnxruntime"]["file"] for one in graphs.values())]
    for tokenizer in more.get("tokenizers", {}).values():
        paths += [tokenizer["vocab"], tokenizer["merges"]]
    return {
        "schema_version": "2.0",
        "name": name,
        "makes": "image",
        "graphs": graphs,
        "programs": programs,
        "default": next(iter(programs)),
        "files": [{"path": path, "bytes": 3, "sha256": HASH} for path in dict.fromkeys(paths)],
        "source": {"model": "m", "weights": "w"},
        **more,
    }


def make_text() -> dict[str, Any]:
    """A text, a carry, two modes, asked and fixed guidance, held guidance, histories, a safety checker, a preview."""
    ends = [tensor("sample", "float32", "batch", 4, 8, 8), tensor("timestep", "float32", "batch")]
    ends.append(tensor("ehs", "float32", "batch", 8, 16))
    out, mid = tensor("noise_pred", "float32", "batch", 4, 8, 8), ("float32", "batch", 2, 4, 4)
    image = tensor("image", "float32", 1, 3, 16, 16)
    graphs = {
        "text_encoder": graph(
            "text_encoder",
            "onnxruntime/text.onnx",
            [tensor("input_ids", "int64", 1, 8), tensor("attention_mask", "int64", 1, 8)],
            [tensor("last_hidden_state", "float32", 1, 8, 16)],
        ),
        "full": graph("unet", "onnxruntime/full.onnx", ends, [out, tensor("out_mid", *mid)], carries_out={"mid": "out_mid"}),
        "shallow": graph("unet", "onnxruntime/shallow.onnx", [*ends, tensor("in_mid", *mid)], [out], carries_in={"mid": "in_mid"}),
        "vae": graph("vae", "onnxruntime/vae.onnx", [tensor("z", "float32", 1, 4, 8, 8)], [image]),
        "safety": graph("safety", "onnxruntime/safety.onnx", [image], [tensor("score", "float32", 1, 2)]),
        "taesd": graph("taesd", "onnxruntime/taesd.onnx", [tensor("z", "float32", 1, 4, 8, 8)], [image]),
    }
    clip = {"x": 1.0, "e": -0.7, "limit": 0.8, "weight": 0.5}
    fast = {
        "takes": ["prompt", "negative_prompt"],
        "latent": [4, 8, 8],
        "init": {"noise": 1.5},
        "sampler": "DDIM",
        "steps": 6,
        "mode": "batched",
        "guidance": {"scale": 7.5, "low": 1.0, "high": 20},
        "rows": [
            row(900, "full", guidance="scale"),
            row(800, "full", guidance=3.0, x=(1.0, 0.1), e=(0.2, -0.1)),
            row(700.5, "shallow", guidance="scale", mix={"mid": [2.0, -1.0]}),
            row(500, "shallow", held={"weights": [1.0, -0.5], "times": "scale_minus_one"}),
            row(400),
            row(300, "full", input_scale=0.9, held={"weights": [0.3, 0.1]}),
            row(1, "shallow", x=(0.5, 0.0, 0.25), e=(0.1, 0.2, 0.3), mix={"mid": [1.5, -0.5, 0.1]}),
        ],
    }
    slow = {**fast, "takes": ["prompt"], "mode": "sequential", "guidance": {"scale": 5, "low": 5, "high": 5}}
    slow["rows"] = [
        row(900, "full", guidance=2.0),
        row(500, "shallow", guidance="scale"),
        {**row(100, "full"), "update": {"x": [0.9], "e": [], "noise": 0.3, "clip": clip}, "held": {"weights": [2.0]}},
        row(1, "shallow"),
    ]
    added = [
        {"content": "<cat>", "ids": [5, 6], "normalized": True, "left_strip": True},
        {"content": "<b>", "ids": [1]},
    ]
    return bundle(
        "text",
        graphs,
        {"fast": fast, "slow": slow},
        tokenizers={"clip": {**TOKENIZER, "added": added}},
        carries={"mid": {"dtype": mid[0], "shape": list(mid[1:])}},
        encoders={"clip": {"tokenizer": "clip", "graph": "text_encoder", "ids": "input_ids", "mask": "attention_mask"}},
        conditions={
            "sample": {"from": "latent"},
            "timestep": {"from": "timestep"},
            "ehs": {"from": "text", "outputs": [{"encoder": "clip", "output": "last_hidden_state"}]},
        },
        decoder={"graph": "vae", "input": "z", "output": "image", "scale": 0.5, "shift": 0.1},
        safety={"graph": "safety", "input": "image", "output": "score", "threshold": 0.1},
        preview={"graph": "taesd", "input": "z", "output": "image"},
    )


def make_joined() -> dict[str, Any]:
    """Two encoders joined and one alone, zeros, a constant, embedded guidance, a mask of the text, half floats; the
    latent is the picture, and its preview linear."""
    inputs = [tensor("x", "float16", "batch", 3, 8, 8), tensor("t", "float32", "batch")]
    inputs += [tensor("ctx", "float16", "batch", 8, 24), tensor("pool", "float32", "batch", 8)]
    inputs += [tensor("sizes", "float32", "batch", 6), tensor("w", "float32", "batch"), tensor("text_mask", "int64", "batch", 8)]
    graphs = {
        "unet": graph("unet", "a/unet.onnx", inputs, [tensor("v", "float16", "batch", 3, 8, 8)]),
        "e1": graph("te", "a/e1.onnx", [tensor("ids", "int32", 1, 8)], [tensor("h", "float32", 1, 8, 16)]),
        "e2": graph(
            "te2",
            "a/e2.onnx",
            [tensor("ids", "int64", "batch", 8)],
            [tensor("h", "float16", "batch", 8, 8), tensor("p", "float32", 1, 8)],
        ),
    }
    program = {
        "takes": ["prompt", "negative_prompt"],
        "latent": [3, 8, 8],
        "init": {"noise": 1},
        "sampler": "",
        "steps": 3,
        "mode": "batched",
        "embedded_guidance": {"scale": 1, "low": 0, "high": 2},
        "rows": [row(9, "unet", guidance=2), row(5, "unet", guidance=1.5), row(1, "unet")],
    }
    text = {"from": "text", "outputs": [{"encoder": "e1", "output": "h"}, {"encoder": "e2", "output": "h"}]}
    return bundle(
        "joined",
        graphs,
        {"p": program},
        rng="philox",
        tokenizers={"one": TOKENIZER, "two": {**TOKENIZER, "pad": "<e>"}},
        encoders={
            "e1": {"tokenizer": "one", "graph": "e1", "ids": "ids"},
            "e2": {"tokenizer": "two", "graph": "e2", "ids": "ids"},
        },
        conditions={
            "x": {"from": "latent"},
            "t": {"from": "timestep"},
            "ctx": {**text, "empty": "zeros"},
            "pool": {"from": "text", "outputs": [{"encoder": "e2", "output": "p"}]},
            "sizes": {"from": "constant", "values": [8, 8, 0, 0, 8, 8.5], "empty": [1, 1, 1, 1, 1, 1]},
            "w": {"from": "guidance"},
            "text_mask": {"from": "text_mask", "encoder": "e1"},
        },
        decoder={"scale": 1.5},
        preview={"weights": [[0.1, 0.2, 0.3], [0.0, 0.5, 0.1], [0.3, 0.0, -0.2]], "bias": [0.0, 0.1, 0.2]},
    )


def make_paint() -> dict[str, Any]:
    """Classes, pictures and masks: as conditions, at the start, blended."""
    latent = ("float32", 1, 4, 8, 8)
    inputs = [tensor("x", *latent), tensor("t", "float32", 1), tensor("m", "float32", 1, 1, 8, 8)]
    inputs += [tensor("mp", *latent), tensor("y", *latent), tensor("c", "int64", 1)]
    graphs = {
        "unet": graph("unet", "a/unet.onnx", inputs, [tensor("v", *latent)]),
        "plain": graph("unet", "a/plain.onnx", [inputs[0], inputs[5]], [tensor("v", *latent)]),
        "enc": graph(
            "vae", "a/enc.onnx", [tensor("p", "float32", 1, 3, 16, 16)], [tensor("mean", *latent), tensor("dev", *latent)]
        ),
        "dec": graph("vae", "a/dec.onnx", [tensor("z", *latent)], [tensor("image", "float32", 1, 1, 16, 16)]),
    }
    base = {"latent": [4, 8, 8], "sampler": "s", "steps": 2, "mode": "sequential"}
    noisy = {"x": [0.8], "e": [0.3], "noise": 0.2}
    programs = {
        "inpaint": {
            **base,
            "takes": ["prompt", "picture", "mask"],
            "init": {"noise": 1},
            "rows": [row(9, "unet"), {**row(3, "unet", guidance=2.0), "update": noisy}],
        },
        "from_picture": {
            **base,
            "takes": ["prompt", "picture"],
            "strength": 0.5,
            "init": {"noise": 0.5, "picture": 0.8},
            "guidance": {"scale": 2, "low": 1, "high": 3},
            "rows": [row(5, "plain", guidance="scale"), {**row(1, "plain", held={"weights": [1]}), "update": noisy}],
        },
        "blend": {
            **base,
            "takes": ["picture", "prompt", "mask"],
            "strength": 1,
            "init": {"noise": 1},
            "rows": [
                {**row(5, "plain", blend={"picture": 0.9, "noise": 0.1}), "update": noisy},
                row(1, "plain", blend={"picture": 1, "noise": 0}),
            ],
        },
    }
    return bundle(
        "paint",
        graphs,
        programs,
        conditions={
            "x": {"from": "latent"},
            "t": {"from": "timestep"},
            "m": {"from": "mask"},
            "mp": {"from": "masked_picture"},
            "y": {"from": "picture"},
            "c": {"from": "class", "count": 3, "null": 3, "names": ["cat", "dog", "Ü"]},
        },
        decoder={"graph": "dec", "input": "z", "output": "image"},
        picture={
            "graph": "enc",
            "input": "p",
            "mean": "mean",
            "deviation": "dev",
            "scale": 0.18,
            "shift": 0.1,
            "size": [16, 16],
        },
    )


class StandIn:
    """One graph of the module's docstring."""

    def __init__(self, spec: Graph, manifest: Manifest) -> None:
        self.spec, self.conditions = spec, manifest.conditions
        self.encoder = next((one for one in manifest.encoders.values() if manifest.graphs[one.graph] is spec), None)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.encoder is not None:
            return self._encode(inputs)
        if self.spec.component == "unet":
            return self._denoise(inputs)
        (value,) = (one.astype(np.float64).ravel() for one in inputs.values())
        return {
            spec.name: self._shaped(spec, 1, value[np.arange(size := _count(spec)) * len(value) // size] / (index + 2))
            for index, spec in enumerate(self.spec.outputs)
        }

    def _encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        assert self.encoder is not None
        ids = inputs[self.encoder.ids][0].astype(np.float64)
        mask = 0.0 if self.encoder.mask is None else float(inputs[self.encoder.mask].sum())
        found = {}
        for spec in self.spec.outputs:
            width, index = int(spec.shape[-1]), np.arange(_count(spec))
            value = ids[index // width % len(ids)] / 10 + index % width / 100 + mask / 1000
            found[spec.name] = self._shaped(spec, 1, value)
        return found

    def _denoise(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kinds = {spec.name: self.conditions[spec.name].source for spec in self.spec.free_inputs()}
        latent = next(inputs[name] for name, kind in kinds.items() if kind == "latent").astype(np.float64)
        batch, latent = len(latent), latent.reshape(len(latent), -1)
        time = next((float(inputs[name].flat[0]) for name, kind in kinds.items() if kind == "timestep"), 0.0) / 10000
        total = 0.3 * latent + time
        others = [name for name, kind in kinds.items() if kind not in ("latent", "timestep")]
        for index, name in enumerate(others):
            total += 0.01 * (index + 1) * self._spread(inputs[name], batch, latent.shape[1])
        for name in self.spec.carries_in.values():
            total += 0.1 * self._spread(inputs[name], batch, latent.shape[1])
        carry = 0.5 * latent + time
        free = self.spec.free_outputs()[0].name
        return {
            spec.name: self._shaped(spec, batch, (total if spec.name == free else carry[:, : _count(spec)]))
            for spec in self.spec.outputs
        }

    def _spread(self, value: Any, batch: int, size: int) -> Any:
        rows = value.astype(np.float64).reshape(len(value), -1)
        return np.broadcast_to(rows[:, np.arange(size) % rows.shape[1]], (batch, size))

    def _shaped(self, spec: Any, batch: int, value: Any) -> Any:
        return value.reshape(spec.sized(batch)).astype(spec.dtype)


def _count(spec: Any) -> int:
    return int(np.prod(spec.sized(1)[1:]))


def make_picture() -> Any:
    return (np.arange(16 * 16 * 3) * 7 % 256).astype(np.uint8).reshape(16, 16, 3)


def make_mask() -> Any:
    rows = np.arange(16)
    return np.where((rows[:, None] + rows[None]) % 5 < 2, 200, 100).astype(np.uint8)


def make_cases() -> list[dict[str, Any]]:
    text, joined, paint = make_text(), make_joined(), make_paint()
    picture, mask = {"picture": make_picture()}, {"mask": make_mask()}
    return [
        {"name": "asked", "manifest": text, "prompt": "a a bb", "negative_prompt": "", "seed": 0},
        {"name": "negative", "manifest": text, "prompt": "a <cat>!", "negative_prompt": "b", "seed": 2**32 + 1, "guidance": 12.25},
        {"name": "sequential", "manifest": text, "program": "slow", "prompt": "<e> a", "seed": 7},
        {"name": "joined", "manifest": joined, "prompt": "a bb", "seed": 3, "guidance": 0.5},
        {"name": "joined_negative", "manifest": joined, "prompt": "a bb", "negative_prompt": "a", "seed": 3},
        {"name": "inpaint", "manifest": paint, "prompt": "dog", "seed": 4, **picture, **mask},
        {"name": "from_picture", "manifest": paint, "program": "from_picture", "prompt": " 2 ", "seed": 5, "guidance": 2.5, **picture},
        {"name": "blend", "manifest": paint, "program": "blend", "prompt": "Ü", "seed": 6, **picture, **mask},
    ]


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    manifest = Manifest.model_validate_json(json.dumps(case["manifest"]), strict=True)
    manifest.check()
    runners = {name: StandIn(spec, manifest) for name, spec in manifest.graphs.items()}
    tokenizers = {name: Tokenizer.make(VOCABULARY, MERGES, spec) for name, spec in manifest.tokenizers.items()}
    session = Session(manifest, tokenizers, runners, program=case.get("program"))
    asked = {key: case.get(key) for key in ("picture", "mask", "guidance")}
    steps = list(session.steps(case["prompt"], case.get("negative_prompt", ""), case["seed"], **asked))
    pixels = session.decode(steps[-1].latent)
    plain = {key: value.ravel().tolist() if hasattr(value, "ravel") else value for key, value in case.items()}
    return {
        **plain,
        "seed": str(case["seed"]),
        "negative_prompt": case.get("negative_prompt", ""),
        "latents": [[float(f"{value:.8g}") for value in step.latent.ravel()[::EVERY]] for step in steps],
        "shape": list(pixels.shape),
        "pixels": pixels.ravel()[::EVERY].tolist(),
        "preview": session.preview(steps[0].latent).ravel()[::EVERY].tolist(),
        "flagged": session.is_flagged(steps[-1].latent),
    }


if __name__ == "__main__":
    cases = [run_case(case) for case in make_cases()]
    text = json.dumps({"about": "make_programs.py", "vocabulary": VOCABULARY, "cases": cases}, ensure_ascii=False)
    Path(__file__).with_name("programs.json").write_text(text + "\n", encoding="utf-8")
