"""Every operation of the evaluator, one by one: against torch (or numpy) and against coremltools' own meaning of it.

All cases are one saved program with an output each, read back from the disk. Where coremltools can infer a value
(most operations, not convolutions and the like), the same operation on constants is computed by it and compared too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import edgediff.mil
from edgediff.mil.registry import OPERATIONS

coremltools = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 8)).astype(np.float32)
P = (np.abs(X) + 0.1).astype(np.float32)  # above 0
U = np.clip(X / 4, -0.95, 0.95).astype(np.float32)  # inside (-1, 1)
B = (X > 0).astype(np.float32)
Y = RNG.standard_normal((2, 4, 6, 8)).astype(np.float32)
INPUTS = {"x": X, "p": P, "u": U, "b": B}
T = {name: torch.from_numpy(value) for name, value in INPUTS.items()}
W = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)
G = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
L = RNG.standard_normal((5, 8)).astype(np.float32)
V4 = RNG.standard_normal(4).astype(np.float32)
V8 = RNG.standard_normal(8).astype(np.float32)
POS4 = np.abs(V4) + 0.5
INT = RNG.integers(-5, 6, (3, 4)).astype(np.int32)


def t(value):
    return torch.from_numpy(np.asarray(value))


def simple(name, function, source="x", **extra):
    return source, lambda v, op: getattr(op, name)(x=v, **extra), function


def pair(name, function):
    return "x", lambda v, op: getattr(op, name)(x=v, y=Y), lambda v: function(v, t(Y))


def compare(name, function):
    """A comparison of rounded values (so that some are equal), as numbers."""
    return (
        "b",
        lambda v, op: op.cast(x=getattr(op, name)(x=v, y=B[::-1].copy()), dtype="fp32"),
        (lambda v: function(v, t(B[::-1].copy())).float()),
    )


def logical(name, function):
    other = Y > 0

    def build(v, op):
        return op.cast(x=getattr(op, name)(x=op.cast(x=v, dtype="bool"), y=other), dtype="fp32")

    return "b", build, lambda v: function(v.bool(), t(other)).float()


CASES = {
    **{
        name: simple(name, getattr(torch, name))
        for name in (
            "abs",
            "atan",
            "ceil",
            "cos",
            "erf",
            "exp",
            "exp2",
            "floor",
            "sign",
            "sin",
            "square",
            "tanh",
            "relu",
            "sigmoid",
            "cosh",
            "sinh",
        )
    },
    "round": simple("round", torch.round),
    "tan": simple("tan", torch.tan, "u"),
    "acos": simple("acos", torch.acos, "u"),
    "asin": simple("asin", torch.asin, "u"),
    "atanh": simple("atanh", torch.atanh, "u"),
    "sqrt": simple("sqrt", torch.sqrt, "p"),
    "silu": simple("silu", F.silu),
    "relu6": simple("relu6", F.relu6),
    "softplus": simple("softplus", F.softplus),
    "softsign": simple("softsign", F.softsign),
    "inverse": simple("inverse", lambda v: 1 / (v + 0.01), "p", epsilon=0.01),
    "log": simple("log", lambda v: torch.log(v + 0.01), "p", epsilon=0.01),
    "rsqrt": simple("rsqrt", lambda v: torch.rsqrt(v + 0.01), "p", epsilon=0.01),
    "clip": simple("clip", lambda v: v.clamp(-0.5, 0.7), alpha=-0.5, beta=0.7),
    "threshold": simple("threshold", lambda v: v.clamp_min(0.2), alpha=0.2),
    "logical_not": (
        "b",
        lambda v, op: op.cast(x=op.logical_not(x=op.cast(x=v, dtype="bool")), dtype="fp32"),
        lambda v: 1 - v,
    ),
    "cast": ("x", lambda v, op: op.cast(x=op.cast(x=v, dtype="int32"), dtype="fp32"), lambda v: v.int().float()),
    "add": pair("add", torch.add),
    "sub": pair("sub", torch.sub),
    "mul": pair("mul", torch.mul),
    "maximum": pair("maximum", torch.maximum),
    "minimum": pair("minimum", torch.minimum),
    "real_div": pair("real_div", torch.div),
    "floor_div": pair("floor_div", torch.floor_divide),
    "mod": pair("mod", torch.remainder),
    "pow": ("p", lambda v, op: op.pow(x=v, y=1.7), lambda v: v**1.7),
    "equal": compare("equal", torch.eq),
    "not_equal": compare("not_equal", torch.ne),
    "greater": compare("greater", torch.gt),
    "greater_equal": compare("greater_equal", torch.ge),
    "less": compare("less", torch.lt),
    "less_equal": compare("less_equal", torch.le),
    "logical_and": logical("logical_and", torch.logical_and),
    "logical_or": logical("logical_or", torch.logical_or),
    "logical_xor": logical("logical_xor", torch.logical_xor),
    "gelu": simple("gelu", F.gelu, mode="EXACT"),
    "gelu tanh": simple("gelu", lambda v: F.gelu(v, approximate="tanh"), mode="TANH_APPROXIMATION"),
    "gelu sigmoid": simple("gelu", lambda v: v * torch.sigmoid(1.702 * v), mode="SIGMOID_APPROXIMATION"),
    "leaky_relu": simple("leaky_relu", lambda v: F.leaky_relu(v, 0.1), alpha=0.1),
    "elu": simple("elu", lambda v: F.elu(v, 0.7), alpha=0.7),
    "prelu": simple("prelu", lambda v: F.prelu(v, t(V4)), alpha=V4),
    "clamped_relu": simple("clamped_relu", lambda v: F.leaky_relu(v, 0.1).clamp_max(0.8), alpha=0.1, beta=0.8),
    "linear_activation": simple("linear_activation", lambda v: 0.3 * v + 0.1, alpha=0.3, beta=0.1),
    "scaled_tanh": simple("scaled_tanh", lambda v: 1.2 * torch.tanh(0.4 * v), alpha=1.2, beta=0.4),
    "sigmoid_hard": simple("sigmoid_hard", lambda v: (0.3 * v + 0.4).clamp(0, 1), alpha=0.3, beta=0.4),
    "thresholded_relu": simple("thresholded_relu", lambda v: v * (v >= 0.5), alpha=0.5),
    "softplus_parametric": simple(
        "softplus_parametric",
        lambda v: t(V4).view(1, 4, 1, 1) * torch.log1p(torch.exp(v * t(POS4).view(1, 4, 1, 1))),
        alpha=V4,
        beta=POS4,
    ),
    "softmax": simple("softmax", lambda v: v.softmax(1), axis=1),
    **{
        f"reduce_{name}": simple(f"reduce_{name}", function, "p", axes=[1, -1], keep_dims=False)
        for name, function in {
            "mean": lambda v: v.mean((1, 3)),
            "sum": lambda v: v.sum((1, 3)),
            "max": lambda v: v.amax((1, 3)),
            "min": lambda v: v.amin((1, 3)),
            "prod": lambda v: v.prod(3).prod(1),
            "sum_square": lambda v: (v * v).sum((1, 3)),
            "l1_norm": lambda v: v.abs().sum((1, 3)),
            "l2_norm": lambda v: (v * v).sum((1, 3)).sqrt(),
            "log_sum": lambda v: v.sum((1, 3)).log(),
            "log_sum_exp": lambda v: v.logsumexp((1, 3)),
        }.items()
    },
    "reduce_argmax": (
        "x",
        lambda v, op: op.cast(x=op.reduce_argmax(x=v, axis=2, keep_dims=True), dtype="fp32"),
        lambda v: v.argmax(2, keepdim=True).float(),
    ),
    "reduce_argmin": (
        "x",
        lambda v, op: op.cast(x=op.reduce_argmin(x=v, axis=-1, keep_dims=False), dtype="fp32"),
        lambda v: v.argmin(-1).float(),
    ),
    "cumsum": simple("cumsum", lambda v: v.flip(1).cumsum(1).flip(1) - v, axis=1, exclusive=True, reverse=True),
    "identity": simple("identity", lambda v: v.clone()),
    "shape": ("x", lambda v, op: op.cast(x=op.shape(x=v), dtype="fp32"), lambda v: torch.tensor([2.0, 4, 6, 8])),
    "reshape": simple("reshape", lambda v: v.reshape(2, 24, 8), shape=[2, -1, 8]),
    "transpose": simple("transpose", lambda v: v.permute(3, 1, 0, 2), perm=[3, 1, 0, 2]),
    "expand_dims": (
        "x",
        lambda v, op: op.expand_dims(x=op.reduce_sum(x=v, axes=[1, 3], keep_dims=False), axes=[0, -1]),
        lambda v: v.sum((1, 3)).unsqueeze(-1).unsqueeze(0),
    ),
    "squeeze": (
        "x",
        lambda v, op: op.squeeze(x=op.reduce_sum(x=v, axes=[1, 3], keep_dims=True), axes=[3]),
        lambda v: v.sum((1, 3), keepdim=True).squeeze(3),
    ),
    "flatten2d": simple("flatten2d", lambda v: v.reshape(8, 48), axis=2),
    "concat": ("x", lambda v, op: op.concat(values=[v, Y, v], axis=1), lambda v: torch.cat([v, t(Y), v], 1)),
    "concat interleaved": (
        "x",
        lambda v, op: op.concat(values=[v, Y], axis=1, interleave=True),
        lambda v: torch.stack([v, t(Y)], 2).flatten(1, 2),
    ),
    "stack": ("x", lambda v, op: op.stack(values=[v, Y], axis=2), lambda v: torch.stack([v, t(Y)], 2)),
    "split": ("x", lambda v, op: op.split(x=v, split_sizes=[1, 5, 2], axis=3)[1], lambda v: v[..., 1:6]),
    "split even": ("x", lambda v, op: op.split(x=v, num_splits=3, axis=2)[2], lambda v: v[:, :, 4:]),
    "slice_by_index": simple(
        "slice_by_index",
        lambda v: v[:, 1, 1:5:2, :-2],
        begin=[0, 1, 1, 0],
        end=[0, 0, 5, -2],
        stride=[1, 1, 2, 1],
        begin_mask=[True, False, False, True],
        end_mask=[True, False, False, False],
        squeeze_mask=[False, True, False, False],
    ),
    "slice_by_index backwards": simple(
        "slice_by_index", lambda v: v.flip(3)[..., :5], begin=[0, 0, 0, -1], end=[2, 4, 6, 2], stride=[1, 1, 1, -1]
    ),
    "slice_by_size": simple("slice_by_size", lambda v: v[:, 1:3, 2:, :4], begin=[0, 1, 2, 0], size=[-1, 2, -1, 4]),
    "slice_update": (
        "x",
        lambda v, op: op.slice_update(x=v, update=Y[:, 1:3], begin=[0, 1, 0, 0], end=[2, 3, 6, 8]),
        lambda v: torch.cat([v[:, :1], t(Y)[:, 1:3], v[:, 3:]], 1),
    ),
    "pad": simple(
        "pad", lambda v: F.pad(v, (2, 1, 0, 3), value=0.5), pad=[0, 3, 2, 1], mode="constant", constant_val=0.5
    ),
    "pad reflect": simple("pad", lambda v: F.pad(v, (2, 1, 1, 3), mode="reflect"), pad=[1, 3, 2, 1], mode="reflect"),
    "pad replicate": simple(
        "pad", lambda v: F.pad(v, (2, 1, 1, 3), mode="replicate"), pad=[1, 3, 2, 1], mode="replicate"
    ),
    "tile": simple("tile", lambda v: v.repeat(1, 2, 1, 3), reps=[1, 2, 1, 3]),
    "reverse": simple("reverse", lambda v: v.flip([1, 3]), axes=[1, 3]),
    "gather": simple("gather", lambda v: v[:, [2, 0, 3]], indices=np.array([2, 0, -1], np.int32), axis=1),
    "gather batched": simple(
        "gather",
        lambda v: torch.stack([v[0][:, [1, 5]], v[1][:, [0, 2]]]),
        indices=np.array([[1, 5], [0, 2]], np.int32),
        axis=2,
        batch_dims=1,
    ),
    "gather_along_axis": simple(
        "gather_along_axis",
        lambda v: torch.take_along_dim(v, t(np.ones((2, 2, 6, 8), np.int64)), 1),
        indices=np.ones((2, 2, 6, 8), np.int32),
        axis=1,
    ),
    "gather_nd": simple("gather_nd", lambda v: v[[0, 1], [3, 2]], indices=np.array([[0, 3], [1, 2]], np.int32)),
    "select": (
        "b",
        lambda v, op: op.select(cond=op.cast(x=v, dtype="bool"), a=Y, b=X),
        lambda v: torch.where(v.bool(), t(Y), t(X)),
    ),
    "fill": ("x", lambda v, op: op.mul(x=v, y=op.fill(shape=[2, 4, 1, 1], value=1.5)), lambda v: v * 1.5),
    "fill_like": ("x", lambda v, op: op.fill_like(ref_tensor=v, value=2.5), lambda v: torch.full_like(v, 2.5)),
    "range_1d": (
        "x",
        lambda v, op: op.mul(x=v, y=op.range_1d(start=0.0, end=8.0, step=1.0)),
        lambda v: v * torch.arange(8.0),
    ),
    "one_hot": (
        "b",
        lambda v, op: op.one_hot(
            indices=op.cast(x=v, dtype="int32"), one_hot_vector_size=3, axis=1, on_value=2.0, off_value=-1.0
        ),
        lambda v: (F.one_hot(v.long(), 3) * 3.0 - 1).movedim(-1, 1),
    ),
    "band_part": simple("band_part", lambda v: v.triu(-1).tril(2), lower=1, upper=2),
    "topk": ("x", lambda v, op: op.topk(x=v, k=3, axis=3)[0], lambda v: v.topk(3, 3)[0]),
    "pixel_shuffle": simple("pixel_shuffle", lambda v: F.pixel_shuffle(v, 2), upscale_factor=2),
    "pixel_unshuffle": simple("pixel_unshuffle", lambda v: F.pixel_unshuffle(v, 2), downscale_factor=np.uint32(2)),
    "depth_to_space": simple(
        "depth_to_space",
        lambda v: v.reshape(2, 2, 2, 1, 6, 8).permute(0, 3, 4, 1, 5, 2).reshape(2, 1, 12, 16),
        block_size=2,
    ),
    "space_to_depth": simple(
        "space_to_depth",
        lambda v: v.reshape(2, 4, 3, 2, 4, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 16, 3, 4),
        block_size=2,
    ),
    "linear": simple("linear", lambda v: F.linear(v, t(L), t(V8[:5])), weight=L, bias=V8[:5]),
    "matmul": ("x", lambda v, op: op.matmul(x=v, y=Y, transpose_y=True), lambda v: v @ t(Y).mT),
    "matmul transposed": ("x", lambda v, op: op.matmul(x=v, y=Y, transpose_x=True), lambda v: v.mT @ t(Y)),
    "einsum": (
        "x",
        lambda v, op: op.einsum(values=(Y.transpose(0, 3, 2, 1).copy(), v), equation="bkhc,bchq->bkhq"),
        lambda v: torch.einsum("bkhc,bchq->bkhq", t(Y.transpose(0, 3, 2, 1).copy()), v),
    ),
    "scaled_dot_product_attention": (
        "x",
        lambda v, op: op.scaled_dot_product_attention(query=v, key=Y, value=Y, attn_mask=U[0, 0, :, :6]),
        lambda v: (v @ t(Y).mT / 8**0.5 + t(U[0, 0, :, :6])).softmax(-1) @ t(Y),
    ),
    "conv": simple(
        "conv",
        lambda v: F.conv2d(v, t(W), t(V8[:6]), 2, 1),
        weight=W,
        bias=V8[:6],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    "conv uneven": simple(
        "conv",
        lambda v: F.conv2d(F.pad(v, (2, 1, 0, 1)), t(G), None, 1, 0, (1, 2), 2),
        weight=G,
        dilations=[1, 2],
        groups=2,
        pad_type="custom",
        pad=[0, 1, 2, 1],
    ),
    "conv same": simple(
        "conv", lambda v: F.conv2d(F.pad(v, (0, 1, 0, 1)), t(W), None, 2), weight=W, strides=[2, 2], pad_type="same"
    ),
    "conv one axis": (
        "x",
        lambda v, op: op.conv(x=op.reshape(x=v, shape=[2, 4, 48]), weight=W[..., 0]),
        lambda v: F.conv1d(v.reshape(2, 4, 48), t(W[..., 0].copy())),
    ),
    "conv_transpose": simple(
        "conv_transpose",
        lambda v: F.conv_transpose2d(v, t(G), None, 2, 1, 1),
        weight=G,
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        output_shape=[2, 2, 12, 16],
    ),
    "batch_norm": simple(
        "batch_norm",
        lambda v: F.batch_norm(v, t(V4), t(POS4), t(V4), t(POS4), False, 0, 1e-3),
        mean=V4,
        variance=POS4,
        gamma=V4,
        beta=POS4,
        epsilon=1e-3,
    ),
    "instance_norm": simple(
        "instance_norm",
        lambda v: F.instance_norm(v, weight=t(V4), bias=t(POS4), eps=1e-3),
        gamma=V4,
        beta=POS4,
        epsilon=1e-3,
    ),
    "layer_norm": simple(
        "layer_norm", lambda v: F.layer_norm(v, (8,), t(V8), t(V8), 1e-3), axes=[-1], gamma=V8, beta=V8, epsilon=1e-3
    ),
    "layer_norm over channels": simple(
        "layer_norm",
        lambda v: F.layer_norm(v.movedim(1, -1), (4,), t(V4), t(POS4), 1e-3).movedim(-1, 1),
        axes=[1],
        gamma=V4,
        beta=POS4,
        epsilon=1e-3,
    ),
    "l2_norm": simple("l2_norm", lambda v: v / v.square().sum((1, 2, 3), keepdim=True).sqrt(), epsilon=1e-10),
    "max_pool": simple(
        "max_pool",
        lambda v: F.max_pool2d(v, 3, 2, 1),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    "avg_pool": simple(
        "avg_pool",
        lambda v: F.avg_pool2d(v, 3, 2, 1),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    "avg_pool inside": simple(
        "avg_pool",
        lambda v: F.avg_pool2d(v, 3, 2, 1, count_include_pad=False),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    "upsample_nearest_neighbor": simple(
        "upsample_nearest_neighbor",
        lambda v: F.interpolate(v, scale_factor=(2, 3)),
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    "upsample_bilinear": simple(
        "upsample_bilinear",
        lambda v: F.interpolate(v, scale_factor=2, mode="bilinear", align_corners=False),
        scale_factor_height=2,
        scale_factor_width=2,
        align_corners=False,
    ),
    "resize_nearest_neighbor": simple(
        "resize_nearest_neighbor",
        lambda v: F.interpolate(v, size=(12, 16)),
        target_size_height=12,
        target_size_width=16,
    ),
    "resize_bilinear": simple(
        "resize_bilinear",
        lambda v: F.interpolate(v, size=(9, 11), mode="bilinear", align_corners=True),
        target_size_height=9,
        target_size_width=11,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
}

# What coremltools 9.0 infers wrongly: it raises a TypeError at an exclusive cumsum, and concatenates one after the
# other where its own documentation interleaves.
UNINFERRED = {"cumsum", "concat interleaved"}
# What only a whole function can show, and is tested in test_mil.py.
ELSEWHERE = {"read_state"}


class Skipping:
    """coremltools' builder with the name of the case in front of every name."""

    def __init__(self, prefix):
        self.prefix, self.count = prefix.replace(" ", "_"), 0

    def __getattr__(self, name):
        def call(**arguments):
            self.count += 1
            return getattr(mb, name)(**arguments, name=f"case_{self.prefix}_{self.count}")

        return call


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the evaluator makes of every case, and what coremltools infers where it does."""
    inferred, names = {}, {}
    specs = [mb.TensorSpec(shape=X.shape) for _ in INPUTS]

    @mb.program(input_specs=specs, opset_version=coremltools.target.iOS18)
    def program(a, b, c, d):
        sources = dict(zip(INPUTS, (a, b, c, d), strict=True))
        results = []
        for name, (source, build, _) in CASES.items():
            results.append(build(sources[source], Skipping(name)))
            names[name] = results[-1].name
        return tuple(results)

    @mb.program(input_specs=specs, opset_version=coremltools.target.iOS18)
    def constants(a, b, c, d):
        for name, (source, build, _) in CASES.items():
            if name not in UNINFERRED:
                value = build(mb.const(val=INPUTS[source].copy()), Skipping(name)).val  # some write into it
                if value is not None:
                    inferred[name] = value
        return a

    path = tmp_path_factory.mktemp("mil") / "cases.mlpackage"
    model = coremltools.convert(
        program,
        pass_pipeline=coremltools.PassPipeline.EMPTY,
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(path))
    loaded = edgediff.mil.load(path, precision="fp32")
    outputs = loaded.run(**dict(zip(loaded.inputs(), INPUTS.values(), strict=True)))
    kinds = {step.kind for step in loaded.function().steps}
    return {name: outputs[names[name]] for name in CASES}, inferred, kinds


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_torchs_and_coremltools_own(found, name):
    outputs, inferred, _ = found
    source, _, function = CASES[name]
    np.testing.assert_allclose(outputs[name], function(T[source]).numpy(), rtol=2e-5, atol=2e-5)
    if name in inferred:
        np.testing.assert_allclose(outputs[name], inferred[name], rtol=2e-5, atol=2e-5)


def test_coremltools_infers_most_of_them(found):
    assert len(found[1]) > 60


def test_every_operation_of_the_table_has_a_case(found):
    assert set(OPERATIONS) - found[2] - ELSEWHERE == set()
