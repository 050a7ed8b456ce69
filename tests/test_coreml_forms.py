"""One denoiser, the same functions linked three ways: plain, with the feature cache as state, and in two chunks."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest

pytest.importorskip("coremltools")

from edgediff import mil
from edgediff.backends import Artifacts, coreml
from edgediff.bundle.assemble import make_manifest
from edgediff.documents.plan import BackendPlan, GuidancePlan
from edgediff.documents.target import parse_target
from edgediff.errors import BackendError, BundleError
from edgediff.graph.schedule import Forecast
from edgediff.runtime import Session
from edgediff.runtime.engine import held_states
from edgediff.runtime.manifest import FileEntry, Manifest
from edgediff.runtime.runners import open_runners
from edgediff.variants import build_variants
from tests.test_coreml import FLOORS, example, near, size, typed
from tests.tiny import cached_conversions, tiny_pipeline, tiny_plan

GUIDED = (4.0, 4.0, 4.0, None, None)  # the last two calls run the prompt alone: every graph at two batches
FORMS = {
    "plain": {},
    "state": {"cache": "state"},
    "chunks": {"chunks": 2},
    "old chunks": {"chunks": 2, "deployment": "iOS17", "attention": "original"},
}
CACHE = "up_blocks_1_upsamplers_0"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def lowered(pipeline, tmp_path_factory):
    """Form -> (folder, manifest), and the variants. Converting takes seconds a graph, so all forms link the same
    programs of iOS 18: what `old chunks` is for is its packages, one per function."""
    plan = tiny_plan(
        pipeline,
        {"coreml": BackendPlan(precision="fp16", format="mlpackage")},
        calls=("full", "shallow", "full", "full", "shallow"),
    )
    plan = plan.model_copy(update={"guidance": GuidancePlan(mode="batched", calls=GUIDED)})
    variants = build_variants(pipeline, plan)
    found, plain = {}, target().backend("coreml")
    with cached_conversions(), pytest.MonkeyPatch.context() as patch:
        convert = coreml._convert
        patch.setattr(coreml, "_convert", lambda *given: convert(*given[:4], plain, given[5]))
        for form, table in FORMS.items():
            out = tmp_path_factory.mktemp("lowered")
            artifacts = coreml.lower(variants, target(**table), out)
            found[form] = (out, make_manifest(pipeline, plan, variants, [artifacts], name="t"))
    return found, variants


def target(**table):
    return parse_target({"name": "t", "backends": ["coreml"], "coreml": {"islands": ["time"], **table}}, where="t")


def open_session(folder, manifest):
    return Session(manifest, {}, open_runners(manifest, folder, "coreml", 1)[0])


def latents(folder, manifest, given):
    return [step.latent for step in open_session(folder, manifest).steps(given=given)]


@pytest.fixture(scope="module")
def given(pipeline):
    """The prompts' value, empty side first."""
    return {"encoder_hidden_states": pipeline.encode(["", "abc"]).numpy()}


