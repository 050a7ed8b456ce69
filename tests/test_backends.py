"""Every backend against PyTorch, and what the files on the disk are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgediff.backends import eager, lower_variants
from edgediff.backends import onnxruntime as ort_backend
from edgediff.backends.onnxruntime import export as _onnx_export
from edgediff.backends.onnxruntime import fp16 as _onnx_fp16
from edgediff.backends.onnxruntime import w8a8 as _onnx_w8a8
from edgediff.documents.plan import BackendPlan
from edgediff.documents.target import load_target
from edgediff.errors import BackendError
from edgediff.graph.schedule import Row, Schedule, wire_schedule
from edgediff.metrics import psnr
from edgediff.runtime.manifest import Graph, TensorSpec
from edgediff.variants import DenoiserGraph, Variant, build_variants
from tests.tiny import cached_exports, tiny_pipeline, tiny_plan

HOST = load_target("host")
FLOORS = {"fp32": 100.0, "fp16": 60.0, "w8a8": 30.0}  # dB; measured on these nets: 134, 64, 37 at the least
GRAPHS = [("full", 1), ("full", 2), ("shallow", 1), ("shallow", 2), ("text_encoder", 1), ("vae_decoder", 1)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


class Lab:
    """The tiny model lowered in several ways, each once."""

    def __init__(self, pipeline, folder):
        self.pipeline, self.folder, self.done = pipeline, folder, {}

    def variants(self, precision="fp32", format="onnx", **options):
        plans = {"onnxruntime": BackendPlan(precision=precision, format=format)}
        return build_variants(self.pipeline, tiny_plan(self.pipeline, plans, **options))

    def lower(self, precision="fp32", format="onnx"):
        key = (precision, format)
        if key not in self.done:
            out = self.folder / "-".join(key)
            variants = self.variants(precision, format)
            with cached_exports():
                self.done[key] = out, variants, ort_backend.lower(variants, HOST, out)
        return self.done[key]

    def open(self, name, batch=1, precision="fp32", format="onnx"):
        out, variants, artifacts = self.lower(precision, format)
        return ort_backend.open_runner(
            out, typed(variants.graphs[name]), artifacts.graphs[name], batch=batch, threads=1
        )

    def worst(self, name, batch, precision="fp32", format="onnx"):
        """Lowest PSNR over the outputs of a graph on random inputs."""
        variant = self.lower(precision, format)[1].graphs[name]
        inputs = example(variant, batch)
        reference = eager.eager_runners(self.lower(precision, format)[1])[name].run(inputs)
        found = self.open(name, batch, precision, format).run(inputs)
        assert list(found) == [spec.name for spec in variant.outputs]
        for key, value in found.items():
            assert (value.shape, value.dtype) == (reference[key].shape, reference[key].dtype)
        return min(psnr(reference[key], found[key], np.abs(reference[key]).max(), cap=200) for key in found)


@pytest.fixture(scope="module")
def lab(pipeline, tmp_path_factory):
    return Lab(pipeline, tmp_path_factory.mktemp("lowered"))


def typed(variant):
    return Graph(
        component=variant.component,
        inputs=variant.inputs,
        outputs=variant.outputs,
        carries_in=variant.carries_in,
        carries_out=variant.carries_out,
    )


def example(variant, batch):
    generator = np.random.default_rng(0)
    inputs = {}
    for spec in variant.inputs:
        if spec.dtype == "int64":
            inputs[spec.name] = generator.integers(0, 500, spec.sized(batch))
        else:
            inputs[spec.name] = generator.standard_normal(spec.sized(batch)).astype(np.float32)
    if "timestep" in inputs:
        inputs["timestep"][:] = 801.0
    return inputs


def external(path):
    """Offset and length of every constant that lies in the weights file."""
    found = set()
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entry = {pair.key: pair.value for pair in tensor.external_data}
        if entry:
            assert entry["location"] == "weights.bin"
            found.add((int(entry["offset"]), int(entry["length"])))
    return found


def fake_variant(module, *example):
    specs = tuple(TensorSpec(name=f"x{i}", dtype="float32", shape=tuple(t.shape)) for i, t in enumerate(example))
    out = TensorSpec(name="y", dtype="float32", shape=tuple(example[0].shape))
    return Variant("toy", "toy", module, example, specs, (out,), {}, {})


# parity and size


@pytest.mark.parametrize("precision", FLOORS)
@pytest.mark.parametrize(("name", "batch"), GRAPHS)
def test_every_graph_is_pytorch_up_to_its_precision(lab, name, batch, precision):
    assert lab.worst(name, batch, precision) >= FLOORS[precision]


@pytest.mark.parametrize("precision", FLOORS)
def test_two_graphs_cost_the_disk_as_much_as_one(lab, precision):
    folder = lab.lower(precision)[0] / "onnxruntime" / "unet"
    full, shallow = external(folder / "full.onnx"), external(folder / "shallow.onnx")
    assert shallow
    assert shallow <= full
    alone = max(offset + length for offset, length in full)
    assert (folder / "weights.bin").stat().st_size <= 1.02 * alone
    assert all(offset % (4096 if length >= 65536 else 64) == 0 for offset, length in full)


def test_fp16_is_half_and_w8a8_a_quarter(lab):
    sizes = {
        precision: sum(path.stat().st_size for path in lab.lower(precision)[0].rglob("weights.bin"))
        for precision in FLOORS
    }
    assert sizes["fp16"] <= 0.51 * sizes["fp32"]
    assert sizes["w8a8"] <= 0.27 * sizes["fp32"]


def test_fp16_leaves_the_sinusoid_in_fp32(lab):
    out, _, artifacts = lab.lower("fp16")
    graph = onnx.load(out / artifacts.graphs["full"].file, load_external_data=False).graph
    made_by = {output: node for node in graph.node for output in node.output}
    sine = next(node for node in graph.node if node.op_type == "Sin")
    assert made_by[sine.input[0]].op_type == "Mul"
    reader = next(node for node in graph.node if sine.output[0] in node.input)
    assert reader.op_type == "Cast"
    types = {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in floats) <= 64


def test_w8a8_runs_products_in_integers_and_convolutions_weight_only(lab):
    out, _, artifacts = lab.lower("w8a8")
    graph = onnx.load(out / artifacts.graphs["full"].file, load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    scaled = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert all(node.input[1] in scaled for node in convolutions)
    assert kinds.count("MatMulInteger") > 20
    assert "Gemm" not in kinds
    assert "ConvInteger" not in kinds


# .ort


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_ort_files_run_and_name_the_operators_they_need(lab, precision):
    out, _, artifacts = lab.lower(precision, "ort")
    assert lab.worst("full", 2, precision, "ort") >= FLOORS[precision]
    assert lab.worst("text_encoder", 1, precision, "ort") >= FLOORS[precision]
    assert artifacts.graphs["shallow"].file == "onnxruntime/unet/shallow.ort"
    assert artifacts.graphs["shallow"].data == ()
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".ort", ".config"}
    config = (out / "onnxruntime" / "required_operators_and_types.config").read_text()
    assert "InstanceNormalization" in config
    assert str(out) not in config


def test_ort_refuses_what_it_cannot_hold(lab, tmp_path, monkeypatch):
    with pytest.raises(BackendError, match=r"choose format 'onnx' for fp16, or precision w8a8"):
        ort_backend.lower(lab.variants("fp16", "ort"), HOST, tmp_path / "a")
    with pytest.raises(BackendError, match=r"has no format 'otr'; did you mean 'ort'\? \(allowed: onnx, ort\)"):
        ort_backend.lower(lab.variants("fp32", "otr"), HOST, tmp_path / "b")
    monkeypatch.setattr(ort_backend, "ORT_LIMIT", 1000)
    message = r"graph 'full' has .* GB of weights in fp32, and an \.ort file ends at 2 GB; choose precision w8a8"
    with cached_exports(), pytest.raises(BackendError, match=message):
        ort_backend.lower(lab.variants("fp32", "ort"), HOST, tmp_path / "c")


# the exporter


def test_a_cut_network_is_lowered_in_silence(lab, tmp_path, capfd):
    attentions = ("down_blocks.0.attentions.0", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")
    variants = lab.variants(cuts=("mid_block", *attentions), calls=("full",) * 2)
    with cached_exports():
        (artifacts,) = lower_variants(variants, HOST, tmp_path)
    assert capfd.readouterr() == ("", "")
    inputs = example(variants.graphs["full"], 1)
    runner = ort_backend.open_runner(
        tmp_path, typed(variants.graphs["full"]), artifacts.graphs["full"], batch=1, threads=1
    )
    reference = eager.eager_runners(variants)["full"].run(inputs)["noise_pred"]
    assert psnr(reference, runner.run(inputs)["noise_pred"], np.abs(reference).max(), cap=200) >= 100
    whole = lab.lower()[0] / "onnxruntime" / "unet" / "weights.bin"
    assert (tmp_path / "onnxruntime" / "unet" / "weights.bin").stat().st_size < 0.9 * whole.stat().st_size


class Mapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        return (torch.nn.functional.silu(self.inner(x)),)


def test_the_same_graph_gives_the_same_bytes_and_no_path_of_this_machine():
    variant = fake_variant(Mapper(), torch.ones(2, 3))
    models = [_onnx_export.export_graph(variant) for _ in range(2)]
    first, second = (ir.serde.serialize_model(model).SerializeToString() for model in models)
    assert first == second
    assert b"edgediff" in first
    assert str(Path(__file__).parent.parent).encode() not in first  # the exporter notes stack traces
    assert torch.__version__.encode() not in first


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Bessel()])

    def forward(self, x):
        return (self.blocks[0](x) + 1,)


class Brancher(nn.Module):
    def forward(self, x):
        return (x if x.sum() > 0 else -x,)


def test_an_unknown_operator_is_named_with_its_module():
    message = r"graph 'toy': ONNX opset 20 has no form for operator 'prims\.bessel_j0' in module 'blocks\.0' \(Bessel\)"
    with pytest.raises(BackendError, match=message) as caught:
        _onnx_export.export_graph(fake_variant(Holder(), torch.ones(2, 3)))
    assert caught.value.__cause__ is not None


def test_a_branch_on_values_cannot_be_traced():
    with pytest.raises(BackendError, match=r"graph 'toy' cannot be traced .* must not branch on values of tensors"):
        _onnx_export.export_graph(fake_variant(Brancher(), torch.ones(2, 3)))


def test_ends_that_are_not_the_variants_are_an_error():
    variant = fake_variant(nn.Identity(), torch.ones(2, 3))
    wrong = Variant(
        "toy",
        "toy",
        variant.module,
        variant.example,
        variant.inputs,
        (TensorSpec(name="y", dtype="float32", shape=(3, 2)),),
        {},
        {},
    )
    with pytest.raises(BackendError, match=r"'y' of graph 'toy' was exported as float32 \(2, 3\), the variant says"):
        _onnx_export.export_graph(wrong)


def test_fp16_clamps_masks_and_refuses_other_numbers_beyond_its_range():
    low = np.float32(np.finfo(np.float32).min)
    assert _onnx_fp16.halve(np.array([low, -np.inf, 1.5], np.float32), "mask").tolist() == [-65504, -np.inf, 1.5]
    with pytest.raises(BackendError, match=r"constant 'w' holds 70000, and fp16 ends at 65504; use fp32"):
        _onnx_fp16.halve(np.array([1, 7e4], np.float32), "w")


def test_quantized_weights_are_within_half_a_step():
    weights = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weights[2] = 0
    values, scale = _onnx_w8a8.quantize(weights, 0)
    assert values.dtype == np.int8
    assert np.abs(values).max() == 127
    error = np.abs(values * scale.reshape(-1, 1, 1, 1) - weights)
    assert (error <= scale.reshape(-1, 1, 1, 1) / 2 + 1e-7).all()


# runners


def test_a_runner_knows_its_batch_and_says_what_does_not_fit(lab):
    inputs = example(lab.variants().graphs["full"], 2)
    with pytest.raises(BackendError, match=r"full\.onnx: ONNX Runtime failed: .*sample"):
        lab.open("full", batch=1).run(inputs)
    out, variants, artifacts = lab.lower()
    wrong = typed(variants.graphs["shallow"])
    with pytest.raises(BackendError, match=r"full\.onnx: holds .* where the manifest says .*; build the bundle again"):
        ort_backend.open_runner(out, wrong, artifacts.graphs["full"], batch=1)
    missing = artifacts.graphs["full"].model_copy(update={"file": "onnxruntime/unet/none.onnx"})
    with pytest.raises(BackendError, match=r"none\.onnx: ONNX Runtime cannot load it"):
        ort_backend.open_runner(out, wrong, missing, batch=1)


def test_a_build_without_the_provider_is_an_error(lab, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["FooExecutionProvider"])
    with pytest.raises(BackendError, match=r"lacks CPUExecutionProvider \(it has FooExecutionProvider\)"):
        lab.open("full")


def test_running_needs_no_torch(lab, tmp_path):
    out, variants, artifacts = lab.lower()
    graph = typed(variants.graphs["vae_decoder"])
    (tmp_path / "graph.json").write_text(graph.to_json())
    (tmp_path / "artifact.json").write_text(artifacts.graphs["vae_decoder"].to_json())
    code = f"""
