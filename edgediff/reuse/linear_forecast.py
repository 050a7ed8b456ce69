"""Learned linear forecasts of the output between the calls that are computed, and held guidance.

In the field's words a learned multistep solver: weights over the last outputs, one set for each step, fitted to the
model's own trajectories. Bespoke Non-Stationary solvers (Shaul et al., ICML 2024, arXiv 2403.01329) and S4S (Frankel et
al., ICML 2025, arXiv 2502.17423) are of that family too; none of the systems that edgediff was made for is.

Two exact facts are put together. Every forecasting cache is a fixed linear combination of past features, whose
coefficients can be learned per step from a few trajectories (L2P, arXiv 2604.26365; TaylorSeer, 2503.06923, fixes
them). And for a single-step sampler the best such combination, its error, and the best calls to compute follow from
the inner products of the reference's outputs, so nothing is trained: a least-squares fit per gap and one dynamic
program over all calls.

Ours, where the papers are silent: only the output is forecast (no feature crosses a graph's border, and the forecast
folds into the sampler's coefficients); a computed call may run the prompt alone and use the guidance difference of
an earlier call (`held_guidance`), which halves its cost; weights are those of a whole gap, fitted to the latent at
its end rather than to each output; the loss of a gap is that squared error times its measured growth until the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import HOLD, Forecast, Row, Schedule
from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.reuse._closed_loop import fit_weights
from edgediff.reuse._skipping import Path, cheapest, find_paths, improve, walk
from edgediff.reuse._trajectory import Trajectory, read, record

if TYPE_CHECKING:
    from edgediff.sampling.rollout import Rollout

NAME = "linear_forecast"
IMPROVED = 4


class Spec(Model):
    """`share` of the untouched denoiser's cost that stays, at `price` of a guided call and of one alone (network
    passes, or the target's time). `depth` outputs make a forecast. No gap is longer than `longest` calls, no guidance
    difference older than `oldest`; `oldest = 0` computes both prompts at every call."""

    share: float = Field(default=0.23, gt=0.0, le=1.0)
    price: tuple[float, float] = (2.0, 1.0)
    depth: int = Field(default=3, ge=1, le=6)
    longest: int = Field(default=10, ge=1)
    oldest: int = Field(default=16, ge=0)


def basis(spec: Spec) -> dict[str, Any]:
    """What `measure` depends on: one measurement serves every budget and `depth`."""
    return spec.model_dump(mode="json", exclude={"share", "depth", "price"})


def measure(spec: Spec, rollout: Rollout, setting: Setting, progress: Progress | None = None) -> dict[str, Any]:
    """The reference's inner products, and the best path for each number of guided calls and calls alone."""
    measured = record(rollout, setting, NAME, progress)
    trajectory = Trajectory.of(setting, measured)
    guided = sum(scale is not None for scale in setting.guidance)
    most = max(setting.calls // 2, 1)

    def tick(done: int, total: int) -> None:
        if progress is not None:
            progress("choosing calls", done, total)

    paths = find_paths(
        trajectory, most_guided=min(guided, most), most_alone=most, longest=spec.longest, oldest=spec.oldest, tick=tick
    )
    front = [
        {"guided": key[0], "alone": key[1], "loss": path.loss, "calls": path.calls, "with_both": path.guided}
        for key, path in sorted(paths.items())
    ]
    return {**measured, "front": front}


def propose(spec: Spec, setting: Setting) -> Schedule:
    """The path of least predicted loss within `share`. Raises MethodError for a share below the cheapest path."""
    passes = sum(spec.price[scale is None] for scale in setting.guidance)
    paths = read_paths(setting)
    best = best_path(spec, setting, spec.share * passes, spec.price)
    if best is None:
        least = min(spec.price[0] * guided + spec.price[1] * alone for guided, alone in paths) / passes
        raise MethodError(
            f"share = {spec.share:g} is below the cheapest path, {least:.3f}: gaps are at most {spec.longest} calls "
            f"long and guidance at most {spec.oldest} calls old; allow more, or use fewer steps",
            code="budget",
        )
    return schedule_of(best, read(setting), spec.depth)


def refine(
    spec: Spec, rollout: Rollout, setting: Setting, schedule: Schedule, progress: Progress | None = None
) -> Schedule:
    """The same calls with weights fitted to the latents that this very schedule meets: errors of earlier gaps, which
    `propose` does not see, are corrected by later ones."""
    trajectory, path = read(setting), path_of(schedule, setting)
    gaps = walk(trajectory, path.calls, path.guided, spec.depth)
    weights = fit_weights(rollout, setting, trajectory, gaps, spec.depth, progress)
    forecasts = [
        Forecast(call=call, weights=fitted)
        for gap, fitted in zip(gaps, weights, strict=True)
        for call in range(gap.call + 1, gap.after)
    ]
    return schedule.model_copy(update={"forecasts": tuple(forecasts)})


def path_of(schedule: Schedule, setting: Setting) -> Path:
    """The computed calls of a schedule that `schedule_of` made."""
    calls = tuple(call for call, name in enumerate(schedule.calls) if name != HOLD)
    guided = tuple(c for c in calls if c not in schedule.held_guidance and setting.guidance[c] is not None)
    return Path(calls, guided, float("nan"))


def best_path(spec: Spec, setting: Setting, budget: float, price: tuple[float, float]) -> Path | None:
    """The best path whose calls cost at most `budget`, at the prices of a guided call and of one alone; None when
    there is none. The few best of the dynamic program are improved with the histories that it leaves out."""
    trajectory, paths = read(setting), dict(read_paths(setting))
    found: list[Path] = []
    while len(found) < IMPROVED and (path := cheapest(paths, budget, price)) is not None:
        alone = len(path.calls) - len(path.guided)
        paths = {key: p for key, p in paths.items() if key[0] > len(path.guided) or key[1] > alone}
        found.append(improve(trajectory, path, spec.depth, longest=spec.longest))
    return min(found, key=lambda path: (path.loss, path.calls), default=None)


def read_paths(setting: Setting) -> dict[tuple[int, int], Path]:
    """(guided calls, calls alone) -> the best path, as `measure` found it."""
    return {
        (one["guided"], one["alone"]): Path(tuple(one["calls"]), tuple(one["with_both"]), one["loss"])
        for one in setting.measured["front"]
    }


def schedule_of(path: Path, trajectory: Trajectory, depth: int) -> Schedule:
    """A path with the forecast weights of each of its gaps."""
    forecasts: list[Forecast] = []
    held: dict[int, tuple[float, ...]] = {}
    for gap in walk(trajectory, path.calls, path.guided, depth):
        scale = trajectory.guidance[gap.call]
        if not gap.guided and scale is not None:
            held[gap.call] = tuple(weight / (scale - 1.0) for weight in gap.differences)
        forecasts += [Forecast(call=call, weights=gap.outputs) for call in range(gap.call + 1, gap.after)]
    names = tuple("full" if call in path.calls else HOLD for call in range(trajectory.calls))
    return Schedule(rows={"full": Row()}, calls=names, forecasts=tuple(forecasts), held_guidance=held)
