"""This machine's own coefficients: a minute of single operators in ONNX Runtime, fitted like any other device.

With one thread the processor's time is taken instead of the clock's, so that other work on the machine does not
count; with more, the least of many runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.config import cache_folder, write_text_atomic
from edgediff.estimate.coefficients import UnitClass, host_file
from edgediff.estimate.fitting import Prior, fit, named_terms
from edgediff.estimate.operators import Kind, Operator, OperatorTable
from edgediff.estimate.rows import Chip, Measurement
from edgediff.plugins import Progress, import_or_explain

REFERENCE = Prior(320.0, 20.0, 0.6, 0.6, 4.0, 30.0, sizes_free=True)
SECONDS, RUNS = 0.25, 40
SPREAD = 0.17  # of networks about the estimate, where operators alone were fitted; benchmarks/claims/estimator_host.py
CONVOLUTIONS = ((16, 24), (48, 24), (96, 12), (192, 6), (64, 48), (128, 32), (320, 32), (640, 16), (1280, 8))
PRODUCTS = (
    (1, 192, 192),
    (1, 1280, 1280),
    (24, 96, 96),
    (77, 768, 768),
    (144, 96, 384),
    (576, 48, 192),
    (576, 96, 96),
    (1024, 320, 320),
    (256, 640, 2560),
    (64, 1280, 1280),
    (77, 768, 3072),
    (4096, 64, 64),
)
ATTENTION = ((4, 576, 12), (4, 144, 24), (8, 256, 40), (8, 1024, 40), (8, 64, 160), (12, 77, 64))
LIGHT_VALUES = (2_000, 20_000, 200_000, 1_300_000)


def calibrate_host(*, threads: int = 1, progress: Progress | None = None) -> Path:
    """Measures single operators here and keeps the fitted coefficients in the cache folder, where `estimate` finds
    them for targets that are any machine (`host`). Returns the file. Raises MissingLibrary without onnx."""
    import_or_explain("onnxruntime", needed_by="calibrating this machine")
    import_or_explain("onnx", needed_by="calibrating this machine")
    cases = list(_cases())
    rows: list[Measurement] = []
    graphs: dict[str, OperatorTable] = {}
    for index, (name, model, table) in enumerate(cases):
        if progress is not None:
            progress(f"measuring {name}", index, len(cases))
        graphs[name] = table
        rows.append(Measurement(name, name.split()[0], "host", "onnxruntime", "fp32", _measure(model, threads)))
    chips = {"host": Chip("host", "x86", {"fp32": REFERENCE.reference_gflops / 2}, REFERENCE.reference_bandwidth)}
    found = fit(rows, graphs, chips, REFERENCE)
    slopes = tuple(tuple(row) for row in REFERENCE.slopes().tolist())
    shift = tuple(float(v) for v in found.shift["host"])
    unit = UnitClass(
        reference_gflops=REFERENCE.reference_gflops,
        reference_bandwidth=REFERENCE.reference_bandwidth,
        theta=named_terms(found.theta + found.delta["onnxruntime", "fp32"]),
        shift={"": shift},  # type: ignore[dict-item]
        slopes=slopes,
        spread={"onnxruntime|fp32": SPREAD},
        default_spread=SPREAD,
        new_chip=0.0,  # type: ignore[arg-type]
        rows={"onnxruntime|fp32": len(rows)},
        source=f"measured here, {threads} thread(s), {os.cpu_count()} cores",
    )
    file = host_file()
    cache_folder().mkdir(parents=True, exist_ok=True)
    write_text_atomic(file, unit.to_json())
    return file


def _measure(model: Any, threads: int) -> float:
    """Milliseconds of one call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feed = {i.name: random.standard_normal(i.shape, dtype=np.float32) for i in session.get_inputs()}
    clock = time.process_time if threads == 1 else time.perf_counter
    session.run(None, feed)
    start = time.perf_counter()
    session.run(None, feed)
    batch = max(1, int(0.002 / max(time.perf_counter() - start, 1e-6)))
    samples: list[float] = []
    while len(samples) < 3 or (time.perf_counter() - start < SECONDS and len(samples) < RUNS):
        begin = clock()
        for _ in range(batch):
            session.run(None, feed)
        samples.append((clock() - begin) / batch * 1e3)
    return float(np.quantile(samples, 0.25))


def _cases() -> Iterator[tuple[str, Any, OperatorTable]]:
    for channels, side in CONVOLUTIONS:
        for kernel in (1, 3):
            if kernel == 1 or channels * side < 11_000:
                yield _convolutions(channels, side, kernel)
    for rows, depth, columns in PRODUCTS:
        yield _product(rows, depth, columns)
    for heads, tokens, size in ATTENTION:
        yield _attention(heads, tokens, size)
    for values in LIGHT_VALUES:
        for kind in ("elementwise", "softmax", "layout", "norm", "group_norm", "resize"):
            yield _light(kind, values)


