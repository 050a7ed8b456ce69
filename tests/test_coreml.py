"""Core ML packages: what is in them, that they compute what PyTorch does, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("coremltools")

from edgediff import mil
from edgediff.backends import _capture, coreml, eager
from edgediff.backends.coreml import convert as _coreml_convert
from edgediff.backends.coreml.link import Description, Part, link_functions
from edgediff.documents.plan import BackendPlan
from edgediff.documents.target import Target, parse_target
from edgediff.documents.weight_format import parse_format
from edgediff.errors import BackendError
from edgediff.metrics import psnr
from edgediff.runtime.manifest import Graph
from edgediff.variants import build_variants
from edgediff.weight_codes import decode, encode
from tests.tiny import cached_conversions, tiny_pipeline, tiny_plan

FLOORS = {"fp16": 60.0, "w8": 35.0}  # dB; measured on these nets: 68 and 45 at the least


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    """The tiny model for iOS 18: folder, variants, artifacts."""
    plans = {"coreml": BackendPlan(precision="fp16", format="mlpackage")}
    variants = build_variants(pipeline, tiny_plan(pipeline, plans))
    out = tmp_path_factory.mktemp("built")
    target = parse_target({"name": "t", "backends": ["coreml"], "coreml": {"islands": ["time"]}}, where="t")
    with cached_conversions():
        return out, variants, coreml.lower(variants, target, out)


def example(variant, batch):
    generator = np.random.default_rng(0)
    inputs = {}
    for spec in variant.inputs:
        ids = spec.dtype == "int64"
        drawn = generator.integers(0, 500, spec.sized(batch)) if ids else generator.standard_normal(spec.sized(batch))
        inputs[spec.name] = drawn.astype(spec.dtype)
    if "timestep" in inputs:
        inputs["timestep"][:] = 801.0
    return inputs


def typed(variant):
    return Graph(component=variant.component, inputs=variant.inputs, outputs=variant.outputs)


def worst(variants, name, batch, run):
    inputs = example(variants.graphs[name], batch)
    reference, found = eager.eager_runners(variants)[name].run(inputs), run(inputs)
    assert list(found) == list(reference)
    return min(psnr(reference[key], found[key], np.abs(reference[key]).max(), cap=200) for key in found)


@pytest.mark.parametrize(("name", "batch"), [("full", 2), ("shallow", 2), ("text_encoder", 1), ("vae_decoder", 1)])
def test_every_graph_is_pytorch_up_to_fp16(built, name, batch):
    out, variants, artifacts = built
    runner = coreml.open_runner(out, typed(variants.graphs[name]), artifacts.graphs[name], batch=batch, threads=1)
    assert worst(variants, name, batch, runner.run) >= FLOORS["fp16"]


def test_two_functions_cost_the_disk_as_much_as_one(built, tmp_path):
    out, _, artifacts = built
    package = out / artifacts.graphs["full"].file
    assert artifacts.graphs["shallow"].file == artifacts.graphs["full"].file
    assert mil.load(package).functions == ("full", "shallow")
    link_functions([Part("main", package, "full")], tmp_path / "one.mlpackage")
    both, one = (size(folder / "Data/com.apple.CoreML/weights") for folder in (package, tmp_path / "one.mlpackage"))
    assert both <= 1.01 * one


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_coreml_s_own_reader_sees_the_same_functions_and_weights(built):
    """The linked package is read by coremltools as it reads its own."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    out, _, artifacts = built
    path = out / artifacts.graphs["full"].file
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    assert set(program.functions) == {"full", "shallow"}
    ours = mil.open_package(path)
    for operation in program.functions["full"].operations:
        if operation.op_type == "const" and isinstance(operation.val.val, np.ndarray) and operation.val.val.size > 100:
            message = next(
                one.attributes["val"]
                for one in ours.block("full").operations
                if one.type == "const" and one.outputs[0].name == operation.outputs[0].name
            )
            np.testing.assert_array_equal(ours.value(message), operation.val.val)


