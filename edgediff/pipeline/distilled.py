"""A distilled network on disk: what it was made from, which units it lacks, and the hash of its weights.

A folder that `edgediff distill` wrote has `distilled.json` (written last), `unet/` with config, cuts and weights
(`variants.save_network`), `phases.safetensors` with the tensors that are others in later phases of the timesteps (if
it has any), and `losses.jsonl`. It is a MODEL like any other: its pipeline is the base's, and a plan
for it names both hashes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgediff.config import Model, read_outside
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable
from edgediff.errors import ModelError

RECORD, NETWORK, WEIGHTS, PHASES = "distilled.json", "unet", "model.safetensors", "phases.safetensors"
CHECKPOINT, LOSSES = "checkpoint.safetensors", "losses.jsonl"


class Base(Model):
    """The untouched model: MODEL as it was given, and the SHA-256 over its weights."""

    model: str
    revision: str | None = None
    weights: str


class Lora(Model):
    """A LoRA fused into the base before it was cut: file name, SHA-256, scale; targets `lost` to the cuts."""

    file: str
    sha256: str
    scale: float
    targets: int
    lost: tuple[str, ...] = ()


class Phases(Model):
    """Equal parts of the `times` training timesteps, the noisiest first, each with its own tensors of these `names`;
    `weights` is the SHA-256 of the file that holds them."""

    count: int = Field(ge=2)
    times: int = Field(ge=1)
    names: tuple[str, ...] = Field(min_length=1)
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")

    def at(self, timestep: float) -> int:
        """The phase of a timestep."""
        return self.count - 1 - min(max(int(timestep * self.count / self.times), 0), self.count - 1)


class Distilled(Model):
    """`prune` are the recipe's `[[prune]]` tables that chose the cuts, `weights` the SHA-256 of the network's
    file, `samples` what it was trained on. `probe`: mean squared distance of the output from the untouched network's
    on fixed samples, right after the cut and at the end."""

    schema_version: Literal["1.0"] = "1.0"
    base: Base
    recipe_name: str
    prune: tuple[dict[str, Any], ...] = ()
    cuts: tuple[Cut, ...] = Field(min_length=1)
    settings: DistillTable
    samples: str
    processes: int = Field(default=1, ge=1)
    probe: tuple[float, float] | None = None
    lora: Lora | None = None
    phases: Phases | None = None
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all weights: the file's own where there is one."""
        if self.phases is None:
            return self.weights
        return hashlib.sha256(f"{self.weights} {self.phases.weights}".encode()).hexdigest()


@dataclass(frozen=True)
class DistilledFolder:
    """A finished distillation and where it lies, as it was given."""

    path: Path
    record: Distilled


def is_distilled(folder: Path) -> bool:
    """Whether `edgediff distill` made this folder, finished or not."""
    return (folder / RECORD).is_file() or (folder / CHECKPOINT).is_file()


def read_distilled(folder: Path) -> Distilled:
    """Raises ModelError for a distillation that is not finished or whose weights are not those it wrote,
    ConfigError for a record that does not say what it must."""
    if not (folder / RECORD).is_file():
        raise ModelError(
            "is an unfinished distillation; finish it: edgediff distill ... --out FOLDER --resume",
            where=str(folder),
            code="unfinished",
        )
    record = read_outside(folder / RECORD, Distilled)
    files = {folder / NETWORK / WEIGHTS: record.weights}
    if record.phases is not None:
        files[folder / PHASES] = record.phases.weights
    for file, wanted in files.items():
        if not file.is_file():
            raise ModelError("the distilled weights are missing", where=str(file), code="missing_part")
        if hash_file(file) != wanted:
            raise ModelError(
                f"has other bytes than {RECORD} says; distil again or restore the file", where=str(file), code="hash"
            )
    return record


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
