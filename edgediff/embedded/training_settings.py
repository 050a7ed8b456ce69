"""What a training is told: how long it may take, its batch, its rate, its device, where its checkpoint lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from edgediff.errors import EdgeDiffError


class TrainingError(EdgeDiffError):
    """A training that cannot start, continue or go on."""

    code = "training"


@dataclass(frozen=True)
class Budget:
    """When a run ends: after `steps`, or after `hours` of training. Steps win where both are given.

    A run over hours reaches learning rate 0 on time on a machine shared with others; only a run over steps can be
    repeated byte for byte.
    """

    hours: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if not (self.hours or self.steps) or (self.hours or 1) <= 0 or (self.steps or 1) <= 0:
            raise TrainingError(f"a budget needs hours > 0 or steps > 0, not hours={self.hours} steps={self.steps}")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (3600 * (self.hours or 1)))


@dataclass(frozen=True)
class Settings:
    """How one network is trained. `folder` receives `<name>.pt`; `device` is "cpu" or "cuda".

    `workers` threads share a step; each draws `batch // workers` samples of its own and has one core. On two cores
    that is 1.6 times the speed of two threads inside every operator, because the operators are small.
    """

    name: str
    folder: Path
    budget: Budget
    batch: int
    rate: float
    device: str = "cpu"
    seed: int = 0
    workers: int = 1
    save_seconds: float = 180.0
    log_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.batch < 1 or self.batch % self.workers:
            raise TrainingError(f"a batch of {self.batch} does not divide among {self.workers} workers")

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"


def pick_device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"unknown device {name!r}; it is one of auto, cpu, cuda", where="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("torch sees no CUDA device; use cpu or auto", where="--device")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def half_precision(device: str) -> torch.autocast:
    """bf16 autocast: 1.4 times faster on a CPU with AVX512-BF16, and what a GPU wants. Weights stay fp32."""
    return torch.autocast(device, torch.bfloat16)
