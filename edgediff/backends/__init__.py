"""Backends: each file lowers graphs to one runtime's format, and opens them again.

A backend module exposes `lower(variants, target, out) -> Artifacts` and
`open_runner(folder, graph, artifact, *, batch, threads) -> Runner`. Precision, format and threads are those of
`variants.plan.backends[<name>]`. Opening a runner imports neither torch nor an exporter, except in `eager`. A module
may also expose `stand_in(artifact) -> str`: what computes an artifact here where its own runtime cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgediff.latency import LatencyTable
from edgediff.manifest import Artifact
from edgediff.plugins import load_plugin

if TYPE_CHECKING:
    from edgediff.target import Target
    from edgediff.variants import Variants

Array = np.ndarray[Any, np.dtype[Any]]


class Runner(Protocol):
    """One graph, loaded."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. The caller owns them; the inputs may be overwritten once `run` has returned."""
        ...


class StatefulRunner(Runner, Protocol):
    """A runner that keeps carries itself, between its calls and those of the other graphs of its file.

    `states` are the inputs and outputs that need not cross, by name. `run` takes and gives them all the same, and
    remembers nothing; `run_held` leaves them out of both and keeps them in `memory`, an empty dictionary at the
    first call of a picture, which all runners of a program are handed.
    """

    states: Mapping[str, str]

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]: ...


def held_states(runner: Runner) -> Mapping[str, str]:
    """The states of a runner; none of one that keeps nothing."""
    found: Mapping[str, str] = getattr(runner, "states", {})
    return found


@dataclass(frozen=True)
class Artifacts:
    """What a backend wrote: the artifact of each graph, paths relative to the bundle, the versions of the tools that
    made it, and the latency table of a vendor's compiler where it makes one."""

    backend: str
    graphs: dict[str, Artifact]
    tools: dict[str, str]
    profile: LatencyTable | None = None


def lower_variants(variants: Variants, target: Target, out: Path) -> tuple[Artifacts, ...]:
    """Lowers to every backend of the plan, in the plan's order, into folders below `out`.

    Raises what the backends raise: MissingLibrary, BackendError.
    """
    lowered = []
    for name in variants.plan.backends:
        artifacts: Artifacts = load_plugin("backends", name).lower(variants, target, out)
        lowered.append(artifacts)
    return tuple(lowered)
