"""DiP-GO's pruner network: queries, an encoder, and one private head for every gate (arXiv 2410.16942, section 3).

The released encoder throws its own result away; here it acts. Gates have no noise and no
temperature, as in the release: the forward pass takes the larger of two softmax outputs, gradients pass straight
through. All heads are one batched product.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Encoder = Literal["attention", "linear", "none"]


class PrunerNetwork(nn.Module):
    """`calls` x `blocks` queries of `width`; `forward()` gives the probability of keeping, `[calls, blocks]`.

    The heads' last layer starts at weights 0 and bias (0, 1): every gate keeps, with probability 0.73.
    """

    def __init__(self, calls: int, blocks: int, width: int, encoder: Encoder) -> None:
        super().__init__()
        hidden, gates = max(width // 4, 8), calls * blocks
        self.queries = nn.Parameter(torch.randn(calls, blocks, width))
        self.encoder = {"attention": _Attention, "linear": _Linear, "none": _Nothing}[encoder](width)
        self.first = nn.Parameter(torch.randn(gates, width, hidden) / math.sqrt(width))
        self.second = nn.Parameter(torch.randn(gates, hidden, hidden) / math.sqrt(hidden))
        self.first_bias = nn.Parameter(torch.zeros(gates, 1, hidden))
        self.second_bias = nn.Parameter(torch.zeros(gates, 1, hidden))
        self.last = nn.Parameter(torch.zeros(gates, hidden, 2))
        self.last_bias = nn.Parameter(torch.tensor([0.0, 1.0]).expand(gates, 1, 2).clone())
        self.shape = (calls, blocks)

    def forward(self) -> Tensor:
        value = self.encoder(self.queries).flatten(0, 1).unsqueeze(1)
        value = F.relu(torch.baddbmm(self.first_bias, value, self.first))
        value = F.relu(torch.baddbmm(self.second_bias, value, self.second))
        value = torch.baddbmm(self.last_bias, value, self.last)
        result: Tensor = value.softmax(-1)[:, 0, 1].view(self.shape)
        return result


class _Attention(nn.Module):
    """Single-head self-attention among the blocks of a call: queries and keys of width / 4, values are the inputs
    themselves, one projection after mixing; residual, norm, feed-forward of width / 4, residual, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        small = max(width // 4, 8)
        self.query, self.key, self.mix = nn.Linear(width, small), nn.Linear(width, small), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, small), nn.ReLU(), nn.Linear(small, width))
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, value: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self.query(value), self.key(value), value)
        value = self.before(value + self.mix(attended))
        result: Tensor = self.after(value + self.feed(value))
        return result


class _Linear(nn.Module):
    """A linear layer, residual, norm: the paper's other encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.norm(value + F.relu(self.mix(value)))
        return result


class _Nothing(nn.Module):
    """The released behaviour: heads read the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, value: Tensor) -> Tensor:
        return value
