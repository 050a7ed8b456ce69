"""Several programs in one bundle: planned, merged, built, shared, run by name, asked for another guidance scale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediff as ed
from edgediff.backends.eager import eager_runners
from edgediff.bundle import Bundle, open_bundle
from edgediff.bundle.assemble import make_manifest
from edgediff.cli.main import main
from edgediff.documents.plan import Plan
from edgediff.documents.recipe import Recipe, load_recipe
from edgediff.documents.target import load_target
from edgediff.errors import ConfigError, PlanError
from edgediff.flow import plan_pipeline
from edgediff.pipeline import Pipeline
from edgediff.pipeline.tokenizers import load_tokenizer
from edgediff.runtime import Session, open_session
from edgediff.runtime.manifest import Held, Manifest, Scale
from edgediff.variants import build_variants
from tests.program_cases import Letters, StandIn
from tests.tiny import cached_exports, tiny_pipeline
from tests.valid_bundle import make_manifest as make_small_manifest

PROGRAMS: dict[str, dict[str, Any]] = {
    "quality": {"sampler": {"kind": "dpmpp_2m", "steps": 4}, "reuse": [{"kind": "deepcache", "interval": 3}]},
    "balanced": {"sampler": {"kind": "ddim", "steps": 4}, "reuse": [{"kind": "deepcache", "interval": 2}]},
    "fast": {
        "sampler": {"kind": "ddim", "steps": 2},
        "guidance": {"scale": 1.0},
        "reuse": [{"kind": "deepcache", "interval": 2}],
    },
}
SHARED: dict[str, Any] = {"guidance": {"scale": 3.0}, "calibration": {"prompts": 1}}
THREE = """
name = "three"
default = "balanced"
guidance = { scale = 3.0 }
calibration = { prompts = 1 }

[[program]]
name = "quality"
sampler = { kind = "dpmpp_2m", steps = 4 }
guidance = { scale = 3.0, range = [1.5, 8.0] }
[[program.reuse]]
kind = "deepcache"
interval = 3

[[program]]
name = "balanced"
sampler = { kind = "ddim", steps = 4 }
[[program.reuse]]
kind = "deepcache"
interval = 2

[[program]]
name = "fast"
sampler = { kind = "ddim", steps = 2 }
guidance = { scale = 1.0 }
[[program.reuse]]
kind = "deepcache"
interval = 2
"""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "three.toml"
    path.write_text(THREE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def three(pipeline: Pipeline, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with cached_exports():
        out = tmp_path_factory.mktemp("three") / "three.edgediff"
        return ed.build(pipeline, recipe=recipe_file, out=out, backends=["onnxruntime"])


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each program, from a recipe without `[[program]]` tables."""
    root, made = tmp_path_factory.mktemp("alone"), {}
    with cached_exports():
        for name, table in PROGRAMS.items():
            recipe = Recipe.model_validate({"name": name, **SHARED, **table})
            made[name] = ed.build(pipeline, recipe=recipe, out=root / f"{name}.edgediff", backends=["onnxruntime"])
    return made


