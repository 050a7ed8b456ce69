"""Forecast weights fitted to the latents that a schedule really meets, gap after gap, instead of the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.reuse._skipping import Gap
from edgediff.reuse._trajectory import RIDGE, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.sampling.rollout import Rollout


def fit_weights(
    rollout: Rollout,
    setting: Setting,
    trajectory: Trajectory,
    gaps: list[Gap],
    depth: int,
    progress: Progress | None = None,
) -> list[tuple[float, ...]]:
    """Per gap, the weights (newest first) that bring the latent at its end closest to the reference's there, given
    all weights before. One run of the reference and one of the schedule."""
    import torch

    targets = _reference_latents(rollout, setting, {gap.after for gap in gaps}, progress)
    with torch.inference_mode():
        latent = torch.cat([rollout.starts(part) for part in _parts(rollout)]) * setting.table.init_scale
        outputs: list[Tensor] = []
        differences: list[Tensor] = []
        found: list[tuple[float, ...]] = []
        for number, gap in enumerate(gaps):
            prompt, empty = _outputs(rollout, setting, gap.call, latent, guided=gap.guided)
            if empty is not None:
                differences.insert(0, prompt - empty)
            output = prompt
            for weight, difference in zip(gap.differences, differences, strict=False):
                output = output + weight * difference
            outputs.insert(0, output)
            keep, own, rest = trajectory.span(gap.call, gap.after)
            base = keep * latent + own * output
            if gap.after > gap.call + 1:
                weights = _solve(rest, outputs[:depth], targets[gap.after] - base)
                found.append(weights)
                base = base + sum(rest * w * e for w, e in zip(weights, outputs, strict=False))
            else:
                found.append((1.0,))
            latent = base
            if progress is not None:
                progress("fitting forecasts", number + 1, len(gaps))
    return found


def _solve(rest: float, outputs: list[Tensor], miss: Tensor) -> tuple[float, ...]:
    """Least squares, drawn towards holding the newest output."""
    import torch

    regressors = rest * torch.stack([output.flatten() for output in outputs]).double()
    miss = miss.flatten().double() - regressors[0]
    products = regressors @ regressors.T
    products += RIDGE * products.trace() / len(outputs) * torch.eye(len(outputs)).to(products)
    weights = torch.linalg.solve(products, regressors @ miss)
    weights[0] += 1.0
    return tuple(float(weight) for weight in weights)


def _reference_latents(
    rollout: Rollout, setting: Setting, wanted: set[int], progress: Progress | None
) -> dict[int, Tensor]:
    import torch

    kept: dict[int, Tensor] = {}
    with torch.inference_mode():
        latent = torch.cat([rollout.starts(part) for part in _parts(rollout)]) * setting.table.init_scale
        for index, row in enumerate(setting.table.rows):
            scale = setting.guidance[index]
            prompt, empty = _outputs(rollout, setting, index, latent, guided=scale is not None)
            output = prompt if empty is None else empty + (scale or 1.0) * (prompt - empty)
            latent = row.update.x[0] * latent + row.update.e[0] * output
            if index + 1 in wanted:
                kept[index + 1] = latent
            if progress is not None:
                progress("reference for the fit", index + 1, setting.calls)
    return kept


def _outputs(
    rollout: Rollout, setting: Setting, call: int, latent: Tensor, *, guided: bool
) -> tuple[Tensor, Tensor | None]:
    import torch

    row = setting.table.rows[call]
    pairs = [rollout.outputs(row, latent[part], part, guided=guided) for part in _parts(rollout)]
    empties = [empty for _, empty in pairs if empty is not None]
    return torch.cat([prompt for prompt, _ in pairs]), torch.cat(empties) if empties else None


def _parts(rollout: Rollout) -> list[slice]:
    count = len(rollout.prompts)
    return [slice(start, min(start + rollout.batch, count)) for start in range(0, count, rollout.batch)]