def test_the_package_says_what_it_is(built):
    out, variants, artifacts = built
    spec = mil.open_package(out / artifacts.graphs["full"].file).spec
    notes = dict(spec.description.metadata.userDefined)
    assert notes["io.github.edgediff.attention"] == "sdpa"
    assert notes["io.github.edgediff.plan_sha256"] == variants.plan.digest()
    assert notes["io.github.edgediff.compute_units"] == "CPU_AND_NE"
    assert notes["io.github.edgediff.fp32_islands"] == "time"
    assert "com.github.apple.coremltools.conversion_date" not in notes
    function = spec.description.functions[0]
    assert [one.name for one in function.input] == ["sample", "timestep", "encoder_hidden_states"]
    assert all(one.shortDescription for one in (*function.input, *function.output))
    assert list(function.input[0].type.multiArrayType.shape) == [2, 4, 16, 16]


def test_the_same_parts_give_the_same_bytes(built, tmp_path):
    out, _, artifacts = built
    package = out / artifacts.graphs["full"].file
    parts = [Part(name, package, name) for name in ("full", "shallow")]
    for name in ("a", "b"):
        link_functions(parts, tmp_path / name, description=Description(short="x"))
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


# Coded weights

WORDS = [
    "palette1",
    "palette2",
    "palette3",
    "palette4",
    "palette6",
    "palette8",
    "palette4/4",
    "w8",
    "w4",
    "w4/4",
    "sparse50",
    "sparse50+palette4",
    "sparse50+w8",
]


@pytest.mark.parametrize("word", WORDS)
def test_coded_weights_are_what_compression_says_for_us_and_for_coremltools(built, tmp_path, word):
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    out, _, artifacts = built
    made = {}

    def code(name, weight):
        encoded = encode(weight, parse_format(word)) if weight.size >= 1024 and weight.shape[0] % 8 == 0 else None
        if encoded is not None:
            made[name] = decode(encoded)
        return encoded

    path = tmp_path / "coded.mlpackage"
    link_functions([Part("main", out / artifacts.graphs["shallow"].file, "shallow")], path, compress=code)
    assert made
    program = mil.load(path)
    function = program.function()
    for name, value in made.items():
        np.testing.assert_allclose(program._get(function, name, {}).numpy(), value, rtol=2e-3, atol=1e-7)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    theirs = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    seen = 0
    for operation in theirs.functions["main"].operations:
        name = operation.outputs[0].name
        if name in made:
            found = operation.materialized_val_inference()
            np.testing.assert_allclose(found, made[name], rtol=2e-3, atol=1e-7)
            seen += 1
    assert seen == len(made)


