"""A training's state as one safetensors file, and its loss curve as JSON lines.

The state holds all that the next step depends on: the trained and the averaged weights, the optimizer's moments, the
running means. It is written beside the old one and renamed. What a step draws depends on its number alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgediff.errors import MethodError, OutputError

FORMAT = "edgediff distillation 1"
MOMENTS = "optimizer/"


def save_state(path: Path, tensors: Mapping[str, Tensor], *, step: int, task: str) -> None:
    """Writes the file whole or not at all. `task` says what is trained on what: see `load_state`."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, partial, {"format": FORMAT, "step": str(step), "task": task})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"the checkpoint cannot be written: {error.strerror}", where=str(path)) from error


def load_state(path: Path, *, task: str) -> tuple[dict[str, Tensor], int]:
    """The tensors and the step. Raises MethodError for a file that is none, and for another task's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MethodError(f"is not a checkpoint: {error}", where=str(path), code="checkpoint") from error
    if about.get("format") != FORMAT or about.get("task") != task:
        raise MethodError(
            "is the checkpoint of another distillation (other weights, cuts, settings or samples); resume with what "
            "it was started with, or start anew with --overwrite",
            where=str(path),
            code="checkpoint",
        )
    return tensors, int(about["step"])


def optimizer_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """An optimizer's `state_dict()` as flat tensors; its rates are a function of the step."""
    return {
        f"{MOMENTS}{index}/{key}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for key, value in values.items()
    }


def optimizer_state(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What `optimizer_tensors` made flat, for `load_state_dict`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(MOMENTS):
            index, key = name.removeprefix(MOMENTS).split("/")
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": groups}


class LossLog:
    """`losses.jsonl`: a line for every probe, nothing in it but what the training computes."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Lines after `step` are forgotten: they are of a run that was killed and will be made again."""
        kept: list[str] = []
        if step and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._path = path

    def write(self, row: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, sort_keys=True) + "\n")


def read_losses(path: Path) -> list[dict[str, float]]:
    """The curve that `LossLog` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
