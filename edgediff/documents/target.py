"""A target: a device as data. Every figure names its source or says that it has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from edgediff.config import Model, read_outside
from edgediff.documents.recipe import config_names, find_config
from edgediff.errors import did_you_mean
from edgediff.runtime.precision import PRECISIONS, Precision

UnitName = Literal["cpu", "gpu", "npu"]
FormFactor = Literal["any", "phone", "tablet", "laptop", "desktop", "board", "microcontroller", "server"]

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
    """How one backend is used on this device. `guidance`: both prompts in one batch, or one after the other.

    `precision` is what graphs store and compute where the recipe does not say it (a word of `runtime.precision` that
    the backend serves). `unit` is the compute unit that does the work, `precisions` what runs there at speed,
    `constraints` what a model must keep to or it leaves that unit, in words.
    """

    renamed: ClassVar[dict[str, str]] = {"weights": f"write precision, one of {', '.join(PRECISIONS)}"}

    precision: Precision = "fp32"
    guidance: Literal["batched", "sequential"] = "batched"
    format: Literal["onnx", "ort", "mlpackage", "pte", "ptd"] = "onnx"
    delegate: str | None = None
    threads: int | None = Field(default=None, ge=1)
    unit: UnitName = "cpu"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
    constraints: tuple[str, ...] = ()


class CoreMLTable(BackendTable):
    """`deployment` is the oldest release that must run the programs: iOS 18 has several functions over one set of
    weights, and attention as one operation. `attention`: that operation (`sdpa`); per head with channels first, for
    the Neural Engine (`split_einsum`, `query_chunk` queries at a time; 0: all); two products and a softmax
    (`original`, for the GPU). `islands` are the parts left in fp32 in an fp16 program (`auto`: chosen by measured
    parity). `cache`: cached features cross as inputs and outputs (`io`), or stay inside as Core ML's state, which is
    fp16 and iOS 18's (`state`). `chunks` 2 makes the denoiser two packages of about half the weights, which small
    phones load where they cannot load the whole.
    """

    precision: Precision = "fp16"
    unit: UnitName = "npu"
    format: Literal["onnx", "ort", "mlpackage", "pte", "ptd"] = "mlpackage"
    deployment: Literal["iOS16", "iOS17", "iOS18"] = "iOS18"
    attention: Literal["sdpa", "split_einsum", "original"] = "sdpa"
    query_chunk: int = Field(default=0, ge=0)
    islands: Literal["auto"] | tuple[Literal["time", "norm", "softmax"], ...] = "auto"
    cache: Literal["io", "state"] = "io"
    chunks: Literal[1, 2] = 1


class ExecuTorchTable(BackendTable):
    """`delegate` is `xnnpack` (the default), `coreml`, `vulkan`, `ethos-u` or `qnn`; with `fallback`, operators that
    it cannot take may run elsewhere (XNNPACK, then the CPU's own kernels), else they are an error. `format`: `ptd`
    keeps XNNPACK's weights in a file of their own. `query_chunk` queries of attention at a time (0: all) bound its
    memory. `chip` is the delegate's word for the hardware (`ethos-u85-256`, `SM8650`), where it wants one; `system`
    and `memory` are Vela's words for what is around an Ethos-U (empty: what ExecuTorch takes for the chip). There
    precision `w8a16` halves the rate of `w8a8`, and is 12 dB nearer to fp32 (Ethos-U85; smaller ones leave parts of a
    graph with it to the CPU).
    """

    renamed: ClassVar[dict[str, str]] = {
        **BackendTable.renamed,
        "activation_bits": 'write precision = "w8a8" for 8, "w8a16" for 16',
    }

    format: Literal["onnx", "ort", "mlpackage", "pte", "ptd"] = "pte"
    fallback: bool = False
    query_chunk: int = Field(default=0, ge=0)
    chip: str = ""
    system: str = ""
    memory: str = ""


class LinkTable(Model):
    """How to reach the device."""

    kind: str = "host"


class Target(Model):
    """One target file; see `targets/host.toml`. Memory in GB (10^9 bytes), bandwidth in GB/s.

    `memory_ceiling_gb` is what one app may hold before the system ends it. `unverified` names the figures that
    nothing vouches for, `sources` says what vouches for the others. `silicon` names the chip in the calibration
    data of the estimator, where it is there. `thermal` is what long runs do to the device, in words.
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
    onnxruntime: BackendTable = BackendTable()
    eager: BackendTable = BackendTable()
    cuda: BackendTable = BackendTable(unit="gpu")
    coreml: CoreMLTable = CoreMLTable()
    executorch: ExecuTorchTable = ExecuTorchTable()
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
        """The table of a backend, its defaults when the file has none or the backend comes from outside."""
        table = getattr(self, name, None)
        return table if isinstance(table, BackendTable) else BackendTable()

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
    return read_outside(find_config("target", target), Target)


def list_targets() -> list[str]:
    """Names of the targets in the package."""
    return config_names("target")