def test_a_picture_is_the_same_wherever_the_cache_is(lowered, given):
    """State holds the fp16 values that inputs and outputs carry across in fp32: every latent is equal, bit for bit."""
    forms, _ = lowered
    plain = latents(*forms["plain"], given)
    for form in ("state", "chunks"):
        for one, other in zip(plain, latents(*forms[form], given), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_state_stays_inside(lowered):
    folder, manifest = lowered[0]["state"]
    runners, _ = open_runners(manifest, folder, "coreml", 1)
    states = {f"cache_out_{CACHE}": f"cache_{CACHE}"}
    assert dict(held_states(runners["full"])) == manifest.graphs["full"].artifacts["coreml"].states == states
    program = mil.load(folder / "coreml" / "unet.mlpackage")
    assert set(program.functions) == {"full", "full_batch1", "shallow", "shallow_batch1"}
    for name in program.functions:
        assert f"cache_in_{CACHE}" not in program.inputs(name)
        assert tuple(program.outputs(name)) == ("noise_pred",)
        state = program.make_state(name)[f"cache_{CACHE}"]
        assert (state.shape[0], state.dtype) == (2, np.float16)  # one size for all functions, or they cannot share it


def test_two_pictures_have_a_memory_each(lowered, given):
    """Sessions that take turns, and one that is used again, do not read each other's features."""
    folder, manifest = lowered[0]["state"]
    alone, session = latents(folder, manifest, given), open_session(folder, manifest)
    other = {name: value + 1 for name, value in given.items()}
    runs = [session.steps(given=given), session.steps(given=other, seed=3)]
    for wanted, (step, _) in zip(alone, zip(*runs, strict=True), strict=True):
        np.testing.assert_array_equal(wanted, step.latent)


def test_prompts_one_after_the_other_have_a_state_each(pipeline, lowered, given):
    """In sequential mode the same functions at batch 1 run once per prompt."""
    folder, manifest = lowered[0]["state"]
    plain = lowered[0]["plain"]

    def sequential(one: Manifest) -> Manifest:
        program = one.program().model_copy(update={"mode": "sequential"})
        return one.model_copy(update={"programs": {one.default: program}})

    for one, other in zip(
        latents(folder, sequential(manifest), given),
        latents(plain[0], sequential(plain[1]), given),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [2, 1])
@pytest.mark.parametrize("graph", ["full", "shallow"])
def test_every_form_is_pytorch_up_to_fp16(lowered, form, graph, batch):
    from edgediff.backends import eager

    (folder, manifest), variants = lowered[0][form], lowered[1]
    variant = variants.graphs[graph]
    artifact = manifest.graphs[graph].artifacts["coreml"]
    runner = coreml.open_runner(folder, typed(variant), artifact, batch=batch, threads=1)
    inputs = example(variant, batch)
    reference, found = eager.eager_runners(variants)[graph].run(inputs), runner.run(inputs)
    assert list(found) == list(reference)
    assert min(near(reference[name], found[name]) for name in found) >= FLOORS["fp16"]


def test_coreml_s_own_reader_sees_the_state(lowered):
    """coremltools reads the rewritten program, and has the operations where it would have put them itself."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types

    folder, _ = lowered[0]["state"]
    model = ct.models.MLModel(str(folder / "coreml" / "unet.mlpackage"), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    wanted = {"full": "coreml_update_state", "shallow": "read_state"}
    for name, kind in wanted.items():
        function = program.functions[name]
        states = [one for one in function.inputs.values() if types.is_state(one.sym_type)]
        assert [one.name for one in states] == [f"cache_{CACHE}"]
        found = [one.op_type for one in function.operations if one.op_type in (*wanted.values(), "write_state")]
        assert found == [kind]
    described = {one.name: [state.name for state in one.state] for one in spec.description.functions}
    assert set(map(tuple, described.values())) == {(f"cache_{CACHE}",)}


def test_chunks_share_the_weights_and_hold_about_half_each(lowered):
    folder, manifest = lowered[0]["chunks"]
    whole = size(lowered[0]["plain"][0] / "coreml" / "unet.mlpackage" / "Data/com.apple.CoreML/weights")
    parts = [size(folder / file / "Data/com.apple.CoreML/weights") for file in chunk_files(manifest, "full")]
    assert chunk_files(manifest, "full") == chunk_files(manifest, "shallow")
    assert len(parts) == 2 and sum(parts) <= 1.03 * whole  # what both sides read, such as a table, is in both
    assert all(0.35 <= part / sum(parts) <= 0.65 for part in parts)


def chunk_files(manifest, graph):
    artifact = manifest.graphs[graph].artifacts["coreml"]
    return (artifact.file, *artifact.chunks)


def test_a_chunk_or_a_state_that_is_missing_is_refused(lowered):
    folder, manifest = lowered[0]["chunks"]
    graph = manifest.graphs["full"]
    alone = graph.artifacts["coreml"].model_copy(update={"chunks": ()})
    with pytest.raises(BackendError, match="where the manifest says"):
        coreml.open_runner(folder, graph, alone, batch=2)
    folder, manifest = lowered[0]["state"]
    renamed = manifest.graphs["shallow"].artifacts["coreml"].model_copy(update={"states": {f"cache_in_{CACHE}": "x"}})
    with pytest.raises(BackendError, match="has no state 'x', which the manifest names"):
        coreml.open_runner(folder, manifest.graphs["shallow"], renamed, batch=2)


def test_a_feature_for_other_graphs_may_cross_to_the_second_chunk(tmp_path):
    """In fp32 a cached feature is no cast of its own: it leaves the first chunk once, for both."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    from edgediff.backends.coreml.chunks import plan_cuts, take_chunk
    from edgediff.backends.coreml.link import Part, link_functions
    from edgediff.runtime.manifest import Artifact, Graph, TensorSpec

    weights = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((2, 8))], opset_version=ct.target.iOS16)
    def program(sample):
        feature = mb.linear(x=sample, weight=weights[0], name="cache_out_a")
        return mb.linear(x=feature, weight=weights[1], name="noise_pred"), feature

    model = ct.convert(
        program, minimum_deployment_target=ct.target.iOS16, compute_precision=ct.precision.FLOAT32, skip_model_load=True
    )
    model.save(str(tmp_path / "whole.mlpackage"))
    (cut,) = plan_cuts([(mil.open_package(tmp_path / "whole.mlpackage"), "main")])
    for index in (0, 1):
        part = Part("main", tmp_path / "whole.mlpackage", change=partial(take_chunk, cut=cut, index=index))
        link_functions([part], tmp_path / f"{index}.mlpackage")
    spec = TensorSpec(name="sample", dtype="float32", shape=("batch", 8))
    outputs = tuple(spec.model_copy(update={"name": name}) for name in ("noise_pred", "cache_out_a"))
    graph = Graph(component="unet", inputs=(spec,), outputs=outputs)
    artifact = Artifact(file="0.mlpackage", chunks=("1.mlpackage",), precision="fp32")
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    found = coreml.open_runner(tmp_path, graph, artifact, batch=2).run({"sample": x})
    np.testing.assert_allclose(found["cache_out_a"], x @ weights[0].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["noise_pred"], x @ weights[0].T @ weights[1].T, rtol=1e-4, atol=1e-4)


