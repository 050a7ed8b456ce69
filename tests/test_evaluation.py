"""Evaluation against the untouched model: the same noise, honest baselines, a cache that pays, no invented figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgediff.bundle import Bundle, BundleWriter
from edgediff.bundle.assemble import make_manifest, write_parts
from edgediff.config import dump_json
from edgediff.documents.plan import BackendPlan, EqualCompute
from edgediff.documents.target import load_target
from edgediff.errors import ConfigError, EvaluationError, OutputError
from edgediff.evaluation import evaluate_bundle, pictures, read_prompts
from edgediff.evaluation.layers import map_layers
from edgediff.evaluation.pictures import PictureCache, Sampling, program_digest
from edgediff.evaluation.scoring import Scorer, compare_figures
from edgediff.metrics import PSNR_CAP
from edgediff.pipeline import Pipeline
from edgediff.plugins import load_plugin
from edgediff.runtime import Session, open_session
from edgediff.variants import build_variants
from tests.tiny import tiny_pipeline, tiny_plan

PROMPTS = ("a red heart", "a fox", "two boats", "a house", "rain")
SESSIONS: dict[Path, Session] = {}
FIGURES = {"retrieval_at_1", "frechet", "psnr_db", "ssim"}


class Colours:
    """A judge of five names that looks at the mean colour."""

    names = PROMPTS
    gallery = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])

    def embed(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1, 3).mean(axis=1)


def write_bundle(pipeline: Pipeline, folder: Path, **choices) -> Bundle:
    plan = tiny_plan(pipeline, {"eager": BackendPlan(precision="fp32")}, **choices)
    equal = EqualCompute(sampler="ddim", steps=2, macs=plan.cost.macs)
    plan = plan.model_copy(update={"cost": plan.cost.model_copy(update={"equal_compute": equal})})
    with BundleWriter(folder) as writer:
        variants = build_variants(pipeline, plan)
        lowered = [load_plugin("backends", "eager").lower(variants, load_target("host"), writer.folder)]
        write_parts(pipeline, plan, writer.folder)
        return writer.commit(make_manifest(pipeline, plan, variants, lowered, name=folder.stem))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def exact(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Nothing compressed: every call runs everything."""
    return write_bundle(pipeline, tmp_path_factory.mktemp("exact") / "exact.edgediff", calls=("full",) * 4)


