"""The loop that all three trainings share: a budget, a schedule, an average of the weights, exact resumption.

A checkpoint holds everything the next step depends on (weights, optimizer, average, random generators, counts), and it
is written beside the old one and renamed, so that a killed run loses minutes and never its file.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgediff.embedded.training_settings import Settings, TrainingError

WARM_UP_STEPS = 200
CLIP_NORM = 1.0
AVERAGE_DECAY = 0.999

Weights = dict[str, torch.Tensor]
Loss = Callable[[torch.Generator, int], torch.Tensor]


class Training:
    """One network in training. `loss(generator, count) -> scalar` draws its own samples from a CPU generator."""

    def __init__(
        self, module: nn.Module, loss: Loss, settings: Settings, groups: list[dict[str, Any]] | None = None
    ) -> None:
        """`groups`: parameter groups of the optimizer; "scale" in one multiplies the rate (1 where it is absent)."""
        self.module, self.loss, self.settings = module.to(settings.device), loss, settings
        groups = groups or [{"params": list(module.parameters())}]
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, settings.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.generators = [torch.Generator().manual_seed(1000 * settings.seed + i) for i in range(settings.workers)]
        self.step, self.seconds, self.recent = 0, 0.0, 0.0
        if settings.checkpoint.is_file():
            self._load()

    def run(self) -> Weights:
        """Trains to the end of the budget; returns the averaged weights. Ctrl-C finishes the step and saves."""
        one_core = (torch.set_num_threads, (1,)) if self.settings.workers > 1 else (None, ())
        with ThreadPoolExecutor(self.settings.workers, "worker", *one_core) as self.pool, _held_interrupt() as asked:
            self._run_budget(asked)
        self.save()
        if asked:
            raise KeyboardInterrupt
        return self.average

    def _run_budget(self, asked: list[int]) -> None:
        clock = saved = logged = time.monotonic()
        logged_step = self.step
        while not asked and (done := self.settings.budget.progress(self.step, self.seconds)) < 1.0:
            self._take_step(done)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if now - logged > self.settings.log_seconds:
                self._log(done, (self.step - logged_step) / (now - logged))
                logged, logged_step = now, self.step
            if now - saved > self.settings.save_seconds:
                self.save()
                saved = now

    def _take_step(self, done: float) -> None:
        rate = self.settings.rate * min(1.0, (self.step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * rate
        loss = self._sum_gradients()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}; continue from the checkpoint with a lower rate",
                where=str(self.settings.checkpoint),
            )
        nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._update_average()
        self.recent = loss if self.step == 1 else 0.98 * self.recent + 0.02 * loss

    def _sum_gradients(self) -> float:
        """Leaves the mean gradient over the workers in the parameters; returns the mean loss."""
        parts = list(self.pool.map(self._part_gradients, self.generators))
        total = parts[0][1]
        for _, gradients in parts[1:]:
            torch._foreach_add_(total, gradients)
        if len(parts) > 1:
            torch._foreach_div_(total, len(parts))
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient
        return sum(loss for loss, _ in parts) / len(parts)

    def _part_gradients(self, generator: torch.Generator) -> tuple[float, list[torch.Tensor]]:
        loss = self.loss(generator, self.settings.batch // self.settings.workers)
        return float(loss.detach()), list(torch.autograd.grad(loss, self.parameters))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        now = self.module.state_dict()
        floats = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floats], [now[k] for k in floats], 1 - decay)

    def _log(self, done: float, steps_per_second: float) -> None:
        left = self.seconds * (1 - done) / max(done, 1e-9)
        print(
            f"{time.strftime('%H:%M:%S')} {self.settings.name} step {self.step} "
            f"{steps_per_second * self.settings.batch:.1f} samples/s loss {self.recent:.5f} "
            f"done {100 * done:.1f}% eta {left / 60:.0f} min",
            flush=True,
        )

    def save(self) -> None:
        path = self.settings.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "generators": [generator.get_state() for generator in self.generators],
            "counts": (self.step, self.seconds, self.recent),
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def _load(self) -> None:
        path = self.settings.checkpoint
        try:
            state = torch.load(path, map_location=self.settings.device, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            for generator, saved in zip(self.generators, state["generators"], strict=True):
                generator.set_state(saved.cpu())
            self.average, (self.step, self.seconds, self.recent) = state["average"], state["counts"]
        except (RuntimeError, KeyError, ValueError) as cause:
            raise TrainingError(
                "this checkpoint does not fit (was it written by another network or number of workers?); "
                "move it away to start anew",
                where=str(path),
            ) from cause
        print(f"{self.settings.name}: continues at step {self.step}", flush=True)


@contextmanager
def _held_interrupt() -> Iterator[list[int]]:
    """Notes Ctrl-C in the list instead of raising it: half a step must not be saved. Other threads get none anyway."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def load_average(settings: Settings) -> Weights:
    """The averaged weights of a checkpoint, on the CPU."""
    if not settings.checkpoint.is_file():
        raise TrainingError(
            f"no checkpoint; run `python -m edgediff.embedded.train {settings.name}` first",
            where=str(settings.checkpoint),
        )
    average: Weights = torch.load(settings.checkpoint, map_location="cpu", weights_only=True)["average"]
    return average
