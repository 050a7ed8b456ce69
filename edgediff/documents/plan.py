"""A plan: everything decided, nothing left to decide. No later stage reads the recipe.

`plan.json` is deterministic: the same model, recipe and target give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.documents.recipe import ParityTable
from edgediff.errors import PlanError
from edgediff.graph.schedule import HOLD, Row, Schedule, carry_name, wire_schedule
from edgediff.graph.units import UnitGraph
from edgediff.runtime.manifest import Kind, Mode
from edgediff.runtime.precision import Precision


class ModelRef(Model):
    """The model a plan was made for. `weights` is the SHA-256 over all its weights; `distilled` that of the cut
    and retrained denoiser's file, where one takes the place of the model's own."""

    id: str
    revision: str | None = None
    kind: Kind
    denoiser: str
    weights: str
    distilled: str | None = None
    licence: str = "unknown"


class SamplerPlan(Model):
    """`steps` as the user counts them; `calls` of the network (more for Heun and the like)."""

    kind: str
    steps: int = Field(ge=1)
    calls: int = Field(ge=1)


class Cut(Model):
    """A unit removed for good, by which method, and what its removal costs by that method's score."""

    unit: str
    by: str
    score: float


class GraphPlan(Model):
    """One graph of the denoiser: the row it computes, carries read and written, cost of one sample."""

    row: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    macs: int
    parameters: int


class GuidancePlan(Model):
    """Guidance scale of each network call (None: the prompt alone), and how the two prompts run.

    `held` is empty, or per call the weights at which the differences of the last guided calls (newest first) are
    added to the prompt alone.
    `asked` is what the recipe asks for where a method departs from it (empty: `calls`): the reference samples so.
    `range` is what a caller may ask for in place of the scale (None: nothing else).
    """

    mode: Mode
    calls: tuple[float | None, ...]
    held: tuple[tuple[float, ...] | None, ...] = ()
    asked: tuple[float | None, ...] = ()
    range: tuple[float, float] | None = None

    @property
    def reference(self) -> tuple[float | None, ...]:
        """The guidance of the untouched model."""
        return self.asked or self.calls


class BackendPlan(Model):
    """Precision and file format on one backend."""

    precision: Precision
    format: str = "onnx"
    threads: int | None = None


class WeightPlan(Model):
    """Weights in fewer bits, words of `documents.weight_format`: `layers` says which for parameters of the denoiser,
    `format` for all other large weights. `bits` is the mean over the layers, tables and scales included."""

    format: str
    layers: dict[str, str] = {}
    bits: float | None = None


class EqualCompute(Model):
    """The honest baseline: the untouched model with the same sampler and so few steps that it costs
    as much. `macs` of its whole image."""

    sampler: str
    steps: int = Field(ge=1)
    macs: int


class Cost(Model):
    """Predicted cost of one image: denoiser MACs over all calls and both prompts."""

    macs: int
    reference_macs: int
    equal_compute: EqualCompute


class Point(Model):
    """A plan that was weighed under a budget: its price on the target for one image, and the ratio of the reference's
    final latents to the error it makes on the calibration prompts (dB; None: priced only)."""

    what: str
    baseline: bool = False
    latency_ms: float
    memory_mb: float
    macs: int
    snr_db: float | None = None


class Front(Model):
    """Every plan that was weighed, the chosen one's index, and the limits that keep better ones out."""

    points: tuple[Point, ...]
    chosen: int = Field(ge=0)
    binding: tuple[str, ...] = ()
    target_source: Literal["estimated", "measured"] = "estimated"

    def best(self) -> tuple[Point, ...]:
        """The measured points that no other one beats in both time and error, by time."""
        found: list[Point] = []
        ratios = [(point.latency_ms, -point.snr_db, point) for point in self.points if point.snr_db is not None]
        for _, loss, point in sorted(ratios, key=lambda each: each[:2]):
            if not found or -loss > (found[-1].snr_db or 0.0):
                found.append(point)
        return tuple(found)


class ProgramPlan(Model):
    """What a program beside the default one decides. It shares cuts, graphs, backends and weights with it."""

    sampler: SamplerPlan
    guidance: GuidancePlan
    schedule: Schedule
    cost: Cost
    front: Front | None = None