@pytest.fixture(scope="module")
def reused(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    calls = ("full", "shallow", "hold", "shallow")
    return write_bundle(pipeline, tmp_path_factory.mktemp("reused") / "reused.edgediff", calls=calls)


@pytest.fixture(autouse=True)
def _open_sessions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening an eager session counts the costs of every unit, which takes seconds; a session keeps nothing."""

    def open_once(bundle: Bundle, backend: str) -> Session:
        if bundle.folder not in SESSIONS:
            SESSIONS[bundle.folder] = open_session(bundle, backend)
        return SESSIONS[bundle.folder]

    monkeypatch.setattr(pictures, "open_session", open_once)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["\ufeff" + PROMPTS[0], "", *PROMPTS[1:3], ""]), encoding="utf-8")
    return path


def test_a_bundle_that_compresses_nothing_makes_the_references_pictures(
    exact: Bundle, pipeline: Pipeline, prompts: Path
) -> None:
    """Noise, guidance, sampler, decoding and rounding are the same in the runtime and in the reference."""
    found = evaluate_bundle(exact, prompts=prompts, pipeline=pipeline, seeds=(3, 11))
    assert found["n"] == 6
    assert found["psnr_db_worst"] > 55
    assert found["ssim_worst"] > 0.9999
    assert found["equal_compute"]["psnr_db"] < found["psnr_db"] - 10


def test_the_json_has_the_promised_form(reused: Bundle, pipeline: Pipeline, prompts: Path) -> None:
    found = evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, judge=Colours())
    assert json.loads(dump_json(found)) == found
    assert {"prompts", "seeds", "reference", "equal_compute", *FIGURES} <= set(found)
    assert set(found["reference"]) >= FIGURES
    assert set(found["equal_compute"]) >= {"sampler", "steps", *FIGURES}
    assert (found["prompts"], found["seeds"], found["n"]) == (3, [0], 3)
    equal, (weaker,) = found["equal_compute"], found["weaker_equal_compute"]
    assert {(one["sampler"], one["steps"]) for one in (equal, weaker)} == {("ddim", 2), ("dpmpp_2m", 2)}
    assert equal["psnr_db"] >= weaker["psnr_db"]
    assert found["guidance"] == {"scale": 4.0, "guided_calls": 4, "calls": 4, "mode": "batched"}
    assert 5 < found["psnr_db"] < PSNR_CAP
    assert found["psnr_db_worst"] <= found["psnr_db"]
    assert found["reference"]["psnr_db"] is None
    assert found["against_equal_compute"]["ssim"]["better"] is None  # three prompts prove nothing
    assert 0 <= found["retrieval_interval"][0] <= found["retrieval_at_1"] <= found["retrieval_interval"][1] <= 1
    assert found["reasons"] == {}
    assert set(found["against_equal_compute"]) == {"psnr_db", "ssim", "retrieval_at_1"}


def test_the_pictures_are_those_that_the_bundle_generates(
    reused: Bundle, pipeline: Pipeline, prompts: Path, tmp_path: Path
) -> None:
    found = evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, seeds=(7,), cache=tmp_path / "cache")
    shown = found["pictures"][1]
    assert (shown["prompt"], shown["seed"], shown["why"]) == ("a fox", 8, "first")
    kept = PictureCache(Path(found["cache"])).read(shown["compressed"])
    assert np.array_equal(kept, np.asarray(reused.generate("a fox", seed=8)))


def test_a_second_evaluation_pays_only_for_the_compressed_pictures(
    reused: Bundle, exact: Bundle, pipeline: Pipeline, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, cache=cache)
    monkeypatch.setattr(pictures, "_sample", lambda *_: pytest.fail("the untouched model ran again"))
    assert evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, cache=cache) == first
    other = evaluate_bundle(exact, prompts=prompts, pipeline=pipeline, cache=cache)
    assert other["equal_compute"] == first["equal_compute"]
    assert other["psnr_db"] > first["psnr_db"]


def test_a_damaged_picture_is_made_again(reused: Bundle, pipeline: Pipeline, prompts: Path, tmp_path: Path) -> None:
    first = evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, cache=tmp_path)
    key = first["pictures"][0]["reference"]
    file = next(tmp_path.rglob(f"{key}.npz"))
    file.write_bytes(file.read_bytes()[:40])
    assert evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, cache=tmp_path) == first
    assert PictureCache(tmp_path).read(key) is not None
    assert not list(tmp_path.rglob(".*"))


def test_without_a_judge_figures_are_null_with_a_reason(reused: Bundle, pipeline: Pipeline, prompts: Path) -> None:
    found = evaluate_bundle(reused, prompts=prompts, pipeline=pipeline)
    for part in (found, found["reference"], found["equal_compute"]):
        assert part["retrieval_at_1"] is None
        assert part["frechet"] is None
    assert "there is no judge for model" in found["reasons"]["frechet"]
    assert set(found["reasons"]) == {"retrieval_at_1", "frechet"}
    assert found["ssim"] is not None


def test_a_prompt_that_the_judge_does_not_know_leaves_frechet(reused: Bundle) -> None:
    scorer = Scorer((Colours(), None), ["a red heart", "a whale"])
    figures = scorer.figures(np.full((2, 16, 16, 3), 90, np.uint8)).data
    assert figures["retrieval_at_1"] is None
    assert figures["frechet"] > 0
    assert "the judge has no picture called 'a whale'" in scorer.reasons["retrieval_at_1"]


def paint(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.broadcast_to(np.array(colour, np.uint8), (16, 16, 3)) for colour in colours])


def test_figures_of_painted_pictures() -> None:
    scorer = Scorer((Colours(), None), ["a red heart", "a fox", "two boats"])
    right = paint((200, 0, 0), (0, 90, 0), (0, 0, 255))
    two = paint((200, 0, 0), (0, 90, 0), (0, 255, 0))
    perfect, partly = scorer.figures(right, right), scorer.figures(two, right)
    assert perfect.data["retrieval_at_1"] == 1.0
    assert perfect.data["psnr_db"] == PSNR_CAP
    assert partly.data["retrieval_at_1"] == pytest.approx(2 / 3)
    assert partly.data["psnr_db_worst"] == pytest.approx(10 * np.log10(3 / 2))
    assert partly.hits.tolist() == [True, True, False]
    gap = compare_figures(perfect, partly, 3)["retrieval_at_1"]
    assert gap["difference"] == pytest.approx(1 / 3)
    assert gap["better"] is None  # one of three pictures proves nothing
    assert compare_figures(perfect, perfect, 3)["ssim"]["better"] is None


def test_a_clear_difference_is_called_better() -> None:
    names = [PROMPTS[index % 2] for index in range(40)]
    scorer = Scorer((Colours(), None), names)
    right = scorer.figures(paint(*[(200, 0, 0), (0, 90, 0)] * 20))
    wrong = scorer.figures(paint(*[(0, 0, 9), (0, 90, 0)] * 20))
    assert compare_figures(right, wrong, 40)["retrieval_at_1"]["better"] is True
    assert compare_figures(wrong, right, 40)["retrieval_at_1"]["better"] is False


def test_fewer_steps_keep_the_guidance_interval() -> None:
    scales = (None, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, None)
    sampling = Sampling("ddim", 5, scales)
    assert sampling.scales(10) == scales
    assert sampling.scales(5) == (None, 3.0, 3.0, 3.0, None)
    assert sampling.scales(1) == (None,)
    assert Sampling("ddim", 1, (2.0,)).scales(1) == (2.0,)


def test_layers_say_what_each_graph_computes(pipeline: Pipeline) -> None:
    cut = next(unit.name for unit in pipeline.graph.units if unit.kind == "feed_forward")
    plan = tiny_plan(pipeline, {"eager": BackendPlan(precision="fp32")}, cuts=(cut,))
    layers = {layer["name"]: layer for layer in map_layers(plan, pipeline.graph)}
    assert list(layers)[:2] == ["time_embedding", "conv_in"]
    assert layers["mid_block.layers.0"]["runs"] == {"full": 1.0, "shallow": 0.0}
    assert layers["up_blocks.1.upsamplers.0"]["held"] == ["shallow"]
    assert layers["conv_out"]["runs"] == {"full": 1.0, "shallow": 1.0}
    first = layers["down_blocks.0.layers.0"]
    assert first["cut"] == pytest.approx(1 / 6)
    assert 0.5 < first["runs"]["full"] < 1.0
    assert sum(layer["macs"] for layer in layers.values()) == pipeline.graph.macs()


def test_what_was_measured_does_not_change_the_programs_digest(reused: Bundle) -> None:
    measured = reused.manifest.model_copy(update={"evidence": {"profile": {"p50": 1.0}, "parity": {"ok": True}}})
    assert program_digest(measured) == program_digest(reused.manifest)
    assert program_digest(measured.model_copy(update={"files": ()})) != program_digest(measured)


def test_prompts_files_that_are_missing_empty_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.txt: there is no such file"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(EvaluationError, match=r"empty.txt: has no prompts; write one a line"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"binary.txt: is not UTF-8 \(byte 3\)"):
        read_prompts(tmp_path / "binary.txt")


def test_errors_before_any_picture_is_made(
    reused: Bundle, pipeline: Pipeline, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_sample", lambda *_: pytest.fail("a picture was made"))
    with pytest.raises(EvaluationError, match=r"brings no captions to choose 256 from; give a file"):
        evaluate_bundle(reused, pipeline=pipeline)
    with pytest.raises(EvaluationError, match=r"prompts = 0: it must be 1 or more, or a file"):
        evaluate_bundle(reused, prompts=0, pipeline=pipeline)
    for seeds in ((), (1, 1), (-1,), (True,)):
        with pytest.raises(EvaluationError, match="one or more whole numbers from 0, each once"):
            evaluate_bundle(reused, prompts=prompts, pipeline=pipeline, seeds=seeds)
    other = tiny_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(EvaluationError, match=r"was made from weights .* give the model it was made from") as caught:
        evaluate_bundle(reused, prompts=prompts, pipeline=other)
    assert caught.value.code == "other_model"


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be kept there: .*; set EDGEDIFF_CACHE to a folder"):
        PictureCache(tmp_path / "file" / "cache")
