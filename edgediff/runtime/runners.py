"""Which graphs a program runs, at which batch, on which backend; and those graphs, opened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, cast

from edgediff.errors import BackendError, unknown
from edgediff.plugins import load_plugin
from edgediff.runtime.engine import Array, Runner, StatefulRunner, held_states
from edgediff.runtime.manifest import Artifact, Graph, Manifest


class Engine(Protocol):
    """The part of a backend that runs on a device."""

    def open_runner(
        self, folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None
    ) -> Runner: ...

    def stand_in(self, artifact: Artifact) -> str: ...


def used_graphs(manifest: Manifest) -> tuple[tuple[str, int], ...]:
    """(graph, batch) pairs that the program runs, in the order of first use."""
    program = manifest.program
    found: list[tuple[str, int]] = [(program.encode.graph, 1)] if program.encode else []
    for row in program.rows:
        if row.graph is not None:
            found.append((row.graph, 2 if row.guidance is not None and program.mode == "batched" else 1))
    if program.decode.graph is not None:
        found.append((program.decode.graph, 1))
    return tuple(dict.fromkeys(found))


def find_stand_in(manifest: Manifest, backend: str) -> str:
    """What computes a backend's programs on this machine where its own runtime is not, in a few words; else empty."""
    engine: Engine = load_plugin("backends", backend)
    found = [engine.stand_in(manifest.graphs[graph].artifacts[backend]) for graph, _ in used_graphs(manifest)]
    return " and ".join(filter(None, dict.fromkeys(found)))


def list_backends(manifest: Manifest) -> list[str]:
    """Backends that have an artifact of every graph that the program uses, in the manifest's order."""
    graphs = [manifest.graphs[name] for name, _ in used_graphs(manifest)]
    return [name for name in graphs[0].artifacts if all(name in graph.artifacts for graph in graphs)]


def choose_backend(manifest: Manifest, backend: str | None = None) -> str:
    """`backend` if the bundle has it, the first one for None. Raises BackendError naming those it has."""
    have = list_backends(manifest)
    if not have:
        raise BackendError(f"bundle '{manifest.name}' has no backend with all of its graphs; build it again")
    if backend is None:
        return have[0]
    if backend not in have:
        message = f"bundle '{manifest.name}' was not built for it: {unknown('backend', backend, have)}"
        raise BackendError(message, code="backend")
    return backend


def open_runners(
    manifest: Manifest, folder: Path, backend: str | None, threads: int | None
) -> tuple[dict[str, Runner], dict[str, float]]:
    """The runner of each graph, and the seconds that each took to load, by `<graph>` or `<graph>@<batch>`."""
    name, loaded, seconds = choose_backend(manifest, backend), {}, {}
    engine: Engine = load_plugin("backends", name)
    batches: dict[str, list[int]] = {}
    for graph, batch in used_graphs(manifest):
        batches.setdefault(graph, []).append(batch)
    for graph, sizes in batches.items():
        typed = manifest.graphs[graph]
        opened: dict[int, Runner] = {}
        for batch in sizes:
            start = time.perf_counter()
            opened[batch] = engine.open_runner(folder, typed, typed.artifacts[name], batch=batch, threads=threads)
            seconds[graph if len(sizes) == 1 else f"{graph}@{batch}"] = time.perf_counter() - start
        loaded[graph] = opened[sizes[0]] if len(sizes) == 1 else _ByBatch(opened)
    return loaded, seconds


class _ByBatch:
    """Runners of one graph at several batch sizes, chosen by the batch of `sample`."""

    def __init__(self, runners: dict[int, Runner]) -> None:
        self._runners, self.states = runners, held_states(next(iter(runners.values())))

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._runners[inputs["sample"].shape[0]].run(inputs)

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]:
        return cast(StatefulRunner, self._runners[inputs["sample"].shape[0]]).run_held(inputs, memory)
