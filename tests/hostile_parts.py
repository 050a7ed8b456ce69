"""Parts of manifests that the cases put in: graphs, stages, classes, scales, states."""

from __future__ import annotations

from typing import Any

from tests.hostile_changes import Change, append, both, put
from tests.valid_bundle import LATENT

ARTIFACT = "graphs.full.artifacts.onnxruntime"
ROW = "programs.main.rows"
READ = {"graph": "shallow", "guidance": 3.0, "timestep": 0.0, "update": {"x": [1.0], "e": [-0.1]}}
CLIP = {"x": 1.0, "e": 1.0, "limit": 1.0, "weight": 1.0}


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """A graph that no backend has: enough for a manifest."""
    return {"component": "stage", "inputs": inputs, "outputs": outputs}


def stage(name: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **spec: Any) -> Change:
    """Adds a graph, and the part of the manifest that runs it."""
    key = spec.pop("key", name)
    return both(put(f"graphs.{name}", graph(inputs, outputs)), put(key, {"graph": name, **spec}))


def picture(size: tuple[int, int] = (16, 16), mean: tuple[int, ...] = LATENT, **changes: Any) -> Change:
    """An encoder of pictures."""
    outputs = [tensor("mean", 1, *mean), tensor("deviation", 1, *changes.pop("deviation", mean))]
    spec = {"input": "pixels", "mean": "mean", "deviation": "deviation", "size": list(size), **changes}
    inputs = [tensor("pixels", *changes.get("shape", (1, 3, 16, 16)))]
    spec.pop("shape", None)
    return stage("vae_encoder", inputs, outputs, key="picture", **spec)


def classes(count: int = 10, **others: Any) -> Change:
    """Classes in the place of text."""
    change = put("conditions.encoder_hidden_states", {"from": "class", "count": count, **others})
    shape = ["batch"]
    specs = [
        put(f"graphs.{name}.inputs.2", {"name": "encoder_hidden_states", "dtype": "int64", "shape": shape})
        for name in ("full", "shallow")
    ]
    return both(change, *specs, put("programs.main.takes", ["prompt"]))


def guidance(**scale: Any) -> Change:
    return put("programs.main.guidance", {"scale": 3.0, "low": 1.0, "high": 8.0, **scale})


def extra(source: dict[str, Any], *shape: int | str, dtype: str = "float32") -> Change:
    """One more input of both denoiser graphs, and where it comes from."""
    spec = tensor("more", *shape, dtype=dtype)
    return both(
        append("graphs.full.inputs", spec), append("graphs.shallow.inputs", spec), put("conditions.more", source)
    )


STATED = both(
    put(f"{ARTIFACT}.states", {"cache_out_mid": "mid"}),
    put("graphs.shallow.artifacts.onnxruntime.states", {"cache_in_mid": "mid"}),
    put("graphs.shallow.artifacts.onnxruntime.file", "onnxruntime/unet/full.onnx"),
)
SECOND_CARRY = both(
    put("carries.low", {"dtype": "float32", "shape": ["batch", 2, 4, 4]}),
    append("graphs.full.outputs", tensor("cache_out_low", "batch", 2, 4, 4)),
    append("graphs.shallow.inputs", tensor("cache_in_low", "batch", 2, 4, 4)),
    put("graphs.full.carries_out.low", "cache_out_low"),
    put("graphs.shallow.carries_in.low", "cache_in_low"),
)
SAFETY = {"key": "safety", "input": "seen", "output": "score", "threshold": 0.5}
SCORE = [tensor("score", 1, 1)]
COLOURS = [[0.1, 0.2, 0.3]] * 4
