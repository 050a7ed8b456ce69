"""Peak memory of a plan: weights, planned activations, what is carried between steps, and the process itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgediff.documents.plan import Plan
from edgediff.estimate.operators import OperatorTable
from edgediff.graph.schedule import UNTOUCHED, used_rows, wire_schedule
from edgediff.graph.units import UnitGraph
from edgediff.runtime.precision import Word

# Of a weight and of an activation. In w8a8 activations count as 16 bits, as the runtimes of phones keep them between
# layers; in w4a8 all counts as fp32, which whatever is no linear layer is.
BYTES: dict[Word, tuple[float, int]] = {
    "fp32": (4, 4),
    "tf32": (4, 4),
    "fp16": (2, 2),
    "bf16": (2, 2),
    "w8": (1, 2),
    "w8a8": (1, 2),
    "w8a16": (1, 2),
    "w4": (0.5, 2),
    "w4a8": (4, 4),
}
PROCESS_MB = 80.0  # runtime library, tokenizer, code: what an app holds before a model is opened


@dataclass(frozen=True)
class Memory:
    """MB (10^6 bytes). Weights of all components stay resident, those that graphs share counted once."""

    weights_mb: float
    activations_mb: float
    carries_mb: float

    @property
    def peak_mb(self) -> float:
        return PROCESS_MB + self.weights_mb + self.activations_mb + self.carries_mb


def plan_memory(
    plan: Plan,
    graph: UnitGraph,
    tables: Mapping[str, OperatorTable],
    components: Mapping[str, OperatorTable],
    precision: Word,
) -> Memory:
    """The plan's peak with every component loaded. `graph` is the denoiser after cutting.

    Activations are the largest of any graph's: one runs at a time.
    """
    (size, values), batch = BYTES[precision], 2 if plan.guidance.mode == "batched" else 1
    weights = _denoiser_weights(plan, graph) + sum(table.parameters for table in components.values())
    peaks = [table.peak_values * batch for table in tables.values()]
    peaks += [table.peak_values for table in components.values()]
    carries = {carry.rstrip("+") for wiring in wire_schedule(plan.schedule, graph).values() for carry in wiring.reads}
    carried = sum(graph.by_name[name].output_values for name in carries if name in graph.by_name)
    return Memory(weights * size / 1e6, max(peaks, default=0) * values / 1e6, carried * batch * values / 1e6)


def _denoiser_weights(plan: Plan, graph: UnitGraph) -> int:
    """Parameters of the networks that rows run: a cut one shares those of the untouched one until it is distilled.
    Phases of a distilled one count once: what they do not share are a few kernels."""
    networks = {plan.schedule.rows[name].network for name in used_rows(plan.schedule)}
    own, untouched = graph.parameters(), graph.without_cuts().parameters()
    if UNTOUCHED not in networks:
        return own
    return own + untouched if networks != {UNTOUCHED} and plan.model.distilled else untouched
