"""Core ML: ML programs in `.mlpackage` folders, run by Core ML on a Mac and by `edgediff.mil` anywhere else.

    coreml/unet.mlpackage           one multifunction program: a function per graph, each weight once (iOS 18)
    coreml/full.mlpackage  ...      a package per graph for iOS 16 and 17, which know one function only
    coreml/text_encoder.mlpackage   function `main`
    coreml/vae_decoder.mlpackage    function `main`

Sizes are fixed, as the Neural Engine wants them. A graph that the program runs with and without guidance has a
second function (or package) `<graph>_batch1`; the first is for the batch of its first call. Integers are int32,
which is all that Core ML has. Cached features cross as inputs and outputs, in fp32 as the manifest says.

Precision `fp16` computes and keeps everything in fp16 but the *islands* of the target (`auto`: the sinusoid of the
time embedding, and what measured parity says, see `_coreml_islands`); `int8` is `fp16` with weights in 8 bits, one
scale per output channel, which Core ML expands when it loads. `plan.weights` codes weights otherwise (tables, 4 bits,
zeros), whatever the precision.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from edgediff.backends import Array, Artifacts, Runner
from edgediff.errors import BackendError, unknown
from edgediff.manifest import Artifact, Graph

if TYPE_CHECKING:
    from edgediff.backends._coreml_link import Compress
    from edgediff.compression import Encoded
    from edgediff.mil import Program
    from edgediff.plan import Plan
    from edgediff.target import CoreMLTable, Target
    from edgediff.variants import Variant, Variants

NAME = "coreml"
CODES_WEIGHTS = True  # `plan.weights` is heeded
MAIN = "main"
INTEGERS = {"int64": "int32"}


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    """Writes every graph below `out/coreml`.

    Raises BackendError: an operator that Core ML has no form for (`export`), a release too old for what the target
    asks (`deployment`), weights beyond the target's memory ceiling (`too_large`); MissingLibrary.
    """
    from edgediff.mil.package import import_coremltools

    import_coremltools(NAME)
    check_deployment(target.coreml)
    graphs: dict[str, Artifact] = {}
    components: dict[str, list[Variant]] = {}
    for variant in variants.graphs.values():
        components.setdefault(variant.component, []).append(variant)
    for component, members in components.items():
        with tempfile.TemporaryDirectory(prefix="edgediff-coreml-") as work:
            graphs.update(_lower_component(component, members, variants, target, out, Path(work)))
    _check_sizes(out, target)
    return Artifacts(NAME, graphs, {"coremltools": importlib.metadata.version("coremltools")})


def check_deployment(table: CoreMLTable) -> None:
    """Raises BackendError when the release that the target names is too old for what it asks."""
    from edgediff.backends._coreml_convert import RELEASES

    if table.attention == "sdpa" and RELEASES[table.deployment] < 18:
        message = (
            f"attention 'sdpa' is an operation of iOS 18, and the target deploys to {table.deployment}; "
            "choose attention 'split_einsum' or 'original', or deployment 'iOS18'"
        )
        raise BackendError(message, where="[coreml]", code="deployment")


def graph_batches(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Graph of the denoiser -> the batch sizes that the program runs it at, in the order of first use."""
    found: dict[str, list[int]] = {name: [] for name in plan.graphs}
    for call, guidance in zip(plan.schedule.calls, plan.guidance.calls, strict=True):
        if call in found:
            batch = 2 if guidance is not None and plan.guidance.mode == "batched" else 1
            if batch not in found[call]:
                found[call].append(batch)
    return {name: tuple(batches) or (1,) for name, batches in found.items()}


def function_name(graph: str, batch: int, batches: tuple[int, ...]) -> str:
    """The function of a graph at a batch size: the graph's name for the first of its `batches`."""
    return graph if batch == batches[0] else f"{graph}_batch{batch}"


def _lower_component(
    component: str, members: list[Variant], variants: Variants, target: Target, out: Path, work: Path
) -> dict[str, Artifact]:
    """The graphs that may share weights, converted one by one and linked."""
    from edgediff.backends._coreml_convert import RELEASES
    from edgediff.backends._coreml_link import Part, link_functions
    from edgediff.backends._coreml_metadata import describe_package

    plan, table, precision = variants.plan, target.coreml, variants.plan.backends[NAME].precision
    batches = graph_batches(plan)
    islands: tuple[str, ...] | None = None if table.islands == "auto" else tuple(table.islands)
    parts: list[Part] = []
    for variant in members:
        sizes = batches.get(variant.name, (1,))
        for batch in sizes:
            name = function_name(variant.name, batch, sizes)
            path = work / f"{name}.mlpackage"
            islands = _convert(variant, batch, path, precision, table, islands)
            parts.append(Part(name, path))
    multifunction = RELEASES[table.deployment] >= 18 and component not in (members[0].name,)
    compress = _compress(variants, component)
    description = describe_package(variants, target, component, islands or ())
    folder = out / NAME
    folder.mkdir(parents=True, exist_ok=True)
    if multifunction:
        file = f"{NAME}/{component}.mlpackage"
        link_functions(parts, out / file, compress=compress, description=description)
        return {v.name: Artifact(file=file, function=v.name, precision=precision) for v in members}
    for part in parts:
        file = f"{part.name}.mlpackage"
        link_functions([Part(MAIN, part.path)], folder / file, compress=compress, description=description)
    return {
        v.name: Artifact(
            file=f"{NAME}/{v.name}.mlpackage", function=MAIN, precision=precision,
            data=tuple(
                f"{NAME}/{part.name}.mlpackage" for part in parts if part.name.startswith(f"{v.name}_batch")
            ),
        )
        for v in members
    }  # fmt: skip


