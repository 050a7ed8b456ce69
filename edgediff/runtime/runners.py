"""Which graphs a program runs, at which batch, on which backend; and those graphs, opened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, cast

from edgediff.errors import BackendError, unknown
from edgediff.plugins import load_plugin
from edgediff.runtime.conditions import used_encoders
from edgediff.runtime.engine import Array, Runner, StatefulRunner, held_states
from edgediff.runtime.manifest import Artifact, Graph, Manifest


class Engine(Protocol):
    """The part of a backend that runs on a device."""

    def open_runner(
        self, folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None
    ) -> Runner: ...

    def stand_in(self, artifact: Artifact) -> str: ...


def used_graphs(manifest: Manifest, program: str | None = None) -> tuple[tuple[str, int], ...]:
    """(graph, batch) pairs that a program runs, in the order of first use. Raises ConfigError (`program`)."""
    chosen = manifest.program(program)
    found = [(manifest.encoders[name].graph, 1) for name in used_encoders(manifest, chosen)]
    if manifest.picture is not None and "picture" in chosen.takes:
        found.append((manifest.picture.graph, 1))
    found += list(chosen.calls())
    ends = (manifest.decoder, manifest.safety, manifest.preview)
    found += [(end.graph, 1) for end in ends if end is not None and end.graph is not None]
    return tuple(dict.fromkeys(found))


def find_stand_in(manifest: Manifest, backend: str, program: str | None = None) -> str:
    """What computes a backend's programs on this machine where its own runtime is not, in a few words; else empty."""
    engine: Engine = load_plugin("backends", backend)
    found = [engine.stand_in(manifest.graphs[graph].artifacts[backend]) for graph, _ in used_graphs(manifest, program)]
    return " and ".join(filter(None, dict.fromkeys(found)))


def list_backends(manifest: Manifest, program: str | None = None) -> list[str]:
    """Backends that have an artifact of every graph that the program uses, in the manifest's order."""
    graphs = [manifest.graphs[name] for name, _ in used_graphs(manifest, program)]
    return [name for name in graphs[0].artifacts if all(name in graph.artifacts for graph in graphs)]


def choose_backend(manifest: Manifest, backend: str | None = None, program: str | None = None) -> str:
    """`backend` if the bundle has it, the first one for None. Raises BackendError naming those it has."""
    have = list_backends(manifest, program)
    if not have:
        raise BackendError(f"bundle '{manifest.name}' has no backend with all of its graphs; build it again")
    if backend is None:
        return have[0]
    if backend not in have:
        message = f"bundle '{manifest.name}' was not built for it: {unknown('backend', backend, have)}"
        raise BackendError(message, code="backend")
    return backend


def open_runners(
    manifest: Manifest, folder: Path, backend: str | None, threads: int | None, program: str | None = None
) -> tuple[dict[str, Runner], dict[str, float]]:
    """The runner of each graph, and the seconds that each took to load, by `<graph>` or `<graph>@<batch>`."""
    name, loaded, seconds = choose_backend(manifest, backend, program), {}, {}
    engine: Engine = load_plugin("backends", name)
    batches: dict[str, list[int]] = {}
    for graph, batch in used_graphs(manifest, program):
        batches.setdefault(graph, []).append(batch)
    for graph, sizes in batches.items():
        typed = manifest.graphs[graph]
        opened: dict[int, Runner] = {}
        for batch in sizes:
            start = time.perf_counter()
            opened[batch] = engine.open_runner(folder, typed, typed.artifacts[name], batch=batch, threads=threads)
            seconds[graph if len(sizes) == 1 else f"{graph}@{batch}"] = time.perf_counter() - start
        loaded[graph] = opened[sizes[0]] if len(sizes) == 1 else _ByBatch(opened, latent_input(manifest, graph))
    return loaded, seconds


def latent_input(manifest: Manifest, graph: str) -> str:
    """The input of a denoiser's graph that takes the latent."""
    names = (spec.name for spec in manifest.graphs[graph].free_inputs())
    return next(name for name in names if manifest.conditions[name].source == "latent")


class _ByBatch:
    """Runners of one graph at several batch sizes, chosen by the batch of the latent."""

    def __init__(self, runners: dict[int, Runner], latent: str) -> None:
        self._runners, self._latent, self.states = runners, latent, held_states(next(iter(runners.values())))

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._runners[inputs[self._latent].shape[0]].run(inputs)

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]:
        runner = self._runners[inputs[self._latent].shape[0]]
        return cast(StatefulRunner, runner).run_held(inputs, memory)