def test_w8_and_w4_are_halves_from_fewer_bits(built, pipeline, tmp_path):
    """The conversion is that of fp16; weights have a scale per output channel."""
    out, _, artifacts = built
    target = parse_target({"name": "t", "backends": ["coreml"], "coreml": {"islands": ["time"]}}, where="t")
    sizes = {"fp16": size(out / artifacts.graphs["shallow"].file)}
    for word, floor in (("w8", FLOORS["w8"]), ("w4", 8.0)):
        plans = {"coreml": BackendPlan(precision=word, format="mlpackage")}
        variants = build_variants(pipeline, tiny_plan(pipeline, plans))
        with cached_conversions():
            artifact = coreml.lower(variants, target, tmp_path / word).graphs["shallow"]
        runner = coreml.open_runner(tmp_path / word, typed(variants.graphs["shallow"]), artifact, batch=2, threads=1)
        assert artifact.precision == word and worst(variants, "shallow", 2, runner.run) >= floor
        sizes[word] = size(tmp_path / word / artifact.file)
    assert sizes["w8"] < 0.75 * sizes["fp16"] and sizes["w4"] < 0.85 * sizes["w8"], sizes


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """One linear layer for iOS 16, in fp32, and its weight."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((2, 64))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.linear(x=x, weight=weight, name="y")

    path = tmp_path_factory.mktemp("old") / "one.mlpackage"
    model = ct.convert(
        program, minimum_deployment_target=ct.target.iOS16, compute_precision=ct.precision.FLOAT32, skip_model_load=True
    )
    model.save(str(path))
    return path, weight


def code_old(old, out, word):
    path, _ = old
    link_functions([Part("main", path)], out, compress=lambda name, weight: encode(weight, parse_format(word)))
    return mil.load(out, precision="fp32")


@pytest.mark.parametrize("word", ["palette1", "palette4", "palette8", "w8", "sparse50"])
def test_the_formats_that_ios_16_has_are_written_as_it_reads_them(old, tmp_path, word):
    """Values in attributes, packed bits with a shape beside them."""
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    program = code_old(old, tmp_path / "coded.mlpackage", word)
    assert program.package.spec.specificationVersion < 9
    wanted = x @ decode(encode(old[1], parse_format(word))).T
    np.testing.assert_allclose(program.run(x=x)["y"], wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("palette4/4", "a table per group of channels"),
        ("w4/32", "4 bits, or a scale per block,"),
        ("sparse50+palette4", "sparse weights whose rest is coded"),
    ],
)
def test_formats_of_ios_18_are_refused_before_it(old, tmp_path, word, what):
    with pytest.raises(BackendError, match=f"{what} is a weight format of iOS 18; choose deployment 'iOS18'"):
        code_old(old, tmp_path / "coded.mlpackage", word)


# What is refused


def test_a_release_too_old_for_a_feature_is_named():
    table = parse_target(
        {"name": "t", "backends": ["coreml"], "coreml": {"deployment": "iOS17", "attention": "sdpa"}}, where="t"
    ).backend("coreml")
    message = r"attention 'sdpa' is an operation of iOS 18, and the target deploys to iOS17; choose attention"
    with pytest.raises(BackendError, match=message):
        coreml.check_deployment(table)


def test_an_operator_without_a_form_is_named_with_module_and_line():
    import torch
    from torch import nn

    from tests.test_backends import Holder, fake_variant

    assert isinstance(Holder(), nn.Module)
    variant = fake_variant(Holder(), torch.ones(2, 3))
    program = _capture.capture_program(variant, 1)
    message = (
        r"graph 'toy': Core ML has no form for operator '\w*bessel_j0' in module 'blocks\.0' \(Bessel\), "
        r"test_backends\.py:\d+; replace the operation"
    )
    with pytest.raises(BackendError, match=message):
        _coreml_convert.check_operators("toy", program)


def test_packages_beyond_the_memory_ceiling_are_refused(built):
    out, _, _ = built
    target = Target(name="Tiny phone", backends=("coreml",), memory_ceiling_gb=1e-5)
    message = r"has 0\.00 GB, and an app on Tiny phone may hold 1e-05 GB; choose fewer bits"
    with pytest.raises(BackendError, match=message):
        coreml._check_sizes(out, target)


def test_a_wrong_function_or_shape_is_refused(built):
    out, variants, artifacts = built
    wrong = artifacts.graphs["full"].model_copy(update={"function": "ful"})
    with pytest.raises(BackendError, match=r"unknown function 'ful'; did you mean 'full'"):
        coreml.open_runner(out, typed(variants.graphs["full"]), wrong, batch=2)
    with pytest.raises(BackendError, match=r"holds|has .* where the manifest says"):
        coreml.open_runner(out, typed(variants.graphs["full"]), artifacts.graphs["full"], batch=1)


@pytest.mark.parametrize("damage", ["manifest", "spec", "weights", "cut weights", "no weights"])
def test_damaged_packages_are_refused_with_what_is_wrong(built, tmp_path, damage):
    import shutil

    out, variants, artifacts = built
    source = out / artifacts.graphs["vae_decoder"].file
    package = tmp_path / "coreml" / source.name
    shutil.copytree(source, package)
    data = package / "Data/com.apple.CoreML"
    model, weights = data / "model.mlmodel", data / "weights" / "weight.bin"
    if damage == "manifest":
        (package / "Manifest.json").write_text(json.dumps({"rootModelIdentifier": "x"}))
    elif damage == "spec":
        model.write_bytes(b"\xff" * 100)
    elif damage == "weights":
        weights.write_bytes(b"\0" * weights.stat().st_size)
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-5000])
    else:
        weights.unlink()
    graph = variants.graphs["vae_decoder"]

    def use():
        coreml.open_runner(tmp_path, typed(graph), artifacts.graphs["vae_decoder"], batch=1).run(example(graph, 1))

    with pytest.raises(BackendError) as caught:
        use()
    assert caught.value.code == "damaged"
    assert "copy or build the package again" in str(caught.value)


# The folder for Apple's Swift package


@pytest.fixture(scope="module")
def apple(pipeline, built, tmp_path_factory):
    import shutil

    from edgediff.bundle import BundleWriter
    from edgediff.bundle.assemble import make_manifest, write_parts
    from edgediff.layouts import export_layout

    source, variants, artifacts = built
    folder = tmp_path_factory.mktemp("apple")
    with BundleWriter(folder / "tiny.edgediff") as writer:
        shutil.copytree(source / "coreml", writer.folder / "coreml")
        write_parts(pipeline, variants.plan, writer.folder)
        bundle = writer.commit(make_manifest(pipeline, variants.plan, variants, [artifacts], name="tiny"))
    return export_layout(bundle, "apple", folder / "apple", pipeline=pipeline)


# What Apple's converter (python_coreml_stable_diffusion/torch2coreml.py) gives for this model's sizes, guidance in one
# batch: tokens 16, width 16, latent 4 x 16 x 16, picture 32 x 32.
CONTRACT = {
    "TextEncoder": (
        {"input_ids": ("float32", (1, 16))},
        {"last_hidden_state": ("float32", (1, 16, 16)), "pooled_outputs": ("float32", (1, 16))},
    ),
    "Unet": (
        {
            "sample": ("float16", (2, 4, 16, 16)),
            "timestep": ("float16", (2,)),
            "encoder_hidden_states": ("float16", (2, 16, 1, 16)),
        },
        {"noise_pred": ("float32", (2, 4, 16, 16))},
    ),
    "VAEDecoder": ({"z": ("float16", (1, 4, 16, 16))}, {"image": ("float32", (1, 3, 32, 32))}),
}
ARRAYS = {"float16": 65552, "float32": 65568}


def test_apples_folder_has_the_names_that_their_package_looks_for(apple):
    assert {path.name for path in (apple / "Resources").iterdir()} == {
        "TextEncoder.mlpackage",
        "Unet.mlpackage",
        "VAEDecoder.mlpackage",
        "vocab.json",
        "merges.txt",
    }
    assert "xcrun coremlcompiler compile" in (apple / "compile.sh").read_text()


@pytest.mark.parametrize("model", CONTRACT)
def test_apples_contract_field_by_field(apple, model):
    program = mil.load(apple / "Resources" / f"{model}.mlpackage")
    inputs, outputs = CONTRACT[model]
    assert program.functions == ("main",)
    assert {name: (kind.dtype, kind.shape) for name, kind in program.inputs().items()} == inputs
    assert {name: (kind.dtype, kind.shape) for name, kind in program.outputs().items()} == outputs
    described = program.package.spec.description
    for features, wanted in ((described.input, inputs), (described.output, outputs)):
        arrays = {one.name: one.type.multiArrayType for one in features}
        assert {name: (array.dataType, tuple(array.shape)) for name, array in arrays.items()} == {
            name: (ARRAYS[dtype], shape) for name, (dtype, shape) in wanted.items()
        }


def test_apples_models_compute_what_the_pipeline_does(apple, pipeline):
    import torch

    resources, generator = apple / "Resources", np.random.default_rng(0)
    ids = generator.integers(0, 500, (1, 16))
    ids[0, 9:] = 513
    with torch.no_grad():
        wanted = pipeline.text_encoder(torch.from_numpy(ids))
    found = mil.load(resources / "TextEncoder.mlpackage").run(input_ids=ids.astype(np.float32))
    assert near(wanted.last_hidden_state.numpy(), found["last_hidden_state"]) >= 60
    assert near(wanted.pooler_output.numpy(), found["pooled_outputs"]) >= 60
    latent = generator.standard_normal((2, 4, 16, 16)).astype(np.float32)
    text = generator.standard_normal((2, 16, 16)).astype(np.float32)
    with torch.no_grad():
        noise = pipeline.denoiser(torch.from_numpy(latent), 401, torch.from_numpy(text), return_dict=False)[0].numpy()
        image = pipeline.vae.decode(torch.from_numpy(latent[:1]), return_dict=False)[0].numpy()
    found = mil.load(resources / "Unet.mlpackage").run(
        sample=latent, timestep=np.array([401.0, 401.0]), encoder_hidden_states=text.transpose(0, 2, 1)[:, :, None]
    )
    assert near(noise, found["noise_pred"]) >= 60
    assert near(image, mil.load(resources / "VAEDecoder.mlpackage").run(z=latent[:1])["image"]) >= 60


def near(reference, found):
    return psnr(reference, found, np.abs(reference).max(), cap=200)
