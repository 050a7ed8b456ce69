"""What was found out about a bundle: section 8 of `docs/format.md`. No runtime reads it to make a picture.

Decibels are PSNR with the reference's largest magnitude as peak (pictures: 255).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from edgediff.config import Model, describe_error
from edgediff.errors import BundleError
from edgediff.runtime.latency import LatencyTable, Verdict


class GraphParity(Model):
    """One graph on recorded inputs, against PyTorch. A value that is NaN or infinite makes `finite` False."""

    psnr_db: float
    max_abs: float = Field(ge=0)
    finite: bool = True
    floor_db: float
    precision: str = ""

    @property
    def ok(self) -> bool:
        """Whether it keeps its floor."""
        return self.finite and self.psnr_db >= self.floor_db


class TrajectoryParity(Model):
    """The latent after every row, the backend on its own; `worst_step` counts from 0. It has no floor: its end has."""

    worst_step: int = Field(ge=0)
    psnr_db: float
    finite: bool = True
    problem: str | None = None


class PictureParity(Model):
    """The picture or the sound at the end."""

    psnr_db: float
    floor_db: float


class ProgramParity(Model):
    """One program, from the same noise as PyTorch."""

    trajectory: TrajectoryParity
    image: PictureParity

    @property
    def ok(self) -> bool:
        """Whether the picture keeps its floor."""
        return self.trajectory.finite and self.image.psnr_db >= self.image.floor_db


class BackendParity(Model):
    """One backend. `executed_by`: what computed its artifacts: its own runtime, or what stood in for it here."""

    executed_by: str
    stand_in: bool = False
    graphs: dict[str, GraphParity]
    programs: dict[str, ProgramParity]

    @property
    def ok(self) -> bool:
        """Whether all graphs and programs are."""
        return all(graph.ok for graph in self.graphs.values()) and all(one.ok for one in self.programs.values())


class Reading(Model):
    """Our reading of the model against its own pipeline, from the same noise: `against` is that pipeline's class, or
    None with the reason in `why`. `first_deviation` says where they part, in words."""

    against: str | None = None
    why: str | None = None
    latent_db: float | None = None
    picture_db: float | None = None
    first_deviation: str | None = None

    @model_validator(mode="after")
    def _compared_or_why(self) -> Reading:
        measured = (self.latent_db, self.picture_db)
        if self.against is None and (self.why is None or measured != (None, None)):
            raise ValueError("a reading that was compared with nothing says why, and has no decibels")
        if self.against is not None and None in measured:
            raise ValueError("a reading that was compared has latent_db and picture_db")
        return self


class Parity(Model):
    """What `verify` found. `ok`: every backend keeps every floor, and the reading is the model's own."""

    ok: bool
    reading: Reading
    backends: dict[str, BackendParity]
    prompt: str
    seed: int = Field(ge=0)
    seconds: float = Field(ge=0)

    def report(self, default: str) -> dict[str, Any]:
        """The JSON of `edgediff verify`: each backend's graphs, the default program's trajectory and image under the
        names that other programs rely on, and all programs beside them."""
        whole: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for name, backend in whole["backends"].items():
            found = self.backends[name]
            backend["ok"] = found.ok
            backend["stand_in"] = found.executed_by if found.stand_in else ""
            for graph, one in found.graphs.items():
                backend["graphs"][graph]["ok"] = one.ok
            for program, made in found.programs.items():
                backend["programs"][program]["image"]["ok"] = made.ok
            backend |= backend["programs"].get(default, {})
        return whole


class Figure(Model):
    """A mean over pictures with its 95 % interval."""

    value: float
    low: float
    high: float


Metrics = dict[str, Figure]


class EqualCompute(Model):
    """The untouched model with so few steps that it costs what the program costs."""

    sampler: str
    steps: int = Field(ge=1)
    metrics: Metrics


class Quality(Model):
    """What `evaluate` found of one program: its figures, and those of the untouched model on the same prompts."""

    metrics: Metrics
    prompts: int = Field(ge=1)
    seeds: int = Field(ge=1)
    dataset: str
    reference: Metrics
    equal_compute: EqualCompute


class Side(Model):
    """One of the two that were compared."""

    bundle: str
    program: str


class Ratio(Model):
    """The time of b over that of a: the median of pairs with its 95 % interval."""

    median: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class Comparison(Model):
    """What `compare` found: whether b is faster than a."""

    a: Side
    b: Side
    ratio: Ratio
    n: int = Field(ge=1)
    verdict: Verdict


class Evidence(Model):
    """All of it; `quality` and `profile` by program."""

    parity: Parity | None = None
    quality: dict[str, Quality] = {}
    comparison: Annotated[tuple[Comparison, ...], Field(max_length=4096)] = ()
    profile: dict[str, LatencyTable] = {}


def read_evidence(value: Mapping[str, Any], where: str) -> Evidence:
    """A manifest's `evidence`. Raises BundleError (`evidence`), naming the key."""
    try:
        return Evidence.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        refused = describe_error(error, Evidence, where=where)
        raise BundleError(f"evidence: {refused.message}", where=where, code="evidence") from None


def merge_evidence(old: Evidence, new: Evidence) -> Evidence:
    """`new` over `old`: of the same program, or of the same pair, what is new counts."""
    pairs = [(one.a, one.b) for one in new.comparison]
    return Evidence(
        parity=new.parity if new.parity is not None else old.parity,
        quality={**old.quality, **new.quality},
        comparison=(*(one for one in old.comparison if (one.a, one.b) not in pairs), *new.comparison),
        profile={**old.profile, **new.profile},
    )
