"""Backends: each file or folder lowers graphs to one runtime's format, and opens them again (`Backend`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgediff.documents.target import BackendTable
from edgediff.errors import BackendError
from edgediff.plugins import load_plugin
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.latency import LatencyTable
from edgediff.runtime.manifest import Artifact, Graph

if TYPE_CHECKING:
    from edgediff.documents.target import Target
    from edgediff.variants import Variants


class Backend(Protocol):
    """A file in this folder, or an entry point of `edgediff.backends`.

    `Settings` is its table in a target; it is read on machines that have neither torch nor the runtime, so those are
    imported inside the functions that need them. `CODES_WEIGHTS`: whether `plan.weights` is heeded.
    """

    NAME: str
    Settings: type[BackendTable] = BackendTable
    CODES_WEIGHTS: bool = False

    @abstractmethod
    def precisions(self, table: Any) -> Mapping[str, str]:
        """What each precision that is served computes (words of `runtime.precision`), for its table in the target."""

    @abstractmethod
    def lower(self, variants: Variants, target: Target, out: Path) -> Artifacts:
        """Writes every graph below `out/<name>`; precision, format and threads are those of
        `variants.plan.backends[<name>]`. Raises BackendError, MissingLibrary."""

    @abstractmethod
    def open_runner(
        self, folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None
    ) -> Runner:
        """Loads one graph of a bundle's folder, without torch and exporters. Raises BackendError, MissingLibrary."""

    def stand_in(self, artifact: Artifact) -> str:
        """What computes an artifact on this machine where its own runtime is not there; empty where it is."""
        return ""

    def write_trace(
        self,
        folder: Path,
        graph: Graph,
        artifact: Artifact,
        inputs: dict[str, Array],
        *,
        batch: int,
        threads: int | None,
        out: Path,
    ) -> Path:
        """The runtime's own trace of a few calls with these inputs, operator by operator: a file in the folder `out`
        that `edgediff.links` can read. Raises BackendError where the runtime writes none."""
        raise BackendError(
            f"{self.NAME} writes no trace of its operators here; take --per-op with --backend onnxruntime", code="trace"
        )


DOOR = Backend


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
        backend: Backend = load_plugin("backends", name)
        lowered.append(backend.lower(variants, target, out))
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
