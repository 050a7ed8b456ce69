"""LAPTOP-Diff (arXiv 2404.11098): one-shot layer pruning by output loss.

The score of a layer is what its removal alone does to the network's output on calibration latents,
s_i = E || eps(without i) - eps ||^2. Removing several is taken to cost the sum, so the best selection
under a budget is a covering knapsack, solved exactly here by mixed-integer programming (HiGHS). That the
paper samples timesteps uniformly and scores without guidance is not stated; both are our choice, as is
the meaning of a layer: a resnet, or a transformer as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.plan import Cut
from edgediff.units import UnitGraph

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.pipeline import Pipeline
    from edgediff.trace import Progress, Trace


class Budget(Model):
    """The share of the denoiser's parameters, or of its MACs, that stays: exactly one of the two."""

    parameters: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.parameters is None) == (self.macs is None):
            raise ValueError("a budget is either { parameters = ... } or { macs = ... }, the share that stays")
        return self


class Spec(Model):
    """`timesteps` calls of the trajectory are sampled evenly for every calibration prompt."""

    budget: Budget
    granularity: Literal["layer", "unit"] = "layer"
    timesteps: int = Field(default=4, ge=1)


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> dict[str, float]:
    """Output loss of every candidate: mean squared change of the network's output, the prompt alone."""
    import torch

    from edgediff.networks import evaluate

    graph, network = pipeline.graph, pipeline.denoiser
    inputs = _samples(trace, spec.timesteps)
    found: dict[str, float] = {}
    names = candidates(graph, spec.granularity)
    with torch.inference_mode():
        reference = evaluate(network, graph, graph.live(), inputs)[0]
        for index, name in enumerate(names):
            cut = graph.with_cuts([name])
            output = evaluate(network, cut, cut.live(), inputs)[0]
            found[name] = float(((output - reference) ** 2).mean())
            if progress is not None:
                progress("scoring layers", index + 1, len(names))
    return found


def propose(spec: Spec, scores: dict[str, float], graph: UnitGraph) -> tuple[Cut, ...]:
    """The selection of least summed score that meets the budget. Raises MethodError when none does."""
    count = "parameters" if spec.budget.parameters is not None else "macs"
    total = getattr(graph, count)()
    share = getattr(spec.budget, count)
    savings = {name: total - getattr(graph.with_cuts([name]), count)() for name in scores}
    needed = (1.0 - share) * total
    if needed <= 0:
        return ()
    if sum(savings.values()) < needed:
        most = sum(savings.values()) / total
        raise MethodError(
            f"budget {{ {count} = {share:g} }} cannot be met: removing all {len(scores)} candidates leaves "
            f"{1 - most:.2f} of the {count}; ask for at least that",
            code="budget",
        )
    chosen = select(list(scores.values()), [savings[name] for name in scores], needed)
    return tuple(
        Cut(unit=name, by="laptop", score=value)
        for (name, value), taken in zip(scores.items(), chosen, strict=True) if taken
    )


def select(losses: list[float], savings: list[int], needed: float) -> list[bool]:
    """Which items to take so that the savings reach `needed` at the least summed loss; exact."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    unit = max(savings) or 1
    constraint = LinearConstraint(np.array(savings)[None, :] / unit, lb=needed / unit)
    scale = max(losses) or 1.0
    result = milp(
        np.array(losses) / scale, constraints=constraint, integrality=np.ones(len(losses)), bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if not result.success:
        raise MethodError(f"the selection of layers failed: {result.message}", code="solver")
    return [bool(round(value)) for value in result.x]


def candidates(graph: UnitGraph, granularity: str) -> list[str]:
    """Names that may be cut one by one: resnets and whole transformers, or every attention and
    feed-forward by itself instead of the transformer."""
    names: dict[str, None] = {}
    for unit in graph.units:
        if unit.kind == "resnet":
            names[unit.name] = None
        elif unit.kind == "projection_out" and granularity == "layer":
            names[unit.name.rpartition(".")[0]] = None
        elif unit.kind in ("self_attention", "cross_attention", "feed_forward") and granularity == "unit":
            names[unit.name] = None
    return list(names)


def _samples(trace: Trace, timesteps: int) -> dict[str, Tensor]:
    """One batch over prompts and evenly spaced calls."""
    import torch

    prompts, calls = trace.inputs.shape[:2]
    chosen = torch.linspace(0, calls - 1, min(timesteps, calls)).round().long().unique()
    sample = trace.inputs[:, chosen].flatten(0, 1)
    return {
        "sample": sample,
        "timestep": trace.timesteps[chosen].repeat(prompts),
        "encoder_hidden_states": trace.embeddings.repeat_interleave(len(chosen), dim=0),
    }
