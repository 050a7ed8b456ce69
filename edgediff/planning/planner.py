"""Proposals and target into one Plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from edgediff.documents.plan import (
    BackendPlan,
    Cost,
    Cut,
    EqualCompute,
    GraphPlan,
    GuidancePlan,
    ModelRef,
    Plan,
    SamplerPlan,
)
from edgediff.documents.recipe import Recipe, StageTable
from edgediff.documents.target import Target
from edgediff.errors import ConfigError, MethodError, PlanError, did_you_mean
from edgediff.graph.schedule import HOLD, Schedule, full_schedule, graph_for, merge_rows, split_phases, wire_schedule
from edgediff.pipeline.distilled import Phases
from edgediff.plugins import load_plugin, plugin_names
from edgediff.reuse import ReuseMethod, Setting
from edgediff.runtime.manifest import Mode
from edgediff.sampling.rows import plan_guidance
from edgediff.sampling.trace import asked_guidance, step_table
from edgediff.scoring.scores import Scores, read_spec

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


class Calibrator(Protocol):
    """Runs the measurements of a calibrated reuse method (`flow` keeps them in the cache)."""

    def measure(self, stage: StageTable, setting: Setting) -> dict[str, Any]: ...

    def refine(self, stage: StageTable, setting: Setting, schedule: Schedule) -> Schedule: ...


def make_plan(
    pipeline: Pipeline,
    scores: Scores,
    recipe: Recipe,
    target: Target,
    *,
    backends: tuple[str, ...] | None = None,
    calibrator: Calibrator | None = None,
) -> Plan:
    """Asks every method of the recipe for its proposal and writes down the decisions.

    `calibrator` is needed by calibrated reuse methods. Raises whatever the methods raise.
    """
    cuts = _distilled_cuts(pipeline, recipe) if pipeline.distilled or recipe.distill else propose_cuts(recipe, scores)
    graph = scores.graph.with_cuts(cut.unit for cut in cuts)
    table = step_table(pipeline, recipe.sampler.kind, recipe.sampler.steps)
    calls = len(table.rows)
    asked = asked_guidance(pipeline, recipe.guidance, calls)
    phases = pipeline.distilled.record.phases if pipeline.distilled else None
    schedule = _propose_schedule(recipe, Setting(graph, table, asked, recipe.max_graphs), calibrator, phases)
    wirings = wire_schedule(schedule, graph)
    graphs = {
        name: GraphPlan(
            row=name,
            reads=w.reads,
            writes=w.writes,
            macs=graph_for(w.network, graph).macs(w.live),
            parameters=graph_for(w.network, graph).parameters(w.live),
        )
        for name, w in wirings.items()
    }
    guidance = plan_guidance(asked, schedule, _guidance_mode(target, backends))
    guidance = guidance.model_copy(update={"range": recipe.guidance.range})
    plan = Plan(
        model=ModelRef(
            id=pipeline.id,
            revision=pipeline.revision,
            kind=pipeline.kind,
            weights=pipeline.weights,
            denoiser=type(pipeline.denoiser).__name__,
            licence=pipeline.licence,
            distilled=pipeline.distilled.record.fingerprint if pipeline.distilled else None,
        ),
        recipe_name=recipe.name,
        recipe=recipe.digest(),
        target_name=target.name,
        target=target.digest(),
        sampler=SamplerPlan(kind=recipe.sampler.kind, steps=recipe.sampler.steps, calls=calls),
        guidance=guidance,
        cuts=cuts,
        schedule=schedule,
        graphs=graphs,
        backends=backend_plans(recipe, target, backends),
        parity=recipe.parity,
        cost=_predict_cost(recipe, schedule, graphs, guidance, scores.graph.macs()),
    )
    plan.check(scores.graph)
    return plan


def _passes(scales: tuple[float | None, ...]) -> list[int]:
    return [1 if scale is None else 2 for scale in scales]


def _distilled_cuts(pipeline: Pipeline, recipe: Recipe) -> tuple[Cut, ...]:
    """A distilled network brings its cuts. Raises PlanError when the recipe asks for others, or for a distillation
    that was not done."""
    if pipeline.distilled is None:
        raise PlanError(
            f"recipe '{recipe.name}' has a [distill] table: first edgediff distill {pipeline.id} --recipe "
            f"{recipe.name} --out FOLDER, then build FOLDER",
            code="not_distilled",
        )
    record = pipeline.distilled.record
    if recipe.prune and [stage.model_dump(mode="json") for stage in recipe.prune] != list(record.prune):
        raise PlanError(
            f"recipe '{recipe.name}' prunes otherwise than '{record.recipe_name}', by which this network was cut "
            "and distilled; build it with that recipe or with one that has no [[prune]]",
            where=str(pipeline.distilled.path),
            code="other_cuts",
        )
    return record.cuts


def propose_cuts(recipe: Recipe, scores: Scores) -> tuple[Cut, ...]:
    """The cuts of all `[[prune]]` tables, each proposed on what those before it left."""
    cuts: dict[str, Cut] = {}
    graph = scores.graph
    for stage, found in zip(recipe.prune, scores.by_stage, strict=True):
        plugin = load_plugin("prune", stage.kind)
        for cut in plugin.propose(read_spec("prune", stage), found, graph):
            cuts[cut.unit] = cut
        graph = scores.graph.with_cuts(cuts)
    return tuple(cuts.values())


def _propose_schedule(
    recipe: Recipe, setting: Setting, calibrator: Calibrator | None, phases: Phases | None
) -> Schedule:
    """By the recipe's first `[[reuse]]`; rows of a network with phases are split by them."""
    schedule = full_schedule(setting.calls)
    for stage in recipe.reuse[:1]:
        method: ReuseMethod = load_plugin("reuse", stage.kind)
        if method.measure is not None and recipe.guidance.range is not None:
            raise MethodError(
                f"reuse by '{stage.kind}' is fitted at one guidance scale; leave [guidance] range out, or use a method "
                "that is not calibrated",
                code="guidance",
            )
        if method.measure is not None:
            if phases is not None:
                raise MethodError(
                    f"reuse by '{stage.kind}' is calibrated on one network, and this one has {phases.count} phases; "
                    "use a method without calibration, or distil with phases = 1",
                    code="phases",
                )
            if calibrator is None:
                message = f"reuse by '{stage.kind}' is calibrated; give make_plan a calibrator"
                raise MethodError(message, code="no_calibration")
            setting = replace(setting, measured=calibrator.measure(stage, setting))
        schedule = method.propose(read_spec("reuse", stage), setting)
        if calibrator is not None and method.refine is not None:
            schedule = calibrator.refine(stage, setting, schedule)
    if phases is not None:
        schedule = split_phases(schedule, [phases.at(row.timestep) for row in setting.table.rows])
    return merge_rows(schedule, setting.graph, setting.max_graphs)


