"""Core ML: ML programs in `.mlpackage` folders, run by Core ML on a Mac and by `edgediff.mil` anywhere else.

    coreml/unet.mlpackage           one multifunction program: a function per graph, each weight once (iOS 18)
    coreml/full.mlpackage  ...      a package per graph for iOS 16 and 17, which know one function only
    coreml/text_encoder.mlpackage   function `main`
    coreml/vae_decoder.mlpackage    function `main`

Sizes are fixed, as the Neural Engine wants them. A graph that the program runs with and without guidance has a
second function (or package) `<graph>_batch1`; the first is for the batch of its first call. Integers are int32,
which is all that Core ML has. Cached features cross as inputs and outputs, in fp32 as the manifest says, or stay in
the package as states (`states`). `chunks = 2` makes two packages of the denoiser, `unet_chunk1.mlpackage` and
`unet_chunk2.mlpackage`, each with about half the weights of every function (`chunks`).

Precision `fp16` computes and keeps everything in fp16 but the *islands* of the target (`auto`: the sinusoid of the
time embedding, and what measured parity says, see `islands`); `w8` and `w4` are `fp16` with weights in 8 or 4 bits, one
scale per output channel, which Core ML expands when it loads. `plan.weights` codes weights otherwise (tables, a scale
per group, zeros).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.backends import Artifacts, check_precision
from edgediff.backends._capture import function_name, graph_batches
from edgediff.backends.coreml.runners import MAIN
from edgediff.backends.coreml.settings import Settings
from edgediff.errors import BackendError
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Artifact, Graph
from edgediff.runtime.precision import weight_bits

if TYPE_CHECKING:
    from edgediff.backends.coreml.link import Compress, Description
    from edgediff.documents.target import BackendTable, Target
    from edgediff.mil import Program
    from edgediff.variants import Variant, Variants
    from edgediff.weight_codes import Encoded

NAME = "coreml"
CODES_WEIGHTS = True  # `plan.weights` is heeded


def precisions(table: BackendTable) -> Mapping[str, str]:
    """What each precision that this backend serves computes."""
    return {
        "fp32": "all in fp32",
        "fp16": "all in fp16 but the target's islands",
        "w8": "as fp16, from 8-bit weights",
        "w4": "as fp16, from 4-bit weights",
    }


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    """Writes every graph below `out/coreml`.

    Raises BackendError: an operator that Core ML has no form for (`export`), a release too old for what the target
    asks (`deployment`), weights beyond the target's memory ceiling (`too_large`); MissingLibrary.
    """
    from edgediff.backends.coreml.states import check_states
    from edgediff.mil.package import import_coremltools

    import_coremltools(NAME)
    table = target.settings(NAME, Settings)
    check_precision(NAME, variants.plan.backends[NAME].precision, precisions(table))
    check_deployment(table)
    check_states(table, variants.plan, variants.plan.backends[NAME].precision)
    graphs: dict[str, Artifact] = {}
    components: dict[str, list[Variant]] = {}
    for variant in variants.graphs.values():
        components.setdefault(variant.component, []).append(variant)
    for component, members in components.items():
        with tempfile.TemporaryDirectory(prefix="edgediff-coreml-") as work:
            graphs.update(_lower_component(component, members, variants, target, out, Path(work)))
    _check_sizes(out, target)
    return Artifacts(NAME, graphs, {"coremltools": importlib.metadata.version("coremltools")})


def check_deployment(table: Settings) -> None:
    """Raises BackendError when the release that the target names is too old for what it asks."""
    from edgediff.backends.coreml.convert import RELEASES

    if table.attention == "sdpa" and RELEASES[table.deployment] < 18:
        message = (
            f"attention 'sdpa' is an operation of iOS 18, and the target deploys to {table.deployment}; "
            "choose attention 'split_einsum' or 'original', or deployment 'iOS18'"
        )
        raise BackendError(message, where="[coreml]", code="deployment")


def _lower_component(
    component: str, members: list[Variant], variants: Variants, target: Target, out: Path, work: Path
) -> dict[str, Artifact]:
    """The graphs that may share weights, converted one by one and linked."""
    from edgediff.backends.coreml.convert import RELEASES
    from edgediff.backends.coreml.metadata import describe_package
    from edgediff.backends.coreml.states import name_states, size_states

    table, precision = target.settings(NAME, Settings), variants.plan.backends[NAME].precision
    batches = graph_batches(variants.plan)
    arithmetic = "fp32" if precision == "fp32" else "fp16"
    converted, islands = _convert_members(members, batches, arithmetic, table, work)
    denoiser = members[0].name in batches
    largest = max(size for variant in members for size in batches.get(variant.name, (1,)))
    linker = _Linking(
        out,
        _compress(variants, component),
        describe_package(variants, target, component, islands),
        states=size_states(members, largest) if denoiser and table.cache == "state" else {},
        cuts=_cuts(converted) if denoiser and table.chunks > 1 else {},
    )
    if denoiser and RELEASES[table.deployment] >= 18:
        files = linker.link(component, converted)
        return {
            v.name: Artifact(
                file=files[0],
                chunks=files[1:],
                function=v.name,
                precision=precision,
                states=name_states(v) if linker.states else {},
            )
            for v in members
        }
    packages = {name: linker.link(name, {MAIN: found}, cut=name) for name, found in converted.items()}
    others = {
        v.name: [f for name, files in packages.items() if name.startswith(f"{v.name}_batch") for f in files]
        for v in members
    }
    return {
        v.name: Artifact(
            file=files[0], chunks=files[1:], function=MAIN, precision=precision, data=tuple(others[v.name])
        )
        for v in members
        for files in [packages[v.name]]
    }


def _convert_members(
    members: list[Variant], batches: Mapping[str, tuple[int, ...]], precision: str, table: Settings, work: Path
) -> tuple[dict[str, tuple[Variant, Path]], tuple[str, ...]]:
    """Function -> its graph and the package of it alone; and the islands, which the first function's parity chose."""
    islands: tuple[str, ...] | None = None if table.islands == "auto" else tuple(table.islands)
    converted: dict[str, tuple[Variant, Path]] = {}
    for variant in members:
        sizes = batches.get(variant.name, (1,))
        for batch in sizes:
            name = function_name(variant.name, batch, sizes)
            path = work / f"{name}.mlpackage"
            islands = _convert(variant, batch, path, precision, table, islands)
            converted[name] = (variant, path)
    return converted, islands or ()


