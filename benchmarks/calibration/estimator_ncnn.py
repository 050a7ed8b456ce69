"""ncnn's own graph descriptions (`benchmark/models/*.param` of Tencent/ncnn) as operator tables.

What ncnn's benchmark ran is what the file says, so that no network of the same name has to be guessed. Shapes are
`(channels, height, width)`; a layer that is not known here stops the reading.
"""

from __future__ import annotations

import math
from pathlib import Path

from edgediff.estimate.operators import Kind, Operator, OperatorTable, merged_table

# Sides of the square inputs, from benchmark/benchncnn.cpp.
SIDES = {
    "squeezenet": 227,
    "mobilenet": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3": 224,
    "shufflenet": 224,
    "shufflenet_v2": 224,
    "mnasnet": 224,
    "proxylessnasnet": 224,
    "efficientnet_b0": 224,
    "efficientnetv2_b0": 224,
    "regnety_400m": 224,
    "blazeface": 128,
    "googlenet": 224,
    "resnet18": 224,
    "alexnet": 227,
    "vgg16": 224,
    "resnet50": 224,
    "squeezenet_ssd": 300,
    "mobilenet_ssd": 300,
    "mobilenet_yolo": 416,
    "mobilenetv2_yolov3": 352,
    "yolov4-tiny": 416,
    "nanodet_m": 320,
    "yolo-fastest-1.1": 320,
    "yolo-fastestv2": 352,
    "vision_transformer": 384,
    "FastestDet": 352,
}
Shape = tuple[int, int, int]
FREE = frozenset(
    (
        "Split",
        "Flatten",
        "Reshape",
        "Noop",
        "Input",
        "MemoryData",
        "PriorBox",
        "DetectionOutput",
        "Yolov3DetectionOutput",
        "YoloDetectionOutput",
        "ReLU",
        "Dropout",
        "ExpandDims",
        "Squeeze",
        "BatchNorm",
        "Scale",
    )
)
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys(
        ("BinaryOp", "Eltwise", "UnaryOp", "Swish", "HardSwish", "HardSigmoid", "GELU", "Sigmoid"), "elementwise"
    ),
    **dict.fromkeys(("Pooling", "Reduction"), "pool"),
    **dict.fromkeys(("LayerNorm", "LRN"), "norm"),
    "Softmax": "softmax",
    "Interp": "resize",
    **dict.fromkeys(("Concat", "Slice", "ShuffleChannel", "Permute", "Padding", "Crop"), "layout"),
}


def read_graph(file: Path, side: int) -> OperatorTable:
    """The operators of one file on an image of `side` x `side` x 3."""
    shapes: dict[str, Shape] = {}
    found: list[Operator] = []
    for line in file.read_text(encoding="utf-8").splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        names, rest = rest[: int(inputs) + int(outputs)], rest[int(inputs) + int(outputs) :]
        sources, results = names[: int(inputs)], names[int(inputs) :]
        options = _options(rest)
        given = [shapes[name] for name in sources] or [(3, side, side)]
        made = _shapes(kind, given, options, len(results))
        shapes.update(zip(results, made, strict=True))
        found += _operators(kind, given, made, options)
    return merged_table(found, ports=3.0 * side * side)


