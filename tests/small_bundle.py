"""A bundle of a few kilobytes that ONNX Runtime really runs: the two programs of `valid_bundle`, with graphs written by
hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgediff.bundle import Bundle, BundleWriter
from tests.valid_bundle import CARRY, LATENT, LENGTH, WIDTH, make_manifest, make_plan, valid_parts

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def io(name: str, kind: int, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: np.ndarray) -> bytes:
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def denoiser(work: int, reads: bool) -> bytes:
    """noise_pred = 0.1 sample + 0 * (`work` products of 256 x 256 matrices); `full` leaves a carry as well."""
    node = helper.make_node
    nodes = [node("Mul", ["timestep", "zeros"], ["m0"])]
    nodes += [node("MatMul", [f"m{i}", "eye"], [f"m{i + 1}"]) for i in range(work)]
    nodes += [node("ReduceMax", [f"m{work}"], ["top"], keepdims=0), node("ReduceMax", ["text"], ["t"], keepdims=0)]
    nodes += [node("Mul", ["t", "nought"], ["t0"]), node("Add", ["top", "t0"], ["rest0"])]
    if reads:
        nodes += [node("ReduceMax", ["cache_in_mid"], ["c"], keepdims=0), node("Mul", ["c", "nought"], ["c0"])]
    nodes += [node("Add", ["rest0", "c0"] if reads else ["rest0", "nought"], ["rest"])]
    nodes += [node("Mul", ["sample", "tenth"], ["s"]), node("Add", ["s", "rest"], ["noise_pred"])]
    inputs = [io("sample", FLOAT, ("batch", *LATENT)), io("timestep", FLOAT, (1,))]
    inputs += [io("encoder_hidden_states", FLOAT, ("batch", LENGTH, WIDTH))]
    outputs = [io("noise_pred", FLOAT, ("batch", *LATENT))]
    nodes.insert(0, node("Identity", ["encoder_hidden_states"], ["text"]))
    if reads:
        inputs += [io("cache_in_mid", FLOAT, ("batch", *CARRY))]
    else:
        outputs += [io("cache_out_mid", FLOAT, ("batch", *CARRY))]
        nodes += [node("Slice", ["sample", "from", "to", "axes"], ["cache_out_mid"])]
    small = {"from": np.zeros(3, np.int64), "to": np.array(CARRY), "axes": np.array([1, 2, 3])}
    return model(
        nodes,
        inputs,
        outputs,
        zeros=np.zeros((256, 256), np.float32),
        eye=np.eye(256, dtype=np.float32),
        nought=np.float32(0),
        tenth=np.float32(0.1),
        **({} if reads else small),
    )


def running_parts(work: int) -> dict[str, bytes]:
    """The files of the valid bundle, with graphs that ONNX Runtime can run."""
    table = np.arange(WIDTH * 4, dtype=np.float32).reshape(4, WIDTH)
    text = model(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        [io("input_ids", INT64, (1, LENGTH))],
        [io("last_hidden_state", FLOAT, (1, LENGTH, WIDTH))],
        table=table,
    )
    scales = np.array([1, 1, 2, 2], np.float32)
    image = model(
        [
            helper.make_node("Slice", ["z", "from", "to", "axes"], ["rgb"]),
            helper.make_node("Resize", ["rgb", "", "scales"], ["image"], mode="nearest"),
        ],
        [io("z", FLOAT, (1, *LATENT))],
        [io("image", FLOAT, (1, 3, 16, 16))],
        **{"from": np.zeros(1, np.int64), "to": np.array([3]), "axes": np.array([1])},
        scales=scales,
    )
    graphs = {"unet/full": denoiser(work, False), "unet/shallow": denoiser(max(1, work // 8), True)}
    graphs |= {"text_encoder": text, "vae_decoder": image}
    return {**valid_parts(), **{f"onnxruntime/{name}.onnx": data for name, data in graphs.items()}}


def write_bundle(folder: Path, work: int, name: str = "red-panda") -> Bundle:
    with BundleWriter(folder) as writer:
        for path, data in running_parts(work).items():
            writer.path(path).write_bytes(data)
        writer.path("plan.json").write_text(make_plan().to_json(), encoding="utf-8")
        return writer.commit(make_manifest().model_copy(update={"name": name}))
