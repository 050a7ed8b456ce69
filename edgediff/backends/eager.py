"""PyTorch itself: the reference of verification, and the backend to copy when writing another.

eager/unet/{config.json, cuts.json, model.safetensors}     the cut denoiser, once for all its graphs
eager/unet_untouched/                                      the untouched one, where a row runs it
eager/text_encoder/  eager/vae_decoder/                    as transformers and diffusers save them
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import numpy as np

from edgediff.backends import Artifacts, check_precision
from edgediff.documents.target import BackendTable
from edgediff.errors import BackendError
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Artifact, Graph

if TYPE_CHECKING:
    from torch import nn

    from edgediff.documents.target import BackendTable, Target
    from edgediff.graph.units import UnitGraph
    from edgediff.variants import DenoiserGraph, Variants

NAME = "eager"
TOOLS = ("torch", "diffusers", "transformers", "safetensors")


class Settings(BackendTable):
    """The table `[eager]` of a target."""

    format: Literal["safetensors"] = "safetensors"


def precisions(table: BackendTable) -> Mapping[str, str]:
    """What each precision that this backend serves computes."""
    return {"fp32": "all in fp32, as the reference must be"}


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    """Writes the weights of every graph as safetensors. Raises BackendError for another precision than fp32,
    in which the reference is computed."""
    from edgediff.graph.schedule import OWN
    from edgediff.pipeline import quiet_libraries
    from edgediff.variants import save_network

    check_precision(NAME, variants.plan.backends[NAME].precision, precisions(target.backend(NAME)))
    graphs: dict[str, Artifact] = {}
    for name, variant in variants.graphs.items():
        folder, module = out / NAME / variant.component, variant.module
        if name in variants.plan.graphs:
            if variant.network != OWN:
                folder = folder.with_name(f"{variant.component}_{variant.network}")
            if not folder.exists():
                save_network(*variants.networks[variant.network], folder)
        else:
            whole: Any = next(module.children())
            with quiet_libraries():
                whole.save_pretrained(folder)
        graphs[name] = _artifact(folder, out)
    return Artifacts(NAME, graphs, {tool: importlib.metadata.version(tool) for tool in TOOLS})


def open_runner(folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None) -> Runner:
    """Loads one graph; the graphs of one denoiser share its weights in memory. Any batch size runs.

    `threads` None leaves PyTorch's own number. Raises ModelError for damaged files.
    """
    from edgediff.variants import DecoderGraph, TextEncoderGraph

    source = (folder / artifact.file).parent
    inputs, outputs = [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]
    if graph.component == "text_encoder":
        return EagerRunner(TextEncoderGraph(_load_part(source, "CLIPTextModel")), inputs, outputs, threads)
    if graph.component == "vae_decoder":
        return EagerRunner(DecoderGraph(_load_part(source, None)), inputs, outputs, threads)
    return EagerRunner(_denoiser(source, graph), inputs, outputs, threads)


def eager_runners(variants: Variants, threads: int | None = None) -> dict[str, Runner]:
    """A runner of every graph, straight from the modules in memory."""
    return {
        name: EagerRunner(
            variant.module, [spec.name for spec in variant.inputs], [spec.name for spec in variant.outputs], threads
        )
        for name, variant in variants.graphs.items()
    }


class EagerRunner:
    """One module, numpy in and out."""

    def __init__(self, module: nn.Module, inputs: list[str], outputs: list[str], threads: int | None) -> None:
        self._module, self._inputs, self._outputs, self._threads = module.eval(), inputs, outputs, threads

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name, each a copy. Raises BackendError for a missing input."""
        import torch

        for name in self._inputs:
            if name not in inputs:
                raise BackendError(f"input '{name}' is missing; given were {sorted(inputs)}", code="run")
        with torch.inference_mode(), torch_threads(self._threads):
            values = self._module(*(torch.from_numpy(np.array(inputs[name])) for name in self._inputs))
        return {name: value.numpy().copy() for name, value in zip(self._outputs, values, strict=True)}


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Within it PyTorch uses `count` threads; None leaves its own number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Network:
    """A loaded denoiser that several runners share."""

    def __init__(self, network: nn.Module, graph: UnitGraph) -> None:
        self.network, self.graph = network, graph


_LOADED: WeakValueDictionary[tuple[str, int], _Network] = WeakValueDictionary()  # alive while a runner is


def _denoiser(source: Path, graph: Graph) -> DenoiserGraph:
    """The denoiser graph that reads and writes the carries of `graph`. What it computes follows from what it
    reads: liveness stops at held units."""
    from edgediff.graph.schedule import Wiring, carry_name
    from edgediff.graph.units import Action
    from edgediff.variants import DenoiserGraph, load_network

    key = (str(source.resolve()), (source / "model.safetensors").stat().st_mtime_ns)
    loaded = _LOADED.get(key)
    if loaded is None:
        loaded = _LOADED[key] = _Network(*load_network(source))
    units = loaded.graph
    carries = {carry_name(carry): carry for unit in units.units for carry in (unit.name, f"{unit.name}+")}
    reads = [carries[name] for name in graph.carries_in]
    actions: dict[str, Action] = {carry.rstrip("+"): "delta" if carry.endswith("+") else "hold" for carry in reads}
    live = units.live(actions)
    wiring = Wiring(live, live.reads, tuple(sorted(carries[name] for name in graph.carries_out)))
    module = DenoiserGraph(loaded.network, units, wiring)
    wanted = tuple(spec.name for spec in (*graph.inputs, *graph.outputs))
    if (*module.input_names, *module.output_names) != wanted:
        message = f"the saved network cannot make a graph of {wanted}; build the bundle again"
        raise BackendError(message, where=str(source), code="signature")
    module._shared = loaded  # type: ignore[assignment]
    return module


def _load_part(source: Path, class_name: str | None) -> nn.Module:
    import json

    import diffusers
    import torch
    import transformers

    from edgediff.pipeline import quiet_libraries

    if class_name is None:
        class_name = json.loads((source / "config.json").read_text(encoding="utf-8"))["_class_name"]
    loader = getattr(transformers if hasattr(transformers, class_name) else diffusers, class_name)
    with quiet_libraries():
        module: nn.Module = loader.from_pretrained(str(source), use_safetensors=True, torch_dtype=torch.float32)
    return module.eval().requires_grad_(False)


def _artifact(folder: Path, out: Path) -> Artifact:
    """The safetensors file, and all the others of the folder as what it needs."""
    files = sorted(str(path.relative_to(out).as_posix()) for path in folder.iterdir())
    weights = [file for file in files if file.endswith(".safetensors")]
    return Artifact(file=weights[0], precision="fp32", data=tuple(file for file in files if file != weights[0]))