def _convert(
    variant: Variant, batch: int, path: Path, precision: str, table: CoreMLTable, islands: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Writes one function; returns the islands that it has. None of them given: they are measured."""
    from edgediff.backends._attention import rewrite_attention
    from edgediff.backends._coreml_capture import capture_program
    from edgediff.backends._coreml_convert import convert_program
    from edgediff.backends._coreml_islands import choose_islands

    program = capture_program(variant, batch)
    rewrite_attention(program, table.attention, query_chunk=table.query_chunk)
    if precision == "fp32":
        convert_program(program, variant, batch, path, precision="fp32", deployment=table.deployment)
        return ()

    def convert(chosen: tuple[str, ...], to: Path) -> None:
        convert_program(
            program, variant, batch, to, precision="fp16", deployment=table.deployment, islands=chosen
        )

    if islands is not None:
        convert(islands, path)
        return islands
    return choose_islands(variant, batch, path, convert)


def _compress(variants: Variants, component: str) -> Compress | None:
    """How weights are coded: as the plan says, 8 bits where it says int8 and nothing else. Layers of the denoiser
    that have a format of their own are known again by their values."""
    from edgediff.compression import MIN_WEIGHTS, encode, parse_format

    plan = variants.plan
    word = plan.weights.format if plan.weights else "int8" if plan.backends[NAME].precision == "int8" else ""
    if not word:
        return None
    own = _known_layers(variants) if component == next(iter(variants.denoisers().values())).component else {}

    def code(name: str, weight: Array) -> Encoded | None:
        if weight.size < MIN_WEIGHTS:
            return None
        return encode(weight, parse_format(own.get(_mark(weight), word)))

    return code


def _known_layers(variants: Variants) -> dict[str, str]:
    """Values of a weight -> its format."""
    formats = variants.plan.weights.layers if variants.plan.weights else {}
    found = {}
    for network, _ in variants.networks.values():
        for name, parameter in network.named_parameters():
            if name in formats:
                found[_mark(parameter.detach().numpy())] = formats[name]
    return found


def _mark(weight: Array) -> str:
    """A digest of the values in fp16, whatever the shape: a linear layer may have become a convolution."""
    halves = np.ascontiguousarray(weight, np.float16)
    return hashlib.blake2b(halves.data, digest_size=16).hexdigest()


def _check_sizes(out: Path, target: Target) -> None:
    """Raises BackendError when a package cannot be loaded on the target."""
    if target.memory_ceiling_gb is None:
        return
    for package in sorted((out / NAME).iterdir()):
        size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
        if size > target.memory_ceiling_gb * 1e9:
            message = (
                f"'{package.name}' has {size / 1e9:.2f} GB, and an app on {target.name} may hold "
                f"{target.memory_ceiling_gb:g} GB; choose fewer bits, or cut more"
            )
            raise BackendError(message, where=f"{NAME}/{package.name}", code="too_large")


# Running


def open_runner(
    folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None
) -> Runner:
    """Loads one graph at one batch size: on a Mac with Core ML, elsewhere with the evaluator, in fp16 as declared.

    `threads` is for the evaluator. Raises BackendError for a package that cannot be read, lacks the function, or
    whose inputs and outputs are not those of the manifest; MissingLibrary.
    """
    path, function = _locate(folder, artifact, batch)
    program = _open_program(path)
    if function not in program.functions:
        message = f"{unknown('function', function, program.functions)}; build the bundle again"
        raise BackendError(message, where=str(path), code="signature")
    _check_ends(program, function, graph, batch, path)
    if sys.platform == "darwin":
        from edgediff.backends._coreml_device import DeviceRunner

        return DeviceRunner(path, function, program)
    return EvaluatorRunner(program, function, threads)


class EvaluatorRunner:
    """One function, evaluated with PyTorch."""

    def __init__(self, program: Program, function: str, threads: int | None) -> None:
        self._program, self._function, self._threads = program, function, threads

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that do not fit."""
        from edgediff.backends.eager import torch_threads

        with torch_threads(self._threads):
            return self._program.run(self._function, None, **inputs)


_OPEN: WeakValueDictionary[tuple[str, int], Program] = WeakValueDictionary()  # alive while a runner is


def _open_program(path: Path) -> Program:
    """The program of a package, which the runners of its functions share."""
    from edgediff import mil

    key = (str(path.resolve()), path.stat().st_mtime_ns if path.exists() else 0)
    program = _OPEN.get(key)
    if program is None:
        program = _OPEN[key] = mil.load(path)
    return program


def _locate(folder: Path, artifact: Artifact, batch: int) -> tuple[Path, str]:
    """Package and function of a graph at a batch size."""
    path, function = folder / artifact.file, artifact.function or MAIN
    for other in artifact.data:
        if other.endswith(f"_batch{batch}.mlpackage"):
            return folder / other, function
    if function != MAIN:
        named = f"{function}_batch{batch}"
        return path, named if named in _open_program(path).functions else function
    return path, function


def _check_ends(program: Program, function: str, graph: Graph, batch: int, path: Path) -> None:
    have_in, have_out = program.inputs(function), program.outputs(function)
    for specs, have in ((graph.inputs, have_in), (graph.outputs, have_out)):
        want = {spec.name: (INTEGERS.get(spec.dtype, spec.dtype), spec.sized(batch)) for spec in specs}
        found: dict[str, Any] = {name: (kind.dtype, kind.shape) for name, kind in have.items()}
        if found != want:
            message = f"function '{function}' has {found} where the manifest says {want}; build the bundle again"
            raise BackendError(message, where=str(path), code="signature")

