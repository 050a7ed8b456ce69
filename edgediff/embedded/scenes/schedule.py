"""When what is shown: the curriculum, counted in samples, and a budget without an end."""

from __future__ import annotations

from dataclasses import dataclass

from edgediff.embedded.training_settings import Budget


@dataclass(frozen=True)
class Endless(Budget):
    """A budget at a constant rate: no progress until it is used up, so the rate does not fall before."""

    def progress(self, step: int, seconds: float) -> float:
        return float(super().progress(step, seconds) >= 1.0)


@dataclass(frozen=True)
class Stage:
    """`samples`: how many of them; `pairs`: share of the scenes with two things; `relations`: share of those said."""

    name: str
    samples: int
    pairs: float
    relations: float
    empty: float


# Single things stay in every stage, so that a caption of one thing keeps its meaning.
STAGES = (
    Stage("one", 48_000, 0.0, 0.0, 0.1),
    Stage("two", 96_000, 0.85, 0.0, 0.1),
    Stage("all", 10**12, 0.9, 0.7, 0.15),
)


def find_stage(samples: int) -> Stage:
    """The stage in which sample number `samples` is drawn."""
    for stage in STAGES:
        if samples < stage.samples:
            return stage
        samples -= stage.samples
    return STAGES[-1]
