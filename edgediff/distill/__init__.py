"""Recovers quality after cutting: the pruned network learns from the untouched one.

The teacher runs in the same step on the same samples, so nothing of it is stored. Feature taps are units of the
graph. A run that was killed resumes from its checkpoint and ends with the same bytes (on one machine's CPU).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import dump_json, write_text_atomic
from edgediff.distill.checkpoint import read_losses
from edgediff.distill.experts import Experts
from edgediff.distill.samples import Samples, load_samples
from edgediff.distill.training import Place, Training
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable
from edgediff.errors import MethodError, OutputError
from edgediff.pipeline.distilled import (
    CHECKPOINT,
    LOSSES,
    NETWORK,
    PHASES,
    RECORD,
    WEIGHTS,
    Base,
    Distilled,
    Lora,
    Phases,
    hash_file,
    is_distilled,
)
from edgediff.plugins import Progress
from edgediff.variants import save_network

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

__all__ = ["distill_network", "load_samples", "prepare_folder"]

CHECKPOINT_EVERY = 200


def distill_network(
    pipeline: Pipeline,
    cuts: Sequence[Cut],
    table: DistillTable,
    samples: Samples,
    out: Path,
    *,
    recipe_name: str = "by hand",
    prune: Sequence[dict[str, Any]] = (),
    lora: Lora | None = None,
    resume: bool = False,
    device: str = "auto",
    every: int = CHECKPOINT_EVERY,
    progress: Progress | None = None,
) -> Distilled:
    """Cuts a copy of the denoiser, trains it, and writes the folder `out` that `load_pipeline` takes as a MODEL.

    `out` was made by `prepare_folder`. The record is written last: a folder without it is unfinished. Raises
    MethodError: nothing cut, a batch that does not divide, a checkpoint of something else, a loss that is not finite.
    """
    if not cuts:
        raise MethodError("nothing is cut, so there is nothing to recover; give the recipe a [[prune]]", code="no_cuts")
    place = Place(out / CHECKPOINT, out / LOSSES, every)
    names = [cut.unit for cut in cuts]
    training = Training(pipeline, names, table, samples, place, lora=lora, device=device, resume=resume)
    average = training.run(progress)
    record = Distilled(
        base=Base(model=pipeline.id, revision=pipeline.revision, weights=pipeline.weights),
        recipe_name=recipe_name,
        prune=tuple(prune),
        cuts=tuple(cuts),
        settings=table,
        samples=samples.digest,
        processes=training.accelerator.num_processes,
        lora=lora,
        weights="0" * 64,
    )
    if training.accelerator.is_main_process:
        training.network.load_state_dict(average)
        phases = _write_network(training, out)
        curve = read_losses(out / LOSSES)
        found = {
            "weights": hash_file(out / NETWORK / WEIGHTS),
            "probe": (curve[0]["probe"], curve[-1]["probe"]),
            "phases": phases,
        }
        record = record.model_copy(update=found)
        write_text_atomic(out / RECORD, dump_json(record.model_dump(mode="json", exclude_none=True)))
        (out / CHECKPOINT).unlink(missing_ok=True)
    training.accelerator.wait_for_everyone()
    return record


def _write_network(training: Training, out: Path) -> Phases | None:
    """The network of the first phase, and what is different in the later ones."""
    from safetensors.torch import save_file

    network = training.network
    if not isinstance(network, Experts):
        save_network(network, training.graph, out / NETWORK)
        return None
    merged = [{n: v.detach().cpu() for n, v in network.merge(phase).items()} for phase in range(network.phases)]
    network.body.load_state_dict(merged[0], strict=False)
    save_network(network.body, training.graph, out / NETWORK)
    later = {f"phase{p}/{n}": v.contiguous() for p, values in enumerate(merged) if p for n, v in values.items()}
    save_file(later, out / PHASES)
    return Phases(
        count=network.phases, times=len(training.noising), names=tuple(merged[0]), weights=hash_file(out / PHASES)
    )


def prepare_folder(out: Path, *, resume: bool, overwrite: bool = False) -> None:
    """Makes `out`, or makes sure that it holds the distillation to resume. Raises OutputError."""
    if resume and overwrite:
        raise OutputError("--resume goes on and --overwrite starts anew; give one of them", where=str(out))
    if (out / RECORD).is_file() and resume:
        raise OutputError("is finished; there is nothing to resume", where=str(out), code="finished")
    filled = out.exists() and (not out.is_dir() or any(out.iterdir()))
    ours = out.is_dir() and (is_distilled(out) or (out / LOSSES).is_file())
    if filled and not ours:
        raise OutputError("is there and was not made by edgediff distill; choose another", where=str(out))
    if filled and not (resume or overwrite):
        hint = "give --overwrite" if (out / RECORD).is_file() else "go on with --resume, or give --overwrite"
        raise OutputError(f"holds a distillation; {hint}", where=str(out))
    try:
        if filled and overwrite:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=str(out)) from error