def latents(session: Session, prompt: str = "a fox", **asked: Any) -> list[np.ndarray]:
    return [step.latent for step in session.steps(prompt, seed=3, **asked)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Bit for bit."""
    return len(ours) == len(theirs) and all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))


# -- one bundle -----------------------------------------------------------------------------------


def test_a_bundle_holds_three_programs_over_the_same_graphs(three: Bundle) -> None:
    manifest = open_bundle(three.folder).manifest
    assert manifest.default == "balanced" and list(manifest.programs) == ["balanced", "quality", "fast"]
    assert set(manifest.graphs) == {"full", "shallow", "text_encoder", "vae_decoder"}
    calls = {name: [row.graph for row in program.rows] for name, program in manifest.programs.items()}
    assert calls["balanced"] == ["full", "shallow"] * 2 and calls["fast"] == ["full", "shallow"]
    assert calls["quality"] == ["full", "shallow", "shallow", "full"]
    assert [program.guides for program in manifest.programs.values()] == [True, True, False]
    assert "negative_prompt" in manifest.programs["quality"].takes and manifest.programs["fast"].takes == ("prompt",)
    assert all(len(line) <= 80 for line in str(three).splitlines())
    assert all(len(line) <= 80 for line in str(three.plan).splitlines())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_draws_what_a_bundle_of_its_own_draws(three: Bundle, alone: dict[str, Bundle], name: str) -> None:
    ours, theirs = latents(open_session(three, program=name)), latents(open_session(alone[name]))
    assert same(ours, theirs)
    picture = np.asarray(three.generate("a fox", seed=3, program=name))
    assert np.array_equal(picture, np.asarray(alone[name].generate("a fox", seed=3)))
    others = [other for other in PROGRAMS if other != name]
    assert not any(same(ours, latents(open_session(three, program=other))) for other in others)


def test_three_programs_cost_one_hundredth_more_than_one(three: Bundle, alone: dict[str, Bundle]) -> None:
    def size(bundle: Bundle) -> int:
        return sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())

    assert size(three) <= 1.01 * size(alone["balanced"]), (size(three), size(alone["balanced"]))
    golden = {path.stem for path in (three.folder / "golden").iterdir()}
    assert golden == set(three.manifest.graphs)


def test_every_program_is_compared_with_pytorch(three: Bundle, pipeline: Pipeline) -> None:
    found = ed.verify_bundle(three, pipeline=pipeline)
    (backend,) = found.backends.values()
    assert found.ok and set(backend.programs) == set(PROGRAMS) and set(backend.graphs) == set(three.manifest.graphs)
    assert all(one.image.psnr_db >= one.image.floor_db for one in backend.programs.values())
    shown = found.report("balanced")["backends"]["onnxruntime"]
    assert shown["trajectory"] == shown["programs"]["balanced"]["trajectory"]


def test_a_view_of_another_program(three: Bundle) -> None:
    view = three.as_program("fast")
    assert view.manifest.default == view.plan.program == "fast" and view.plan.sampler.steps == 2
    assert three.as_program(None) is three and three.as_program("balanced") is three
    assert same(latents(open_session(view)), latents(open_session(three, program="fast")))
    with pytest.raises(ConfigError, match=r"has no program 'fats'; did you mean 'fast'\? \(allowed: b") as caught:
        three.as_program("fats")
    assert caught.value.code == "program"


# -- one plan -------------------------------------------------------------------------------------

DEEP: dict[str, Any] = {
    "first": {"sampler": {"steps": 2}, "reuse": [{"kind": "deepcache", "interval": 2}]},
    "longer": {"sampler": {"steps": 4}, "reuse": [{"kind": "deepcache", "interval": 2}]},
    "deeper": {"sampler": {"steps": 4}, "reuse": [{"kind": "deepcache", "interval": 2, "branch": 1}]},
    "whole": {"sampler": {"steps": 2}},
}
MANY = Recipe.model_validate(
    {"name": "many", **SHARED, "program": [{"name": name, **table} for name, table in DEEP.items()]}
)


@pytest.fixture(scope="module")
def plan(pipeline: Pipeline) -> Plan:
    return plan_pipeline(pipeline, MANY, load_target("host"), backends=["eager"])


def test_rows_that_are_the_same_stand_once_and_others_are_numbered(plan: Plan) -> None:
    assert list(plan.graphs) == ["full", "shallow", "full_2", "shallow_2", "full_3"]
    calls = {name: one.schedule.calls for name, one in plan.programs().items()}
    assert calls == {
        "first": ("full", "shallow"),
        "longer": ("full", "shallow") * 2,
        "deeper": ("full_2", "shallow_2") * 2,
        "whole": ("full_3", "full_3"),
    }
    assert plan.graphs["full"].writes == plan.graphs["shallow"].reads != plan.graphs["full_2"].writes
    assert plan.graphs["full_3"].writes == ()
    assert all(plan.graphs[name].row == name for name in plan.graphs)
    assert {name: sorted(one.graphs) for name, one in plan.programs().items()} == {
        name: sorted(set(row)) for name, row in calls.items()
    }


def test_a_program_costs_what_it_costs_alone(plan: Plan, pipeline: Pipeline) -> None:
    for name, one in plan.programs().items():
        own = plan_pipeline(pipeline, MANY.programs()[name], load_target("host"), backends=["eager"])
        assert (one.sampler, one.guidance, one.cost) == (own.sampler, own.guidance, own.cost)
        assert [graph.macs for graph in one.graphs.values()] == [graph.macs for graph in own.graphs.values()]
        assert str(one.schedule).upper() == str(own.schedule).upper() or name in ("deeper", "whole")


def test_a_plan_of_programs_is_a_document(plan: Plan) -> None:
    assert Plan.model_validate_json(plan.to_json()) == plan
    assert plan.recipe == MANY.digest() and (plan.program, list(plan.further)) == (
        "first",
        ["longer", "deeper", "whole"],
    )
    lines = str(plan).splitlines()
    assert all(len(line) <= 80 for line in lines) and "program    first, of 4" in str(plan)


@pytest.mark.parametrize("name", DEEP)
def test_numbered_rows_compute_what_their_own_do(plan: Plan, pipeline: Pipeline, name: str) -> None:
    own = plan_pipeline(pipeline, MANY.programs()[name], load_target("host"), backends=["eager"])
    assert same(latents(session_of(pipeline, plan, name)), latents(session_of(pipeline, own, None)))


def session_of(pipeline: Pipeline, plan: Plan, program: str | None) -> Session:
    """PyTorch, with no files between."""
    variants = build_variants(pipeline, plan)
    manifest = make_manifest(pipeline, plan, variants, (), name="t")
    tokenizers = {name: load_tokenizer(pipeline.tokenizer_folder) for name in manifest.tokenizers}
    return Session(manifest, tokenizers, eager_runners(variants), program=program)


def test_a_plan_that_means_two_things_by_one_name_is_refused(plan: Plan, pipeline: Pipeline) -> None:
    plan.check(pipeline.graph)
    deeper = plan.further["deeper"]
    rows = {"full": deeper.schedule.rows["full_2"], "shallow": deeper.schedule.rows["shallow_2"]}
    schedule = deeper.schedule.model_copy(update={"rows": rows, "calls": ("full", "shallow") * 2})
    further = {**plan.further, "deeper": deeper.model_copy(update={"schedule": schedule})}
    with pytest.raises(PlanError, match="means something else by row 'shallow'") as caught:
        plan.model_copy(update={"further": further}).check(pipeline.graph)
    assert caught.value.code == "program"
    with pytest.raises(PlanError, match="two programs are called 'first'"):
        plan.model_copy(update={"further": {"first": deeper}}).check(pipeline.graph)
    spare = plan.model_copy(update={"graphs": {**plan.graphs, "spare": plan.graphs["full"]}})
    with pytest.raises(PlanError, match="no program runs graph 'spare'"):
        spare.check(pipeline.graph)


def test_the_default_is_the_first_unless_the_recipe_says_another(recipe_file: Path) -> None:
    assert list(MANY.programs()) == list(DEEP)
    assert list(load_recipe(recipe_file).programs()) == ["balanced", "quality", "fast"]
    assert list(Recipe(name="one").programs()) == ["main"]


# -- a scale that a caller asks for ---------------------------------------------------------------

CALLS = (("full", 3.0), ("full", 3.0), ("shallow", None), ("shallow", 3.0))


def guided(scale: float | str, held: Held, mode: str, guidance: Scale | None) -> Session:
    """Rows that guide by `scale`, one that holds what they left."""
    plain = make_small_manifest(mode, CALLS)
    program = plain.program()
    rows = [row if row.guidance is None else row.model_copy(update={"guidance": scale}) for row in program.rows]
    rows[2] = rows[2].model_copy(update={"held": held})
    changed = program.model_copy(update={"rows": tuple(rows), "guidance": guidance})
    manifest = plain.model_copy(update={"programs": {plain.default: changed}})
    manifest.check()
    return stand_in_session(manifest)


def stand_in_session(manifest: Manifest) -> Session:
    tokenizers = {name: Letters() for name in manifest.tokenizers}
    return Session(manifest, tokenizers, {name: StandIn(name) for name in manifest.graphs})


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_an_asked_scale_is_the_scale_that_was_built_in(mode: str) -> None:
    """The held weights follow: 0.75 (s - 1)."""
    asked = Scale(scale=3.0, low=1.0, high=9.0)
    symbolic = guided("scale", Held(weights=(0.75, 0.25), times="scale_minus_one"), mode, asked)
    found = {scale: latents(symbolic, "a", guidance=scale) for scale in (None, 3.0, 5.0, 1, 9.0)}
    for scale, ours in found.items():
        number = 3.0 if scale is None else float(scale)
        held = Held(weights=(0.75 * (number - 1.0), 0.25 * (number - 1.0)))
        assert same(ours, latents(guided(number, held, mode, Scale.fixed(number)), "a")), scale
    assert same(found[None], found[3.0]) and not same(found[3.0], found[5.0])


@pytest.mark.parametrize("scale", [0.99, 9.01, float("nan"), float("inf"), -3.0, True, "3"])
def test_a_scale_outside_the_range_is_refused_before_anything_runs(scale: Any) -> None:
    held = Held(weights=(0.5,), times="scale_minus_one")
    session = guided("scale", held, "batched", Scale(scale=3.0, low=1.0, high=9.0))
    session.runners.clear()
    with pytest.raises(ConfigError, match=r"guidance .*: this program takes 1 to 9$") as caught:
        session.steps("a", guidance=scale)
    assert (caught.value.code, caught.value.where) == ("guidance", "--guidance")


def test_a_program_says_why_its_scale_stays() -> None:
    fixed = guided(3.0, Held(weights=(0.5,)), "batched", Scale.fixed(3.0))
    with pytest.raises(ConfigError, match="was fitted for 3 alone; build it with a range to change it"):
        fixed.steps("a", guidance=4.0)
    assert same(latents(fixed, "a", guidance=3.0), latents(fixed, "a")), "its own scale may be asked for"
    with pytest.raises(ConfigError, match="this program has no guidance"):
        stand_in_session(make_small_manifest(calls=(("full", None),))).steps("a", guidance=3.0)


def test_a_recipe_s_range_reaches_the_network(three: Bundle, alone: dict[str, Bundle]) -> None:
    """What is asked for is what a recipe with that scale builds: nothing but the rows' guidance differs."""
    program = three.manifest.program("quality")
    assert program.guidance == Scale(scale=3.0, low=1.5, high=8.0)
    assert {row.guidance for row in program.rows} == {"scale"}
    session = open_session(three, program="quality")
    own = alone["quality"].manifest.program()
    rows = tuple(row.model_copy(update={"guidance": 6.5}) for row in own.rows)
    fixed = own.model_copy(update={"rows": rows, "guidance": Scale.fixed(6.5)})
    manifest = alone["quality"].manifest.model_copy(update={"programs": {"main": fixed}})
    theirs = latents(Session(manifest, alone["quality"].tokenizers(), session.runners))
    assert same(latents(session, guidance=6.5), theirs) and not same(latents(session), theirs)
    with pytest.raises(ConfigError, match="guidance 9.0: this program takes 1.5 to 8"):
        three.generate("a fox", program="quality", guidance=9.0)
    with pytest.raises(ConfigError, match="was fitted for 3 alone"):
        three.generate("a fox", program="balanced", guidance=9.0)


# -- the command line -----------------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_a_dry_run_shows_every_program(three: Bundle, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = three.manifest.source.model
    words = ("build", model, "--recipe", recipe_file, "--backend", "onnxruntime", "--dry-run")
    data = answer(capsys, *words)
    assert (data["program"], sorted(data["further"])) == ("balanced", ["fast", "quality"])
    assert data == json.loads(three.plan.to_json()), "what is shown is what is built"
    assert main([*map(str, words), "--budget", "2.0s"]) == 2
    assert "has [[program]] tables" in capsys.readouterr().err


def test_inspect_lists_them(three: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    data = answer(capsys, "inspect", three.folder)
    assert data["program"] == "balanced" and set(data["programs"]) == set(PROGRAMS)
    assert {name: one["steps"] for name, one in data["programs"].items()} == {"quality": 4, "balanced": 4, "fast": 2}
    assert data["macs_per_image"] == data["programs"]["balanced"]["macs_per_image"]
    assert data["graphs"]["full"]["rows"] == 2 + 2 + 1 and sorted(data["graphs"]["full"]["batches"]) == [1, 2]


def test_run_takes_a_program(
    three: Bundle, alone: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    data = answer(capsys, "run", three.folder, "a fox", out, "--seed", 3, "--program", "fast")
    assert (data["program"], data["steps"]) == ("fast", 2)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(alone["fast"].generate("a fox", seed=3)))
    assert main(["run", str(three.folder), "a fox", str(out), "--program", "fats"]) == 2
    assert "has no program 'fats'; did you mean 'fast'?" in capsys.readouterr().err
    words = ("--program", "quality", "--guidance", 6.5, "--seed", 3)
    answer(capsys, "run", three.folder, "a fox", out, *words)
    asked = three.generate("a fox", seed=3, program="quality", guidance=6.5)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(asked))
    assert main(["run", str(three.folder), "a", str(out), "--program", "fast", "--negative", "b"]) == 2
    assert "(it has no guidance)" in capsys.readouterr().err


def test_profile_and_evaluate_take_a_program(three: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "profile", three.folder, "--runs", 1, "--warmup", 0, "--program", "fast")
    evidence = open_bundle(three.folder).evidence
    assert list(evidence.profile) == ["fast"], "kept beside the program that was measured"
    assert open_bundle(three.folder).manifest.default == "balanced"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nrain\n", encoding="utf-8")
    found = answer(capsys, "evaluate", three.folder, "--prompts", prompts, "--program", "fast")
    assert (found["program_name"], found["reference"]["steps"]) == ("fast", 2)
