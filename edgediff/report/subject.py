"""One program of a bundle with all that was measured about it, read defensively: JSON that somebody may have edited."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import RootModel

from edgediff.config import parse, read_outside
from edgediff.documents.plan import Plan
from edgediff.errors import EvaluationError
from edgediff.evaluation.pictures import PictureCache, program_digest
from edgediff.graph.schedule import HOLD, Row, used_rows
from edgediff.report.forms import EvaluationForm
from edgediff.runtime.evidence import Parity
from edgediff.runtime.latency import LatencyTable

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime.manifest import Manifest

Source = Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class Subject:
    """A bundle as one of its programs, that program's plan, and its measurements where there are any. `default` is the
    program that the bundle runs when none is asked for."""

    bundle: Bundle
    default: str
    plan: Plan
    evaluation: Mapping[str, Any] | None
    profile: LatencyTable | None
    parity: Parity | None

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def program(self) -> str:
        """The program that this is about."""
        return self.manifest.default

    @property
    def role(self) -> str:
        """`default program` where the bundle has others besides; else empty."""
        return "default program" if len(self.manifest.programs) > 1 and self.program == self.default else ""

    @property
    def title(self) -> str:
        manifest = self.manifest
        return manifest.name if len(manifest.programs) == 1 else f"{manifest.name}, {self.program}"

    @property
    def option(self) -> str:
        """What a command needs to be about this program: empty for the default one."""
        return "" if self.program == self.default else f" --program {_quoted(self.program)}"

    @property
    def quoted(self) -> str:
        """The folder's own name as a shell takes it."""
        return _quoted(self.bundle.folder.name)

    @property
    def evaluation_file(self) -> str:
        """Where the commands on the page write the evaluation, as a shell takes it."""
        stem = self.bundle.folder.stem
        return f"{_quoted(stem if self.program == self.default else f'{stem}.{self.program}')}.evaluation.json"

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing is cut and every call runs everything."""
        schedule = self.plan.schedule
        whole = all(schedule.rows[name] == Row() for name in used_rows(schedule))
        return whole and HOLD not in schedule.calls and not self.plan.cuts

    def figures(self, key: str | None = None) -> Mapping[str, Any]:
        """The bundle's own figures, or those of `reference` or `equal_compute`; empty when not measured."""
        if self.evaluation is None:
            return {}
        part = self.evaluation if key is None else self.evaluation[key]
        return {name: part.get(name) for name in part}


def make_subject(
    bundle: Bundle, program: str, evaluation: Source | None, profile: LatencyTable | Source | None
) -> Subject:
    """Raises ConfigError or EvaluationError for a file that is not what it should be, or that is about another
    bundle or program; a profile in the manifest is used when none is given."""
    view, evidence = bundle.as_program(program), bundle.evidence
    found = None if evaluation is None else _read_evaluation(view, evaluation)
    table = _read_profile(view, evidence.profile.get(program) if profile is None else profile)
    return Subject(view, bundle.manifest.default, view.plan.programs()[program], found, table, evidence.parity)


def twin(subjects: Sequence[Subject], subject: Subject, steps: int) -> Subject | None:
    """Among the report's bundles, the untouched model of `subject` sampled in so many steps: its latency is a
    baseline's, measured."""
    for other in subjects:
        sampler = other.plan.sampler
        same = other.plan.model.weights == subject.plan.model.weights and sampler.kind == subject.plan.sampler.kind
        if same and other.is_untouched and sampler.steps == steps:
            return other
    return None


def read_pictures(subject: Subject) -> list[dict[str, Any]]:
    """The shown pictures with `images`: arrays uint8 by set. Those that the cache no longer has are left out."""
    if subject.evaluation is None or not (rows := subject.evaluation.get("pictures")):
        return []
    folder = Path(str(subject.evaluation.get("cache", "")))
    if not (folder / "pictures").is_dir():
        return []
    cache = PictureCache(folder, create=False)
    found = []
    for row in rows:
        images = {key: cache.read(str(row[key])) for key in ("reference", "compressed", "equal_compute")}
        if all(image is not None for image in images.values()):
            found.append({**row, "images": images})
    return found


def _quoted(word: str) -> str:
    """For a shell, and not to be taken for an option."""
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def _read_evaluation(bundle: Bundle, source: Source) -> Mapping[str, Any]:
    where = str(source) if isinstance(source, str | Path) else "evaluation"
    data = source if isinstance(source, Mapping) else read_outside(Path(source), RootModel[dict[str, Any]]).root
    for key in ("reference", "equal_compute"):
        if not isinstance(data.get(key), Mapping):
            raise EvaluationError(
                f"is no evaluation: '{key}' is missing; write one with edgediff evaluate BUNDLE --out FILE",
                where=where,
                code="form",
            )
    parse(dict(data), EvaluationForm, where=where)
    if (named := data.get("program_name", bundle.manifest.default)) != bundle.manifest.default:
        raise EvaluationError(
            f"is about program '{named}', not '{bundle.manifest.default}'; give the evaluations of a bundle in the "
            "order of its programs, the default one first",
            where=where,
            code="other_program",
        )
    if data.get("program", program_digest(bundle.manifest)) != program_digest(bundle.manifest):
        raise EvaluationError(
            f"was made from another build of '{data.get('bundle')}' than bundle '{bundle.manifest.name}'; give the "
            "evaluations in the order of the bundles, or evaluate again",
            where=where,
            code="other_bundle",
        )
    return data


def _read_profile(bundle: Bundle, source: LatencyTable | Source | None) -> LatencyTable | None:
    if source is None or isinstance(source, LatencyTable):
        return source
    if isinstance(source, str | Path):
        return read_outside(Path(source), LatencyTable)
    return parse(dict(source), LatencyTable, where=f"profile of {bundle.manifest.name}")
