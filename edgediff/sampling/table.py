"""diffusers scheduler -> step table.

`extract_step_table` drives the real scheduler object with basis vectors: at network call i the latent is the
unit vector X_i, the network's output E_i, the noise draw Z_i, and a clamp returns a fresh C_i and notes its
argument. What `step` returns then *is* the scheduler's recurrence, coefficient by coefficient. Arithmetic is
float64 on the scheduler's own (float32) tables. Every extraction is replayed against the scheduler before it
is returned.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from edgediff.errors import SamplerError, unknown
from edgediff.runtime.steps import Clip, StepRow, StepTable, Update, run_steps
from edgediff.sampling.probe import Float64, Recorder, noise_from, readable_by_numpy
from edgediff.sampling.recurrence import MAX_DEPTH, C, Coefficients, E, X, Z, find_shortest, newest_first, read_depth

_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False},
    ),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "flow_match_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
SAMPLERS = tuple(_CLASSES)

TOLERANCE = 1e-8  # of the replay, relative; both sides compute in float64
_NO_NOISE = 1e-8  # DDPM floors a variance of 0 at 1e-20; below this a draw would be for nothing
_THRESHOLDING = (
    "'thresholding' is a quantile over the whole picture, which no step table holds; set it to false in the "
    "scheduler config (clip_sample is supported)"
)
_LEARNED_VARIANCE = (
    "variance_type '{}' reads a second network output, which no step table holds; use 'fixed_small' or another sampler"
)
_SHORT_PRK = "its Runge-Kutta warm-up takes 4 steps, and steps = {}; ask for at least 4, or set skip_prk_steps to true"
_DIVIDES_BY_ZERO = (
    "diffusers itself divides by zero here: two steps share a timestep (ask for fewer steps), or the schedule has "
    "no signal left at this timestep (rescale_betas_zero_snr needs prediction_type v_prediction or sample), or "
    "this variant cannot take a last sigma of 0 (set final_sigmas_type to sigma_min)"
)
_NOT_LINEAR = (
    "the step is not linear with at most a clamp, or draws noise past diffusers' randn_tensor, so that no step "
    f"table holds it; use one of {', '.join(SAMPLERS)}"
)
_DIFFERS = "the step table differs from the scheduler by {:.2g} (relative; allowed {:g}): " + _NOT_LINEAR
Options = dict[str, Any]


def make_scheduler(kind: str, config: dict[str, Any] | None = None) -> Any:
    """The diffusers scheduler `kind` on a pipeline's own `scheduler_config.json`, read into a dict.

    Entries the scheduler does not have are dropped, as diffusers does. Raises SamplerError for an unknown
    kind and for a config the scheduler refuses.
    """
    import diffusers

    if kind not in _CLASSES:
        raise SamplerError(unknown("sampler", kind, SAMPLERS), code="unknown_sampler")
    name, options = _CLASSES[kind]
    try:
        return getattr(diffusers, name).from_config(config or {}, **options)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise SamplerError(f"{name} refuses this scheduler config: {error}", code="config") from error


def extract_step_table(scheduler: Any, steps: int, *, eta: float = 0.0, mu: float | None = None) -> StepTable:
    """The step table of a diffusers scheduler for `steps` steps; `scheduler` itself is left as it is.

    `eta` (0..1) is DDIM's noise; `mu` the shift of flow-match schedulers with `use_dynamic_shifting`. A run
    starts at the first timestep (`set_begin_index(0)`). Raises SamplerError, naming scheduler and row, when
    the step count is out of range, diffusers refuses a step, or the sampler is not linear with at most a
    clamp.
    """
    session = _Session(scheduler, steps, {"eta": eta} if eta else {}, {"mu": mu} if mu is not None else {})
    session.refuse_unsupported()
    table = session.probe()
    table.check()
    session.replay(table)
    return table


class _Session:
    """One scheduler, one step count: probes it, then replays the table against it."""

    def __init__(self, scheduler: Any, steps: int, step_options: Options, set_options: Options) -> None:
        self.original, self.steps = scheduler, steps
        self.step_options, self.set_options = step_options, set_options
        self.name = type(scheduler).__name__
        self.kind = _kind_of(scheduler)

    def refuse_unsupported(self) -> None:
        """Raises SamplerError for a step count out of range and for what no step table can hold."""
        config, steps = self.original.config, self.steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise SamplerError(f"steps = {steps!r}; it must be a whole number of at least 1", code="steps")
        limit = config.get("num_train_timesteps", 1000)
        if steps > limit:
            message = f"steps = {steps}, but the model was trained with {limit}; ask for at most {limit}"
            raise SamplerError(message, code="steps")
        if config.get("thresholding"):
            raise self.error(_THRESHOLDING)
        if config.get("variance_type") in ("learned", "learned_range"):
            raise self.error(_LEARNED_VARIANCE.format(config["variance_type"]))
        if config.get("skip_prk_steps") is False and steps < 4 and hasattr(self.original, "step_prk"):
            raise self.error(_SHORT_PRK.format(steps))
        for option in self.step_options.keys() - inspect.signature(self.original.step).parameters.keys():
            raise self.error(f"its step takes no '{option}'; leave it at 0 or use the ddim sampler")

    def error(self, message: str, row: int | None = None) -> SamplerError:
        at = "" if row is None else f", row {row} of {self.steps} steps"
        return SamplerError(f"{self.name} ({self.kind}{at}): {message}", code="sampler")

    def ready(self) -> Any:
        """A copy of the scheduler, set to the steps, its tables cast to float64."""
        scheduler = copy.deepcopy(self.original)
        with self.refusals("cannot lay out these steps"), readable_by_numpy(scheduler):
            scheduler.set_timesteps(self.steps, **self.set_options)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)
        for name, value in list(vars(scheduler).items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(scheduler, name, value.double())
        return scheduler

    @contextlib.contextmanager
    def refusals(self, what: str, row: int | None = None) -> Iterator[None]:
        """Turns what diffusers raises into a SamplerError that names the scheduler and the row."""
        try:
            yield
        except IndexError as error:
            hint = "a timestep lies past the last trained one; ask for fewer steps or set steps_offset to 0"
            raise self.error(f"{what}: {hint} ({error})", row) from error
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
            raise self.error(f"{what}: {error}", row) from error

    def probe(self) -> StepTable:
        """Every row's coefficients, and the scales of the first latent and of the network's inputs."""
        scheduler = self.ready()
        recorder = Recorder(len(scheduler.timesteps))
        rows: list[StepRow] = []
        before: Coefficients | None = None
        with noise_from(scheduler, recorder.draw):
            for index, timestep in enumerate(scheduler.timesteps):
                recorder.row = index
                with self.refusals("cannot take this step", index), torch.no_grad():
                    scaled = _scaled(scheduler, recorder.unit(X), timestep)
                    after = self.step(scheduler, recorder.unit(E), timestep, recorder.unit(X))
                expansion = recorder.coefficients(after)
                if not np.isfinite(expansion).all():
                    raise self.error(_DIVIDES_BY_ZERO, index)
                if expansion[:, index + 1 :].any() or (expansion[C, index] and index not in recorder.clamps):
                    raise self.error(_NOT_LINEAR, index)
                update = self.localise(recorder, index, expansion, before)
                scale = float(recorder.coefficients(scaled)[X, index])
                if np.count_nonzero(recorder.coefficients(scaled)) > 1:
                    raise self.error("its scale_model_input does more than scale the latent", index)
                rows.append(StepRow(timestep=float(timestep), input_scale=scale, update=update))
                before = expansion
        init_scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
        return StepTable(sampler=self.kind, steps=self.steps, init_scale=init_scale, rows=tuple(rows))

    def step(self, scheduler: Any, output: Any, timestep: Any, latent: Any) -> Any:
        return scheduler.step(output, timestep, latent, return_dict=False, **self.step_options)[0]

    def localise(self, recorder: Recorder, index: int, now: Coefficients, before: Coefficients | None) -> Update:
        best = find_shortest(now, before, index)
        if read_depth(best, index) > MAX_DEPTH:
            raise self.error(f"it reads more than the last {MAX_DEPTH} latents and outputs", index)
        return self.as_update(recorder, index, best)

    def as_update(self, recorder: Recorder, index: int, rows: Coefficients) -> Update:
        noise, clip = float(rows[Z, index]), None
        if weight := float(rows[C, index]):
            argument, limit = recorder.clamps[index]
            a, b = float(argument[X, index]), float(argument[E, index])
            argument[X, index] = argument[E, index] = 0.0
            if argument.any():
                raise self.error("clamps something other than a mix of the current latent and output", index)
            clip = Clip(x=a, e=b, limit=limit, weight=weight)
        return Update(
            x=newest_first(rows[X], index),
            e=newest_first(rows[E], index),
            noise=noise if abs(noise) > _NO_NOISE else 0.0,
            clip=clip,
        )

    def replay(self, table: StepTable) -> float:
        """Runs the table and the scheduler, in float64, on the same random data over the whole trajectory.

        Returns the largest error relative to each latent's largest value; raises SamplerError at the first
        row where it is above TOLERANCE. (In float32 some schedulers round by more than 1e-5 themselves.)
        """
        scheduler = self.ready()
        random = torch.Generator().manual_seed(0)
        draws = torch.randn((2 * len(table.rows) + 1, 1, 2, 4, 4), generator=random, dtype=torch.float64)
        latent, outputs, noises = table.init_scale * draws[0], draws[1::2], iter(draws[2::2])
        drawn: list[torch.Tensor] = []

        def draw() -> torch.Tensor:
            drawn.append(next(noises))
            return drawn[-1].as_subclass(Float64)

        ran = run_steps(table, latent, lambda i, *_: outputs[i], lambda: drawn[-1])
        reference, worst = latent.as_subclass(Float64), 0.0
        with noise_from(scheduler, draw), torch.no_grad():
            for index, timestep in enumerate(scheduler.timesteps):
                _scaled(scheduler, reference, timestep)
                reference = self.step(scheduler, outputs[index].as_subclass(Float64), timestep, reference)
                true = reference.as_subclass(torch.Tensor)
                error = float((next(ran).latent - true).abs().max() / true.abs().max().clamp(min=1e-9))
                worst = max(worst, error)
                if not error <= TOLERANCE:
                    raise self.error(_DIFFERS.format(error, TOLERANCE), index)
        return worst


def _scaled(scheduler: Any, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """What the network sees. Flow-match schedulers have no such method: the latent itself."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latent if scale is None else scale(latent, timestep)


def _kind_of(scheduler: Any) -> str:
    """The name in SAMPLERS, or the class name of a scheduler that is not among them."""
    for kind, (name, options) in _CLASSES.items():
        same = all((scheduler.config.get(key) or False) == value for key, value in options.items())
        if type(scheduler).__name__ == name and same:
            return kind
    return type(scheduler).__name__
