"""The stages in their order: load -> record -> score -> plan -> build -> lower -> write.

Scores are kept in the cache folder under a hash of everything they depend on, so that building again for
another target measures nothing twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import cache_folder, dump_json, read_text, write_text_atomic
from edgediff.errors import ConfigError
from edgediff.plan import Plan
from edgediff.recipe import Recipe, StageTable, load_recipe, with_budget
from edgediff.target import Target, load_target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.bundle import Bundle
    from edgediff.distilled import Distilled
    from edgediff.estimate import PlanEstimate
    from edgediff.estimate.operators import OperatorTable
    from edgediff.pipeline import Pipeline
    from edgediff.reuse import Setting
    from edgediff.rollout import Rollout
    from edgediff.schedule import Schedule
    from edgediff.scores import Scores
    from edgediff.steps import StepTable
    from edgediff.units import UnitGraph

Progress = Callable[[str, int, int], None]
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
    pipeline = load_pipeline(model)
    plan = plan_pipeline(pipeline, chosen, phone, backends=backends, device=device, progress=progress)
    return _plan_weights(pipeline, chosen, plan, progress)


def _plan_weights(pipeline: Pipeline, recipe: Recipe, plan: Plan, progress: Progress | None) -> Plan:
    """The plan with its weights in fewer bits, where the recipe asks for that. Raises ConfigError for a backend
    that cannot hold them."""
    from edgediff.plugins import load_plugin
    from edgediff.weight_bits import plan_weights

    if recipe.precision.format or recipe.precision.bits is not None:
        for name in plan.backends:
            if not getattr(load_plugin("backends", name), "CODES_WEIGHTS", False):
                raise ConfigError(
                    f"backend '{name}' holds no coded weights ([precision] format or bits); leave it out with "
                    "--backend, or choose weights = \"int8\"",
                    where=f"recipe '{recipe.name}'", code="format",
                )
    return plan_weights(pipeline, recipe, plan, progress)


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
    from edgediff.lora import fuse_pipeline
    from edgediff.pipeline import load_pipeline
    from edgediff.planner import propose_cuts

    chosen, folder = load_recipe(recipe), Path(out)
    check_methods(chosen)
    if chosen.distill is None or not chosen.prune:
        raise ConfigError(
            f"recipe '{chosen.name}' has no {'[distill]' if chosen.distill is None else '[[prune]]'} table; a "
            "distillation needs both", code="not_distilled",
        )
    pipeline = load_pipeline(model)
    pipeline.need_text("distillation")
    samples = load_samples(pipeline, data)
    state = PartialState(cpu=device == "cpu")
    if state.is_main_process:
        prepare_folder(folder, resume=resume, overwrite=overwrite)
    state.wait_for_everyone()
    cuts = propose_cuts(chosen, _scores(pipeline, chosen, progress))
    fused = None
    if lora is not None:
        pipeline, fused = fuse_pipeline(pipeline, Path(lora), lora_scale, [cut.unit for cut in cuts])
    return distill_network(
        pipeline, cuts, chosen.distill, samples, folder, recipe_name=chosen.name,
        prune=[stage.model_dump(mode="json") for stage in chosen.prune], lora=fused, resume=resume, device=device,
        every=checkpoint_every, progress=progress,
    )


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
        plan = plan_pipeline(pipeline, chosen, device, backends=known, progress=progress)
        found.append(estimate_plan(plan, pipeline.graph, device, wanted, components=parts))
    return found


def plan_pipeline(
    pipeline: Pipeline, recipe: Recipe, target: Target, *, backends: Sequence[str] | None = None,
    device: str = "cpu", progress: Progress | None = None,
) -> Plan:
    """Scores the loaded pipeline as the recipe asks, and plans for the target. Reuse is calibrated on `device`."""
    from edgediff.planner import make_plan
    from edgediff.scores import Scores

    distilled = pipeline.distilled is not None or recipe.distill is not None
    scores = Scores(pipeline.graph) if distilled else _scores(pipeline, recipe, progress)

    chosen = tuple(backends) if backends else None
    components = component_operators(pipeline) if recipe.budget is not None else {}
    with calibrated_on(pipeline, device):
        calibration = Calibration(pipeline, recipe, progress)
        if recipe.budget is None:
            return make_plan(pipeline, scores, recipe, target, backends=chosen, calibrator=calibration)
        from edgediff.search import search_plan

        return search_plan(
            pipeline, scores, recipe, target, calibrator=calibration, measure=calibration, backends=chosen,
            components=components, progress=progress,
        )


@contextmanager
def calibrated_on(pipeline: Pipeline, device: str) -> Iterator[None]:
    """Within it, the pipeline's modules are on `device` (`cpu`, `cuda`, `cuda:1`). Raises ConfigError when there is
    no such device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device '{device}' cannot be used: {reason}", where="--device", code="device") from error
    pipeline.to(device)
    try:
        yield
    finally:
        pipeline.to("cpu")


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


