"""Task, output and feature losses of a pruned network beside the untouched one.

L = task * MSE(prediction, target) + output * MSE(prediction, teacher's) + feature * sum_l a_l MSE(F_l, teacher's F_l)
with all a_l = 1 is BK-SDM's (arXiv 2305.15798). LAPTOP-Diff (arXiv 2404.11098) weighs the terms by the norm of the
teacher's feature, because a few terms of large numbers rule the plain sum. Its exact weights could not be read;
ours: a_l = 1 / m_l with m_l a running mean of the teacher's mean square (`normalised`: every term is an error
relative to the feature), or 1 / sqrt(m_l) (`normalised_root`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgediff.documents.recipe import DistillTable

NAMES = ("loss", "task", "output", "feature")
DECAY, TINY = 0.99, 1e-6

Mean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outputs:
    """A network's prediction `[batch, *latent]` and its features at the taps, each `[batch, *unit.shape]`."""

    prediction: Tensor
    features: tuple[Tensor, ...]


class FeatureWeights:
    """The a_l, from a running mean of the teacher's mean squares; `mean` averages over processes."""

    def __init__(self, kind: str, taps: int, device: torch.device, mean: Mean = lambda value: value) -> None:
        self.kind, self.mean = kind, mean
        self.squares = torch.zeros(taps, device=device)

    def update(self, features: Sequence[Tensor]) -> None:
        """Takes note of the teacher's features; the first time they are the mean."""
        if self.kind not in ("normalised", "normalised_root") or not features:
            return
        now = self.mean(torch.stack([feature.float().square().mean() for feature in features]))
        self.squares = torch.where(self.squares > 0, torch.lerp(now, self.squares, DECAY), now)

    def values(self) -> Tensor:
        """`[taps]`."""
        if self.kind == "plain":
            return torch.ones_like(self.squares)
        return 1.0 / ((self.squares if self.kind == "normalised" else self.squares.sqrt()) + TINY)


def distillation_loss(
    student: Outputs, teacher: Outputs, target: Tensor, weights: FeatureWeights, table: DistillTable
) -> Tensor:
    """The weighed sum and its three parts before they are weighed, `[4]` in the order of `NAMES`; gradients flow
    through the first."""
    prediction = student.prediction.float()
    task = F.mse_loss(prediction, target)
    output = F.mse_loss(prediction, teacher.prediction.float())
    feature = torch.zeros_like(task)
    if table.features != "none":
        terms = [
            F.mse_loss(ours.float(), theirs.float())
            for ours, theirs in zip(student.features, teacher.features, strict=True)
        ]
        feature = (weights.values() * torch.stack(terms)).sum()
    total = table.task * task + table.output * output + table.feature * feature
    return torch.stack([total, task, output, feature])
