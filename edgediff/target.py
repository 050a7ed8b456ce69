"""A target: a device as data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgediff.config import Model, read_toml
from edgediff.recipe import Weights, config_names, find_config


class ComputeUnit(Model):
    """Peak rates of a CPU, GPU or NPU; each figure with its source, or marked unverified."""

    fp32_gflops: float | None = Field(default=None, gt=0)
    fp16_gflops: float | None = Field(default=None, gt=0)
    int8_gops: float | None = Field(default=None, gt=0)
    cores: int | None = Field(default=None, ge=1)
    source: str = ""
    unverified: bool = False


class BackendTable(Model):
    """How one backend is used on this device. `guidance`: both prompts in one batch, or one after the other."""

    weights: Weights = "fp32"
    guidance: Literal["batched", "sequential"] = "batched"
    format: Literal["onnx", "ort"] = "onnx"
    delegate: str | None = None
    threads: int | None = Field(default=None, ge=1)


class LinkTable(Model):
    """How to reach the device."""

    kind: str = "host"


class Target(Model):
    """One target file; see `targets/host.toml`. Memory in GB (10^9 bytes)."""

    name: str = Field(min_length=1)
    soc: str = ""
    os: str = ""
    backends: tuple[str, ...] = Field(min_length=1)
    memory_gb: float | None = Field(default=None, gt=0)
    memory_ceiling_gb: float | None = Field(default=None, gt=0)
    bandwidth_gbps: float | None = Field(default=None, gt=0)
    cpu: ComputeUnit | None = None
    gpu: ComputeUnit | None = None
    npu: ComputeUnit | None = None
    onnxruntime: BackendTable = BackendTable()
    eager: BackendTable = BackendTable()
    cuda: BackendTable = BackendTable()
    coreml: BackendTable = BackendTable(weights="fp16")
    executorch: BackendTable = BackendTable()
    link: LinkTable = LinkTable()

    def backend(self, name: str) -> BackendTable:
        """The table of a backend, its defaults when the file has none or the backend comes from outside."""
        table = getattr(self, name, None)
        return table if isinstance(table, BackendTable) else BackendTable()


def load_target(target: str | Path | Target) -> Target:
    """A target by name (`host`), by file, or as it is. Raises ConfigError."""
    if isinstance(target, Target):
        return target
    return read_toml(find_config("target", target), Target)


def list_targets() -> list[str]:
    """Names of the targets in the package."""
    return config_names("target")
