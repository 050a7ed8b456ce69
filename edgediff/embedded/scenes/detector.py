"""The trained judge: a heatmap detector that says which objects a picture holds, where, how large, in which hue.

A small U-shaped network reads (n, 3, 64, 64) in -1..1 and answers for each of 16x16 cells: a noun or nothing (softmax),
a hue, the centre within the cell, the size; and for the picture its background. A cell counts as an object where a
noun has at least FOUND of the probability and no better cell lies within CLOSE pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from edgediff.embedded.scenes.findings import Finding, Findings
from edgediff.embedded.scenes.vocabulary import BACKGROUNDS, HUES, LARGEST, NOUNS, SIDE, SMALLEST
from edgediff.errors import EdgeDiffError

WEIGHTS = Path(__file__).parent / "detector.safetensors"
CELLS, STRIDE = 16, SIDE // 16
FOUND = 0.5
CLOSE = 10.0  # pixels: half of the smallest thing
BATCH = 64
PRIOR = 5.0  # of nothing, at the start: almost every cell holds nothing (RetinaNet's trick)
_NOUNS, _HUES, _BACKGROUNDS = tuple(NOUNS), tuple(HUES), tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Maps:
    """nouns (n, 25, 16, 16), the last is nothing, and hues (n, 6, 16, 16): logits; geometry (n, 3, 16, 16): the
    centre's (x, y) within its cell and the size, each 0 to 1; backgrounds (n, 5): logits."""

    nouns: torch.Tensor
    hues: torch.Tensor
    geometry: torch.Tensor
    backgrounds: torch.Tensor


def _stage(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU())


class Detector(nn.Module):
    """0.6 M parameters. `features` of the 8x8 level, averaged, serve as the embedding for distances between sets."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_stage(3, 32, 2), _stage(32, 32), _stage(32, 64, 2), _stage(64, 64), _stage(64, 64))
        self.coarse = nn.Sequential(_stage(64, 128, 2), _stage(128, 128))
        self.joint = nn.Sequential(_stage(192, 96), _stage(96, 96))
        self.head = nn.Conv2d(96, len(_NOUNS) + 1 + len(_HUES) + 3, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[len(_NOUNS)], PRIOR)
        self.background = nn.Linear(128, len(_BACKGROUNDS))

    def forward(self, signal: torch.Tensor) -> Maps:
        fine = self.fine(signal)
        coarse = self.coarse(fine)
        joint = self.joint(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], dim=1))
        nouns, hues, geometry = self.head(joint).split([len(_NOUNS) + 1, len(_HUES), 3], dim=1)
        return Maps(nouns, hues, geometry.sigmoid(), self.background(coarse.mean((2, 3))))

    def features(self, signal: torch.Tensor) -> torch.Tensor:
        """(n, 128): the coarse level's mean over the picture."""
        embedded: torch.Tensor = self.coarse(self.fine(signal)).mean((2, 3))
        return embedded


@torch.no_grad()
def detect(network: Detector, pictures: NDArray[np.uint8], found: float = FOUND) -> list[Findings]:
    """The findings of each picture (n, 64, 64, 3) uint8."""
    results: list[Findings] = []
    for part in torch.from_numpy(pictures).split(BATCH):
        maps = network(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
        results += [read_maps(maps, row, found) for row in range(len(part))]
    return results


def read_maps(maps: Maps, row: int, found: float = FOUND) -> Findings:
    """One picture's objects, the most certain first."""
    chances = maps.nouns[row].softmax(dim=0)[:-1]
    best, nouns = chances.max(dim=0)
    things: list[Finding] = []
    for cell in best.flatten().argsort(descending=True).tolist():
        y, x = divmod(cell, CELLS)
        if best[y, x] < found:
            break
        across, down, size = maps.geometry[row, :, y, x].tolist()
        centre = (STRIDE * (x + across), STRIDE * (y + down))
        if all(max(abs(a - b) for a, b in zip(centre, t.centre, strict=True)) > CLOSE for t in things):
            hue = _HUES[int(maps.hues[row, :, y, x].argmax())]
            pixels = SMALLEST + size * (LARGEST - SMALLEST)
            things.append(Finding(_NOUNS[int(nouns[y, x])], hue, pixels, centre, float(best[y, x])))
    return Findings(tuple(things), _BACKGROUNDS[int(maps.backgrounds[row].argmax())])


def save_detector(network: Detector, path: Path = WEIGHTS) -> None:
    """fp16 weights."""
    save_file({name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}, path)


def load_detector(path: Path = WEIGHTS) -> Detector:
    """The judge on the CPU in fp32."""
    if not path.is_file():
        raise EdgeDiffError(
            f"{path} is missing; train it with `python -m edgediff.embedded.scenes.train detector`",
            code="scenes.detector",
            where=str(path),
        )
    network = Detector()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return network.eval()
