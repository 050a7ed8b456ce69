"""What the untouched network sees on the calibration prompts, and the batched reference sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgediff.config import read_lines
from edgediff.documents.recipe import CalibrationTable, GuidanceTable, Recipe
from edgediff.errors import ConfigError, SamplerError
from edgediff.networks import family_of
from edgediff.plugins import Progress
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import StepRow, StepTable, run_steps
from edgediff.sampling.table import extract_step_table, make_scheduler

if TYPE_CHECKING:
    from pathlib import Path

    from edgediff.pipeline import Pipeline

CONTINUOUS = "ipndm"  # the sampler whose timesteps lie between 0 and 1
Conditions = Mapping[str, Tensor]
Denoiser = Callable[[Tensor, Tensor, Conditions], Tensor]

# For models that bring no captions of their own; what a phone user might type.
PROMPTS = (
    "a red apple on a wooden table",
    "portrait of an old fisherman",
    "a city street at night in the rain",
    "a watercolor of a fox in the snow",
    "an astronaut riding a horse",
    "a bowl of ramen, food photography",
    "a small house by a lake in autumn",
    "a robot reading a book in a library",
)


@dataclass(frozen=True)
class Trace:
    """Network inputs along the trajectories of `n` prompts.

    `inputs` `[n, calls, *latent]` are the scaled latents, `timesteps` `[calls]`, `conditions` what the network reads
    of the prompts by input name, `[n, ...]` each, `finals` `[n, *latent]` the last latents.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    inputs: Tensor
    timesteps: Tensor
    conditions: dict[str, Tensor]
    finals: Tensor


def step_table(pipeline: Pipeline, kind: str, steps: int) -> StepTable:
    """The step table of a sampler with this pipeline's noise schedule. Raises SamplerError, also for a sampler of
    another kind of time: Dance Diffusion's runs from 1 to 0 (`ipndm`), that of all others over trained steps."""
    sound = pipeline.kind == "unconditional-audio"
    if sound != (kind == CONTINUOUS):
        allowed = f"the only one for it is '{CONTINUOUS}'" if sound else f"'{CONTINUOUS}' is for sound"
        message = f"sampler '{kind}' does not fit '{pipeline.id}', which is {pipeline.kind}: {allowed}"
        raise SamplerError(message, code="sampler")
    return extract_step_table(make_scheduler(kind, pipeline.scheduler), steps)


def guidance_calls(scale: float, interval: tuple[float, float], calls: int) -> tuple[float | None, ...]:
    """The guidance scale of each network call; None where the prompt runs alone.

    The interval is Kynkaanniemi et al. 2024 (arXiv 2404.07724), here over the position of a call in the
    trajectory, 0 for the first and 1 for the last.
    """
    if scale <= 1.0:
        return (None,) * calls
    places = [index / max(calls - 1, 1) for index in range(calls)]
    return tuple(scale if interval[0] <= place <= interval[1] else None for place in places)


def asked_guidance(pipeline: Pipeline, guidance: GuidanceTable, calls: int) -> tuple[float | None, ...]:
    """The guidance that a recipe asks for at each network call. A model without a prompt has nothing to guide: None
    at every call."""
    if not pipeline.can_guide:
        return (None,) * calls
    return guidance_calls(guidance.scale, guidance.interval, calls)


def calibration_prompts(pipeline: Pipeline, table: CalibrationTable) -> tuple[str, ...]:
    """The recipe's prompts file, else captions of the embedded model, else eight general prompts.

    A class-to-image model has classes instead: lines of the file, else numbers spread over all classes by a fixed
    seed. An unconditional model has as many empty prompts.

    Raises ConfigError for a file that is missing, not UTF-8, or has fewer prompts than asked for.
    """
    if pipeline.kind in ("unconditional-image", "unconditional-audio"):
        return ("",) * table.prompts
    if table.file is not None:
        from pathlib import Path

        return _read_prompts(Path(table.file), table.prompts)
    if pipeline.id == "glyph":
        from edgediff.embedded.glyphs import load_glyphs

        names = sorted(glyph.primary for glyph in load_glyphs())
        chosen = np.random.default_rng(table.seed + 1).choice(len(names), size=table.prompts, replace=False)
        return tuple(names[index] for index in chosen)
    if pipeline.classes is not None:
        order = np.random.default_rng(table.seed + 1).permutation(pipeline.classes.count)
        return tuple(str(order[index % len(order)]) for index in range(table.prompts))
    return tuple(PROMPTS[index % len(PROMPTS)] for index in range(table.prompts))