def backend_plans(recipe: Recipe, target: Target, backends: tuple[str, ...] | None) -> dict[str, BackendPlan]:
    """How each backend of the plan (`backends`, or the target's) is used. Raises ConfigError for an unknown one."""
    plans: dict[str, BackendPlan] = {}
    for name in _chosen(target, backends):
        table = target.backend(name)
        wanted = table.precision if recipe.precision == "auto" else recipe.precision
        plans[name] = BackendPlan(precision=wanted, format=table.format, threads=table.threads)
    return plans


def _guidance_mode(target: Target, backends: tuple[str, ...] | None) -> Mode:
    """One program serves all backends of a bundle, so one sequential backend makes all sequential."""
    modes = {target.backend(name).guidance for name in _chosen(target, backends)}
    return "sequential" if "sequential" in modes else "batched"


def _chosen(target: Target, backends: tuple[str, ...] | None) -> tuple[str, ...]:
    known = plugin_names("backends")
    for name in backends or target.backends:
        if name not in known and not backends:
            message = f"{target.name} runs '{name}', which this edgediff does not have yet; name one that it has with"
            raise ConfigError(f"{message} --backend (it has {', '.join(known)})", code="unknown_backends")
        if name not in known:
            raise ConfigError(f"unknown backend '{name}'{did_you_mean(name, known)}", code="unknown_backends")
    return tuple(backends or target.backends)


def _predict_cost(
    recipe: Recipe,
    schedule: Schedule,
    graphs: dict[str, GraphPlan],
    guidance: GuidancePlan,
    reference: int,
) -> Cost:
    """MACs of the denoiser for one image, both prompts counted; and the same sampler with so few steps
    that the untouched network costs at least as much, which makes the baseline the stronger one."""
    macs = sum(
        graphs[name].macs * n for name, n in zip(schedule.calls, _passes(guidance.calls), strict=True) if name != HOLD
    )
    whole = sum(reference * n for n in _passes(guidance.reference))
    steps = recipe.sampler.steps
    equal = min(steps, max(1, -(-macs * steps // whole)))
    return Cost(
        macs=macs,
        reference_macs=whole,
        equal_compute=EqualCompute(sampler=recipe.sampler.kind, steps=equal, macs=whole * equal // steps),
    )