class Plan(Model):
    """The one decision record. `recipe` and `target` are SHA-256 of their canonical JSON.

    `sampler`, `guidance`, `schedule`, `cost` and `front` are those of the default program, whose name is `program`;
    `further` has the others. `graphs` are all that any of them runs: a row of one name is the same row in each.
    """

    schema_version: Literal["1.0"] = "1.0"
    model: ModelRef
    recipe_name: str
    recipe: str
    target_name: str
    target: str
    sampler: SamplerPlan
    guidance: GuidancePlan
    cuts: tuple[Cut, ...] = ()
    schedule: Schedule
    graphs: dict[str, GraphPlan]
    backends: dict[str, BackendPlan]
    weights: WeightPlan | None = None
    parity: ParityTable = ParityTable()
    cost: Cost
    front: Front | None = None
    program: str = Field(default="main", min_length=1)
    further: dict[str, ProgramPlan] = {}

    def programs(self) -> dict[str, Plan]:
        """Every program as a plan of its own, with the graphs that it runs; the default one first."""
        found = {self.program: self.model_copy(update={"further": {}})}
        for name, one in self.further.items():
            decided = {field: getattr(one, field) for field in ProgramPlan.model_fields}
            found[name] = self.model_copy(update={**decided, "program": name, "further": {}})
        if len(found) == 1:
            return found
        return {
            name: one.model_copy(update={"graphs": {g: p for g, p in self.graphs.items() if g in one.schedule.calls}})
            for name, one in found.items()
        }

    def rows(self) -> dict[str, Row]:
        """Row name -> row, of all programs."""
        return {name: row for one in self.programs().values() for name, row in one.schedule.rows.items()}

    def check(self, graph: UnitGraph) -> None:
        """States what must hold between this plan and the untouched network's unit graph, program by program.

        Raises PlanError: call counts that disagree, unknown or protected units, a carry read before it
        is written, a graph that does not match its row or that nothing runs, one name for two programs or two rows.
        """
        if self.program in self.further:
            raise PlanError(f"two programs are called '{self.program}'", code="program")
        rows, programs = self.rows(), self.programs()
        for name, one in programs.items():
            if other := next((row for row, what in one.schedule.rows.items() if rows[row] != what), None):
                raise PlanError(f"program '{name}' means something else by row '{other}'", code="program")
            one._check_program(graph)
        run = {name for one in programs.values() for name in one.graphs}
        if spare := next((name for name in self.graphs if name not in run), None):
            raise PlanError(f"no program runs graph '{spare}'", code="program")

    def _check_program(self, graph: UnitGraph) -> None:
        calls = self.sampler.calls
        for what, count in (("schedule", len(self.schedule.calls)), ("guidance", len(self.guidance.calls))):
            if count != calls:
                raise PlanError(
                    f"the {what} has {count} calls, but sampler '{self.sampler.kind}' with {self.sampler.steps} "
                    f"steps makes {calls}; plan again for this step count",
                    code="step_count",
                )
        if self.guidance.held and len(self.guidance.held) != calls:
            message = f"the held guidance has {len(self.guidance.held)} calls, the sampler makes {calls}"
            raise PlanError(message, code="step_count")
        wirings = wire_schedule(self.schedule, graph.with_cuts(cut.unit for cut in self.cuts))
        if set(wirings) != set(self.graphs):
            raise PlanError(f"graphs {sorted(self.graphs)} do not match the rows in use {sorted(wirings)}")
        for name, wiring in wirings.items():
            if (self.graphs[name].reads, self.graphs[name].writes) != (wiring.reads, wiring.writes):
                raise PlanError(f"graph '{name}' does not read and write what its row needs")

    def _program_lines(self) -> list[str]:
        if not self.further:
            return []
        lines = [f"program    {self.program}, of {len(self.further) + 1}; it runs when none is asked for"]
        for name, one in self.further.items():
            share = one.cost.macs / one.cost.reference_macs
            text = f"{one.sampler.kind}, {one.sampler.steps} steps, {share:.0%} of the MACs"
            lines.append(f"           {shorten(name, 20)}: {text}")
        return lines

    def __str__(self) -> str:
        """A table of the decisions that fits 80 columns and that a reviewer can diff."""
        cost, equal = self.cost, self.cost.equal_compute
        share = cost.macs / cost.reference_macs
        lines = [
            f"plan       {self.recipe_name} for {self.target_name}",
            *self._program_lines(),
            f"model      {shorten(self.model.id, 24)} ({self.model.denoiser}, weights {self.model.weights[:10]})",
            f"sampler    {self.sampler.kind}, {self.sampler.steps} steps, {self.sampler.calls} network calls",
            f"guidance   {_guidance_text(self.guidance, self.schedule)}",
            f"schedule   {wrap_letters(str(self.schedule))}",
            f"cost       {cost.macs / 1e9:.2f} of {cost.reference_macs / 1e9:.2f} GMACs per image ({share:.0%})",
            f"baseline   {equal.sampler} with {equal.steps} steps costs {equal.macs / 1e9:.2f} GMACs",
            *_weight_lines(self.weights),
            *_front_lines(self.front),
            "",
            f"{'graph':<12}{'calls':>6}{'GMACs':>9}{'M params':>10}  reads -> writes",
        ]
        ran = Counter(call for one in self.programs().values() for call in one.schedule.calls)
        for name, graph in self.graphs.items():
            count = ran[name]
            costs = f"{count:>6}{graph.macs / 1e9:>9.3f}{graph.parameters / 1e6:>10.2f}"
            lines.append(f"{shorten(name, 12):<12}{costs}  {_short(graph.reads)} -> {_short(graph.writes)}")
        if held := sum(call == HOLD for call in self.schedule.calls):
            lines.append(f"{'(hold)':<12}{held:>6}{0:>9.3f}")
        lines += ["", f"{'backend':<14}{'precision':<11}format"]
        lines += [f"{name:<14}{b.precision:<11}{b.format}" for name, b in self.backends.items()]
        if self.cuts:
            lines += ["", f"{'cut unit':<52}{'by':<10}score"]
            lines += [f"{shorten(cut.unit, 51):<52}{cut.by:<10}{cut.score:.3g}" for cut in self.cuts]
        return "\n".join(lines)


