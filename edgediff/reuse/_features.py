"""What a network's units give along the full run of a rollout's prompts: what calibrated feature methods look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgediff.networks import evaluate
from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.runtime.steps import StepRow, run_steps

if TYPE_CHECKING:
    from edgediff.sampling.rollout import Rollout

Visit = Callable[[int, dict[str, Tensor]], None]


def visit_features(
    rollout: Rollout, setting: Setting, names: Sequence[str], visit: Visit, progress: Progress | None, what: str
) -> None:
    """Calls `visit(call, values)` for every network call of every batch of prompts, in order. `names` are carries: a
    unit's name, or `<unit>+` for its change; values are `[2 batch or batch, ...]`, the empty prompts first. The
    network's output before guidance is there too, as `output`."""
    count, size = len(rollout.prompts), rollout.batch
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        with torch.inference_mode():
            for call, values in _run(rollout, setting, names, part):
                visit(call, values)
                if progress is not None:
                    progress(f"{what}, {part.stop}/{count} prompts", call + 1, setting.calls)


def _run(rollout: Rollout, setting: Setting, names: Sequence[str], part: slice) -> Any:
    given = {name: value[part] for name, value in rollout.given.items()}
    null = {name: value.expand_as(given[name]) for name, value in rollout.null.items()}
    both = {name: torch.cat([null[name], value]) for name, value in given.items()}
    live = setting.graph.live()
    seen: dict[str, Tensor] = {}

    def predict(index: int, row: StepRow, sample: Tensor) -> Tensor:
        scale = setting.guidance[index]
        inputs = {"sample": sample, **given} if scale is None else {"sample": torch.cat([sample, sample]), **both}
        inputs["timestep"] = torch.full((1,), row.timestep, device=sample.device)
        output, written = evaluate(rollout.network, setting.graph, live, inputs, {}, tuple(names))
        seen.clear()
        seen.update(written, output=output)
        if scale is None:
            return output
        empty, prompt = output.chunk(2)
        return empty + scale * (prompt - empty)

    latent: Any = rollout.starts(part) * setting.table.init_scale
    noise = torch.Generator(device="cpu").manual_seed(part.start)

    def draw() -> Tensor:
        return torch.randn(latent.shape, generator=noise).to(latent.device)

    for step in run_steps(setting.table, latent, predict, draw):
        yield step.index, dict(seen)
