"""How far a change of the network moves the latents that it ends with: LD-Pruner's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.graph.units import UnitGraph
    from edgediff.pipeline import Pipeline
    from edgediff.runtime.steps import StepTable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of latents, per element."""

    count: int
    total: Array
    squares: Array

    @classmethod
    def of(cls, latents: Tensor) -> Moments:
        """Of latents `[n, *latent]`."""
        values = latents.detach().cpu().double().numpy().reshape(len(latents), -1)
        return cls(len(values), values.sum(axis=0), (values**2).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> Array:
        return self.total / self.count

    @property
    def std(self) -> Array:
        """Of the population: no correction for the count."""
        found: Array = np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0.0))
        return found


def shift(original: Moments, changed: Moments) -> float:
    """|| mean - mean' ||_2 + || std - std' ||_2 over the elements of the latent (arXiv 2404.11936; that the norms
    are not squared follows released code of the same score, Hybrid-SD)."""
    return float(np.linalg.norm(original.mean - changed.mean) + np.linalg.norm(original.std - changed.std))


@dataclass(frozen=True)
class Halves:
    """Moments of the seeds at even and at odd places, to ask how much a score depends on the seeds."""

    even: Moments
    odd: Moments

    @classmethod
    def of(cls, latents: Tensor) -> Halves:
        return cls(Moments.of(latents[0::2]), Moments.of(latents[1::2]))

    def __add__(self, other: Halves) -> Halves:
        return Halves(self.even + other.even, self.odd + other.odd)

    def shifts(self, changed: Halves) -> tuple[float, float, float]:
        """The score over all seeds, over those at even places, and over those at odd places."""
        whole = shift(self.even + self.odd, changed.even + changed.odd)
        return whole, shift(self.even, changed.even), shift(self.odd, changed.odd)


@dataclass(frozen=True)
class LatentSampler:
    """Final latents of the network with cuts, for seed number k the k-th of `prompts` (over and over) and the
    stream of `first_seed` + k. Runs on the network's own device."""

    pipeline: Pipeline
    table: StepTable
    guidance: tuple[float | None, ...]
    prompts: tuple[str, ...]
    first_seed: int
    batch: int

    def sample(self, cuts: Sequence[str], start: int, stop: int) -> Halves:
        """Moments of the seeds numbered `start` to `stop` (an even count). Raises PlanError for unknown and
        protected names."""
        from edgediff.networks import evaluate
        from edgediff.networks._operators import copy_without_operators
        from edgediff.sampling.trace import sample_latents

        graph: UnitGraph = self.pipeline.graph.with_cuts(cuts)
        network, live = copy_without_operators(self.pipeline.denoiser, graph), graph.live()

        def denoise(sample: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
            inputs = {"sample": sample, "timestep": time, **conditions}
            return evaluate(network, graph, live, inputs)[0]

        numbers = range(start, stop)
        latents = sample_latents(
            self.pipeline,
            self.table,
            self.guidance,
            [self.prompts[k % len(self.prompts)] for k in numbers],
            [self.first_seed + k for k in numbers],
            batch=self.batch,
            denoiser=denoise,
        )
        return Halves.of(latents)
