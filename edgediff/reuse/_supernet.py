"""DiP-GO's SuperNet: sampling in which every block may run or repeat itself, differentiable in the gates.

A backup edge leads from a block's output at the last call that ran it to its output now. A gate chooses,

    out[t][b] = block_b(inputs) if g[t][b] else c[b];    c[b] <- out[t][b],

and its gradient is that of the mixture g block + (1 - g) c (straight-through). The release executes every block at
every call; that is `explored` here. At a call that is not explored only what the gates choose is executed, so that an
iteration costs about what the schedule costs: gates that are off then get no gradient from it. Ours, for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgediff.networks import family_of
from edgediff.reuse._gates import Gating, Table
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import StepRow, StepTable, run_steps

if TYPE_CHECKING:
    from edgediff.sampling.rollout import Rollout


class SuperNet:
    """The trajectories of a rollout's prompts and seeds with gates. Guided calls and others alike run both prompts,
    where any call is guided. Parameters need no gradients; memory is that of one call if `checkpointed`."""

    def __init__(
        self,
        rollout: Rollout,
        gating: Gating,
        table: StepTable,
        guidance: Sequence[float | None],
        *,
        checkpointed: bool = True,
    ) -> None:
        self.rollout, self.gating, self.table = rollout, gating, table
        self.guidance, self.checkpointed = tuple(guidance), checkpointed
        self.network: Any = rollout.network
        self.family = family_of(self.network)
        graph = gating.graph
        self.block_of = {name: i for i, units in enumerate(gating.units) for name in units}
        reads = [(unit.name, read) for unit in graph.units for read in self._reads(unit.name)]
        self.crossing = {
            read for name, read in reads if read in self.block_of and self.block_of.get(name) != self.block_of[read]
        }
        if graph.output in self.block_of:
            self.crossing.add(graph.output)
        self._draws = self._all_draws()

    def _reads(self, name: str) -> tuple[str, ...]:
        unit = self.gating.graph.by_name[name]
        return unit.stream if name in self.gating.graph.cuts else unit.reads

    def _all_draws(self) -> Tensor:
        """`[prompts, draws, *latent]`: each prompt's first latent and its noises, as a rollout draws them."""
        count = 1 + sum(1 for row in self.table.rows if row.update.noise)
        shape = self.rollout.pipeline.latent
        streams = [Rng(seed) for seed in self.rollout.seeds]
        values = [[torch.from_numpy(stream.normal(shape)).float() for _ in range(count)] for stream in streams]
        return torch.stack([torch.stack(own) for own in values]).to(self.rollout.device)

    def sample(self, prompts: Sequence[int], keep: Tensor, gates: Table, explored: Collection[int]) -> Tensor:
        """Final latents `[n, *latent]` of some prompts. `keep` `[calls, blocks]` are the probabilities that the
        gradient goes to, `gates` what is taken; `explored` are the calls that execute every block."""
        conditions, noises = self._conditions(prompts), iter(self._draws[list(prompts)].unbind(1))
        caches: dict[str, Tensor] = {}
        last: Tensor | None = None

        def predict(index: int, row: StepRow, sample: Tensor) -> Tensor:
            nonlocal caches, last
            pattern = gates[index]
            if not any(pattern) and index not in explored:
                assert last is not None
                return last
            call = self._call(index, row.timestep, pattern, index in explored or index == 0, conditions)
            output, caches = self._run(call, sample, keep[index], caches)
            if not any(pattern):  # what ships holds the output: the same number, with the gradient of the gates
                assert last is not None
                output = output - (output - last).detach()
            last = output
            return output

        latent: Any = next(noises) * self.table.init_scale
        for step in run_steps(self.table, latent, predict, lambda: next(noises)):
            latent = step.latent
        result: Tensor = latent
        return result

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `[n, channels, height, width]` in about [-1, 1], differentiable."""
        pipeline: Any = self.rollout.pipeline
        if getattr(pipeline, "vae", None) is None:
            return latents
        scaled = latents * pipeline.scale + pipeline.shift
        if torch.is_grad_enabled() and self.checkpointed:
            result: Tensor = checkpoint(
                lambda x: pipeline.vae.decode(x, return_dict=False)[0], scaled, use_reentrant=False
            )
        else:
            result = pipeline.vae.decode(scaled, return_dict=False)[0]
        return result

    def _conditions(self, prompts: Sequence[int]) -> dict[str, Tensor]:
        own = {name: value[list(prompts)] for name, value in self.rollout.given.items()}
        if all(scale is None for scale in self.guidance):
            return own
        null = self.rollout.null
        return {name: torch.cat([null[name].expand_as(value), value]) for name, value in own.items()}

    def _call(
        self, index: int, time: float, pattern: Sequence[int], explored: bool, conditions: dict[str, Tensor]
    ) -> Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
        graph, scale = self.gating.graph, self.guidance[index]
        held = set() if explored else {name for name, block in self.block_of.items() if not pattern[block]}
        live = graph.live(dict.fromkeys(held, "hold"))
        is_batched = any(scale is not None for scale in self.guidance)

        def run(sample: Tensor, keep: Tensor, caches: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            inputs = torch.cat([sample, sample]) if is_batched else sample
            outer = {"sample": inputs, "timestep": torch.full((1,), time, device=sample.device), **conditions}
            outer |= {name: caches[name] for name in live.reads}
            inner: dict[str, Tensor] = {}
            left = dict(caches)
            for name in live.run:
                block = self.block_of.get(name)
                values = [
                    inner[read] if read in inner and self.block_of.get(read) == block else outer[read]
                    for read in self._reads(name)
                ]
                unit = graph.by_name[name]
                run_one = self.family.pass_unit if name in graph.cuts else self.family.run_unit
                value = run_one(self.network, unit, values)
                inner[name] = value
                if block is not None and name in self.crossing:
                    if name in caches:
                        value = _choose(value, caches[name], keep[block], bool(pattern[block]))
                    left[name] = value
                outer[name] = value
            output = outer[graph.output]
            if is_batched:
                empty, prompt = output.chunk(2)
                output = prompt if scale is None else empty + scale * (prompt - empty)
            return output, left

        return run

    def _run(
        self,
        call: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        sample: Tensor,
        keep: Tensor,
        caches: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not (self.checkpointed and torch.is_grad_enabled()):
            return call(sample, keep, caches)
        result: tuple[Tensor, dict[str, Tensor]] = checkpoint(call, sample, keep, caches, use_reentrant=False)
        return result


class _Choice(torch.autograd.Function):
    """`value` or `cache`; d/d keep is that of keep * value + (1 - keep) * cache."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, cache: Tensor, keep: Tensor, runs: bool) -> Tensor:
        ctx.runs = runs
        ctx.save_for_backward(value - cache)
        return value.clone() if runs else cache.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        (gradient,), (change,) = gradients, ctx.saved_tensors
        keep = (gradient * change).sum()
        return (gradient, None, keep, None) if ctx.runs else (None, gradient, keep, None)


def _choose(value: Tensor, cache: Tensor, keep: Tensor, runs: bool) -> Tensor:
    result: Tensor = _Choice.apply(value, cache, keep, runs)
    return result


def ssim_loss(pictures: Tensor, wanted: Tensor) -> Tensor:
    """1 - SSIM, a mean over windows of 11 x 11 (Gaussian, sigma 1.5), channels and pictures `[n, c, h, w]`.

    Pictures lie in [-1, 1] with the constants 0.01^2 and 0.03^2 of range 1, as DiP-GO's release has it.
    """
    channels = pictures.shape[1]
    places = torch.arange(11, device=pictures.device, dtype=pictures.dtype) - 5
    line = torch.exp(-(places**2) / 4.5)
    line = line / line.sum()
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def blur(value: Tensor) -> Tensor:
        return F.conv2d(value, window, groups=channels)

    mean_a, mean_b = blur(pictures), blur(wanted)
    square_a, square_b = blur(pictures**2) - mean_a**2, blur(wanted**2) - mean_b**2
    both = blur(pictures * wanted) - mean_a * mean_b
    above = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    below = (mean_a**2 + mean_b**2 + 1e-4) * (square_a + square_b + 9e-4)
    return 1.0 - (above / below).mean()
