"""The training loop of a distillation: one process, or several under `accelerate launch`, exactly resumable."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgediff.config import dump_json
from edgediff.distill.checkpoint import LossLog, load_state, optimizer_state, optimizer_tensors, save_state
from edgediff.distill.draws import Draws, draw_step
from edgediff.distill.experts import Experts, RoutedNetwork, find_experts
from edgediff.distill.losses import NAMES, FeatureWeights, Outputs, distillation_loss
from edgediff.distill.samples import Samples
from edgediff.distill.tapped import TappedNetwork, choose_taps, use_plain_attention
from edgediff.documents.recipe import DistillTable
from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.pipeline.distilled import Lora
from edgediff.plugins import Progress
from edgediff.sampling.table import make_scheduler
from edgediff.variants import cut_network

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

CLIP_NORM, PROBES = 1.0, 64
INPUTS = ("sample", "timestep", "encoder_hidden_states")


@dataclass(frozen=True)
class Place:
    """Where a training keeps its state and its curve, and every how many steps it saves."""

    checkpoint: Path
    losses: Path
    every: int = 200


class Noising:
    """The pipeline's noise schedule: x_t = a x_0 + s eps, and what the network is to predict."""

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        scheduler = make_scheduler("ddim", pipeline.scheduler)
        self.kind = str(scheduler.config.prediction_type)
        if self.kind not in ("epsilon", "v_prediction", "sample"):
            raise MethodError(f"distillation of '{self.kind}' prediction is not supported", code="unsupported")
        self._signal = scheduler.alphas_cumprod.sqrt().to(device)
        self._spread = (1 - scheduler.alphas_cumprod).sqrt().to(device)

    def __len__(self) -> int:
        return len(self._signal)

    def add(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The noised latents and the target."""
        signal, spread = (values[times].view(-1, 1, 1, 1) for values in (self._signal, self._spread))
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - spread * latents,
            "sample": latents,
        }[self.kind]
        return signal * latents + spread * noise, target


class Training:
    """One pruned network learning from the untouched one. `device`: cpu, or auto for what accelerate finds."""

    def __init__(
        self,
        pipeline: Pipeline,
        cuts: Sequence[str],
        table: DistillTable,
        samples: Samples,
        place: Place,
        *,
        lora: Lora | None = None,
        device: str = "auto",
        resume: bool = False,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if pipeline.graph.inputs != INPUTS:
            raise MethodError(
                f"distillation feeds a network {', '.join(INPUTS)}; this one reads {', '.join(pipeline.graph.inputs)}",
                code="unsupported",
            )
        AcceleratorState._reset_state(reset_partial_state=False)  # a process may train twice, in other precisions
        self.table, self.samples, self.place = table, samples, place
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="bf16" if table.precision == "bf16" else "no",
            gradient_accumulation_steps=table.accumulate,
        )
        self.device = self.accelerator.device
        self.shares = self.accelerator.num_processes * table.accumulate
        if table.batch % self.shares:
            raise MethodError(
                f"a batch of {table.batch} does not divide into {self.shares} parts ({self.accelerator.num_processes} "
                f"processes, accumulate = {table.accumulate})",
                code="batch",
            )
        self.latent = pipeline.latent
        self.noising = Noising(pipeline, self.device)
        self.text_encoder: Any = copy.deepcopy(pipeline.text_encoder).to(self.device)
        self._make_networks(pipeline, cuts)
        self.task = task_digest(pipeline, cuts, table, samples, lora)
        self.weights = FeatureWeights(table.features, len(self.taps), self.device, self._mean)
        self.sums = torch.zeros(len(NAMES) + 1, device=self.device)
        self.step = self._load() if resume and place.checkpoint.is_file() else 0
        self._probe = self._draw_probe(pipeline)

    def _make_networks(self, pipeline: Pipeline, cuts: Sequence[str]) -> None:
        network, self.graph = cut_network(pipeline.denoiser, pipeline.graph, cuts)
        self.taps = choose_taps(pipeline.graph, self.table.taps) if self.table.features != "none" else ()
        self.student: Any = self._student(pipeline, network).requires_grad_(True)
        self.teacher = self._tapped(pipeline.denoiser, pipeline.graph)
        self.average = {name: value.detach().clone() for name, value in self.student.network.state_dict().items()}
        optimizer = torch.optim.AdamW(
            self.student.parameters(), self.table.rate, betas=(0.9, 0.999), weight_decay=0.01, fused=True
        )
        self.student, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        self.network: nn.Module = self.accelerator.unwrap_model(self.student).network

    def _tapped(self, network: nn.Module, graph: UnitGraph) -> TappedNetwork:
        own = copy.deepcopy(network).to(self.device)
        if self.device.type == "cpu" and self.table.precision == "bf16":
            use_plain_attention(own)
        return TappedNetwork(own, graph, self.taps)

    def _student(self, pipeline: Pipeline, network: nn.Module) -> TappedNetwork:
        tapped = self._tapped(network, self.graph)
        if self.table.phases == 1:
            return tapped
        groups = find_experts(pipeline.denoiser, self.graph)
        experts = Experts(tapped.network, pipeline.denoiser, groups, self.table.phases).to(self.device)
        return RoutedNetwork(experts, self.graph, self.taps, len(self.noising))

    # -- one step ---------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None) -> dict[str, Tensor]:
        """Trains to the last step; returns the averaged weights on the CPU. Raises MethodError when the loss is not
        finite."""
        log = LossLog(self.place.losses, step=self.step) if self.accelerator.is_main_process else None
        if self.step == 0 and log is not None:
            log.write({"step": 0, "probe": self._probe_loss()})
        while self.step < self.table.steps:
            self._take_step()
            self.step += 1
            last = self.step == self.table.steps
            if self.step % self.table.probe_every == 0 or last:
                self._log(log)
            if self.step % self.place.every == 0 and not last:
                self.save()
            if progress is not None:
                progress("distilling", self.step, self.table.steps)
        return {name: value.cpu() for name, value in self.average.items()}

    def _take_step(self) -> None:
        table, accelerator = self.table, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(table, self.step)
        drawn = draw_step(
            table.seed,
            self.step,
            table.batch,
            len(self.samples),
            self.latent,
            times=len(self.noising),
            empty_share=table.empty_share,
        )
        for index in range(table.accumulate):
            part = drawn.part(accelerator.process_index * table.accumulate + index, self.shares)
            with accelerator.accumulate(self.student):
                losses = self._losses(part)
                accelerator.backward(losses[0])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.sums += torch.cat([losses.detach(), torch.ones(1, device=self.device)])
        self._update_average()

    def _losses(self, part: Draws) -> Tensor:
        noisy, times, text, target = self._inputs(part)
        teacher = self._teach(noisy, times, text)
        prediction, *features = self.student(noisy, times, text)
        self.weights.update(teacher.features)
        return distillation_loss(Outputs(prediction, tuple(features)), teacher, target, self.weights, self.table)

    def _inputs(self, part: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents, ids = self.samples.draw(part.rows, part.picks, self.device)
        ids = torch.where(part.empty[:, None], self._empty(ids), ids)
        times = part.times.to(self.device)
        with torch.no_grad():
            text = self.text_encoder(ids.to(self.device)).last_hidden_state
        noisy, target = self.noising.add(latents, part.noise.to(self.device), times)
        return noisy, times, text, target

    def _teach(self, noisy: Tensor, times: Tensor, text: Tensor) -> Outputs:
        with torch.no_grad(), self.accelerator.autocast():
            prediction, *features = self.teacher(noisy, times, text)
        return Outputs(prediction, tuple(features))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.table.average, (1 + self.step) / (10 + self.step))
        now = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[name] for name in self.average], 1 - decay)

    def _mean(self, value: Tensor) -> Tensor:
        result: Tensor = self.accelerator.reduce(value, "mean")
        return result

    # -- what is seen of it -----------------------------------------------------------------------

    def _draw_probe(self, pipeline: Pipeline) -> tuple[tuple[Tensor, ...], Tensor]:
        """Samples that no step draws in this form, the same for every seed, and the teacher's answer."""
        drawn = draw_step(-1, 0, PROBES, len(self.samples), self.latent, times=len(self.noising), empty_share=0.0)
        self._empty_ids = encode_empty(pipeline)
        noisy, times, text, _ = self._inputs(drawn)
        return (noisy, times, text), self._teach(noisy, times, text).prediction

    def _empty(self, ids: Tensor) -> Tensor:
        return self._empty_ids.expand_as(ids)

    @torch.no_grad()
    def _probe_loss(self) -> float:
        """Mean squared distance of the averaged network's output from the teacher's."""
        inputs, wanted = self._probe
        held = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        with self.accelerator.autocast():
            bare = self.accelerator.unwrap_model(self.student).without_taps()
            value = float((bare(*inputs)[0].float() - wanted.float()).square().mean())
        self.network.load_state_dict(held)
        return value

    def _log(self, log: LossLog | None) -> None:
        sums = self._mean(self.sums)
        means = (sums[:-1] / sums[-1]).tolist()
        self.sums = torch.zeros_like(self.sums)
        if not math.isfinite(means[0]):
            raise MethodError(
                f"the loss became {means[0]} before step {self.step}; resume from the checkpoint is of no use: distil "
                "anew with a lower rate, or in fp32",
                where=str(self.place.losses),
                code="not_finite",
            )
        if log is not None:
            about = {"step": self.step, "rate": rate_at(self.table, self.step - 1), "probe": self._probe_loss()}
            log.write({**about, **dict(zip(NAMES, means, strict=True))})

    # -- state ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, on the main process alone."""
        if self.accelerator.is_main_process:
            tensors = {f"student/{name}": value for name, value in self.network.state_dict().items()}
            tensors |= {f"average/{name}": value for name, value in self.average.items()}
            tensors |= optimizer_tensors(self.optimizer.state_dict())
            tensors |= {"squares": self.weights.squares, "sums": self.sums}
            save_state(self.place.checkpoint, tensors, step=self.step, task=self.task)
        self.accelerator.wait_for_everyone()

    def _load(self) -> int:
        tensors, step = load_state(self.place.checkpoint, task=self.task)
        for prefix, module in (("student/", self.network), ("average/", None)):
            found = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
            if module is not None:
                module.load_state_dict(found)
            else:
                self.average = {name: value.to(self.device) for name, value in found.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(optimizer_state(tensors, groups))
        self.weights.squares = tensors["squares"].to(self.device)
        self.sums = tensors["sums"].to(self.device)
        return step


def rate_at(table: DistillTable, step: int) -> float:
    """The learning rate of the step with that index."""
    warm = min(1.0, (step + 1) / max(table.warm_up, 1))
    falling = 0.5 * (1 + math.cos(math.pi * step / table.steps)) if table.schedule == "cosine" else 1.0
    return table.rate * warm * falling


def task_digest(
    pipeline: Pipeline, cuts: Sequence[str], table: DistillTable, samples: Samples, lora: Lora | None
) -> str:
    """SHA-256 of what a checkpoint belongs to."""
    basis = {
        "weights": pipeline.weights,
        "cuts": sorted(cuts),
        "table": table.model_dump(mode="json"),
        "samples": samples.digest,
        "lora": lora.model_dump(mode="json") if lora else None,
    }
    return hashlib.sha256(dump_json(basis).encode()).hexdigest()


def encode_empty(pipeline: Pipeline) -> Tensor:
    """Token ids `[1, tokens]` of the empty prompt."""
    from edgediff.distill.encoding import encode_texts

    return encode_texts(pipeline, [""])
