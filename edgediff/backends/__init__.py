"""Backends: each file lowers graphs to one runtime's format, and opens them again.

A backend module exposes `precisions(table) -> {word: what is computed}` for its table in the target (words of
`runtime.precision`), `lower(variants, target, out) -> Artifacts` and
`open_runner(folder, graph, artifact, *, batch, threads) -> Runner`. Precision, format and threads are those of
`variants.plan.backends[<name>]`. Opening a runner imports neither torch nor an exporter, except in `eager`. A module
may also expose `stand_in(artifact) -> str`: what computes an artifact here where its own runtime cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.errors import BackendError
from edgediff.plugins import load_plugin
from edgediff.runtime.latency import LatencyTable
from edgediff.runtime.manifest import Artifact

if TYPE_CHECKING:
    from edgediff.documents.target import Target
    from edgediff.variants import Variants


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


def check_precision(backend: str, word: str, served: Mapping[str, str], *, where: str | None = None) -> None:
    """Raises BackendError (code `precision`) for a word that is not among what a backend serves. `where` is the file
    and key that asked for it."""
    if word not in served:
        raise BackendError(
            f"'{word}' is no precision of {backend}; it serves "
            + "; ".join(f"{one} ({computed})" for one, computed in served.items())
            + f". Write one of these as precision in the recipe or in the target's [{backend.partition(' ')[0]}], or "
            "leave the backend out with --backend",
            where=where,
            code="precision",
        )
