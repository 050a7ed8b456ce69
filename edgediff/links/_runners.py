"""What runs a bundle on a device: a folder that `build_runner` made, or any one program that keeps to the same lines.

A runner's folder is self-contained: the program, ExecuTorch's libraries, and the C library with its loader, so that it
runs on any Linux kernel of its architecture, whatever system lies above it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgediff.config import Model, cache_folder, read_outside
from edgediff.errors import LinkError

DESCRIPTION = "runner.json"
ARCHITECTURES = {"arm64-v8a": "aarch64", "aarch64": "aarch64", "x86_64": "x86_64"}  # by the ABI that a device names


class RunnerFacts(Model):
    """`runner.json`. `command` is run inside the folder; `files` are SHA-256 by path, everything but this file."""

    name: str
    architecture: str
    backend: str
    runtime: str
    command: tuple[str, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class DeviceRunner:
    """A runner on this machine, ready to be pushed."""

    folder: Path
    facts: RunnerFacts


def read_runner(path: Path) -> DeviceRunner:
    """A folder with `runner.json`, or one program, which is taken to run as it is. Raises LinkError, ConfigError."""
    if path.is_dir():
        if not (path / DESCRIPTION).is_file():
            raise LinkError(f"has no {DESCRIPTION}; {how_to_build('aarch64')}", where=str(path), code="no_runner")
        return DeviceRunner(path, read_outside(path / DESCRIPTION, RunnerFacts))
    if not path.is_file():
        raise LinkError(f"is not there; {how_to_build('aarch64')}", where=str(path), code="no_runner")
    facts = RunnerFacts(
        name=path.name,
        architecture="",
        backend="",
        runtime="",
        command=(f"./{path.name}",),
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    )
    return DeviceRunner(path.parent, facts)


def find_runner(abi: str) -> DeviceRunner:
    """The runner that was built for a device of this ABI. Raises LinkError, with the command that builds it."""
    architecture = ARCHITECTURES.get(abi)
    if architecture is None:
        raise LinkError(
            f"no runner can be built for the ABI '{abi}' (known: {', '.join(ARCHITECTURES)}); give one with --runner",
            code="no_runner",
        )
    folder = built_folder(architecture)
    if not (folder / DESCRIPTION).is_file():
        message = f"there is no runner for {architecture} in {folder}; {how_to_build(architecture)}"
        raise LinkError(message, code="no_runner")
    return read_runner(folder)


def built_folder(architecture: str) -> Path:
    """Where `build_runner` puts the runner of an architecture."""
    return cache_folder() / "runners" / architecture


def how_to_build(architecture: str) -> str:
    """The end of an error about a runner that is missing."""
    return f"build it: python -m edgediff.links._build_runner --architecture {architecture}"
