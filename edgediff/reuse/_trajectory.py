"""The reference's trajectories as inner products: what every search over skipped calls needs, and no more.

With P_i the output for the prompt, D_i its difference from the empty prompt's and x_i the latent, whatever a
single-step sampler does with held, mixed or forecast outputs lies in their span. So the Gram matrix of these
vectors over the calibration prompts gives the error of any way of skipping in closed form, to first order around
the reference, without another network call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import MethodError
from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.runtime.steps import StepTable

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.sampling.rollout import Rollout

Floats = NDArray[np.float64]

PROBES = 8  # calls at which the growth of an error is measured
PROBE_PROMPTS = 6
RIDGE = 1e-6  # of the mean squared regressor; forecasts from nearly equal outputs are ill-posed without it


def check_table(table: StepTable, method: str) -> None:
    """Raises MethodError unless each row reads one latent and one output, without noise or clipping."""
    for index, row in enumerate(table.rows):
        update = row.update
        if len(update.x) != 1 or len(update.e) != 1 or update.noise or update.clip is not None:
            raise MethodError(
                f"{method} needs a sampler whose step is x' = a x + b e, such as ddim, euler or flow_match_euler; "
                f"'{table.sampler}' has more at call {index}",
                code="sampler",
            )


def record(rollout: Rollout, setting: Setting, method: str, progress: Progress | None = None) -> dict[str, Any]:
    """`gram`, the mean inner products per value of [P_0.., D_0.., x_0.., x_n], and `gain`, by which the squared
    error of x_j has grown when the last latent is reached (measured at some j, interpolated between)."""
    import torch

    check_table(setting.table, method)
    count = setting.calls
    gram = np.zeros((3 * count + 1, 3 * count + 1))
    values = 0
    kept: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None
    for start in range(0, len(rollout.prompts), rollout.batch):
        part = slice(start, min(start + rollout.batch, len(rollout.prompts)))
        prompts, differences, latents = _reference(rollout, setting, part, progress)
        stacked = torch.stack([v.flatten() for v in (*prompts, *differences, *latents)])
        gram += (stacked.double() @ stacked.double().T).cpu().numpy()
        values += stacked.shape[1]
        if kept is None:
            kept = (prompts, differences, latents)
    assert kept is not None
    trajectory = Trajectory(setting.table, setting.guidance, gram / values, np.ones(count + 1))
    gain = _measure_gain(rollout, setting, trajectory, kept, progress)
    return {"gram": [[float(v) for v in row] for row in gram / values], "gain": [float(v) for v in gain]}


def read(setting: Setting) -> Trajectory:
    """What `record` measured."""
    return Trajectory.of(setting, setting.measured)


@dataclass(frozen=True)
class Trajectory:
    """Closed forms over the recorded inner products."""

    table: StepTable
    guidance: tuple[float | None, ...]
    gram: Floats
    gain: Floats

    @classmethod
    def of(cls, setting: Setting, measured: dict[str, Any]) -> Trajectory:
        return cls(setting.table, setting.guidance, np.array(measured["gram"]), np.array(measured["gain"]))

    @property
    def calls(self) -> int:
        return len(self.table.rows)

    def guidance_weights(self, call: int, guided: tuple[int, ...]) -> tuple[float, ...]:
        """What multiplies the differences of the calls `guided` (newest first) in the output of `call`: the scale
        less one at a call that is guided itself, else times the least-squares forecast of its own difference."""
        scale = self.guidance[call]
        if scale is None or not guided:
            return ()
        if guided[0] == call:
            return (scale - 1.0,)
        places = [self.calls + each for each in guided]
        products = self.gram[np.ix_(places, places)]
        products = products + RIDGE * np.trace(products) / len(places) * np.eye(len(places))
        fitted = np.linalg.solve(products, self.gram[places, self.calls + call])
        return tuple(float(weight) * (scale - 1.0) for weight in fitted)

    def output(self, call: int, guided: tuple[int, ...]) -> Floats:
        """The output of call `call` in coordinates of the recorded vectors, made with the guidance differences of
        the calls `guided` (newest first; its own is alone; () for the prompt alone)."""
        vector = np.zeros(3 * self.calls + 1)
        vector[call] = 1.0
        for each, weight in zip(guided, self.guidance_weights(call, guided), strict=False):
            vector[self.calls + each] += weight
        return vector

    def latent(self, call: int) -> Floats:
        vector = np.zeros(3 * self.calls + 1)
        vector[2 * self.calls + call] = 1.0
        return vector

    def span(self, first: int, after: int) -> tuple[float, float, float]:
        """(a, b, c): from x at call `first` to x at call `after` is a x + b e_first + c e, when the same e stands in
        at all calls between."""
        keep, weights = 1.0, []
        for index in range(after - 1, first - 1, -1):
            weights.append(keep * self.table.rows[index].update.e[0])
            keep *= self.table.rows[index].update.x[0]
        return keep, weights[-1], float(sum(weights[:-1]))

    def skip(self, first: int, outputs: list[Floats], after: int, *, fit: bool = True) -> tuple[float, Floats]:
        """Mean squared error of x at call `after` when the calls since `first` are skipped, and the weights of
        `outputs` (newest first, that of `first` leading) in the stand-in: fitted by least squares, or all on the
        newest (`fit` False)."""
        keep, own, rest = self.span(first, after)
        miss = self.latent(after) - keep * self.latent(first) - own * outputs[0]
        if after == first + 1:
            return self._norm(miss), np.array([1.0])
        regressors = rest * np.stack(outputs)
        weights = np.zeros(len(outputs))
        weights[0] = 1.0
        miss = miss - regressors[0]
        if fit:
            products = regressors @ self.gram @ regressors.T
            products += RIDGE * np.trace(products) / len(outputs) * np.eye(len(outputs))
            change = np.linalg.solve(products, regressors @ (self.gram @ miss))
            weights, miss = weights + change, miss - change @ regressors
        return self._norm(miss), weights

    def _norm(self, vector: Floats) -> float:
        return max(float(vector @ self.gram @ vector), 0.0)


def _reference(
    rollout: Rollout, setting: Setting, part: slice, progress: Progress | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    prompts: list[Tensor] = []
    differences: list[Tensor] = []
    latents = [rollout.starts(part) * setting.table.init_scale]
    for index, row in enumerate(setting.table.rows):
        scale = setting.guidance[index]
        prompt, empty = rollout.outputs(row, latents[-1], part, guided=scale is not None)
        difference = prompt - empty if empty is not None else prompt * 0.0
        output = prompt + ((scale or 1.0) - 1.0) * difference
        latents.append(row.update.x[0] * latents[-1] + row.update.e[0] * output)
        prompts.append(prompt)
        differences.append(difference)
        if progress is not None:
            progress(f"reference, prompts {part.start + 1} to {part.stop}", index + 1, setting.calls)
    return prompts, differences, latents


def _measure_gain(
    rollout: Rollout,
    setting: Setting,
    trajectory: Trajectory,
    kept: tuple[list[Tensor], list[Tensor], list[Tensor]],
    progress: Progress | None,
) -> Floats:
    """Skips three calls before x_j, runs the whole network from there on, and compares the ends."""
    count = setting.calls
    places = sorted({max(min(4, count), round(place)) for place in np.linspace(min(4, count), count, PROBES)})
    part = slice(0, min(PROBE_PROMPTS, len(kept[0][0])))
    prompts, differences, latents = ([value[part] for value in group] for group in kept)
    found: list[float] = []
    for done, place in enumerate(places):
        first = max(0, place - 3)
        keep, own, rest = trajectory.span(first, place)
        scale = (setting.guidance[first] or 1.0) - 1.0
        value = keep * latents[first] + (own + rest) * (prompts[first] + scale * differences[first])
        before = float(((value - latents[place]) ** 2).mean())
        for index in range(place, count):
            row, asked = setting.table.rows[index], setting.guidance[index]
            prompt, empty = rollout.outputs(row, value, part, guided=asked is not None)
            output = prompt if empty is None else empty + (asked or 1.0) * (prompt - empty)
            value = row.update.x[0] * value + row.update.e[0] * output
        after = float(((value - latents[count]) ** 2).mean())
        found.append(max(after, 1e-12) / max(before, 1e-12))
        if progress is not None:
            progress("how errors grow", done + 1, len(places))
    return np.exp(np.interp(np.arange(count + 1), places, np.log(found)))
