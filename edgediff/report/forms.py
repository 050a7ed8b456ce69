"""What the page reads out of an evaluation, typed: it is JSON that anybody may have edited.

Only what is drawn is checked; more keys are welcome, as in every JSON that other programs may rely on.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Form(BaseModel):
    """Unknown keys pass; NaN and infinity do not."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class SideForm(Form):
    """The figures of one set of pictures."""

    retrieval_at_1: float | None = Field(default=None, ge=0, le=1)
    retrieval_interval: tuple[float, float] | None = None
    frechet: float | None = Field(default=None, ge=0)
    psnr_db: float | None = None
    psnr_db_worst: float | None = None
    ssim: float | None = None
    ssim_worst: float | None = None


class GapForm(Form):
    difference: float
    low: float
    high: float
    better: bool | None = None


class PictureForm(Form):
    prompt: str
    seed: int
    reference: str
    compressed: str
    equal_compute: str


class LayerForm(Form):
    name: str
    macs: float = Field(ge=0)
    cut: float = Field(ge=0, le=1)
    runs: dict[str, float]
    held: list[str]


class EvaluationForm(SideForm):
    """`edgediff evaluate --json`."""

    reference: SideForm
    equal_compute: SideForm
    against_equal_compute: dict[str, GapForm] = {}
    reasons: dict[str, str] = {}
    guidance: dict[str, object] = {}
    seeds: list[int] = []
    pictures: list[PictureForm] = []
    layers: list[LayerForm] = []
