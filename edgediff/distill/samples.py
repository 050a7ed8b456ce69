"""What a network is distilled on: the embedded model's own training set, or a user's pictures with captions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from edgediff.config import cache_folder
from edgediff.distill.encoding import encode_pictures, encode_texts
from edgediff.distill.pairs import PairedPictures, find_pairs
from edgediff.errors import MethodError

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


class Samples(Protocol):
    """`digest` tells one set from another; `draw` gives scaled latents `[n, *latent]` on `device` and token ids
    `[n, tokens]` for `rows` `[n]`, its `picks` `[n]` in [0, 1) choosing among several captions of one picture."""

    digest: str

    def __len__(self) -> int: ...

    def draw(self, rows: Tensor, picks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]: ...


def load_samples(pipeline: Pipeline, data: str | Path | None) -> Samples:
    """`data` as `PairedPictures` takes it; None is the embedded model's own set.

    Raises MethodError for a model that brings none, and for a folder without pairs.
    """
    if data is not None:
        return PairedPictures(pipeline, find_pairs(Path(data)))
    if pipeline.id != "glyph":
        raise MethodError(
            f"model '{pipeline.id}' brings no training set; give pictures with captions (--data FOLDER)", code="data"
        )
    return GlyphSamples(pipeline)


class GlyphSamples:
    """The pictures that glyph was trained on, drawn from Noto Color Emoji, as latents; and all their captions.

    Five of six draws are of the primary caption, as in glyph's own training. Latents are kept in the cache folder,
    so that the font is needed once.
    """

    PRIMARY_SHARE = 0.86

    def __init__(self, pipeline: Pipeline) -> None:
        from edgediff.embedded.glyphs import CAPTIONS, load_glyphs

        glyphs = load_glyphs()
        mark = hashlib.sha256(CAPTIONS.read_bytes()).hexdigest()
        self.digest = f"glyph {mark[:16]}"
        self._latents = _cached_latents(pipeline, latents_path(pipeline, mark))
        texts: list[str] = []
        first, count = [], []
        for glyph in glyphs:
            first.append(len(texts))
            count.append(1 + len(glyph.alternatives))
            texts += [glyph.primary, *glyph.alternatives]
        self._ids = encode_texts(pipeline, texts)
        self._first, self._count = torch.tensor(first), torch.tensor(count)

    def __len__(self) -> int:
        return len(self._latents)

    def draw(self, rows: Tensor, picks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        others = ((picks - self.PRIMARY_SHARE) / (1 - self.PRIMARY_SHARE)).clamp(min=0) * (self._count[rows] - 1)
        offset = torch.where(picks < self.PRIMARY_SHARE, 0, 1 + others.long()) % self._count[rows]
        return self._latents[rows].to(device), self._ids[self._first[rows] + offset]


def latents_path(pipeline: Pipeline, mark: str) -> Path:
    """Where the latents of the captions' file `mark` (its SHA-256) are kept."""
    return cache_folder() / "latents" / f"{pipeline.weights[:32]}-{mark[:32]}.safetensors"


def _cached_latents(pipeline: Pipeline, path: Path) -> Tensor:
    from safetensors.torch import load_file, save_file

    if path.is_file():
        kept: Tensor = load_file(path)["latents"]
        return kept
    from edgediff.embedded.glyphs import draw_glyphs, load_glyphs

    drawn = torch.from_numpy(draw_glyphs([glyph.text for glyph in load_glyphs()]))
    parts = [part.permute(0, 3, 1, 2).float() / 127.5 - 1.0 for part in drawn.split(64)]
    latents = torch.cat([encode_pictures(pipeline.vae, part) for part in parts]).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"latents": latents}, partial)
    partial.replace(path)
    return latents
