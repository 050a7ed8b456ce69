"""The step table: a sampler as data, and the one loop that executes it.

For a fixed number of steps a diffusion sampler is a linear recurrence. With x_i the latent, e_i the network's
output (after guidance) and z_i a fresh standard normal draw at network call i,

    x_{i+1} = sum_k x[k] x_{i-k}  +  sum_k e[k] e_{i-k}  +  noise z_i  +  weight clamp(a x_i + b e_i, +-limit)

What a prediction means (epsilon, v, sample, velocity) is folded into the coefficients. The loop runs on
anything with `+`, `*` and `.clip`: numpy on the phone-like path, torch in the reference. Kotlin and Swift
hold its twin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import SamplerError

Predict = Callable[[int, "StepRow", Any], Any]
Draw = Callable[[], Any]
Finish = Callable[[int, Any], Any]


LARGEST = 1e30  # magnitude of any coefficient in a bundle
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
History = Annotated[tuple[Number, ...], Field(max_length=64)]


class Clip(Model):
    """The one non-linear op: adds weight * clamp(x * x_i + e * e_i, -limit, limit).

    Pixel models clamp the predicted sample (`clip_sample` in diffusers).
    """

    x: Number
    e: Number
    limit: Annotated[float, Field(gt=0, le=LARGEST)]
    weight: Number


class Update(Model):
    """Coefficients of x_{i+1}; index k reaches k network calls back."""

    x: History
    e: History
    noise: Number = 0.0
    clip: Clip | None = None


class StepRow(Model):
    """One network call: predict from (input_scale * x_i, timestep), then apply `update`."""

    timestep: float
    input_scale: float = 1.0
    update: Update


class StepTable(Model):
    """A sampler for a fixed number of steps. Heun and Runge-Kutta steps take several rows each."""

    sampler: str
    steps: int
    init_scale: float
    rows: tuple[StepRow, ...]

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise after the first latent."""
        return any(row.update.noise for row in self.rows)

    def check(self) -> None:
        """Raises SamplerError when the table is empty or a row reads history that does not exist."""
        if not self.rows or self.steps < 1:
            raise SamplerError(
                f"step table '{self.sampler}' has steps = {self.steps} and {len(self.rows)} rows; both must "
                "be at least 1. Extract it again with extract_step_table",
                code="table",
            )
        for index, row in enumerate(self.rows):
            _check_row(self.sampler, index, row.update)

    def __str__(self) -> str:
        """One line per row: the table a reviewer can diff."""
        head = f"{self.sampler}: {self.steps} steps, {len(self.rows)} rows, x_0 = {self.init_scale:.6g} z"
        return "\n".join([head, *(f"{i:4d}  {_row_text(row)}" for i, row in enumerate(self.rows))])


@dataclass(frozen=True, slots=True)
class Step:
    """What one row did. `latent` is x_{i+1}; `seconds` covers the network and the update (host clock)."""

    index: int
    total: int
    timestep: float
    latent: Any
    output: Any
    seconds: float


def apply_update(update: Update, latents: Sequence[Any], outputs: Sequence[Any], noise: Any = None) -> Any:
    """x_{i+1}, a new array, from histories with the newest first (x_i = latents[0], e_i = outputs[0]).

    Arrays share one shape and one dtype, which the result has too; nothing passed in is changed. `noise` is
    z_i and is read only when `update.noise` is not 0.
    """
    terms = [(c, latents[k]) for k, c in enumerate(update.x) if c]
    terms += [(c, outputs[k]) for k, c in enumerate(update.e) if c]
    if update.noise:
        terms.append((update.noise, noise))
    if (clip := update.clip) is not None:
        terms.append((clip.weight, _clamped(clip, latents[0], outputs[0])))
    if not terms:
        return latents[0] * 0.0
    total = terms[0][0] * terms[0][1]
    for coefficient, array in terms[1:]:
        total += coefficient * array
    return total