def _cuts(converted: Mapping[str, tuple[Variant, Path]]) -> dict[str, int]:
    """Where each function is cut in two, the largest graph's first: it decides."""
    from edgediff.backends.coreml.chunks import plan_cuts
    from edgediff.mil import open_package

    names = sorted(converted, key=lambda name: -converted[name][0].parameters)
    return dict(zip(names, plan_cuts([(open_package(converted[name][1]), MAIN) for name in names]), strict=True))


@dataclass(frozen=True)
class _Linking:
    """How the functions of a component become packages."""

    out: Path
    compress: Compress | None
    description: Description
    states: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, int]

    def link(self, name: str, functions: Mapping[str, tuple[Variant, Path]], cut: str = "") -> tuple[str, ...]:
        """Writes one package, or its chunks; returns their paths in the bundle. `cut` is the name that a single
        function's cut is kept by."""
        from edgediff.backends.coreml.chunks import COUNT
        from edgediff.backends.coreml.link import Part, link_functions

        (self.out / NAME).mkdir(parents=True, exist_ok=True)
        files = []
        for index in range(COUNT) if self.cuts else [None]:
            file = f"{NAME}/{name}.mlpackage" if index is None else f"{NAME}/{name}_chunk{index + 1}.mlpackage"
            parts = [
                Part(function, path, change=self._change(variant, cut or function, index))
                for function, (variant, path) in functions.items()
            ]
            link_functions(parts, self.out / file, compress=self.compress, description=self.description)
            files.append(file)
        return tuple(files)

    def _change(self, variant: Variant, cut: str, index: int | None) -> Callable[[Any], None] | None:
        from edgediff.backends.coreml.chunks import take_chunk
        from edgediff.backends.coreml.states import hold_in_states, name_states

        if index is not None:
            return partial(take_chunk, cut=self.cuts[cut], index=index)
        if self.states:
            return partial(hold_in_states, ends=name_states(variant), sizes=self.states)
        return None


def _convert(
    variant: Variant, batch: int, path: Path, precision: str, table: Settings, islands: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Writes one function; returns the islands that it has. None of them given: they are measured."""
    from edgediff.backends._attention import rewrite_attention
    from edgediff.backends._capture import capture_program
    from edgediff.backends.coreml.convert import convert_program
    from edgediff.backends.coreml.islands import choose_islands

    program = capture_program(variant, batch)
    rewrite_attention(program, table.attention, query_chunk=table.query_chunk)
    if precision == "fp32":
        convert_program(program, variant, batch, path, precision="fp32", deployment=table.deployment)
        return ()

    def convert(chosen: tuple[str, ...], to: Path) -> None:
        convert_program(program, variant, batch, to, precision="fp16", deployment=table.deployment, islands=chosen)

    if islands is not None:
        convert(islands, path)
        return islands
    return choose_islands(variant, batch, path, convert)


def _compress(variants: Variants, component: str) -> Compress | None:
    """How weights are coded: as the plan says, or else as its precision does. Layers of the denoiser that have a format
    of their own are known again by their values."""
    from edgediff.documents.weight_format import parse_format
    from edgediff.weight_codes import MIN_WEIGHTS, encode

    plan = variants.plan
    precision = plan.backends[NAME].precision
    if not plan.weights and weight_bits(precision) is None:
        return None
    word = plan.weights.format if plan.weights else precision
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
            chunks = "" if target.settings(NAME, Settings).chunks > 1 else ", chunks = 2"
            message = (
                f"'{package.name}' has {size / 1e9:.2f} GB, and an app on {target.name} may hold "
                f"{target.memory_ceiling_gb:g} GB; choose fewer bits{chunks}, or cut more"
            )
            raise BackendError(message, where=f"{NAME}/{package.name}", code="too_large")


# Running


def stand_in(artifact: Artifact) -> str:
    """What computes a package on this machine; empty on a Mac, where Core ML does."""
    return "" if sys.platform == "darwin" else "edgediff's evaluator of Core ML programs"


def open_runner(folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None) -> Runner:
    """Loads one graph at one batch size: on a Mac with Core ML, elsewhere with the evaluator, in fp16 as declared.

    `threads` is for the evaluator. Raises BackendError for a package that cannot be read, lacks the function, or
    whose inputs and outputs are not those of the manifest; MissingLibrary.
    """
    from edgediff.backends.coreml.runners import EvaluatedModel, open_model_runner

    def load(path: Path, function: str, program: Program) -> Any:
        if sys.platform == "darwin":
            from edgediff.backends.coreml.device import DeviceModel

            return DeviceModel(path, function, program)
        return EvaluatedModel(program, function, threads)

    return open_model_runner(folder, graph, artifact, batch, load)
