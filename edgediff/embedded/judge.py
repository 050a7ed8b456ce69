"""A judge of pictures: which glyph is this, and how far is a set of pictures from the real glyphs.

A small convolutional network maps a 64x64 picture to 128 numbers of unit length. The folder `judge/` holds its weights
and the gallery, the embedding of every real glyph; the names are the primary captions of `captions.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.glyphs import HERE, SIZE, load_glyphs
from edgediff.errors import EdgeDiffError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Images = NDArray[np.generic] | torch.Tensor

JUDGE = HERE / "judge"
WEIGHTS, CONFIG = "judge.safetensors", "config.json"
WIDTH = 128  # numbers in an embedding
SAME = 0.995  # glyphs whose gallery embeddings are closer than this cosine count as one answer
BATCH = 128


def make_network() -> nn.Sequential:
    """(n, 3, 64, 64) in -1..1 to (n, WIDTH), not yet of unit length.

    The 4x4 map is flattened, not averaged: an arrow to the left must differ from an arrow to the right.
    """
    from torch import nn

    def stage(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]

    return nn.Sequential(
        *stage(3, 24, 2),
        *stage(24, 48, 2),
        *stage(48, 48, 1),
        *stage(48, 96, 2),
        *stage(96, 96, 1),
        *stage(96, 128, 2),
        nn.Conv2d(128, 64, 1),
        nn.Flatten(),
        nn.Linear(1024, WIDTH),
    )


@dataclass(frozen=True)
class Judge:
    """`gallery` (N, WIDTH) float32 of unit length, one row per name, in the order of captions.json."""

    network: nn.Module
    names: tuple[str, ...]
    gallery: NDArray[np.float32]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """(n, WIDTH) float32 of unit length. `images`: uint8 (n, 64, 64, 3), or floats (n, 3, 64, 64) in -1..1."""
        import torch

        signal = _read_images(images)
        with torch.no_grad():
            parts = [torch.nn.functional.normalize(self.network(part), dim=1) for part in signal.split(BATCH)]
        return torch.cat(parts).numpy()

    def recognise(self, images: Images) -> list[str]:
        """The name of the nearest gallery glyph, per picture."""
        return [self.names[row] for row in (self.embed(images) @ self.gallery.T).argmax(axis=1)]

    def retrieval_at_1(self, images: Images, prompts: Sequence[str]) -> float:
        """Share of the pictures whose nearest glyph, among all, is the prompted one.

        Glyphs that look alike count as one: Norway's flag and Bouvet Island's are the same picture. Alike means a
        cosine above SAME between their gallery embeddings, which the same pixels always reach.
        """
        if len(prompts) != len(images):
            raise EdgeDiffError(
                f"{len(images)} pictures for {len(prompts)} prompts; give one prompt per picture",
                code="judge.count",
                where="prompts",
            )
        wanted = np.array([self._row(prompt) for prompt in prompts])
        found = (self.embed(images) @ self.gallery.T).argmax(axis=1)
        alike = (self.gallery[wanted] * self.gallery[found]).sum(axis=1) > SAME
        return float(((wanted == found) | alike).mean())

    def frechet(self, images: Images) -> float:
        """Frechet distance between Gaussians fitted to these embeddings and to the gallery; 0 is the best.

        Biased upwards for few pictures, by about 1/n: compare only figures over the same number of pictures (256 or
        more), and never with an Inception FID: the space is another one.
        """
        if len(images) < 2:
            raise EdgeDiffError(
                f"a Frechet distance needs two pictures or more, not {len(images)}", code="judge.count", where="images"
            )
        return frechet_distance(self.embed(images), self.gallery)

    def _row(self, prompt: str) -> int:
        try:
            return self.names.index(prompt)
        except ValueError:
            raise EdgeDiffError(
                f"{prompt!r} is not a glyph's primary caption; `judge.names` lists all {len(self.names)}",
                code="judge.prompt",
                where=prompt,
            ) from None


def load_judge(folder: Path = JUDGE) -> Judge:
    """The shipped judge, on the CPU in fp32."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise EdgeDiffError(
            f"{folder / WEIGHTS} is missing; reinstall edgediff, or run `python -m edgediff.embedded.train judge`",
            code="judge.missing",
            where=str(folder),
        )
    tensors = load_file(folder / WEIGHTS)
    gallery = tensors.pop("gallery").float().numpy()
    network = make_network()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    names = tuple(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["names"])
    return Judge(network.eval(), names, gallery / np.linalg.norm(gallery, axis=1, keepdims=True))


def save_judge(network: nn.Module, gallery: NDArray[np.float32], folder: Path) -> None:
    """Writes fp16 weights with the gallery among them, and the names beside."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file({**tensors, "gallery": torch.from_numpy(gallery).half()}, folder / WEIGHTS)
    names = [glyph.primary for glyph in load_glyphs()]
    (folder / CONFIG).write_text(json.dumps({"names": names}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^1/2) of two sets of rows, in float64.

    The trace of the root comes from the symmetric C_a^1/2 C_b C_a^1/2, which has the same eigenvalues and needs no
    complex matrix root.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (
        (x.mean(axis=0), np.cov(x, rowvar=False)) for x in (np.float64(a), np.float64(b))
    )
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def _read_images(images: Images) -> torch.Tensor:
    """Any accepted pictures as a float tensor (n, 3, 64, 64) in -1..1."""
    import torch

    images = torch.as_tensor(np.asarray(images) if not isinstance(images, torch.Tensor) else images)
    if images.dtype == torch.uint8 and images.ndim == 4 and tuple(images.shape[1:]) == (SIZE, SIZE, 3):
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if images.is_floating_point() and images.ndim == 4 and tuple(images.shape[1:]) == (3, SIZE, SIZE):
        return images.float()
    raise EdgeDiffError(
        f"pictures must be uint8 (n, 64, 64, 3) or floats (n, 3, 64, 64) in -1..1, not {images.dtype} "
        f"{tuple(images.shape)}",
        code="judge.images",
        where="images",
    )
