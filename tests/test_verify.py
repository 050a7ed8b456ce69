"""The parity report: its shape, its floors, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgediff import verify
from edgediff.backends import eager
from edgediff.documents.plan import BackendPlan
from edgediff.documents.recipe import ParityTable
from edgediff.errors import BackendError, ModelError
from edgediff.runtime import open_session
from edgediff.runtime.evidence import Parity
from edgediff.variants import build_variants
from tests.tiny import tiny_bundle, tiny_pipeline, tiny_plan

FP32 = {"onnxruntime": BackendPlan(precision="fp32"), "eager": BackendPlan(precision="fp32")}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.edgediff", pipeline, FP32)


@pytest.fixture(scope="module")
def report(bundle):
    """The reference is loaded again from the folder that the manifest names."""
    return verify.verify_bundle(bundle)


class Spoiled:
    """A runner whose outputs become NaN from a call on."""

    def __init__(self, runner, after):
        self.runner, self.after = runner, after

    def run(self, inputs):
        outputs = self.runner.run(inputs)
        self.after -= 1
        if self.after < 0:
            outputs = {name: np.full_like(value, np.nan) for name, value in outputs.items()}
        return outputs


def with_spoiled(monkeypatch, graph, after):
    def opener(bundle, backend=None, threads=None, program=None):
        session = open_session(bundle, backend, threads, program)
        session.runners[graph] = Spoiled(session.runners[graph], after)
        return session

    monkeypatch.setattr(verify, "open_session", opener)


def test_fp32_is_rounding(report):
    assert report.ok is True
    assert set(report.backends) == {"onnxruntime", "eager"}
    for result in report.backends.values():
        assert set(result.graphs) == {"full", "shallow", "text_encoder", "vae_decoder"}
        for graph in result.graphs.values():
            assert graph.psnr_db >= 100
            assert 0 <= graph.max_abs < 1e-4
            assert (graph.floor_db, graph.precision) == (60.0, "fp32")
        main = result.programs["main"]
        assert 0 <= main.trajectory.worst_step < 5
        assert main.trajectory.psnr_db >= 80
        assert main.image.psnr_db >= main.image.floor_db == 35.0
        assert not result.stand_in
    assert report.backends["onnxruntime"].executed_by.startswith("onnxruntime ")


def test_the_report_has_the_documented_shape(report):
    """The JSON of `edgediff verify`, and what a manifest keeps of it."""
    shown = report.report("main")
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["ok"] is True and shown["reading"]["why"]
    for result in shown["backends"].values():
        assert result["ok"] is result["graphs"]["full"]["ok"] is result["image"]["ok"] is True
        assert result["trajectory"] == result["programs"]["main"]["trajectory"]
        assert result["image"]["psnr_db"] >= 35
    assert Parity.model_validate_json(report.to_json()) == report


def test_only_the_backends_asked_for_and_progress_counts_to_the_end(bundle, pipeline):
    seen = []
    found = verify.verify_bundle(
        bundle, backends=["eager"], pipeline=pipeline, progress=lambda *args: seen.append(args)
    )
    assert list(found.backends) == ["eager"]
    assert found.backends["eager"].programs["main"].image.psnr_db == 99.0
    assert all(0 <= done < total for _, done, total in seen)
    assert ("PyTorch, step 5 of 5", 1, 3) in seen
    with pytest.raises(BackendError, match=r"was not built for it: unknown backend 'coreml' \(allowed: .*eager"):
        verify.verify_bundle(bundle, backends=["coreml"], pipeline=pipeline)


def test_a_missed_floor_is_not_ok(bundle, pipeline, monkeypatch):
    strict = bundle.plan.model_copy(update={"parity": ParityTable(fp32_db=190.0)})
    monkeypatch.setitem(bundle.__dict__, "plan", strict)
    found = verify.verify_bundle(bundle, backends=["onnxruntime"], pipeline=pipeline)
    result = found.backends["onnxruntime"]
    assert (found.ok, result.ok, result.graphs["full"].ok) == (False, False, False)
    assert result.programs["main"].ok is True
    assert found.report("main")["backends"]["onnxruntime"]["graphs"]["full"]["ok"] is False


@pytest.mark.parametrize(("graph", "after", "step"), [("shallow", 2, 1), ("vae_decoder", 1, 5)])
def test_nan_fails_and_says_where(bundle, pipeline, monkeypatch, graph, after, step):
    """`after` leaves the recorded inputs alone, so that only the run of the whole program meets it."""
    with_spoiled(monkeypatch, graph, after)
    found = verify.verify_bundle(bundle, backends=["onnxruntime"], pipeline=pipeline)
    result = found.backends["onnxruntime"]
    main = result.programs["main"]
    assert found.ok is False
    assert result.graphs[graph].ok is True
    assert (main.trajectory.finite, main.trajectory.worst_step) == (False, step)
    assert "NaN or infinite" in main.trajectory.problem
    assert (main.image.psnr_db, main.ok) == (0.0, False)
    json.dumps(found.report("main"), allow_nan=False)


def test_nan_in_a_graph_counts_as_0_db(bundle, pipeline, monkeypatch):
    with_spoiled(monkeypatch, "full", 0)
    found = verify.verify_bundle(bundle, backends=["onnxruntime"], pipeline=pipeline)
    graph = found.backends["onnxruntime"].graphs["full"]
    assert (graph.psnr_db, graph.finite, graph.ok, found.ok) == (0.0, False, False, False)
    json.dumps(found.report("main"), allow_nan=False)


def test_another_model_is_refused(bundle, tmp_path):
    other = tiny_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"has weights \w{12}, but this bundle was made from \w{12} of .*; use"):
        verify.verify_bundle(bundle, pipeline=other)
    source = bundle.manifest.source.model_copy(update={"model": "glyf"})
    lost = replace(bundle, manifest=bundle.manifest.model_copy(update={"source": source}))
    with pytest.raises(ModelError, match=r"made from is needed: there is no model 'glyf'; did you mean"):
        verify.verify_bundle(lost)


def test_equal_is_the_cap_and_zero_needs_no_peak():
    zeros = np.zeros((2, 3), np.float32)
    assert verify.compare_arrays(zeros, zeros) == {"psnr_db": 200.0, "max_abs": 0.0, "finite": True}
    with pytest.raises(BackendError, match=r"an output has shape \(3,\), PyTorch's has \(2, 3\)"):
        verify.compare_arrays(zeros, np.zeros(3, np.float32))


def test_recordings_hold_the_first_and_the_last_call(bundle, pipeline):
    plan = tiny_plan(pipeline, FP32, mode="sequential", calls=("full", "full", "shallow", "full", "shallow"))
    variants = build_variants(pipeline, plan)
    program = bundle.manifest.program()
    calls = zip(program.rows, plan.schedule.calls, strict=True)
    rows = tuple(row.model_copy(update={"graph": name}) for row, name in calls)
    program = program.model_copy(update={"mode": "sequential", "rows": rows})
    manifest = bundle.manifest.model_copy(update={"programs": {"main": program}})
    recordings = verify.eager_recordings(pipeline, variants, manifest)
    kept = {}
    for one in recordings.calls:
        kept.setdefault(one.graph, []).append(one.call)
    assert kept == {"full": [0, 2, 4], "shallow": [0, 2, 3], "text_encoder": [0, 1], "vae_decoder": [0]}
    assert len(recordings.latents) == 5
    first, last = (one for one in recordings.calls if one.graph == "full" and one.call in (0, 4))
    assert first.inputs["timestep"] > last.inputs["timestep"]
    short = verify.eager_recordings(pipeline, variants, manifest, whole=False)
    assert len(short.latents) == 3
    assert sorted({(one.graph, one.call) for one in short.calls}) == [
        ("full", 0),
        ("shallow", 0),
        ("text_encoder", 0),
        ("vae_decoder", 0),
    ]


def test_golden_files_are_what_pytorch_makes(bundle, pipeline):
    listed = {entry.path for entry in bundle.manifest.files if entry.path.startswith("golden/")}
    assert listed == {f"golden/{name}.safetensors" for name in bundle.manifest.graphs}
    variants = build_variants(pipeline, bundle.plan)
    tensors = load_file(bundle.path("golden/shallow.safetensors"))
    names = {spec.name for spec in bundle.manifest.graphs["shallow"].inputs}
    assert {key.removeprefix("0.in.") for key in tensors if ".in." in key} == names
    outputs = eager.eager_runners(variants)["shallow"].run({name: tensors[f"0.in.{name}"] for name in names})
    assert verify.compare_arrays(tensors["0.out.noise_pred"], outputs["noise_pred"])["psnr_db"] >= 120


def test_golden_files_have_a_size(tmp_path, monkeypatch):
    calls = tuple(
        verify.Recording("g", call, {"x": np.zeros(1000, np.float32)}, {"y": np.ones(1000, np.float32)})
        for call in range(3)
    )
    recordings = verify.Recordings("p", calls, (), np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(verify, "GOLDEN_BYTES", 17_000)
    verify.write_golden(tmp_path, [recordings])
    assert sorted(load_file(tmp_path / "g.safetensors")) == ["0.in.x", "0.out.y", "1.in.x", "1.out.y"]