def _options(words: list[str]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for word in words:
        key, _, value = word.partition("=")
        number, values = int(key), [float(part) for part in value.split(",")]
        found[-23300 - number if number <= -23300 else number] = values[1:] if number <= -23300 else values
    return found


def _size(shape: Shape) -> int:
    return math.prod(shape)


def _one(options: dict[int, list[float]], key: int, default: float = 0) -> int:
    return int(options.get(key, [default])[0])


def _window(size: int, kernel: int, stride: int, pad: int, pad_end: int, dilation: int = 1, up: bool = False) -> int:
    if pad == -233:
        return -(-size // stride)
    left = size + pad + pad_end - dilation * (kernel - 1) - 1
    return (-(-left // stride) if up else left // stride) + 1


def _shapes(kind: str, given: list[Shape], o: dict[int, list[float]], count: int) -> list[Shape]:
    c, h, w = given[0]
    if kind.startswith("Convolution"):
        kernel, stride, pad, dilation = _one(o, 1), _one(o, 3, 1), _one(o, 4), _one(o, 2, 1)
        kh, sh, ph = _one(o, 11, kernel), _one(o, 13, stride), _one(o, 14, pad)
        return [
            (
                _one(o, 0),
                _window(h, kh, sh, ph, _one(o, 16, ph), dilation),
                _window(w, kernel, stride, pad, _one(o, 15, pad), dilation),
            )
        ]
    if kind.startswith("Deconvolution"):
        kernel, stride, pad = _one(o, 1), _one(o, 3, 1), _one(o, 4)
        return [(_one(o, 0), (h - 1) * stride + kernel - 2 * pad, (w - 1) * stride + kernel - 2 * pad)]
    if kind == "InnerProduct":
        return [(_one(o, 0), 1, 1)]
    if kind == "Pooling":
        return [_pooled(given[0], o)]
    if kind == "Concat":
        axis = _one(o, 0) + _missing(given)
        sizes = [[shape[k] for shape in given] for k in range(3)]
        return [tuple(sum(sizes[k]) if k == axis else max(sizes[k]) for k in range(3))]  # type: ignore[list-item]
    if kind == "Flatten":
        return [(1, 1, _size(given[0]))]
    if kind == "Slice":
        return _sliced(given[0], o)
    if kind == "Interp":
        return [(c, _one(o, 3) or int(h * o[1][0]), _one(o, 4) or int(w * o[2][0]))]
    if kind == "Padding":
        return [(c, h + _one(o, 0) + _one(o, 1), w + _one(o, 2) + _one(o, 3))]
    if kind == "Reshape":
        dims = [_one(o, 2, -233), _one(o, 1, -233), _one(o, 0, -233)]
        dims = [1 if v == -233 else (c, h, w)[k] if v == 0 else v for k, v in enumerate(dims)]
        known = math.prod(v for v in dims if v > 0)
        return [tuple(_size(given[0]) // known if v < 0 else v for v in dims)]  # type: ignore[list-item]
    if kind == "Reduction":
        return [(c, 1, 1)]
    if kind == "Crop":
        return [_cropped(given, o)]
    if kind == "BinaryOp" and len(given) > 1:
        return [max(given, key=_size)]
    if kind == "Permute":  # which way does not matter for what is moved
        return [{1: (c, w, h), 2: (h, c, w), 3: (h, w, c), 4: (w, c, h), 5: (w, h, c)}.get(_one(o, 0), (c, h, w))]
    if kind == "MemoryData":
        return [(max(1, _one(o, 2)), max(1, _one(o, 1)), max(1, _one(o, 0)))] * count
    if kind == "Gemm":
        return [(1, _size(given[0]) // _one(o, 9), _one(o, 8))]
    if kind not in FREE and kind not in KIND_OF and kind != "MultiHeadAttention":
        raise SystemExit(f"no shape is known for ncnn's layer '{kind}'")
    return [given[0]] * count


def _pooled(shape: Shape, o: dict[int, list[float]]) -> Shape:
    c, h, w = shape
    if _one(o, 4):
        return c, 1, 1
    if _one(o, 7):
        return c, _one(o, 18, _one(o, 8)), _one(o, 8)
    kernel, stride, pad, mode = _one(o, 1), _one(o, 2, 1), _one(o, 3), _one(o, 5)
    pad = -233 if mode >= 2 else pad
    high, wide = (_window(size, kernel, stride, pad, pad, up=mode == 0) for size in (h, w))
    return c, high, wide


def _sliced(shape: Shape, o: dict[int, list[float]]) -> list[Shape]:
    parts = [int(v) for v in o[0]]
    axis = _one(o, 1)
    total, known = shape[axis], sum(v for v in parts if v > 0)
    rest = sum(v <= 0 for v in parts)
    each = [v if v > 0 else (total - known) // rest for v in parts]
    return [tuple(v if k == axis else shape[k] for k in range(3)) for v in each]  # type: ignore[misc]


def _missing(given: list[Shape]) -> int:
    """Leading sides that ncnn does not count: axis 0 of a matrix is its height, of a vector its width."""
    return min(2 if shape[:2] == (1, 1) else int(shape[0] == 1) for shape in given) if given[0][0] == 1 else 0


def _cropped(given: list[Shape], o: dict[int, list[float]]) -> Shape:
    """Starts, ends and axes (9, 10, 11), or an offset and a size per side."""
    sides = list(given[0])
    if 9 in o:
        axes = [int(a) for a in o.get(11, range(len(o[9])))]
        for axis, start, end in zip(axes, o[9], o[10], strict=True):
            end = min(sides[axis], int(end)) if end > 0 else sides[axis] + int(end if end != -233 else 0)
            sides[axis] = end - int(start)
    return tuple(sides)  # type: ignore[return-value]


def _operators(kind: str, given: list[Shape], made: list[Shape], o: dict[int, list[float]]) -> list[Operator]:
    reads, writes = float(sum(map(_size, given))), float(sum(map(_size, made)))
    if "onvolution" in kind:
        groups, weights = _one(o, 7, 1) if "DepthWise" in kind else 1, float(_one(o, 6))
        outer, inner = (given[0], made[0]) if kind.startswith("De") else (made[0], given[0])
        positions = outer[1] * outer[2]
        depth = int(weights) // outer[0]
        name: Kind = "conv"
        if groups == inner[0] and groups > 1:
            name = "depthwise"
        elif groups == 1 and depth == inner[0]:
            name = "pointwise"
        bias = float(outer[0] if _one(o, 5) else 0)
        return [
            Operator(name, 1, weights * positions, weights + bias, reads, writes, positions, outer[0] // groups, depth)
        ]
    if kind == "InnerProduct":
        weights = float(_one(o, 2))
        rows = given[0][1] if given[0][1] > 1 and given[0][1] * _one(o, 0) * given[0][2] == weights else 1
        return [
            Operator("linear", 1, weights * rows, weights, reads, writes, rows, _one(o, 0), int(weights) // _one(o, 0))
        ]
    if kind == "Gemm":
        columns, depth = _one(o, 8), _one(o, 9)
        rows, weights = _size(given[0]) // depth, float(columns * depth)
        return [Operator("linear", 1, rows * weights, weights, reads, writes, rows, columns, depth)]
    if kind == "MultiHeadAttention":
        return _attention(given, o)
    if kind == "Slice":
        reads = writes
    return [Operator(KIND_OF[kind], 1, reads=reads, writes=writes)] if kind in KIND_OF else []


def _attention(given: list[Shape], o: dict[int, list[float]]) -> list[Operator]:
    width, heads = _one(o, 0), _one(o, 1)
    rows = _size(given[0]) // width
    scores = float(heads * rows * rows)
    values = float(rows * width)
    project = Operator("linear", 4, values * width, float(width * width), values, values, rows, width, width)
    first = Operator("matmul", 1, values * rows, 0.0, 2 * values, scores, rows * heads, rows, width // heads)
    second = Operator("matmul", 1, values * rows, 0.0, scores + values, values, rows * heads, width // heads, rows)
    return [project, first, Operator("softmax", 1, reads=scores, writes=scores), second]


def read_all(folder: Path) -> dict[str, OperatorTable]:
    """`ncnn/<name>` of every graph of the benchmark in `folder` (`benchmark/models`)."""
    return {f"ncnn/{name}": read_graph(folder / f"{name}.param", side) for name, side in SIDES.items()}
