"""Proposals and target into one Plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgediff.errors import ConfigError, PlanError, did_you_mean
from edgediff.plan import (
    BackendPlan,
    Cost,
    Cut,
    EqualCompute,
    GraphPlan,
    GuidancePlan,
    Mode,
    ModelRef,
    Plan,
    SamplerPlan,
)
from edgediff.plugins import load_plugin, plugin_names
from edgediff.recipe import Recipe
from edgediff.schedule import HOLD, Schedule, full_schedule, wire_schedule
from edgediff.scores import Scores, read_spec
from edgediff.target import Target
from edgediff.trace import guidance_calls

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


def make_plan(
    pipeline: Pipeline, scores: Scores, recipe: Recipe, target: Target, *, calls: int,
    backends: tuple[str, ...] | None = None,
) -> Plan:
    """Asks every method of the recipe for its proposal and writes down the decisions.

    `calls` is how many network calls the sampler makes. Raises PlanError when the schedule needs more
    graphs than the recipe allows, and whatever the methods raise.
    """
    cuts = _propose_cuts(recipe, scores)
    graph = scores.graph.with_cuts(cut.unit for cut in cuts)
    schedule = _propose_schedule(recipe, scores, calls)
    wirings = wire_schedule(schedule, graph)
    if len(wirings) > recipe.max_graphs:
        raise PlanError(
            f"the schedule needs {len(wirings)} graphs, and max_graphs = {recipe.max_graphs}; "
            "raise max_graphs or choose a coarser schedule",
            code="max_graphs",
        )
    graphs = {
        name: GraphPlan(
            row=name, reads=w.reads, writes=w.writes, macs=graph.macs(w.live), parameters=graph.parameters(w.live)
        )
        for name, w in wirings.items()
    }
    guidance = plan_guidance(recipe, schedule, calls, _guidance_mode(target, backends))
    plan = Plan(
        model=ModelRef(
            id=pipeline.id, revision=pipeline.revision, kind=pipeline.kind, weights=pipeline.weights,
            denoiser=type(pipeline.denoiser).__name__, licence=pipeline.licence,
        ),
        recipe_name=recipe.name, recipe=recipe.digest(), target_name=target.name, target=target.digest(),
        sampler=SamplerPlan(kind=recipe.sampler.kind, steps=recipe.sampler.steps, calls=calls),
        guidance=guidance,
        cuts=cuts, schedule=schedule, graphs=graphs,
        backends=_backend_plans(recipe, target, backends), parity=recipe.parity,
        cost=_predict_cost(recipe, schedule, graphs, guidance, scores.graph.macs()),
    )
    plan.check(scores.graph)
    return plan


def plan_guidance(recipe: Recipe, schedule: Schedule, calls: int, mode: Mode) -> GuidancePlan:
    """The recipe's guidance, less what the schedule's method takes out or holds.

    Raises PlanError where guidance is held before any guided call.
    """
    asked = guidance_calls(recipe.guidance.scale, recipe.guidance.interval, calls)
    alone = {*schedule.unguided, *schedule.held_guidance}
    guidance = tuple(None if index in alone else scale for index, scale in enumerate(asked))
    held = tuple(scale if index in schedule.held_guidance else None for index, scale in enumerate(asked))
    ran = [i for i, name in enumerate(schedule.calls) if name != HOLD and guidance[i] is not None]
    for index, scale in enumerate(held):
        if scale is not None and not any(earlier < index for earlier in ran):
            raise PlanError(f"call {index} holds guidance, but no earlier call is guided", code="schedule")
    has_held = any(scale is not None for scale in held)
    return GuidancePlan(
        mode=mode, calls=guidance, held=held if has_held else (), asked=asked if guidance != asked else ()
    )


def _passes(scales: tuple[float | None, ...]) -> list[int]:
    return [1 if scale is None else 2 for scale in scales]


def _propose_cuts(recipe: Recipe, scores: Scores) -> tuple[Cut, ...]:
    cuts: dict[str, Cut] = {}
    graph = scores.graph
    for stage, found in zip(recipe.prune, scores.by_stage, strict=True):
        plugin = load_plugin("prune", stage.kind)
        for cut in plugin.propose(read_spec("prune", stage), found, graph):
            cuts[cut.unit] = cut
        graph = scores.graph.with_cuts(cuts)
    return tuple(cuts.values())


def _propose_schedule(recipe: Recipe, scores: Scores, calls: int) -> Schedule:
    for stage in recipe.reuse:
        plugin = load_plugin("reuse", stage.kind)
        schedule: Schedule = plugin.propose(read_spec("reuse", stage), scores.graph, calls)
        return schedule
    return full_schedule(calls)


def _backend_plans(
    recipe: Recipe, target: Target, backends: tuple[str, ...] | None
) -> dict[str, BackendPlan]:
    plans: dict[str, BackendPlan] = {}
    for name in _chosen(target, backends):
        table = target.backend(name)
        wanted = table.weights if recipe.precision.weights == "auto" else recipe.precision.weights
        plans[name] = BackendPlan(
            precision="fp32" if wanted == "auto" else wanted, format=table.format, threads=table.threads
        )
    return plans


def _guidance_mode(target: Target, backends: tuple[str, ...] | None) -> Mode:
    """One program serves all backends of a bundle, so one sequential backend makes all sequential."""
    modes = {target.backend(name).guidance for name in _chosen(target, backends)}
    return "sequential" if "sequential" in modes else "batched"


def _chosen(target: Target, backends: tuple[str, ...] | None) -> tuple[str, ...]:
    known = plugin_names("backends")
    for name in backends or target.backends:
        if name not in known:
            raise ConfigError(f"unknown backend '{name}'{did_you_mean(name, known)}", code="unknown_backends")
    return tuple(backends or target.backends)


def _predict_cost(
    recipe: Recipe, schedule: Schedule, graphs: dict[str, GraphPlan],
    guidance: GuidancePlan, reference: int,
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
        macs=macs, reference_macs=whole,
        equal_compute=EqualCompute(sampler=recipe.sampler.kind, steps=equal, macs=whole * equal // steps),
    )