def record_trace(pipeline: Pipeline, recipe: Recipe, progress: Progress | None = None) -> Trace:
    """Samples the calibration prompts with the untouched network and keeps what it was given."""
    prompts = calibration_prompts(pipeline, recipe.calibration)
    seeds = tuple(recipe.calibration.seed + index for index in range(len(prompts)))
    table = step_table(pipeline, recipe.sampler.kind, recipe.sampler.steps)
    guidance = asked_guidance(pipeline, recipe.guidance, len(table.rows))
    seen: list[Tensor] = []

    def keep(sample: Tensor) -> None:
        seen.append(sample.clone())

    finals = sample_latents(
        pipeline, table, guidance, prompts, seeds, batch=len(prompts), on_input=keep, progress=progress
    )
    timesteps = torch.tensor([row.timestep for row in table.rows])
    conditions, _ = pipeline.conditions(list(prompts))
    return Trace(prompts, seeds, torch.stack(seen, dim=1), timesteps, conditions, finals)


def sample_latents(
    pipeline: Pipeline,
    table: StepTable,
    guidance: Sequence[float | None],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    denoiser: Denoiser | None = None,
    on_input: Callable[[Tensor], None] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Final latents `[n, *latent]` of the untouched network (or `denoiser`), `batch` prompts at a time.

    Each picture draws its noise from a stream of its own seed, so it is the picture a bundle makes.
    """
    results: list[Tensor] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        results.append(
            _sample_batch(
                pipeline,
                table,
                guidance,
                list(prompts[part]),
                list(seeds[part]),
                denoiser,
                on_input,
                progress,
                (start, len(prompts)),
            )
        )
    return torch.cat(results)


def _sample_batch(
    pipeline: Pipeline,
    table: StepTable,
    guidance: Sequence[float | None],
    prompts: list[str],
    seeds: list[int],
    denoiser: Denoiser | None,
    on_input: Callable[[Tensor], None] | None,
    progress: Progress | None,
    place: tuple[int, int],
) -> Tensor:
    streams = [Rng(seed) for seed in seeds]
    network, device = denoiser or own_denoiser(pipeline), pipeline.device
    given, null = ({k: v.to(device) for k, v in side.items()} for side in pipeline.conditions(prompts))
    both = {name: torch.cat([empty.expand_as(given[name]), given[name]]) for name, empty in null.items()}

    def draw() -> Tensor:
        return torch.stack([torch.from_numpy(stream.normal(pipeline.latent)) for stream in streams]).to(device)

    def predict(index: int, row: StepRow, sample: Tensor) -> Tensor:
        if on_input is not None:
            on_input(sample)
        time, scale = torch.full((1,), row.timestep, device=device), guidance[index]
        if scale is None:
            return network(sample, time, given)
        empty, text = network(torch.cat([sample, sample]), time, both).chunk(2)
        return empty + scale * (text - empty)

    with torch.inference_mode():
        latent: Any = draw() * table.init_scale
        for step in run_steps(table, latent, predict, draw):
            latent = step.latent
            if progress is not None:
                progress(f"sampling {place[0] + len(prompts)}/{place[1]} prompts", step.index + 1, step.total)
    return torch.as_tensor(latent).clone()


def own_denoiser(pipeline: Pipeline) -> Denoiser:
    """The untouched network's own forward."""
    return partial(family_of(pipeline.denoiser).forward, pipeline.denoiser)


def _read_prompts(path: Path, count: int) -> tuple[str, ...]:
    prompts = [line.strip() for line in read_lines(path) if line.strip()]
    if not prompts:
        raise ConfigError("has no prompts; write one a line", where=str(path), code="prompts")
    if len(prompts) < count:
        raise ConfigError(
            f"has {len(prompts)} prompts, and the recipe asks for {count}; add prompts or lower calibration.prompts",
            where=str(path),
            code="prompts",
        )
    return tuple(prompts[:count])
