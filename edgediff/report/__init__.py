"""One HTML page about bundles and their programs: self-contained, without scripts, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    Every program of a bundle is shown on its own, beside the others. `evaluations` and `profiles` go with the bundles
    in their order (or with all programs, each bundle's default one first), each as plain data or as a file; None for
    one that was not measured. Without `profiles` those in the manifests are shown, and parity always is. `graphs` are
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
    programs = [(one, name) for one in several for name in _programs(one)]
    found = _in_order("evaluations", evaluations, several, _evaluated)
    tables = _in_order("profiles", profiles, several, lambda bundle, _: bundle.manifest.default)
    maps = _in_order("graphs", graphs, several, None)
    subjects = [
        make_subject(one, name, evaluation, table)
        for (one, name), evaluation, table in zip(programs, found, tables, strict=True)
    ]
    page = build_page(subjects, maps, when or datetime.now().astimezone(), estimates or {})
    write_text_atomic(Path(out), str(page))
    return Path(out)


def _programs(bundle: Bundle) -> list[str]:
    """Every program, the default one first."""
    default = bundle.manifest.default
    return [default, *(name for name in bundle.manifest.programs if name != default)]


def _evaluated(bundle: Bundle, source: Source) -> str:
    """The program that an evaluation is about: the default one where it does not say."""
    data = source if isinstance(source, Mapping) else read_outside(Path(source), RootModel[dict[str, Any]]).root
    named = data.get("program_name")
    return named if isinstance(named, str) and named in bundle.manifest.programs else bundle.manifest.default


def _in_order(
    what: str, values: Sequence[Any] | None, bundles: Sequence[Bundle], about: Callable[[Bundle, Any], str] | None
) -> list[Any]:
    """One value for every program of every bundle. Given one for each bundle, it goes to the program that it is
    `about`; None: to all of them."""
    counts = [len(one.manifest.programs) for one in bundles]
    if not values:
        return [None] * sum(counts)
    if len(values) == len(bundles):
        return [
            value if value is None or about is None or about(bundle, value) == name else None
            for bundle, value in zip(bundles, values, strict=True)
            for name in _programs(bundle)
        ]
    if len(values) == sum(counts):
        return list(values)
    raise ConfigError(
        f"{len(values)} {what} for {len(bundles)} bundles; give one for each bundle, in their order, or one for each "
        "program of each, the default one first",
        code="usage",
    )
