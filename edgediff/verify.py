"""Conversion error: what a bundle's artifacts put out, against the PyTorch graphs they were made from.

Three measures per backend, all PSNR in dB with the largest magnitude of the reference as peak:
*graphs*, each on inputs recorded from PyTorch (caches included), so that errors cannot add up;
*trajectory*, the latent after every step when the backend runs the whole program by itself on the same noise;
*image*, the picture at the end (8 bit, peak 255). How much quality the compression costs is another question, which
`evaluate` answers: here both sides are the compressed network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.documents.recipe import CalibrationTable
from edgediff.errors import BackendError, ModelError
from edgediff.metrics import psnr
from edgediff.plugins import Progress
from edgediff.runtime import Session, choose_backend, find_stand_in, list_backends, open_session
from edgediff.runtime.conditions import used_encoders
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.evidence import (
    BackendParity,
    GraphParity,
    Parity,
    PictureParity,
    ProgramParity,
    Reading,
    TrajectoryParity,
)
from edgediff.runtime.manifest import Manifest

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.documents.plan import Plan
    from edgediff.pipeline import Pipeline
    from edgediff.variants import Variants

CAP_DB = 200.0  # what equal tensors get: JSON has no infinity. fp32 against fp32 comes to about 135
IMAGE_CAP_DB = 99.0
NOT_FINITE = {"psnr_db": 0.0, "max_abs": float(np.finfo(np.float32).max), "finite": False}
SEED = 0
KEPT = 3  # calls kept of every graph: the first, one in the middle, the last
GOLDEN_LATENT = 32 * 32  # a larger latent is decoded by `verify` only
GOLDEN_BYTES = 16_000_000  # of one graph's recordings in a bundle; one call is written whatever its size


@dataclass(frozen=True)
class Recording:
    """What one call of a graph was given and returned; `call` counts the calls of that graph."""

    graph: str
    call: int
    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Recordings:
    """One picture made by PyTorch: calls of every graph, the latent after each step, the picture (uint8) or the sound
    (int16)."""

    prompt: str
    calls: tuple[Recording, ...]
    latents: tuple[Array, ...]
    image: Array


def verify_bundle(
    bundle: Bundle,
    *,
    backends: Sequence[str] | None = None,
    pipeline: Pipeline | None = None,
    progress: Progress | None = None,
) -> Parity:
    """What was found, for the caller to put into the manifest (`Parity.report` is the command's JSON).

    `ok` is whether every graph keeps the plan's floor for its precision, every picture the floor for pictures,
    and no value anywhere is NaN or infinite (such a graph reports 0 dB and `finite` false). Where a backend's own
    runtime is not on this machine, `executed_by` says what stood in. A trajectory has no
    floor of its own: its end is the picture. `pipeline` spares loading the model that the bundle was made from.
    Raises ModelError when that model cannot be had or has other weights, BackendError for an unknown backend.
    """
    start = time.perf_counter()
    manifest, plan = bundle.manifest, bundle.plan
    wanted = list(backends or list_backends(manifest))
    names = [choose_backend(manifest, name) for name in wanted] or [choose_backend(manifest)]
    told = _Told(progress, 2 + len(names) * len(manifest.programs))
    told("loading the model")
    recordings = _reference(bundle, pipeline, told)
    results = {name: _verify_backend(bundle, plan, name, recordings, told) for name in names}
    return Parity(
        ok=all(result.ok for result in results.values()),
        reading=Reading(why="this version of edgediff does not run it"),
        backends=results,
        prompt=recordings[manifest.default].prompt,
        seed=SEED,
        seconds=round(time.perf_counter() - start, 3),
    )


def eager_recordings(
    pipeline: Pipeline,
    variants: Variants,
    manifest: Manifest,
    *,
    whole: bool = True,
    progress: Callable[[int, int], None] | None = None,
    program: str | None = None,
) -> Recordings:
    """Makes a calibration prompt's picture with PyTorch and keeps a few calls of every graph.

    `whole=False` stops as soon as every graph of the denoiser has run once: enough for golden files, and minutes
    saved on a large network. The picture then is empty for latents above `GOLDEN_LATENT`: decoding 512 x 512 takes
    0.8 GB beside the loaded model, and the decoder has no golden file. Memory: the kept calls only.
    """
    from edgediff.sampling.trace import calibration_prompts

    prompt = calibration_prompts(pipeline, CalibrationTable(prompts=1))[0]
    kept = KEPT if whole else 1
    session, runners, counts = _recording_session(pipeline, variants, manifest, kept, program)
    latents: list[Array] = []
    for step in session.steps(prompt, seed=SEED):
        latents.append(step.latent)
        if progress is not None:
            progress(step.index + 1, step.total)
        if not whole and all(runners[name].kept for name in counts):
            break
    small = latents[-1].shape[-1] * latents[-1].shape[-2] <= GOLDEN_LATENT
    image = session.render(latents[-1]) if whole or small else np.zeros((0, 0, 3), np.uint8)
    calls = tuple(call for runner in runners.values() for call in runner.kept)
    return Recordings(prompt, calls, tuple(latents), image)


def golden_recordings(pipeline: Pipeline, variants: Variants, manifest: Manifest) -> list[Recordings]:
    """What golden files are made of: of each program that runs a graph which none before it does."""
    found: list[Recordings] = []
    seen: set[str] = set()
    for name, program in manifest.programs.items():
        if not found or not seen.issuperset(program.graphs()):
            found.append(eager_recordings(pipeline, variants, manifest, whole=False, program=name))
        seen |= set(program.graphs())
    return found


def record_calls(
    pipeline: Pipeline,
    variants: Variants,
    manifest: Manifest,
    *,
    prompts: int = 2,
    kept: int = 12,
) -> tuple[Recording, ...]:
    """Makes pictures of calibration prompts with PyTorch, with every program; `kept` calls of every graph and picture,
    spread over its trajectory. What a quantizer of activations learns from."""
    from edgediff.sampling.trace import calibration_prompts

    found: list[Recording] = []
    texts = calibration_prompts(pipeline, CalibrationTable(prompts=prompts))
    for program, (index, prompt) in product(manifest.programs, enumerate(texts)):
        session, runners, _ = _recording_session(pipeline, variants, manifest, kept, program)
        latent = list(session.steps(prompt, seed=SEED + index))[-1].latent
        session.decode(latent)
        found += [call for runner in runners.values() for call in runner.kept]
    return tuple(found)


def _recording_session(
    pipeline: Pipeline, variants: Variants, manifest: Manifest, kept: int, program: str | None
) -> tuple[Session, dict[str, _Recorder], dict[str, int]]:
    """A session over PyTorch whose runners keep that many calls, and how often each graph is called."""
    from edgediff.backends.eager import eager_runners
    from edgediff.pipeline.tokenizers import load_tokenizer

    counts = _count_calls(manifest, program)
    runners = {
        name: _Recorder(name, runner, _spread(counts.get(name, 1), kept))
        for name, runner in eager_runners(variants).items()
    }
    tokenizers = {name: load_tokenizer(pipeline.tokenizer_folder) for name in manifest.tokenizers}
    return Session(manifest, tokenizers, runners, program=program), runners, counts


def write_golden(folder: Path, recordings: Sequence[Recordings]) -> None:
    """Writes `<graph>.safetensors`, for a device to check itself: tensors `<call>.in.<name>` and what PyTorch
    makes of them in fp32, `<call>.out.<name>`. As many calls as fit into 16 MB, at least one; of the first of the
    programs' `recordings` that has the graph."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, dict[str, Array]] = {}
    seen: set[str] = set()
    calls: list[Recording] = []
    for recorded in recordings:
        calls += [one for one in recorded.calls if one.graph not in seen]
        seen |= {one.graph for one in recorded.calls}
    for one in calls:
        named = {f"{one.call}.in.{name}": value for name, value in one.inputs.items()}
        named.update({f"{one.call}.out.{name}": value for name, value in one.outputs.items()})
        file = tensors.setdefault(one.graph, {})
        if not file or _bytes(file.values()) + _bytes(named.values()) <= GOLDEN_BYTES:
            file.update(named)
    for graph, file in tensors.items():
        contiguous = {name: np.ascontiguousarray(value) for name, value in file.items()}
        path = folder / f"{graph}.safetensors"
        save_file(contiguous, path, metadata={"reference": "PyTorch, fp32"})
        path.chmod(0o644)  # safetensors makes files that only their owner reads


@dataclass
class _Told:
    """Tells whoever watches how far it is."""

    watch: Progress | None
    total: int
    done: int = -1
    text: str = ""

    def __call__(self, text: str) -> None:
        self.text, self.done = text, self.done + 1
        if self.watch is not None:
            self.watch(text, self.done, self.total)

    def step(self, index: int, total: int) -> None:
        if self.watch is not None:
            self.watch(f"{self.text}, step {index} of {total}", self.done, self.total)


class _Recorder:
    """A runner that keeps copies of what some of its calls were given and returned."""

    def __init__(self, graph: str, runner: Runner, wanted: set[int]) -> None:
        self._graph, self._runner, self._wanted = graph, runner, wanted
        self._count = 0
        self.kept: list[Recording] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._runner.run(inputs)
        if self._count in self._wanted:
            copies = {name: np.array(value) for name, value in inputs.items()}
            self.kept.append(Recording(self._graph, self._count, copies, dict(outputs)))
        self._count += 1
        return outputs


def load_source(bundle: Bundle) -> Pipeline:
    """The model that the bundle was made from. Raises ModelError when it cannot be had or has other weights."""
    from edgediff.pipeline import load_pipeline

    source = bundle.manifest.source
    try:
        if source.denoiser is not None:
            pipeline = load_pipeline(source.denoiser.folder)
        else:
            pipeline = load_pipeline(source.model, revision=source.revision)
    except ModelError as error:
        message = f"the model that this bundle was made from is needed: {error}"
        raise ModelError(message, where=str(bundle.folder), code=error.code) from error
    check_source(bundle, pipeline)
    return pipeline


def check_source(bundle: Bundle, pipeline: Pipeline) -> None:
    """Raises ModelError unless the bundle was made from the pipeline's weights."""
    source = bundle.manifest.source
    if pipeline.weights != source.weights:
        raise ModelError(
            f"'{pipeline.id}' has weights {pipeline.weights[:12]}, but this bundle was made from "
            f"{source.weights[:12]} of '{source.model}'; use that model, or build the bundle again from this one",
            where=str(bundle.folder),
            code="other_model",
        )
    ours, theirs = bundle.plan.model.distilled, pipeline.distilled.record.fingerprint if pipeline.distilled else None
    if ours != theirs:
        raise ModelError(
            f"this bundle's denoiser is {f'the distilled {ours[:12]}' if ours else 'not a distilled one'}, the "
            f"model's {f'is {theirs[:12]}' if theirs else 'is not distilled'}; give the model it was built from",
            where=str(bundle.folder),
            code="other_model",
        )


def _reference(bundle: Bundle, pipeline: Pipeline | None, told: _Told) -> dict[str, Recordings]:
    """What PyTorch makes, by program. The model is gone from memory when this returns, unless the caller holds it."""
    from edgediff.variants import build_variants

    if pipeline is None:
        pipeline = load_source(bundle)
    check_source(bundle, pipeline)
    told("PyTorch")
    variants, manifest = build_variants(pipeline, bundle.plan), bundle.manifest
    return {
        name: eager_recordings(pipeline, variants, manifest, progress=told.step, program=name)
        for name in manifest.programs
    }


def _verify_backend(
    bundle: Bundle, plan: Plan, name: str, recordings: dict[str, Recordings], told: _Told
) -> BackendParity:
    """Every graph once, and every program from noise to picture."""
    graphs: dict[str, GraphParity] = {}
    programs: dict[str, ProgramParity] = {}
    for program, recorded in recordings.items():
        told(f"{name}: {program}")
        session = open_session(bundle, name, program=program)
        for graph, runner in session.runners.items():
            calls = [one for one in recorded.calls if one.graph == graph]
            if graph not in graphs and calls:
                graphs[graph] = _judge_graph(bundle, plan, name, graph, _compare_graph(runner, calls))
        programs[program] = _compare_program(session, recorded, plan.parity.image_db, told)
    said = find_stand_in(bundle.manifest, name)
    version = bundle.manifest.tools.get(name, "")
    return BackendParity(
        executed_by=said or f"{name} {version}".strip(), stand_in=bool(said), graphs=graphs, programs=programs
    )


def _judge_graph(bundle: Bundle, plan: Plan, backend: str, graph: str, measured: dict[str, Any]) -> GraphParity:
    """What was measured of a graph, with the floor of its precision."""
    precision = bundle.manifest.graphs[graph].artifacts[backend].precision
    floor = plan.parity.graph_floor(precision, coded=plan.weights is not None)
    kept = {key: measured[key] for key in ("psnr_db", "max_abs", "finite")}
    return GraphParity(**kept, precision=precision, floor_db=floor)


def _compare_graph(runner: Runner, recordings: list[Recording]) -> dict[str, Any]:
    """The worst output over all recorded calls: lowest PSNR, largest absolute error."""
    worst: dict[str, Any] = {}
    largest = 0.0
    for one in recordings:
        outputs = runner.run(one.inputs)
        for name, reference in one.outputs.items():
            found = compare_arrays(reference, outputs[name])
            largest = max(largest, found["max_abs"])
            if not worst or (found["finite"], found["psnr_db"]) < (worst["finite"], worst["psnr_db"]):
                worst = {**found, "worst_output": name, "worst_call": one.call}
    return {**worst, "max_abs": largest, "inputs": len(recordings)}


def compare_arrays(reference: Array, found: Array) -> dict[str, Any]:
    """`psnr_db` with the largest magnitude of the reference as peak, `max_abs`, `finite`.

    Raises BackendError when the shapes differ."""
    if reference.shape != found.shape:
        raise BackendError(f"an output has shape {found.shape}, PyTorch's has {reference.shape}", code="output")
    if not np.isfinite(found).all():
        return dict(NOT_FINITE)
    peak = float(np.abs(reference).max()) or 1.0
    error = float(np.abs(reference - found).max())
    return {"psnr_db": psnr(reference, found, peak, cap=CAP_DB), "max_abs": error, "finite": True}


def _compare_program(session: Session, recordings: Recordings, floor: float, told: _Told) -> ProgramParity:
    """The worst step, and the picture. A run that breaks off over NaN ends at the step that made it."""
    steps: list[float] = []
    try:
        for step, reference in zip(session.steps(recordings.prompt, seed=SEED), recordings.latents, strict=True):
            steps.append(compare_arrays(reference, step.latent)["psnr_db"])
            told.step(step.index + 1, step.total)
        image = session.render(step.latent)
    except BackendError as error:
        if error.code != "non_finite":
            raise
        broken = TrajectoryParity(worst_step=len(steps), psnr_db=0.0, finite=False, problem=error.message)
        return ProgramParity(trajectory=broken, image=PictureParity(psnr_db=0.0, floor_db=floor))
    worst = int(np.argmin(steps))
    peak = 255.0 if image.dtype == np.uint8 else 65535.0  # what a picture's or a sound's whole numbers span
    found = psnr(recordings.image, image, peak, cap=IMAGE_CAP_DB)
    return ProgramParity(
        trajectory=TrajectoryParity(worst_step=worst, psnr_db=steps[worst]),
        image=PictureParity(psnr_db=found, floor_db=floor),
    )


def _count_calls(manifest: Manifest, name: str | None) -> dict[str, int]:
    """Graph -> how often one picture runs it; the decoder, which runs after the rows, is left out."""
    program = manifest.program(name)
    texts = 2 if program.guides else 1
    counts = {manifest.encoders[encoder].graph: texts for encoder in used_encoders(manifest, program)}
    for (graph, _), times in program.calls().items():
        counts[graph] = counts.get(graph, 0) + times
    return counts


def _spread(count: int, kept: int) -> set[int]:
    """Indices of `kept` of `count` calls, the first among them, and the last where there are several."""
    return {round(index) for index in np.linspace(0, count - 1, min(kept, count))}


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.nbytes for array in arrays)
