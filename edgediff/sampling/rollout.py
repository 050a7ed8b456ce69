"""Pictures of many prompts at once by any schedule, in eager PyTorch: what methods measure on.

The rows are those that a phone executes, so a schedule that is measured here is the one that ships. Runs on the
device that the pipeline's modules are on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgediff.documents.plan import GuidancePlan
from edgediff.errors import PlanError
from edgediff.graph.schedule import (
    OWN,
    UNTOUCHED,
    Schedule,
    Wiring,
    carry_name,
    full_schedule,
    graph_for,
    wire_schedule,
)
from edgediff.graph.units import UnitGraph
from edgediff.networks import evaluate
from edgediff.networks._operators import copy_without_operators
from edgediff.runtime.manifest import ProgramRow
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import StepRow, StepTable, run_steps
from edgediff.sampling.rows import plan_guidance, program_rows

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

Watch = Callable[["Call"], None]


@dataclass(frozen=True)
class Call:
    """One computed network call of `n` pictures: x_i unscaled, the outputs for prompt and empty prompt (None where
    the prompt ran alone), and e_i after guidance; each `[n, *latent]`."""

    index: int
    latent: Tensor
    prompt: Tensor
    empty: Tensor | None
    output: Tensor


class Rollout:
    """A fixed set of prompts and seeds, and a network in the form that `graph` says (cut units are passed by, not
    removed: the values are the same). Rows of the untouched network run the pipeline's denoiser."""

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        graph: UnitGraph | None = None,
        network: nn.Module | None = None,
        phases: Mapping[str, nn.Module] | None = None,
        batch: int = 32,
    ) -> None:
        """`batch` pictures run at a time. Each draws its noise from a stream of its own seed. `network` None is the
        pipeline's denoiser, without the operators that `graph` cuts. `phases` are the networks of rows that name
        one."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        self.pipeline, self.graph, self.batch = pipeline, graph or pipeline.graph, batch
        self.network: nn.Module = network if network is not None else _without_operators(pipeline, self.graph)
        self.networks = {OWN: self.network, UNTOUCHED: pipeline.denoiser, **(phases or {})}
        self.prompts, self.seeds = tuple(prompts), tuple(seeds)
        self.given, self.null = pipeline.conditions(list(prompts))

    @cached_property
    def _whole(self) -> dict[str, Wiring]:
        return wire_schedule(full_schedule(1), self.graph)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def run(
        self,
        table: StepTable,
        schedule: Schedule | None = None,
        guidance: Sequence[float | None] | GuidancePlan = (),
        watch: Watch | None = None,
    ) -> Tensor:
        """Final latents `[n, *latent]`. `schedule` None runs everything always; `guidance` are the scales that are
        asked for (empty: none), which the schedule's method may take out or hold. Raises PlanError."""
        schedule = schedule or full_schedule(len(table.rows))
        if not isinstance(guidance, GuidancePlan):
            guidance = plan_guidance(tuple(guidance) or (None,) * len(table.rows), schedule, "batched")
        rows = program_rows(table, schedule, guidance)
        return self.run_rows(table, rows, wire_schedule(schedule, self.graph), watch)

    def run_rows(
        self, table: StepTable, rows: Sequence[ProgramRow], wirings: Mapping[str, Wiring], watch: Watch | None = None
    ) -> Tensor:
        """The same for rows that exist already."""
        folded = StepTable(
            sampler=table.sampler,
            steps=table.steps,
            init_scale=table.init_scale,
            rows=tuple(StepRow(timestep=r.timestep, input_scale=r.input_scale, update=r.update) for r in rows),
        )
        parts = range(0, len(self.prompts), self.batch)
        with torch.inference_mode():
            return torch.cat([self._run_part(folded, rows, wirings, watch, slice(s, s + self.batch)) for s in parts])

    def outputs(self, row: StepRow, latent: Tensor, part: slice, *, guided: bool) -> tuple[Tensor, Tensor | None]:
        """The whole network's outputs for the prompts in `part` and, when guided, for the empty prompt; from
        unscaled latents `[n, *latent]` at the row's timestep."""
        whole = ProgramRow(
            timestep=row.timestep,
            input_scale=row.input_scale,
            update=row.update,
            graph="full",
            guidance=1.0 if guided else None,
        )
        seen: list[Call] = []
        calls = _Calls(self, [whole], self._whole, part, seen.append)
        with torch.inference_mode():
            calls.latent = latent
            calls.predict(0, row, latent * row.input_scale)
        return seen[0].prompt, seen[0].empty

    def starts(self, part: slice) -> Tensor:
        """Standard normal draws `[n, *latent]` from the prompts' own seeds."""
        drawn = [torch.from_numpy(Rng(seed).normal(self.pipeline.latent)).float() for seed in self.seeds[part]]
        return torch.stack(drawn).to(self.device)

    def pictures(self, latents: Tensor) -> Tensor:
        """uint8 `[n, height, width, channels]` on the CPU, rounded as the runtime rounds."""
        parts = [self.pipeline.decode(part.to(self.device)) for part in latents.split(self.batch)]
        values = torch.cat(parts).float().cpu().permute(0, 2, 3, 1)
        return ((values * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)

    def _run_part(
        self,
        table: StepTable,
        rows: Sequence[ProgramRow],
        wirings: Mapping[str, Wiring],
        watch: Watch | None,
        part: slice,
    ) -> Tensor:
        streams = [Rng(seed) for seed in self.seeds[part]]
        calls = _Calls(self, rows, wirings, part, watch)

        def draw() -> Tensor:
            values = [torch.from_numpy(stream.normal(self.pipeline.latent)).float() for stream in streams]
            return torch.stack(values).to(self.device)

        latent: Any = draw() * table.init_scale
        calls.latent = latent
        for step in run_steps(table, latent, calls.predict, draw):
            calls.latent = latent = step.latent
        result: Tensor = latent
        return result


def _without_operators(pipeline: Pipeline, graph: UnitGraph) -> nn.Module:
    if not graph.cuts & graph.operators.keys():
        return pipeline.denoiser
    return copy_without_operators(pipeline.denoiser, graph)


class _Calls:
    """The torch twin of `runtime.calls.Calls`, always batched, for several pictures."""

    def __init__(
        self,
        rollout: Rollout,
        rows: Sequence[ProgramRow],
        wirings: Mapping[str, Wiring],
        part: slice,
        watch: Watch | None,
    ) -> None:
        self.rollout, self.rows, self.wirings, self.watch = rollout, rows, wirings, watch
        self.given = {name: value[part] for name, value in rollout.given.items()}
        self.null = {name: value.expand_as(self.given[name]) for name, value in rollout.null.items()}
        self.latent: Tensor
        self.differences: list[Tensor] = []
        self.held = max((len(row.held.weights) for row in rows if row.held is not None), default=0)
        self.past: dict[str, list[Tensor]] = {}
        self.depth = max((len(w) for row in rows for w in row.mix.values()), default=1)

    def predict(self, index: int, row: StepRow, sample: Tensor) -> Tensor | None:
        own = self.rows[index]
        if own.graph is None:
            return None
        empty: Tensor | None = None
        if own.guidance is None:
            prompt = output = self._evaluate(own, sample, self.given)
            for weight, difference in zip(own.held.weights if own.held else (), self.differences, strict=False):
                output = output + weight * difference
        else:
            both = {name: torch.cat([self.null[name], value]) for name, value in self.given.items()}
            empty, prompt = self._evaluate(own, torch.cat([sample, sample]), both).chunk(2)
            self.differences.insert(0, prompt - empty)
            output = empty + float(own.guidance) * self.differences[0]  # rollouts follow no asked scale
            del self.differences[self.held :]
        if self.watch is not None:
            self.watch(Call(index, self.latent, prompt, empty, output))
        return output

    def _evaluate(self, row: ProgramRow, sample: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        rollout, wiring = self.rollout, self.wirings[str(row.graph)]
        time = torch.full((1,), row.timestep, device=sample.device)
        inputs = {"sample": sample, "timestep": time, **conditions}
        carries = {carry: self._mixed(carry, row, len(sample)) for carry in wiring.reads}
        graph = graph_for(wiring.network, rollout.graph)
        value, written = evaluate(rollout.networks[wiring.network], graph, wiring.live, inputs, carries, wiring.writes)
        for carry, tensor in written.items():
            past = self.past.setdefault(carry, [])
            past.insert(0, tensor)
            del past[self.depth :]
        return value

    def _mixed(self, carry: str, row: ProgramRow, batch: int) -> Tensor:
        weights = row.mix.get(carry_name(carry), (1.0,))
        past = self.past[carry][: len(weights)]
        if any(len(value) < batch for value in past):
            message = f"at timestep {row.timestep:g} a guided row reads '{carry}', which was written without guidance"
            raise PlanError(message, code="carry")
        values = [value[-batch:] for value in past]
        if weights == (1.0,):
            return values[0]
        total = weights[0] * values[0]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            total = total + weight * value
        return total