def _graph(nodes: list[Any], inputs: Mapping[str, tuple[int, ...]], output: str, weights: dict[str, Any]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _convolutions(channels: int, side: int, kernel: int) -> tuple[str, Any, OperatorTable]:
    """Three in a row, so that the change to the library's own layout is paid as in a network."""
    from onnx import helper

    weight = np.full((channels, channels, kernel, kernel), 0.01, np.float32)
    nodes = [
        helper.make_node("Conv", [f"v{k}", f"w{k}"], [f"v{k + 1}"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
        for k in range(3)
    ]
    model = _graph(nodes, {"v0": (1, channels, side, side)}, "v3", {f"w{k}": weight for k in range(3)})
    values, depth = float(channels * side * side), channels * kernel**2
    kind: Kind = "conv" if kernel > 1 else "pointwise"
    op = Operator(kind, 3, values * depth, float(weight.size), values, values, side * side, channels, depth)
    return f"{kind} {channels} {side}", model, OperatorTable((op,))


def _product(rows: int, depth: int, columns: int) -> tuple[str, Any, OperatorTable]:
    from onnx import helper

    model = _graph(
        [helper.make_node("MatMul", ["v", "w"], ["y"])],
        {"v": (1, rows, depth)},
        "y",
        {"w": np.full((depth, columns), 0.01, np.float32)},
    )
    op = Operator(
        "linear",
        1,
        float(rows * depth * columns),
        float(depth * columns),
        float(rows * depth),
        float(rows * columns),
        rows,
        columns,
        depth,
    )
    return f"linear {rows} {depth} {columns}", model, OperatorTable((op,))


def _attention(heads: int, tokens: int, size: int) -> tuple[str, Any, OperatorTable]:
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    shapes = {"q": (heads, tokens, size), "k": (heads, size, tokens), "v": (heads, tokens, size)}
    rows, scores, macs = heads * tokens, float(heads * tokens * tokens), float(heads * tokens * tokens * size)
    values = float(heads * tokens * size)
    ops = (
        Operator("matmul", 1, macs, 0.0, 2 * values, scores, rows, tokens, size),
        Operator("softmax", 1, 0.0, 0.0, scores, scores),
        Operator("matmul", 1, macs, 0.0, scores + values, values, rows, size, tokens),
    )
    return f"attention {heads} {tokens} {size}", _graph(nodes, shapes, "y", {}), OperatorTable(ops)


def _light(kind: str, values: int) -> tuple[str, Any, OperatorTable]:
    from onnx import helper

    rows = max(1, values // 96)
    shape: tuple[int, ...] = (1, 96, rows)
    total = float(96 * rows)
    ops: tuple[Operator, ...]
    one = Operator("elementwise", 1, 0.0, 0.0, total, total)
    weights: dict[str, Any] = {}
    if kind == "elementwise":
        nodes = [
            helper.make_node("Sigmoid", ["v"], ["s"]),
            helper.make_node("Mul", ["v", "s"], ["a"]),
            helper.make_node("Add", ["a", "v"], ["y"]),
        ]
        ops = (one, Operator("elementwise", 1, 0.0, 0.0, 2 * total, total))
    elif kind == "softmax":
        nodes, ops = [helper.make_node("Softmax", ["v"], ["y"], axis=-1)], (Operator("softmax", 1, 0, 0, total, total),)
    elif kind == "layout":
        nodes, ops = (
            [helper.make_node("Transpose", ["v"], ["y"], perm=[0, 2, 1])],
            (Operator("layout", 1, 0, 0, total, total),),
        )
    elif kind == "norm":
        shape, weights = (1, rows, 96), {"g": np.ones(96, np.float32), "b": np.zeros(96, np.float32)}
        nodes = [helper.make_node("LayerNormalization", ["v", "g", "b"], ["y"], axis=-1)]
        ops = (Operator("norm", 1, 0, 192, total, total),)
    elif kind == "group_norm":
        weights = {
            "g": np.ones(8, np.float32),
            "b": np.zeros(8, np.float32),
            "s": np.array([1, 8, -1]),
            "t": np.array([1, 96, -1]),
            "m": np.ones((1, 96, 1), np.float32),
        }
        nodes = [
            helper.make_node("Reshape", ["v", "s"], ["r"]),
            helper.make_node("InstanceNormalization", ["r", "g", "b"], ["n"]),
            helper.make_node("Reshape", ["n", "t"], ["u"]),
            helper.make_node("Mul", ["u", "m"], ["w"]),
            helper.make_node("Add", ["w", "m"], ["y"]),
        ]
        ops = (Operator("norm", 1, 0, 192, total, total),)
    else:
        side = max(2, int((values / 24) ** 0.5) // 2)
        shape, weights = (1, 24, side, side), {"z": np.array([1.0, 1.0, 2.0, 2.0], np.float32)}
        nodes = [helper.make_node("Resize", ["v", "", "z"], ["y"], mode="nearest")]
        ops = (Operator("resize", 1, 0, 0, float(24 * side * side), float(96 * side * side)),)
    return f"{kind} {values}", _graph(nodes, {"v": shape}, "y", weights), OperatorTable(ops)