def _front_lines(front: Front | None) -> list[str]:
    if front is None:
        return []
    chosen, fewer = front.points[front.chosen], [p for p in front.points if p.baseline and p.snr_db is not None]
    rivals = [p for p in fewer if p.latency_ms <= chosen.latency_ms]
    lines = [f"budget     {_point_text(chosen)}, {front.target_source}"]
    if rivals:
        best = max(rivals, key=lambda p: p.snr_db or 0.0)
        lines.append(f"           fewer steps at best: {_point_text(best)}")
    over = ", ".join(front.binding) or "nothing"
    return [*lines, f"           {len(front.points)} plans weighed; better ones are over: {over}"]


def _point_text(point: Point) -> str:
    return f"{shorten(point.what, 28)}, {point.latency_ms:.0f} ms, error -{point.snr_db or 0.0:.1f} dB"


def _weight_lines(weights: WeightPlan | None) -> list[str]:
    if weights is None:
        return []
    if not weights.layers:
        return [f"weights    {weights.format}"]
    counts = Counter(weights.layers.values())
    words = ", ".join(f"{counts[word]} in {word}" for word in sorted(counts))
    return [f"weights    {weights.bits:.2f} bits in the mean of {len(weights.layers)} layers: {words}"]


def row_of(plan: Plan, graph: str) -> Row:
    """The row that a graph computes."""
    return plan.rows()[plan.graphs[graph].row]


def wrap_letters(letters: str, width: int = 66) -> str:
    """A schedule's letters over several lines, indented under the plan's second column."""
    return ("\n" + " " * 11).join(letters[i : i + width] for i in range(0, len(letters), width))


def shorten(text: str, width: int) -> str:
    """`text`, or its end behind three dots when it is longer than `width`."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _short(carries: tuple[str, ...]) -> str:
    if not carries:
        return "-"
    names = [carry_name(carry) for carry in carries]
    return shorten(names[0], 36) if len(names) == 1 else f"{len(names)} tensors"


def _guidance_text(guidance: GuidancePlan, schedule: Schedule) -> str:
    ran = [index for index, name in enumerate(schedule.calls) if name != HOLD]
    scales = [scale for index in ran if (scale := guidance.calls[index]) is not None]
    if not scales:
        return "none"
    shown = f"{min(scales):g}" if min(scales) == max(scales) else f"{min(scales):g} to {max(scales):g}"
    held = sum(weights is not None for weights in guidance.held)
    kept = f", held on {held}" if held else ""
    return f"{shown} on {len(scales)} of {len(ran)} computed calls{kept}, {guidance.mode}"
