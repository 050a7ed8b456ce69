"""A target: a device as data. Every figure names its source or says that it has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, create_model, model_validator

from edgediff.config import Model, load_toml, parse
from edgediff.documents.recipe import config_names, find_config
from edgediff.errors import ConfigError, did_you_mean
from edgediff.plugins import load_plugin, plugin_names
from edgediff.runtime.precision import PRECISIONS, Precision

UnitName = Literal["cpu", "gpu", "npu"]
FormFactor = Literal["any", "phone", "tablet", "laptop", "desktop", "board", "microcontroller", "server"]

TABLES = ("sources", "cpu", "gpu", "npu", "cuda", "link")
RATES = ("fp32_gflops", "fp16_gflops", "int8_gops")
FIGURES = ("memory_gb", "memory_ceiling_gb", "bandwidth_gbps")


class ComputeUnit(Model):
    """Peak rates of a CPU, GPU or NPU; with their source, or marked unverified.

    A multiply-accumulate counts as two operations, rates are dense (no sparsity), all cores together.
    `architecture` is what the estimator's coefficients are kept by (`hexagon-v75`, `ane`, `arm`, `x86`, `cuda`,
    ...); `sram_mb` is the memory on the chip that a layer's tensors may stay in.
    """

    name: str = ""
    architecture: str = ""
    fp32_gflops: float | None = Field(default=None, gt=0)
    fp16_gflops: float | None = Field(default=None, gt=0)
    int8_gops: float | None = Field(default=None, gt=0)
    cores: int | None = Field(default=None, ge=1)
    sram_mb: float | None = Field(default=None, gt=0)
    source: str = ""
    unverified: bool = False


class BackendTable(Model):
    """How one backend is used on this device: what every backend's `Settings` begin with. `guidance`: both prompts in
    one batch, or one after the other. `format` is the backend's word for the files that it writes.

    `precision` is what graphs store and compute where the recipe does not say it (a word of `runtime.precision` that
    the backend serves). `unit` is the compute unit that does the work, `precisions` what runs there at speed,
    `constraints` what a model must keep to or it leaves that unit, in words.
    """

    renamed: ClassVar[dict[str, str]] = {"weights": f"write precision, one of {', '.join(PRECISIONS)}"}

    precision: Precision = "fp32"
    guidance: Literal["batched", "sequential"] = "batched"
    format: str = ""
    delegate: str | None = None
    threads: int | None = Field(default=None, ge=1)
    unit: UnitName = "cpu"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
    constraints: tuple[str, ...] = ()


Table = TypeVar("Table", bound=BackendTable)


class LinkTable(Model):
    """How to reach the device."""

    kind: str = "host"


class Target(Model):
    """One target file; see `targets/host.toml`. Memory in GB (10^9 bytes), bandwidth in GB/s.

    `memory_ceiling_gb` is what one app may hold before the system ends it. `unverified` names the figures that
    nothing vouches for, `sources` says what vouches for the others. `silicon` names the chip in the calibration
    data of the estimator, where it is there. `thermal` is what long runs do to the device, in words.
    A target that is read has the table of each backend besides, see `target_model`; `cuda` is there for the estimator.
    """

    name: str = Field(min_length=1)
    form_factor: FormFactor = "any"
    soc: str = ""
    silicon: str = ""
    os: str = ""
    backends: tuple[str, ...] = Field(min_length=1)
    memory_gb: float | None = Field(default=None, gt=0)
    memory_ceiling_gb: float | None = Field(default=None, gt=0)
    bandwidth_gbps: float | None = Field(default=None, gt=0)
    unverified: tuple[str, ...] = ()
    sources: dict[str, str] = {}
    thermal: str = ""
    cpu: ComputeUnit | None = None
    gpu: ComputeUnit | None = None
    npu: ComputeUnit | None = None
    cuda: BackendTable = BackendTable(unit="gpu")
    link: LinkTable = LinkTable()

    @model_validator(mode="after")
    def _figures_exist(self) -> Target:
        for where, names in (("unverified", self.unverified), ("sources", tuple(self.sources))):
            for name in names:
                if name not in FIGURES:
                    raise ValueError(f"{where} names '{name}'{did_you_mean(name, FIGURES)}")
        if self.memory_gb and self.memory_ceiling_gb and self.memory_ceiling_gb > self.memory_gb:
            raise ValueError("memory_ceiling_gb is above memory_gb: an app cannot hold more than there is")
        return self

    def backend(self, name: str) -> BackendTable:
        """The table of a backend, its defaults when the file has none."""
        if name in type(self).model_fields:
            table: BackendTable = getattr(self, name)
            return table
        return _settings(name)() if name in plugin_names("backends") else BackendTable()

    def settings(self, name: str, model: type[Table]) -> Table:
        """The table of a backend as its own `Settings`. Raises ConfigError for a table of another backend."""
        table = self.backend(name)
        if not isinstance(table, model):
            raise ConfigError(f"[{name}] of '{self.name}' is a {type(table).__name__}, not a {model.__name__}")
        return table

    def unit(self, name: UnitName) -> ComputeUnit | None:
        """The compute unit `cpu`, `gpu` or `npu`, if the file describes it."""
        found: ComputeUnit | None = getattr(self, name)
        return found

    def compute_units(self) -> Iterator[tuple[UnitName, ComputeUnit]]:
        """The compute units that the file describes."""
        for name in ("cpu", "gpu", "npu"):
            if (unit := self.unit(name)) is not None:  # type: ignore[arg-type]
                yield name, unit  # type: ignore[misc]

    def unverified_figures(self) -> tuple[str, ...]:
        """Every figure of this file without a source: `memory_gb`, `npu.int8_gops` ... What is computed from
        them bears the mark on."""
        found = [
            name
            for name in FIGURES
            if getattr(self, name) is not None and (name in self.unverified or not self.sources.get(name))
        ]
        for name, unit in self.compute_units():
            if unit.unverified or not unit.source:
                found += [f"{name}.{rate}" for rate in RATES if getattr(unit, rate) is not None]
        return tuple(found)


def load_target(target: str | Path | Target) -> Target:
    """A target by name (`host`), by file, or as it is. Raises ConfigError."""
    if isinstance(target, Target):
        return target
    path = find_config("target", target)
    return parse_target(load_toml(path), where=str(path))


def parse_target(data: Mapping[str, Any], *, where: str) -> Target:
    """A target from plain data. Raises ConfigError for bad values, and for the table of a backend that is not here."""
    known, tables = plugin_names("backends"), [key for key, value in data.items() if isinstance(value, dict)]
    for name in tables:
        if name not in known and name not in Target.model_fields:
            allowed = [*known, *(key for key in Target.model_fields if key in TABLES)]
            raise ConfigError(
                f"[{name}] is no table of a target and no backend that is installed"
                f"{did_you_mean(name, allowed)}; a backend of another package comes with that package, through its "
                "entry point in the group edgediff.backends",
                where=where,
                code="unknown_backends",
            )
    listed = data.get("backends", ())
    named = {*tables, *(name for name in listed if isinstance(name, str))} if isinstance(listed, list) else {*tables}
    return parse(data, target_model(named & {*known}), where=where, strict=True)


def target_model(backends: Iterable[str]) -> type[Target]:
    """`Target` with the table of each of these backends, as their `Settings` say."""
    tables: dict[str, Any] = {}
    for name in sorted(backends):
        if name not in Target.model_fields:
            settings = _settings(name)
            tables[name] = (settings, settings())
    made: type[Target] = create_model("Target", __base__=Target, __doc__=Target.__doc__, **tables)
    return made


def _settings(backend: str) -> type[BackendTable]:
    found: type[BackendTable] = load_plugin("backends", backend).Settings
    return found


def list_targets() -> list[str]:
    """Names of the targets in the package."""
    return config_names("target")
