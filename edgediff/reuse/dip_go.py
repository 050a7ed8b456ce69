"""DiP-GO (arXiv 2410.16942): a pruner network learns, through the whole trajectory, which blocks run at which
call. For U-Nets and DiTs.

Every block of every call has a gate (`_gates`); gates come from a small network (`_pruner`), pictures from a SuperNet
in which a block that is off repeats itself (`_supernet`). The frozen denoiser is never changed. Minimised is

    L = 1 - SSIM(picture, picture of the full run)  +  sparsity * sum_tb gamma_b g_tb / (T sum_b gamma_b)
                                                    +  rows * mean_t min_p |s_t - p|_1 / B

the second term while more than `kept` of the MACs are kept (the paper's tau; its alpha is `sparsity`). gamma is the
share of a call's MACs that goes with a block. We divide by its sum (2.47 for SD-1.5), so that the term starts at 1 as
the paper says. The third term is ours: s_t are a call's keep probabilities, p the nearest of at most `patterns` rows
(all on, all off, and the most frequent others), because every distinct row is a graph on the phone.

Also ours: `explore`, the share of calls that execute blocks which are off, for their gradient (1 is the paper; less is
cheaper, see `_supernet`); SGD with momentum where the paper has none, since hundreds of iterations are affordable here
and thousands are not; `loss = "latent"`, a relative squared error of the final latent that spares the decoder.
One training serves every `ratio`: what is kept in the cache is the table of scores, from which `propose` takes the
gates (bisection, at most `max_graphs` patterns, repair; `choose_gates`).

The training uses the recipe's calibration prompts (`[calibration] prompts`; a few dozen), each with its own noise, and
writes a checkpoint into the cache folder every few iterations: a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgediff.config import Model, cache_folder, dump_json
from edgediff.errors import MethodError
from edgediff.graph.schedule import Schedule
from edgediff.metrics import SSIM_WINDOW
from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.reuse._gates import GateTable, Gating, Pattern, Table, choose_gates

if TYPE_CHECKING:
    from torch import Tensor

    from edgediff.reuse._pruner import PrunerNetwork
    from edgediff.reuse._supernet import SuperNet
    from edgediff.sampling.rollout import Rollout

SAVE_EVERY, CLIP_NORM = 10, 1.0


class Spec(Model):
    """`ratio` of the MACs to remove; all else is the training. `prompts` of a batch run together; `rate` falls along
    a cosine after `warm_up` iterations; `width` is that of the queries (512 in the paper)."""

    ratio: float = Field(default=0.8, ge=0.0, lt=1.0)
    iterations: int = Field(default=200, ge=1)
    batch: int = Field(default=2, ge=1)
    rate: float = Field(default=0.2, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    warm_up: int = Field(default=10, ge=0)
    sparsity: float = Field(default=1.0, ge=0.0)
    kept: float = Field(default=0.2, gt=0.0, le=1.0)
    rows: float = Field(default=0.1, ge=0.0)
    patterns: int = Field(default=4, ge=2)
    explore: float = Field(default=0.25, ge=0.0, le=1.0)
    loss: Literal["ssim", "latent"] = "ssim"
    encoder: Literal["attention", "linear", "none"] = "attention"
    width: int = Field(default=64, ge=8)
    checkpointed: bool = True
    seed: int = Field(default=0, ge=0)


def basis(spec: Spec) -> dict[str, Any]:
    """What the training depends on: not the ratio, nor what only trades memory for time."""
    return spec.model_dump(mode="json", exclude={"ratio", "checkpointed"})


def measure(spec: Spec, rollout: Rollout, setting: Setting, progress: Progress | None = None) -> dict[str, Any]:
    """Trains. `keep` `[calls][blocks]` are the probabilities of running, `log` one row per iteration. Raises
    MethodError when the loss is not finite."""
    training = Training(spec, rollout, setting)
    while training.done < spec.iterations:
        training.step()
        if progress is not None:
            progress("training gates", training.done, spec.iterations)
    return training.finish()


def propose(spec: Spec, setting: Setting) -> Schedule:
    """The schedule of the trained scores at `ratio`. Raises MethodError for a ratio that leaves less than one call,
    and for scores of another network or step count."""
    return Gating(setting.graph).schedule_of(choose_table(spec, setting))


def export_gates(spec: Spec, setting: Setting) -> GateTable:
    """The table as it is written to a file, which method `gates` reads."""
    source = f"dip_go, ratio {spec.ratio:g}, {spec.iterations} iterations, seed {spec.seed}"
    return GateTable(blocks=Gating(setting.graph).blocks, gates=choose_table(spec, setting), source=source)


def choose_table(spec: Spec, setting: Setting) -> Table:
    """The gates of `ratio`, from what was measured."""
    gating, scores = Gating(setting.graph), setting.measured.get("keep", [])
    if list(setting.measured.get("blocks", [])) != list(gating.blocks) or len(scores) != setting.calls:
        message = "the gate scores belong to another network or step count; measure again"
        raise MethodError(message, code="step_count")
    return choose_gates(gating, scores, _passes(setting), 1.0 - spec.ratio, setting.max_graphs)


def _passes(setting: Setting) -> list[int]:
    return [1 if scale is None else 2 for scale in setting.guidance]


class Training:
    """Everything that an iteration needs; what it draws depends on the seed and its number alone."""

    def __init__(self, spec: Spec, rollout: Rollout, setting: Setting) -> None:
        import torch

        from edgediff.reuse._pruner import PrunerNetwork
        from edgediff.reuse._supernet import SuperNet

        self.spec, self.setting, self.rollout = spec, setting, rollout
        self.gating, self.passes = Gating(setting.graph), _passes(setting)
        self.supernet: SuperNet = SuperNet(
            rollout, self.gating, setting.table, setting.guidance, checkpointed=spec.checkpointed
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            pruner = PrunerNetwork(setting.calls, len(self.gating.blocks), spec.width, spec.encoder)
        self.pruner: PrunerNetwork = pruner.to(rollout.device)
        self.optimizer = torch.optim.SGD(
            self.pruner.parameters(), lr=spec.rate, momentum=spec.momentum, weight_decay=1e-4
        )
        self.gamma = torch.tensor(self.gating.weights(), device=rollout.device)
        self.done, self.log = 0, list[dict[str, float]]()
        self._path = _checkpoint_path(spec, rollout, setting)
        self._load()
        latents = rollout.run(setting.table, None, setting.guidance)
        with torch.no_grad():
            self.latents = latents.clone()  # one made in inference mode cannot be trained against
            parts = [self.supernet.decode(part) for part in self.latents.split(rollout.batch)]
            self.pictures = torch.cat(parts) if spec.loss == "ssim" else self.latents
        if spec.loss == "ssim" and min(self.pictures.shape[-2:]) < SSIM_WINDOW:
            size = " x ".join(map(str, self.pictures.shape[-2:]))
            message = f'pictures of {size} are too small for SSIM\'s window of {SSIM_WINDOW}; set loss = "latent"'
            raise MethodError(message, code="size")

    def step(self) -> None:
        """One iteration. Raises MethodError when the loss is not finite."""
        import torch

        spec, keep = self.spec, self.pruner()
        gates = self._gates(keep)
        explored, chosen = self._draw()
        kept = self.gating.kept(gates, self.passes)
        if all(row == self.gating.full for row in gates):
            error = keep.new_zeros(())  # it is 0 and so is its gradient, SSIM being at its largest: nothing to compute
        else:
            error = self._error(self.supernet.sample(chosen, keep, gates, explored), chosen)
        loss = error + spec.rows * self._distance(keep, gates)
        if kept > spec.kept:
            loss = loss + spec.sparsity * (keep * self.gamma).sum() / (self.gamma.sum() * len(keep))
        if not math.isfinite(value := loss.item()):
            raise MethodError(f"the loss became {value} at iteration {self.done}; lower the rate", code="diverged")
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(spec, self.done)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.pruner.parameters(), CLIP_NORM)
        self.optimizer.step()
        rows = len({row for row in gates if any(row)})
        self.log.append({"error": error.item(), "kept": kept, "rows": rows})
        self.done += 1
        if self.done % SAVE_EVERY == 0:
            self._save()

    def finish(self) -> dict[str, Any]:
        """The scores; the checkpoint is no longer needed."""
        import torch

        with torch.no_grad():
            keep = self.pruner().cpu()
        self._path.unlink(missing_ok=True)
        return {
            "blocks": list(self.gating.blocks),
            "keep": [[round(v, 6) for v in row] for row in keep.tolist()],
            "log": self.log,
        }

    def _gates(self, keep: Tensor) -> Table:
        rows = [tuple(int(value >= 0.5) for value in row) for row in keep.tolist()]
        rows[0] = self.gating.full
        return tuple(self.gating.propagate(row) for row in rows)

    def _draw(self) -> tuple[set[int], list[int]]:
        """The calls that are explored, and the prompts of the batch: shuffled epochs."""
        import torch

        calls, total, batch = self.setting.calls, len(self.rollout.prompts), self.spec.batch
        generator = torch.Generator().manual_seed(1_000_003 * self.spec.seed + self.done)
        explored = torch.rand(calls, generator=generator) < self.spec.explore
        chosen = []
        for number in range(self.done * batch, (self.done + 1) * batch):
            epoch = torch.Generator().manual_seed(7_000_003 * self.spec.seed + number // total)
            chosen.append(int(torch.randperm(total, generator=epoch)[number % total]))
        return {call for call in range(calls) if explored[call]}, chosen

    def _error(self, latents: Tensor, chosen: Sequence[int]) -> Tensor:
        from edgediff.reuse._supernet import ssim_loss

        wanted = self.pictures[list(chosen)]
        if self.spec.loss == "ssim":
            return ssim_loss(self.supernet.decode(latents), wanted)
        return (latents - wanted).square().mean() / wanted.var()

    def _distance(self, keep: Tensor, gates: Table) -> Tensor:
        """Mean distance of a call's probabilities from the nearest of the rows that it may have."""
        import torch

        patterns = torch.tensor(common_patterns(self.gating, gates, self.spec.patterns), dtype=keep.dtype)
        gaps = (keep[:, None] - patterns.to(keep.device)[None]).abs().mean(-1)
        result: Tensor = gaps.min(dim=1).values.mean()
        return result

    # -- state ------------------------------------------------------------------------------------

    def _save(self) -> None:
        import json

        from safetensors.torch import save_file

        tensors = {f"pruner/{name}": value for name, value in self.pruner.state_dict().items()}
        for (name, _), state in zip(self.pruner.named_parameters(), self._momenta(), strict=True):
            if state is not None:
                tensors[f"momentum/{name}"] = state
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, partial, {"done": str(self.done), "log": json.dumps(self.log)})
        partial.replace(self._path)

    def _momenta(self) -> list[Tensor | None]:
        return [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in self.pruner.parameters()]

    def _load(self) -> None:
        """Goes on from the checkpoint of the same training; one that cannot be read counts as absent."""
        import json

        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name).to(self.rollout.device) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return
        own = {n.removeprefix("pruner/"): v for n, v in tensors.items() if n.startswith("pruner/")}
        self.pruner.load_state_dict(own)
        for name, parameter in self.pruner.named_parameters():
            if f"momentum/{name}" in tensors:
                self.optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum/{name}"].clone()
        self.done, self.log = int(about["done"]), json.loads(about["log"])


def common_patterns(gating: Gating, gates: Table, count: int) -> list[Pattern]:
    """All on, all off, and the most frequent other rows, `count` in all at most."""
    others = [row for row in gates if row not in (gating.full, gating.off)]
    ordered = sorted(set(others), key=lambda row: (-others.count(row), row))
    return [gating.full, gating.off, *ordered[: count - 2]]


def rate_at(spec: Spec, iteration: int) -> float:
    """The learning rate of the iteration with that index."""
    warm = min(1.0, (iteration + 1) / max(spec.warm_up, 1))
    return spec.rate * warm * 0.5 * (1 + math.cos(math.pi * iteration / spec.iterations))


def _checkpoint_path(spec: Spec, rollout: Rollout, setting: Setting) -> Path:
    task = {
        "weights": rollout.pipeline.weights,
        "prompts": rollout.prompts,
        "seeds": rollout.seeds,
        "spec": basis(spec),
        "table": setting.table.digest(),
        "guidance": setting.guidance,
        "cuts": sorted(setting.graph.cuts),
    }
    return cache_folder() / "dip_go" / f"{hashlib.sha256(dump_json(task).encode()).hexdigest()}.safetensors"
