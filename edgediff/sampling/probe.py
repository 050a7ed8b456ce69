"""What is put into a scheduler to read it: basis vectors, a noise source, tables that numpy can take."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from edgediff.sampling.recurrence import C, Coefficients, Z

_PATCH = threading.Lock()


class Recorder:
    """Unit vectors over the basis X_0.., E_0.., Z_0.., C_0.., shaped (1, 1, 4 * rows); what was clamped."""

    def __init__(self, rows: int) -> None:
        self.rows, self.row = rows, 0
        self.drawn = -1
        self.clamps: dict[int, tuple[Coefficients, float]] = {}
        self.tensor = type("_BoundProbe", (_Probe,), {"recorder": self})

    def unit(self, kind: int) -> torch.Tensor:
        vector = torch.zeros(1, 1, 4 * self.rows, dtype=torch.float64)
        vector[0, 0, kind * self.rows + self.row] = 1.0
        return vector.as_subclass(self.tensor)

    def coefficients(self, vector: torch.Tensor) -> Coefficients:
        """(4, rows) float64: what multiplies each X, E, Z, C."""
        return vector.as_subclass(torch.Tensor).reshape(4, self.rows).numpy().copy()

    def draw(self) -> torch.Tensor:
        if self.drawn == self.row:
            raise RuntimeError("it draws noise twice in one step, and a step table holds one draw per row")
        self.drawn = self.row
        return self.unit(Z)

    def clamp(self, argument: torch.Tensor, min: Any = None, max: Any = None) -> torch.Tensor:
        if self.row in self.clamps or min is None or max is None or float(min) != -float(max):
            raise RuntimeError(f"it clamps to [{min}, {max}]; a step table holds one clamp to +-limit a row")
        self.clamps[self.row] = (self.coefficients(argument), float(max))
        return self.unit(C)


class Float64(torch.Tensor):
    """Stays float64 when a scheduler 'upcasts' to float32."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.to, torch.Tensor.float, torch.Tensor.type):
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


class _Probe(Float64):
    """Coefficients over the basis, whose clamp is recorded instead of done."""

    recorder: Recorder

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.clamp, torch.clip, torch.Tensor.clamp, torch.Tensor.clip):
            return cls.recorder.clamp(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


@contextlib.contextmanager
def noise_from(scheduler: Any, draw: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Makes `draw` the noise source of the scheduler's module for as long as the block runs."""
    module: Any = sys.modules[type(scheduler).__module__]
    with _PATCH:
        original = getattr(module, "randn_tensor", None)
        if original is None:
            yield
            return
        module.randn_tensor = lambda *_, **__: draw()
        try:
            yield
        finally:
            module.randn_tensor = original


class _Readable(torch.Tensor):
    """Takes numpy's `copy`, which `torch.Tensor.__array__` does not (numpy warns, then asks again)."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.as_subclass(torch.Tensor).numpy(), dtype, copy=copy)


@contextlib.contextmanager
def readable_by_numpy(scheduler: Any) -> Iterator[None]:
    """Lets `np.array` read what a scheduler computes of its `alphas_cumprod` as long as the block runs."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, torch.Tensor):
        yield
        return
    scheduler.alphas_cumprod = table.as_subclass(_Readable)
    try:
        yield
    finally:
        for name, value in list(vars(scheduler).items()):
            if isinstance(value, _Readable):
                setattr(scheduler, name, value.as_subclass(torch.Tensor))
