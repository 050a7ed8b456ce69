"""What a plan needs measured: scores for its cuts, and what calibrated reuse methods find on the calibration prompts.

Whatever is measured is kept in the cache folder under a hash of everything that it depends on, so that building again
for another target measures nothing twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import cache_folder, dump_json, read_text, write_text_atomic
from edgediff.documents.plan import Plan
from edgediff.documents.recipe import Recipe, StageTable
from edgediff.errors import ConfigError
from edgediff.plugins import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.graph.schedule import Schedule
    from edgediff.graph.units import UnitGraph
    from edgediff.pipeline import Pipeline
    from edgediff.reuse import ReuseMethod, Setting
    from edgediff.runtime.steps import StepTable
    from edgediff.sampling.rollout import Rollout
    from edgediff.scoring.scores import Scores


def measured_scores(pipeline: Pipeline, recipe: Recipe, progress: Progress | None) -> Scores:
    from edgediff.sampling.trace import calibration_prompts, record_trace
    from edgediff.scoring.scores import Scores, score_trace

    if not recipe.prune:
        return Scores(pipeline.graph)
    basis = {
        "weights": pipeline.weights,
        "prompts": calibration_prompts(pipeline, recipe.calibration),
        "recipe": _measured_by(recipe, "sampler", "guidance", "calibration", "prune"),
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
        from edgediff.scoring.scores import read_spec

        method: ReuseMethod = load_plugin("reuse", stage.kind)
        spec, measure = read_spec("reuse", stage), method.measure
        if measure is None:
            return {}

        def run() -> dict[str, Any]:
            return measure(spec, self._rollout(setting), setting, self.progress)

        return self._kept("measure", stage, setting, method.basis(spec), run)

    def refine(self, stage: StageTable, setting: Setting, schedule: Schedule) -> Schedule:
        """The schedule after the method's own `refine`."""
        from edgediff.graph.schedule import Schedule as Made
        from edgediff.plugins import load_plugin
        from edgediff.scoring.scores import read_spec

        method: ReuseMethod = load_plugin("reuse", stage.kind)
        spec, refine = read_spec("reuse", stage), method.refine
        if refine is None:
            return schedule

        def run() -> dict[str, Any]:
            return refine(spec, self._rollout(setting), setting, schedule, self.progress).model_dump(mode="json")

        own = {"spec": spec.model_dump(mode="json"), "schedule": schedule.model_dump(mode="json")}
        return Made.model_validate_json(json.dumps(self._kept("refine", stage, setting, own, run)))

    def loss(self, plan: Plan) -> float:
        """Mean squared error of the plan's final latents against the untouched model's."""
        from edgediff.sampling.trace import step_table

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
        from edgediff.sampling.trace import step_table

        return step_table(self.pipeline, self.recipe.sampler.kind, self.recipe.sampler.steps)

    @cached_property
    def _finals(self) -> Tensor:
        from edgediff.sampling.trace import asked_guidance

        guidance = asked_guidance(self.pipeline, self.recipe.guidance, len(self._table.rows))
        return self._rollout_of(self.pipeline.graph).run(self._table, None, guidance)

    def _rollout(self, setting: Setting) -> Rollout:
        return self._rollout_of(setting.graph)

    def _rollout_of(self, graph: UnitGraph) -> Rollout:
        from edgediff.sampling.rollout import Rollout
        from edgediff.sampling.trace import calibration_prompts

        prompts, seed = calibration_prompts(self.pipeline, self.recipe.calibration), self.recipe.calibration.seed
        network = self._distilled if self.pipeline.distilled and graph.cuts else None
        phases = self._phases if network is not None else None
        seeds = range(seed, seed + len(prompts))
        return Rollout(self.pipeline, prompts, seeds, graph=graph, network=network, phases=phases)

    @cached_property
    def _distilled(self) -> nn.Module | None:
        """The distilled denoiser: schedules are measured on the network that ships."""
        from edgediff.pipeline.distilled import NETWORK
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
        from edgediff.sampling.trace import calibration_prompts

        distilled = self.pipeline.distilled
        basis = {
            "what": what,
            "own": own,
            "reference": _measured_by(self.recipe, "sampler", "guidance"),
            "weights": distilled.record.fingerprint if distilled else self.pipeline.weights,
            "prompts": calibration_prompts(self.pipeline, self.recipe.calibration),
            "seed": self.recipe.calibration.seed,
            "cuts": sorted(graph.cuts),
            "table": table.digest(),
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


def _measured_by(recipe: Recipe, *tables: str) -> dict[str, Any]:
    """Tables of a recipe as what a measurement depends on: nothing does on what a caller may ask for later."""
    return recipe.model_dump(mode="json", include=set(tables), exclude={"guidance": {"range"}})


def _named_files(stages: Sequence[StageTable]) -> dict[str, str]:
    """Hashes of the files that a recipe's tables name, such as a table of costs."""
    words = {value for stage in stages for value in stage.options().values() if isinstance(value, str)}
    files = sorted(word for word in words if Path(word).is_file())
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