# What cannot be


@pytest.mark.parametrize(
    ("table", "precision", "message"),
    [
        (
            {"deployment": "iOS17", "attention": "original"},
            "fp16",
            r"is a feature of iOS 18, and the target deploys to iOS17; choose cache 'io', or deployment 'iOS18'",
        ),
        ({}, "fp32", "Core ML keeps state in fp16 only, and the plan's precision is fp32; choose cache 'io'"),
        ({"chunks": 2}, "fp16", "chunks 2 makes the denoiser two packages, which share no state; choose cache 'io'"),
    ],
)
def test_states_that_cannot_be_are_refused(pipeline, tmp_path, table, precision, message):
    plan = tiny_plan(pipeline, {"coreml": BackendPlan(precision=precision, format="mlpackage")})
    with pytest.raises(BackendError, match=message):
        coreml.lower(build_variants(pipeline, plan), target(cache="state", **table), tmp_path)


def test_a_schedule_that_mixes_past_features_cannot_have_states(pipeline, tmp_path):
    plan = tiny_plan(pipeline, {"coreml": BackendPlan(precision="fp16", format="mlpackage")})
    forecast = Forecast(call=4, what="up_blocks.1.upsamplers.0", weights=(1.5, -0.5))
    schedule = plan.schedule.model_copy(update={"forecasts": (forecast,)})
    variants = build_variants(pipeline, plan.model_copy(update={"schedule": schedule}))
    message = r"call 4 mixes several past values of 'up_blocks\.1\.upsamplers\.0', and a state has the newest only"
    with pytest.raises(BackendError, match=message):
        coreml.lower(variants, target(cache="state"), tmp_path)


def test_a_program_with_no_place_for_a_cut_is_refused():
    from types import SimpleNamespace

    from edgediff.backends.coreml.chunks import plan_cuts

    package = SimpleNamespace(block=lambda name: SimpleNamespace(operations=[]))
    with pytest.raises(BackendError, match=r"function 'main' cannot be cut in two: .*; choose chunks 1"):
        plan_cuts([(package, "main")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full": {}}, "is in one state for some graphs on coreml, and not for others"),
        ({"full": {"noise_pred": "x"}}, "has a state for 'noise_pred', which is no carry of it"),
    ],
)
def test_a_manifest_whose_states_contradict_each_other_is_refused(lowered, change, message):
    _, manifest = lowered[0]["state"]
    with pytest.raises(BundleError, match=message):
        listed(with_states(manifest, change)).check()


def test_a_row_cannot_mix_what_is_a_state(lowered):
    _, manifest = lowered[0]["state"]
    rows = [row.model_copy(update={"mix": {CACHE: (0.5,)}}) for row in manifest.program().rows]
    program = manifest.program().model_copy(update={"rows": tuple(rows)})
    with pytest.raises(BundleError, match=f"a row mixes carry '{CACHE}', which is a state on coreml"):
        listed(manifest.model_copy(update={"programs": {manifest.default: program}})).check()


def test_the_manifest_keeps_every_rule(lowered):
    """So that it is the change alone that the tests above see refused."""
    for _, manifest in lowered[0].values():
        listed(manifest).check()


