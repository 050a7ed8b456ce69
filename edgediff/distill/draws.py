"""What a step draws: a function of the seed and the step alone, so that a resumed run needs no generator's state,
and several processes agree by taking their share of the same draw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Of one step or a part of it: `rows` `[n]` of the samples, `picks` `[n]` in [0, 1) choosing among captions,
    `empty` `[n]` bool (no caption), `times` `[n]`, `noise` `[n, *latent]`."""

    rows: Tensor
    picks: Tensor
    empty: Tensor
    times: Tensor
    noise: Tensor

    def part(self, index: int, parts: int) -> Draws:
        """Every `parts`-th sample from `index` on: each part has times from the whole range."""
        return Draws(*(value[index::parts] for value in vars(self).values()))


def draw_step(
    seed: int, step: int, batch: int, samples: int, latent: tuple[int, ...], *, times: int, empty_share: float
) -> Draws:
    """Samples in shuffled epochs, each time from one of `batch` equally likely intervals of 0..times-1: less
    noise in the gradient than independent times."""
    generator = _generator(seed, f"step {step}")
    place = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return Draws(
        rows=torch.tensor([_row(seed, step * batch + index, samples) for index in range(batch)]),
        picks=torch.rand(batch, generator=generator),
        empty=torch.rand(batch, generator=generator) < empty_share,
        times=(place * times).long().clamp(max=times - 1),
        noise=torch.randn(batch, *latent, generator=generator),
    )


_ORDERS: dict[tuple[int, int, int], list[int]] = {}


def _row(seed: int, number: int, samples: int) -> int:
    """Which sample is drawn as the `number`-th of the run."""
    key = (seed, number // samples, samples)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = torch.randperm(samples, generator=_generator(seed, f"epoch {key[1]}")).tolist()
    return _ORDERS[key][number % samples]


def _generator(seed: int, what: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
