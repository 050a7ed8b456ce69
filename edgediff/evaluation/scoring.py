"""From pictures to figures, with intervals, and with a reason where there is no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgediff.metrics import bootstrap_interval, frechet_distance, psnr, retrieval_hits, ssim
from edgediff.runtime.latency import MIN_PAIRS

Array = NDArray[Any]


class Judge(Protocol):
    """What `embedded.judge.Judge` offers: an embedding of pictures, and that of one picture for each name."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def gallery(self) -> Array: ...

    def embed(self, images: Array) -> Array:
        """[n, d] of uint8 [n, height, width, channels]."""
        ...


@dataclass(frozen=True)
class Figures:
    """`data` is the JSON; the values by picture stay for comparisons: hits (None without a judge), psnr, ssim
    (empty for the reference itself)."""

    data: dict[str, Any]
    hits: Array | None
    psnr: tuple[float, ...] = ()
    ssim: tuple[float, ...] = ()


class Scorer:
    """Scores sets of pictures of the same `prompts` (one per picture). `reasons` says why a figure is null."""

    def __init__(self, judge: tuple[Judge, float | None] | str, prompts: Sequence[str]) -> None:
        """`judge` with the cosine above which two of its names count as one; or the reason for having none."""
        self.reasons: dict[str, str] = {}
        self._prompts = list(prompts)
        self._judge: Judge | None = None
        self._alike: float | None = None
        self._targets: Array | None = None
        if isinstance(judge, str):
            self.reasons.update({"retrieval_at_1": judge, "frechet": judge})
        else:
            self._judge, self._alike = judge
            self._aim(self._judge)

    def _aim(self, judge: Judge) -> None:
        rows = {name: index for index, name in enumerate(judge.names)}
        stranger = next((prompt for prompt in self._prompts if prompt not in rows), None)
        if stranger is None:
            self._targets = np.array([rows[prompt] for prompt in self._prompts])
        else:
            self.reasons["retrieval_at_1"] = (
                f"the judge has no picture called '{stranger}'; retrieval needs prompts among its {len(rows)} names"
            )
        if len(self._prompts) < 2:
            self.reasons["frechet"] = "a distance between distributions needs 2 pictures or more"

    def figures(self, pictures: Array, reference: Array | None = None) -> Figures:
        """The figures of uint8 [n, height, width, channels]; without `reference` they are the reference's own,
        which is at no distance from itself: its psnr and ssim are null."""
        hits, frechet = None, None
        if self._judge is not None:
            embeddings = self._judge.embed(pictures)
            if self._targets is not None:
                hits = retrieval_hits(embeddings, self._judge.gallery, self._targets, alike=self._alike)
            if "frechet" not in self.reasons:
                frechet = frechet_distance(embeddings, self._judge.gallery)
        ratios: list[float] = []
        likeness: list[float] = []
        for ours, theirs in zip(pictures, reference, strict=True) if reference is not None else ():
            ratios.append(psnr(ours, theirs, 255.0))
            likeness.append(ssim(ours, theirs))
        data = {
            "retrieval_at_1": None if hits is None else float(hits.mean()),
            "retrieval_interval": None if hits is None else list(bootstrap_interval(self._by_prompt(hits))),
            "frechet": frechet,
            **_summary("psnr_db", ratios),
            **_summary("ssim", likeness),
        }
        return Figures(data, hits, tuple(ratios), tuple(likeness))

    def _by_prompt(self, values: Array) -> Array:
        """Means over the pictures of one prompt: prompts, not pictures, are the independent draws."""
        places: dict[str, list[int]] = {}
        for index, prompt in enumerate(self._prompts):
            places.setdefault(prompt, []).append(index)
        return np.array([values[rows].mean() for rows in places.values()])


def compare_figures(ours: Figures, theirs: Figures, prompts: int) -> dict[str, Any]:
    """Picture by picture: `difference` (ours less theirs) with a 95 % interval over prompts, `better` true or
    false when the interval leaves no doubt and there are prompts enough, else null. Figures that one side
    lacks are left out."""
    sides: dict[str, tuple[Any, Any]] = {"psnr_db": (ours.psnr, theirs.psnr), "ssim": (ours.ssim, theirs.ssim)}
    if ours.hits is not None and theirs.hits is not None:
        sides["retrieval_at_1"] = (ours.hits, theirs.hits)
    return {name: _difference(np.array(a), np.array(b), prompts) for name, (a, b) in sides.items() if len(a)}


def _difference(ours: Array, theirs: Array, prompts: int) -> dict[str, Any]:
    gaps = (ours.astype(np.float64) - theirs.astype(np.float64)).reshape(-1, prompts).mean(axis=0)
    low, high = bootstrap_interval(gaps)
    better = None if prompts < MIN_PAIRS or low <= 0 <= high else low > 0
    return {"difference": float(gaps.mean()), "low": low, "high": high, "better": better}


def _summary(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_worst": None}
    return {name: float(np.mean(values)), f"{name}_worst": float(min(values))}
