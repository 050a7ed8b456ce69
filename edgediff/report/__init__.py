"""One HTML page about one or more bundles: self-contained, without scripts, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import RootModel

from edgediff.config import read_outside, write_text_atomic
from edgediff.errors import ConfigError
from edgediff.report.page import build_page
from edgediff.report.subject import Source, make_subject
from edgediff.runtime.latency import LatencyTable

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.estimate import PlanEstimate
    from edgediff.graph.units import UnitGraph

__all__ = ["render_report"]


def render_report(
    bundles: Bundle | Sequence[Bundle],
    out: str | Path,
    *,
    evaluations: Sequence[Source | None] | None = None,
    profiles: Sequence[LatencyTable | Source | None] | None = None,
    graphs: Sequence[UnitGraph | None] | None = None,
    estimates: Mapping[str, Sequence[PlanEstimate]] | None = None,
    when: datetime | None = None,
) -> Path:
    """Writes the page to `out` (whole or not at all, replacing what was there) and returns its path.

    `evaluations` and `profiles` go with the bundles in their order, each as plain data or as a file; None for one
    that was not measured. Without `profiles` those in the manifests are shown, and parity always is. `graphs` are
    unit graphs of the untouched models, for the map of the schedule; an evaluation brings what the map needs.
    `estimates` by recipe are drawn for all devices together; they are no measurements and are not mixed with any.
    What is missing is said to be missing, with the command that measures it. Pictures come from the evaluation's
    cache. `when` is the date to print, now by default; with it the same input gives the same bytes.

    No torch is imported. Raises ConfigError for lists that do not fit the bundles and for broken files,
    EvaluationError for an evaluation of another bundle, OutputError.
    """
    several = list(bundles) if isinstance(bundles, Sequence) else [bundles]
    if not several:
        raise ConfigError("a report needs at least one bundle", code="usage")
    found = _in_order("evaluations", evaluations, len(several))
    tables = _in_order("profiles", profiles, len(several))
    subjects, maps = [], []
    for index, (one, graph) in enumerate(zip(several, _in_order("graphs", graphs, len(several)), strict=True)):
        for program in _programs(one):
            view = one.as_program(program)
            evaluation = found[index] if program == _evaluated(one, found[index]) else None
            table = tables[index] if program == one.manifest.default else None
            subjects.append(make_subject(view, evaluation, table))
            maps.append(graph)
    page = build_page(subjects, maps, when or datetime.now().astimezone(), estimates or {})
    write_text_atomic(Path(out), str(page))
    return Path(out)


def _programs(bundle: Bundle) -> list[str]:
    """Every program, the default one first: each is shown as a bundle of its own, beside the others."""
    default = bundle.manifest.default
    return [default, *(name for name in bundle.manifest.programs if name != default)]


def _evaluated(bundle: Bundle, source: Source | None) -> str:
    """The program that an evaluation is about: the default one where it does not say."""
    if source is None or len(bundle.manifest.programs) == 1:
        return bundle.manifest.default
    data = source if isinstance(source, Mapping) else read_outside(Path(source), RootModel[dict[str, Any]]).root
    named = data.get("program_name")
    return named if named in bundle.manifest.programs else bundle.manifest.default


def _in_order(what: str, values: Sequence[Any] | None, count: int) -> Sequence[Any]:
    if not values:
        return [None] * count
    if len(values) != count:
        raise ConfigError(
            f"{len(values)} {what} for {count} bundles; give one for each bundle, in their order", code="usage"
        )
    return values
