"""The stages in their order: load -> record -> score -> plan -> build -> lower -> write.

Scores are kept in the cache folder under a hash of everything they depend on, so that building again for
another target measures nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.documents.plan import Plan
from edgediff.documents.recipe import DistillTable, Recipe, load_recipe, with_budget
from edgediff.documents.target import Target, load_target
from edgediff.errors import ConfigError
from edgediff.plugins import Progress

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.estimate import PlanEstimate
    from edgediff.estimate.operators import OperatorTable
    from edgediff.pipeline import Pipeline
    from edgediff.pipeline.distilled import Distilled
    from edgediff.scoring.scores import Scores

STAGES = 6


def build(
    model: str | Path | Pipeline,
    *,
    recipe: str | Path | Recipe = "balanced",
    target: str | Path | Target = "host",
    out: str | Path,
    backends: Sequence[str] | None = None,
    budget: str | float | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """One recipe and one target in, one bundle out, at the folder `out`.

    Recipe, target and `out` are checked before the model is loaded. Nothing is left at `out` unless the
    whole bundle was written. `budget` is what an image may take on the target (`"2.0s"`, `"800ms"`, or seconds): then
    the planner chooses. `device` is where reuse is calibrated. Raises an EdgeDiffError of the stage that fails.
    """
    from edgediff.bundle import BundleWriter
    from edgediff.pipeline import load_pipeline

    chosen, phone = with_budget(load_recipe(recipe), budget), load_target(target)
    check_methods(chosen)
    check_precisions(chosen, phone, backends)
    with BundleWriter(Path(out), overwrite=overwrite) as writer:
        told = _Stages(progress)
        told("loading the model")
        pipeline = load_pipeline(model)
        plan = plan_pipeline(pipeline, chosen, phone, backends=backends, device=device, progress=told.inner)
        plan = _plan_weights(pipeline, chosen, plan, told.inner)
        return _write(pipeline, plan, phone, writer, told)


def plan_build(
    model: str | Path | Pipeline,
    *,
    recipe: str | Path | Recipe = "balanced",
    target: str | Path | Target = "host",
    backends: Sequence[str] | None = None,
    budget: str | float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Plan:
    """What `build` would do (`--dry-run`): the plan, nothing written but the cached scores."""
    from edgediff.pipeline import load_pipeline

    chosen, phone = with_budget(load_recipe(recipe), budget), load_target(target)
    check_methods(chosen)
    check_precisions(chosen, phone, backends)
    pipeline = load_pipeline(model)
    plan = plan_pipeline(pipeline, chosen, phone, backends=backends, device=device, progress=progress)
    return _plan_weights(pipeline, chosen, plan, progress)


def _plan_weights(pipeline: Pipeline, recipe: Recipe, plan: Plan, progress: Progress | None) -> Plan:
    """The plan with its weights in fewer bits, where the recipe asks for that. Raises ConfigError for a backend
    that cannot hold them."""
    from edgediff.backends import Backend
    from edgediff.planning.weight_bits import plan_weights
    from edgediff.plugins import load_plugin

    if recipe.weights.format or recipe.weights.bits is not None:
        for name in plan.backends:
            backend: Backend = load_plugin("backends", name)
            if not backend.CODES_WEIGHTS:
                raise ConfigError(
                    f"backend '{name}' holds no coded weights ([weights] format or bits); leave it out with "
                    "--backend, or leave [weights] out and choose a precision that it serves",
                    where=f"recipe '{recipe.name}'",
                    code="format",
                )
    return plan_weights(pipeline, next(iter(recipe.programs().values())), plan, progress)


def distill_model(
    model: str | Path | Pipeline,
    *,
    recipe: str | Path | Recipe,
    out: str | Path,
    data: str | Path | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    checkpoint_every: int = 200,
    progress: Progress | None = None,
) -> Distilled:
    """Cuts the denoiser as the recipe's `[[prune]]` tables say, distils it as its `[distill]` table says, and
    writes the folder `out`, which is a MODEL for `build`.

    `data`: pictures with captions (None: the embedded model's own). `lora` is fused before the cut. Under
    `accelerate launch` every process calls this. Raises an EdgeDiffError of the stage that fails; what was trained
    until then stays at `out` for `resume`.
    """
    from accelerate import PartialState

    from edgediff.distill import distill_network, load_samples, prepare_folder
    from edgediff.pipeline import load_pipeline
    from edgediff.pipeline.lora import fuse_pipeline
    from edgediff.planning.calibration import measured_scores
    from edgediff.planning.planner import propose_cuts
    from edgediff.variants import kept_modules

    chosen, folder = load_recipe(recipe), Path(out)
    check_methods(chosen)
    table = _distill_table(chosen)
    pipeline = load_pipeline(model)
    pipeline.need_text("distillation")
    samples = load_samples(pipeline, data)
    state = PartialState(cpu=device == "cpu")
    if state.is_main_process:
        prepare_folder(folder, resume=resume, overwrite=overwrite)
    state.wait_for_everyone()
    cuts = propose_cuts(chosen, measured_scores(pipeline, next(iter(chosen.programs().values())), progress))
    fused = None
    if lora is not None:
        kept = kept_modules(pipeline.denoiser, pipeline.graph, [cut.unit for cut in cuts])
        pipeline, fused = fuse_pipeline(pipeline, Path(lora), lora_scale, kept)
    return distill_network(
        pipeline,
        cuts,
        table,
        samples,
        folder,
        recipe_name=chosen.name,
        prune=[stage.model_dump(mode="json") for stage in chosen.prune],
        lora=fused,
        resume=resume,
        device=device,
        every=checkpoint_every,
        progress=progress,
    )


def _distill_table(recipe: Recipe) -> DistillTable:
    if recipe.distill is None or not recipe.prune:
        raise ConfigError(
            f"recipe '{recipe.name}' has no {'[distill]' if recipe.distill is None else '[[prune]]'} table; a "
            "distillation needs both",
            code="not_distilled",
        )
    return recipe.distill


def estimate_model(
    model: str | Path | Pipeline,
    *,
    recipe: str | Path | Recipe = "balanced",
    targets: Sequence[str | Path | Target] = ("host",),
    backend: str | None = None,
    progress: Progress | None = None,
) -> list[PlanEstimate]:
    """How long an image of the plan that `build` would make takes on each target, and whether it fits; on none of
    them is anything run. Text encoder and decoder are counted; their operators are recorded on shapes alone."""
    from edgediff.estimate import estimate_plan
    from edgediff.pipeline import load_pipeline
    from edgediff.plugins import plugin_names

    chosen, devices = load_recipe(recipe), [load_target(target) for target in targets]
    check_methods(chosen)
    pipeline = load_pipeline(model)
    parts = component_operators(pipeline)
    found = []
    for device in devices:
        wanted = backend or device.backends[0]
        known = (wanted,) if wanted in plugin_names("backends") else ("onnxruntime",)
        check_precisions(chosen, device, known)
        plan = plan_pipeline(pipeline, chosen, device, backends=known, progress=progress)
        found.append(estimate_plan(plan, pipeline.graph, device, wanted, components=parts))
    return found


def plan_pipeline(
    pipeline: Pipeline,
    recipe: Recipe,
    target: Target,
    *,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Plan:
    """Scores the loaded pipeline as the recipe asks, and plans for the target. Reuse is calibrated on `device`."""
    from edgediff.planning.calibration import calibrated_on, measured_scores
    from edgediff.planning.programs import merge_plans
    from edgediff.scoring.scores import Scores

    distilled = pipeline.distilled is not None or recipe.distill is not None
    programs = recipe.programs()
    reference = next(iter(programs.values()))
    scores = Scores(pipeline.graph) if distilled else measured_scores(pipeline, reference, progress)
    plans: dict[str, Plan] = {}
    with calibrated_on(pipeline, device):
        for name, one in programs.items():
            told = _named(progress, name) if len(programs) > 1 else progress
            plans[name] = _plan_program(pipeline, scores, one, target, tuple(backends) if backends else None, told)
    if not recipe.program:
        return plans["main"]
    plan = merge_plans(plans, recipe)
    plan.check(pipeline.graph)
    return plan


def _plan_program(
    pipeline: Pipeline,
    scores: Scores,
    recipe: Recipe,
    target: Target,
    backends: tuple[str, ...] | None,
    progress: Progress | None,
) -> Plan:
    """The plan of a recipe without `[[program]]` tables."""
    from edgediff.planning.calibration import Calibration
    from edgediff.planning.planner import make_plan
    from edgediff.planning.search import search_plan

    calibration = Calibration(pipeline, recipe, progress)
    if recipe.budget is None:
        return make_plan(pipeline, scores, recipe, target, backends=backends, calibrator=calibration)
    return search_plan(
        pipeline,
        scores,
        recipe,
        target,
        calibrator=calibration,
        measure=calibration,
        backends=backends,
        components=component_operators(pipeline),
        progress=progress,
    )


def _named(progress: Progress | None, program: str) -> Progress | None:
    """Says which program is being planned."""
    if progress is None:
        return None
    return lambda text, done, total: progress(f"{program}: {text}", done, total)


def component_operators(pipeline: Pipeline) -> dict[str, OperatorTable]:
    """The operators of what runs once per image, by component, for the estimator."""
    import torch

    from edgediff.estimate.record import record_operators
    from edgediff.variants import DecoderGraph, TextEncoderGraph

    found: dict[str, OperatorTable] = {}
    if pipeline.text_encoder is not None:
        ids = torch.zeros(1, pipeline.tokens, dtype=torch.int64)
        found["text_encoder"] = record_operators(TextEncoderGraph(pipeline.text_encoder), [ids], pipeline.text_encoder)
    if pipeline.vae is not None:
        latent = torch.zeros(1, *pipeline.latent)
        found["vae_decoder"] = record_operators(DecoderGraph(pipeline.vae), [latent], pipeline.vae)
    return found


def check_methods(recipe: Recipe) -> None:
    """Raises ConfigError for a method of the recipe that does not exist or is configured wrongly."""
    from edgediff.scoring.scores import read_spec

    reuse = [stage for one in recipe.programs().values() for stage in one.reuse]
    for folder, stages in (("prune", recipe.prune), ("reuse", reuse)):
        for stage in stages:
            read_spec(folder, stage)


def check_precisions(recipe: Recipe, target: Target, backends: Sequence[str] | None = None) -> None:
    """Raises BackendError for a precision that a backend of the plan does not serve, naming who asks for it."""
    from edgediff.backends import check_precision
    from edgediff.planning.planner import backend_plans
    from edgediff.plugins import load_plugin

    for name, plan in backend_plans(recipe, target, tuple(backends) if backends else None).items():
        served = load_plugin("backends", name).precisions(target.backend(name))
        asks = f"target '{target.name}', [{name}] precision"
        if recipe.precision != "auto":
            asks = f"recipe '{recipe.name}', precision"
        check_precision(name, plan.precision, served, where=asks)


@dataclass
class _Stages:
    """Counts the stages of a build for whoever watches."""

    watch: Progress | None
    done: int = field(default=0)
    text: str = field(default="")

    def __call__(self, text: str) -> None:
        self.text = text
        if self.watch is not None:
            self.watch(text, self.done, STAGES)
        self.done += 1

    def inner(self, text: str, done: int, total: int) -> None:
        if self.watch is not None:
            self.watch(f"{text} ({done}/{total})", self.done, STAGES)


def _write(pipeline: Pipeline, plan: Plan, target: Target, writer: Any, told: _Stages) -> Bundle:
    from edgediff.backends import Backend
    from edgediff.bundle.assemble import make_manifest, write_parts
    from edgediff.plugins import load_plugin
    from edgediff.variants import build_variants
    from edgediff.verify import golden_recordings, record_calls, write_golden

    told("cutting and splitting the network")
    variants = build_variants(pipeline, plan)
    unlowered = make_manifest(pipeline, plan, variants, (), name=writer.out.stem)
    variants = replace(variants, calibration=cache(partial(record_calls, pipeline, variants, unlowered)))
    lowered = []
    for name in plan.backends:
        told(f"lowering to {name}")
        backend: Backend = load_plugin("backends", name)
        lowered.append(backend.lower(variants, target, writer.folder))
    told("recording golden inputs and outputs")
    write_parts(pipeline, plan, writer.folder)
    manifest = make_manifest(pipeline, plan, variants, lowered, name=writer.out.stem)
    write_golden(writer.folder / "golden", golden_recordings(pipeline, variants, manifest))
    told("writing the bundle")
    bundle: Bundle = writer.commit(manifest)
    return bundle