@dataclass
class Calibration:
    """Measures for calibrated reuse methods on the recipe's calibration prompts. What was measured is kept in the
    cache folder under a hash of everything that it depends on."""

    pipeline: Pipeline
    recipe: Recipe
    progress: Progress | None = None

    def measure(self, stage: StageTable, setting: Setting) -> dict[str, Any]:
        """What the method's own `measure` found."""
        from edgediff.plugins import load_plugin
        from edgediff.scores import read_spec

        plugin, spec = load_plugin("reuse", stage.kind), read_spec("reuse", stage)
        own = plugin.basis(spec) if hasattr(plugin, "basis") else spec.model_dump(mode="json")

        def run() -> dict[str, Any]:
            found: dict[str, Any] = plugin.measure(spec, self._rollout(setting), setting, self.progress)
            return found

        return self._kept("measure", stage, setting, own, run)

    def refine(self, stage: StageTable, setting: Setting, schedule: Schedule) -> Schedule:
        """The schedule after the method's own `refine`."""
        from edgediff.plugins import load_plugin
        from edgediff.schedule import Schedule as Made
        from edgediff.scores import read_spec

        plugin, spec = load_plugin("reuse", stage.kind), read_spec("reuse", stage)

        def run() -> dict[str, Any]:
            refined: Schedule = plugin.refine(spec, self._rollout(setting), setting, schedule, self.progress)
            return refined.model_dump(mode="json")

        own = {"spec": spec.model_dump(mode="json"), "schedule": schedule.model_dump(mode="json")}
        return Made.model_validate_json(json.dumps(self._kept("refine", stage, setting, own, run)))

    def loss(self, plan: Plan) -> float:
        """Mean squared error of the plan's final latents against the untouched model's."""
        from edgediff.trace import step_table

        graph = self.pipeline.graph.with_cuts(cut.unit for cut in plan.cuts)
        table = step_table(self.pipeline, plan.sampler.kind, plan.sampler.steps)

        def run() -> dict[str, Any]:
            if self.progress is not None:
                self.progress(f"measuring {plan.sampler.kind} {plan.sampler.steps}, {plan.schedule}"[:60], 0, 1)
            finals = self._rollout_of(graph).run(table, plan.schedule, plan.guidance)
            return {"loss": float(((finals - self._finals) ** 2).mean())}

        own = {"schedule": plan.schedule.model_dump(mode="json"), "guidance": plan.guidance.model_dump(mode="json")}
        return float(self._kept_for("loss", own, graph, table, run)["loss"])

    @cached_property
    def power(self) -> float:
        """Mean square of the untouched model's final latents."""
        return float(self._kept_for("power", None, self.pipeline.graph, self._table, self._measure_power)["power"])

    def _measure_power(self) -> dict[str, Any]:
        return {"power": float((self._finals**2).mean())}

    @cached_property
    def _table(self) -> StepTable:
        from edgediff.trace import step_table

        return step_table(self.pipeline, self.recipe.sampler.kind, self.recipe.sampler.steps)

    @cached_property
    def _finals(self) -> Tensor:
        from edgediff.trace import asked_guidance

        guidance = asked_guidance(self.pipeline, self.recipe.guidance, len(self._table.rows))
        return self._rollout_of(self.pipeline.graph).run(self._table, None, guidance)

    def _rollout(self, setting: Setting) -> Rollout:
        return self._rollout_of(setting.graph)

    def _rollout_of(self, graph: UnitGraph) -> Rollout:
        from edgediff.rollout import Rollout
        from edgediff.trace import calibration_prompts

        prompts, seed = calibration_prompts(self.pipeline, self.recipe.calibration), self.recipe.calibration.seed
        network = self._distilled if self.pipeline.distilled and graph.cuts else None
        phases = self._phases if network is not None else None
        seeds = range(seed, seed + len(prompts))
        return Rollout(self.pipeline, prompts, seeds, graph=graph, network=network, phases=phases)

    @cached_property
    def _distilled(self) -> nn.Module | None:
        """The distilled denoiser: schedules are measured on the network that ships."""
        from edgediff.distilled import NETWORK
        from edgediff.variants import load_network

        found = self.pipeline.distilled
        if found is None:
            return None
        return load_network(found.path / NETWORK, self.pipeline.graph)[0].to(self.pipeline.device)

    @cached_property
    def _phases(self) -> dict[str, nn.Module]:
        """Its networks of later phases of the timesteps."""
        from edgediff.variants import load_phases

        if self.pipeline.distilled is None or self._distilled is None:
            return {}
        found = load_phases(self.pipeline.distilled, self._distilled)
        return {name: network.to(self.pipeline.device) for name, network in found.items()}

    def _kept(
        self, what: str, stage: StageTable, setting: Setting, own: Any, run: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        files = _named_files((stage,))
        every = {"kind": stage.kind, "own": own, "files": files, "guidance": setting.guidance}
        return self._kept_for(what, every, setting.graph, setting.table, run)

    def _kept_for(
        self, what: str, own: Any, graph: UnitGraph, table: StepTable, run: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        from edgediff.trace import calibration_prompts

        distilled = self.pipeline.distilled
        basis = {
            "what": what, "own": own, "reference": self.recipe.model_dump(mode="json", include={"sampler", "guidance"}),
            "weights": distilled.record.fingerprint if distilled else self.pipeline.weights,
            "prompts": calibration_prompts(self.pipeline, self.recipe.calibration),
            "seed": self.recipe.calibration.seed, "cuts": sorted(graph.cuts), "table": table.digest(),
            "tools": {name: importlib.metadata.version(name) for name in ("edgediff", "torch", "diffusers")},
        }
        path = cache_folder() / "reuse" / f"{hashlib.sha256(dump_json(basis).encode()).hexdigest()}.json"
        if path.is_file():
            kept: dict[str, Any] = json.loads(read_text(path))
            return kept
        found = run()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps(found))
        return found


def check_methods(recipe: Recipe) -> None:
    """Raises ConfigError for a method of the recipe that does not exist or is configured wrongly."""
    from edgediff.scores import read_spec

    for folder, stages in (("prune", recipe.prune), ("reuse", recipe.reuse)):
        for stage in stages:
            read_spec(folder, stage)


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


def _scores(pipeline: Pipeline, recipe: Recipe, progress: Progress | None) -> Scores:
    from edgediff.scores import Scores, score_trace
    from edgediff.trace import calibration_prompts, record_trace

    if not recipe.prune:
        return Scores(pipeline.graph)
    basis = {
        "weights": pipeline.weights, "prompts": calibration_prompts(pipeline, recipe.calibration),
        "recipe": recipe.model_dump(mode="json", include={"sampler", "guidance", "calibration", "prune"}),
        "files": _named_files(recipe.prune),
        "tools": {name: importlib.metadata.version(name) for name in ("edgediff", "torch", "diffusers")},
    }
    path = cache_folder() / "scores" / f"{hashlib.sha256(dump_json(basis).encode()).hexdigest()}.json"
    if path.is_file():
        return Scores.from_json(pipeline.graph, read_text(path), where=str(path))
    trace = record_trace(pipeline, recipe, progress)
    scores = score_trace(pipeline, trace, recipe, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, scores.to_json())
    return scores


def _named_files(stages: Sequence[StageTable]) -> dict[str, str]:
    """Hashes of the files that a recipe's tables name, such as a table of costs."""
    words = {value for stage in stages for value in stage.options().values() if isinstance(value, str)}
    files = sorted(word for word in words if Path(word).is_file())
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def _write(pipeline: Pipeline, plan: Plan, target: Target, writer: Any, told: _Stages) -> Bundle:
    from edgediff.plugins import load_plugin
    from edgediff.program import make_manifest, write_parts
    from edgediff.variants import build_variants
    from edgediff.verify import eager_recordings, record_calls, write_golden

    told("cutting and splitting the network")
    variants = build_variants(pipeline, plan)
    unlowered = make_manifest(pipeline, plan, variants, (), name=writer.out.stem)
    variants = replace(variants, calibration=cache(partial(record_calls, pipeline, variants, unlowered)))
    lowered = []
    for name in plan.backends:
        told(f"lowering to {name}")
        lowered.append(load_plugin("backends", name).lower(variants, target, writer.folder))
    told("recording golden inputs and outputs")
    write_parts(pipeline, plan, writer.folder)
    manifest = make_manifest(pipeline, plan, variants, lowered, name=writer.out.stem)
    write_golden(writer.folder / "golden", eager_recordings(pipeline, variants, manifest, whole=False))
    told("writing the bundle")
    bundle: Bundle = writer.commit(manifest)
    return bundle