def listed(manifest):
    """With an entry for every file that it names."""
    named = {file for graph in manifest.graphs.values() for one in graph.artifacts.values() for file in one.files}
    named |= {file for one in manifest.tokenizers.values() for file in (one.vocab, one.merges)}
    files = tuple(FileEntry(path=path, bytes=0, sha256="0" * 64) for path in sorted({manifest.plan, *named}))
    return manifest.model_copy(update={"files": files})


def with_states(manifest, change):
    graphs = dict(manifest.graphs)
    for name, states in change.items():
        artifact = graphs[name].artifacts["coreml"].model_copy(update={"states": states})
        graphs[name] = graphs[name].model_copy(update={"artifacts": {"coreml": artifact}})
    return manifest.model_copy(update={"graphs": graphs})


# Apple's folder


@pytest.mark.parametrize("form", ["state", "chunks"])
def test_apples_folder_of_either_form_computes_the_denoiser(lowered, pipeline, tmp_path, form):
    """Chunks as Apple's runner chains them: each is given the original inputs and what the last one put out."""
    import torch

    from edgediff.bundle import BundleWriter
    from edgediff.bundle.assemble import write_parts
    from edgediff.layouts import export_layout

    (source, manifest), variants = lowered[0][form], lowered[1]
    with BundleWriter(tmp_path / "tiny.edgediff") as writer:
        shutil.copytree(source / "coreml", writer.folder / "coreml")
        write_parts(pipeline, variants.plan, writer.folder)
        found = {name: graph.artifacts["coreml"] for name, graph in manifest.graphs.items()}
        artifacts = Artifacts("coreml", found, {})
        bundle = writer.commit(make_manifest(pipeline, variants.plan, variants, [artifacts], name="tiny"))
    resources = export_layout(bundle, "apple", tmp_path / "apple", pipeline=pipeline) / "Resources"
    names = ["UnetChunk1", "UnetChunk2"] if form == "chunks" else ["Unet"]
    assert sorted(path.stem for path in resources.glob("U*.mlpackage")) == names
    generator = np.random.default_rng(0)
    latent = generator.standard_normal((2, 4, 16, 16)).astype(np.float32)
    text = generator.standard_normal((2, 16, 16)).astype(np.float32)
    given = {
        "sample": latent,
        "timestep": np.array([401.0, 401.0]),
        "encoder_hidden_states": text.transpose(0, 2, 1)[:, :, None],
    }
    known = dict(given)
    for name in names:
        program = mil.load(resources / f"{name}.mlpackage")
        assert not program.make_state("main")
        known = {**program.run(**{key: known[key] for key in program.inputs()}), **given}
    with torch.no_grad():
        noise = pipeline.denoiser(torch.from_numpy(latent), 401, torch.from_numpy(text), return_dict=False)[0].numpy()
    assert near(noise, known["noise_pred"]) >= FLOORS["fp16"]


# On a Mac: what is asked of Core ML, by a stand-in with coremltools' interface that the evaluator computes


class StandInState:
    def __init__(self, values):
        self.values = values

    def read_state(self, name):
        return self.values[name]

    def write_state(self, name, value):
        assert (value.dtype, value.shape) == (self.values[name].dtype, self.values[name].shape)
        self.values[name] = value


class StandInModel:
    loaded: list[tuple[str, str]] = []

    def __init__(self, path, compute_units, function_name=None):
        self.program, self.function = mil.load(path), function_name
        self.loaded.append((compute_units.name, function_name))

    def make_state(self):
        return StandInState(self.program.make_state(self.function))

    def predict(self, data, state=None):
        return self.program.run(self.function, None if state is None else state.values, **data)


@pytest.mark.parametrize("form", ["state", "chunks"])
def test_a_mac_runs_the_same_program_with_core_ml(lowered, given, monkeypatch, form):
    import coremltools as ct

    wanted = latents(*lowered[0][form], given)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", StandInModel)
    monkeypatch.setattr(StandInModel, "loaded", [])
    for one, other in zip(wanted, latents(*lowered[0][form], given), strict=True):
        np.testing.assert_array_equal(one, other)
    functions = [name for units, name in StandInModel.loaded if units == "CPU_AND_NE"]
    assert sorted(name for name in functions if name) == sorted(
        ["full", "full_batch1", "shallow", "shallow_batch1"] * (2 if form == "chunks" else 1)
    )