import json, pathlib, sys
import numpy as np
from edgediff.runtime.manifest import Artifact, Graph
from edgediff.plugins import load_plugin
read = lambda name: pathlib.Path({str(tmp_path)!r}, name).read_text()
graph, artifact = Graph.model_validate_json(read("graph.json")), Artifact.model_validate_json(read("artifact.json"))
opener = load_plugin("backends", "onnxruntime").open_runner
runner = opener(pathlib.Path({str(out)!r}), graph, artifact, batch=1, threads=1)
image = runner.run({{"z": np.zeros(graph.inputs[0].shape, np.float32)}})["image"]
print(json.dumps([list(image.shape), sorted({{"torch", "onnx", "onnxscript"}} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1, 3, 32, 32], []]


# eager


def test_eager_folders_are_the_network_again_and_load_it_once(pipeline, tmp_path):
    plan = tiny_plan(pipeline, {"eager": BackendPlan(precision="fp32")}, cuts=("mid_block",))
    variants = build_variants(pipeline, plan)
    artifacts = eager.lower(variants, HOST, tmp_path)
    assert artifacts.graphs["full"].file == artifacts.graphs["shallow"].file == "eager/unet/model.safetensors"
    direct = eager.eager_runners(variants)
    loaded = {}
    for name, variant in variants.graphs.items():
        loaded[name] = eager.open_runner(tmp_path, typed(variant), artifacts.graphs[name], batch=1, threads=1)
        inputs = example(variant, 1)
        found = loaded[name].run(inputs)
        for key, value in direct[name].run(inputs).items():  # a mapped file is aligned differently: the last bit
            assert psnr(value, found[key], np.abs(value).max(), cap=200) >= 120, (name, key)
    assert loaded["full"]._module.network is loaded["shallow"]._module.network
    with pytest.raises(BackendError, match=r"input 'sample' is missing; given were \['timestep'\]"):
        loaded["full"].run({"timestep": np.zeros(1, np.float32)})


def test_eager_restores_cached_changes_from_the_carries_alone(pipeline, tmp_path):
    schedule = Schedule(rows={"full": Row(), "less": Row(delta=("mid_block",))}, calls=("full", "less"))
    plan = tiny_plan(pipeline, {"eager": BackendPlan(precision="fp32")}, calls=("full", "full"))
    artifacts = eager.lower(build_variants(pipeline, plan), HOST, tmp_path)
    wiring = wire_schedule(schedule, pipeline.graph)["less"]
    module = DenoiserGraph(pipeline.denoiser, pipeline.graph, wiring)
    shapes = {
        name: pipeline.graph.by_name[carry.rstrip("+")].shape
        for name, carry in zip(module.input_names[3:], wiring.reads, strict=True)
    }
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", *shape)) for name, shape in shapes.items())
    own = build_variants(pipeline, plan).graphs["full"]
    graph = Graph(
        component="unet",
        inputs=(*own.inputs, *inputs),
        outputs=own.outputs[:1],
        carries_in={name.removeprefix("cache_in_"): name for name in shapes},
    )
    runner = eager.open_runner(tmp_path, graph, artifacts.graphs["full"], batch=1)
    values = example(Variant("less", "unet", module, (), graph.inputs, graph.outputs, {}, {}), 1)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(values[spec.name]) for spec in graph.inputs))[0]
    assert psnr(expected.numpy(), runner.run(values)["noise_pred"], float(expected.abs().max()), cap=200) >= 120


def test_eager_is_fp32_only(pipeline, tmp_path):
    variants = build_variants(pipeline, tiny_plan(pipeline, {"eager": BackendPlan(precision="fp16")}))
    with pytest.raises(BackendError, match=r"'fp16' is no precision of eager; it serves fp32 \(all in fp32"):
        eager.lower(variants, HOST, tmp_path)