def run_steps(
    table: StepTable, latent: Any, predict: Predict, draw_noise: Draw | None = None, finish: Finish | None = None
) -> Iterator[Step]:
    """Executes the table from `latent` (x_0, already scaled by `init_scale`), yielding after every row.

    `predict(index, row, scaled_latent)` returns e_i, or None to hold e_{i-1} (no network runs). It must not
    write to what it is given. `draw_noise()` is called once for each row whose noise coefficient is not 0, in
    order. `finish(index, x_{i+1})`, where given, makes x_{i+1} of it (a mask's blending). Only the history that later
    rows read is kept. Closing the generator cancels the run.
    Raises SamplerError before the first network call when the table is broken or needs a `draw_noise`.
    """
    table.check()
    first = next((i for i, row in enumerate(table.rows) if row.update.noise), None)
    if first is not None and draw_noise is None:
        raise SamplerError(
            f"step table '{table.sampler}' adds noise at row {first}; pass draw_noise, a function that "
            "returns a standard normal array of the latent's shape",
            code="noise",
        )
    return _run(table, latent, predict, draw_noise, finish)


def _run(
    table: StepTable, latent: Any, predict: Predict, draw_noise: Draw | None, finish: Finish | None
) -> Iterator[Step]:
    latents: list[Any] = [latent]
    outputs: list[Any] = []
    total = len(table.rows)
    for index, (row, keep) in enumerate(zip(table.rows, _history(table.rows), strict=True)):
        start = time.perf_counter()
        latent = latents[0]
        output = predict(index, row, latent if row.input_scale == 1.0 else latent * row.input_scale)
        if output is None:
            output = _held(table, index, outputs)
        outputs.insert(0, output)
        noise = draw_noise() if row.update.noise and draw_noise is not None else None
        latent = apply_update(row.update, latents, outputs, noise)
        if finish is not None:
            latent = finish(index, latent)
        latents.insert(0, latent)
        del latents[keep[0] :], outputs[keep[1] :]
        yield Step(index, total, row.timestep, latent, output, time.perf_counter() - start)


def _history(rows: Sequence[StepRow]) -> list[tuple[int, int]]:
    """How many (latents, outputs) to hold after each row, newest first, for the rows that remain.

    One output always stays: the next row may hold it.
    """
    need_x, need_e, result = 1, 1, [(1, 1)]
    for row in reversed(rows[1:]):
        need_x = max(len(row.update.x), need_x - 1, 1)
        need_e = max(len(row.update.e) - 1, need_e - 1, 1)
        result.append((need_x, need_e))
    return result[::-1]


def _held(table: StepTable, index: int, outputs: Sequence[Any]) -> Any:
    if outputs:
        return outputs[0]
    raise SamplerError(
        f"row {index} of step table '{table.sampler}' holds the network's output, but no row before it ran "
        "the network; the first row must predict",
        code="hold",
    )


def _clamped(clip: Clip, latent: Any, output: Any) -> Any:
    argument = apply_update(Update(x=(clip.x,), e=(clip.e,)), (latent,), (output,))
    return argument.clip(-clip.limit, clip.limit)


def _check_row(sampler: str, index: int, update: Update) -> None:
    for name, what, coefficients in (("x", "latent", update.x), ("e", "output", update.e)):
        if len(coefficients) > index + 1:
            raise SamplerError(
                f"row {index} of step table '{sampler}' reads {what} {name}_{index + 1 - len(coefficients)}, "
                f"before the first one; its '{name}' has {len(coefficients)} coefficients and may have at "
                f"most {index + 1}",
                code="table",
            )


def _row_text(row: StepRow) -> str:
    def terms(name: str, coefficients: Sequence[float]) -> list[str]:
        return [f"{c:+.6g} {name}{f'[-{k}]' if k else ''}" for k, c in enumerate(coefficients) if c]

    update = row.update
    parts = terms("x", update.x) + terms("e", update.e) + terms("z", (update.noise,))
    if (clip := update.clip) is not None:
        parts.append(f"{clip.weight:+.6g} clamp({clip.x:.6g} x {clip.e:+.6g} e, {clip.limit:g})")
    scale = "" if row.input_scale == 1.0 else f"  in x{row.input_scale:.6g}"
    return f"t={row.timestep:<8g}{scale}  {' '.join(parts)}"
