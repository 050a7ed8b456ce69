"""Where a bundle comes from: its files with their hashes, the tools, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

from edgediff.documents.recipe import list_recipes, load_recipe
from edgediff.documents.target import list_targets, load_target
from edgediff.errors import EdgeDiffError
from edgediff.report.charts import bars
from edgediff.report.markup import Child, Html, code, facts, join, name, size, table, tag
from edgediff.report.subject import Subject
from edgediff.runtime.manifest import FileEntry


def files_section(subject: Subject) -> Html:
    """Sizes by folder (a file at the top stands for itself), then every file."""
    files = subject.manifest.files
    groups: dict[str, int] = {}
    for entry in files:
        head = entry.path.partition("/")[0]
        groups[head] = groups.get(head, 0) + entry.bytes
    rows = [("plain", title, float(count), size(count)) for title, count in sorted(groups.items(), key=_by_size)]
    words = f"{len(files)} files, {size(subject.bytes)}, each with its SHA-256 in the manifest."
    drawn = bars(rows, f"Sizes of the folders of {subject.title}")
    return join([tag("p", words, class_="note"), drawn, _all_files(files)])


def provenance_section(subject: Subject) -> Html:
    """Hashes, versions, licence, and what to type."""
    source, plan = subject.manifest.source, subject.plan
    pairs: list[tuple[str, Child]] = [
        ("Model", join([name(source.model), f" at {source.revision}" if source.revision else None])),
        ("Licence of the weights", name(source.licence)),
        ("Weights", code(source.weights)),
        ("Plan", code(next(entry.sha256 for entry in subject.manifest.files if entry.path == subject.manifest.plan))),
        ("Recipe", join([name(plan.recipe_name), " ", code(plan.recipe)])),
        ("Target", join([name(plan.target_name), " ", code(plan.target)])),
        ("Tools", ", ".join(f"{tool} {version}" for tool, version in sorted(subject.manifest.tools.items()))),
    ]
    if subject.profile is not None and subject.profile.measured_at:
        pairs.append(("Profiled", subject.profile.measured_at))
    script = tag("pre", "\n".join(_commands(subject)), tabindex="0")
    return join([facts(pairs), tag("h4", "To make this again"), script])


def _all_files(files: Iterable[FileEntry]) -> Html:
    rows: list[list[Child]] = [
        [code(entry.path), size(entry.bytes), tag("code", entry.sha256[:16], title=entry.sha256)] for entry in files
    ]
    made = table(("file", "size", "SHA-256, first 16 digits"), rows, numbers=(1,))
    return tag("details", tag("summary", "every file"), made)


def _commands(subject: Subject) -> list[str]:
    plan, bundle = subject.plan, subject.quoted
    recipe = _config_name(plan.recipe, list_recipes(), load_recipe) or f"{plan.recipe_name}.toml"
    target = _config_name(plan.target, list_targets(), load_target) or f"{plan.target_name}.toml"
    made = subject.figures()
    prompts = f" --prompts {made['prompts']}" if str(made.get("prompt_source", "")).endswith("default_rng(0)") else ""
    evaluation, option = subject.evaluation_file, subject.option
    model = shlex.quote(subject.manifest.source.model)
    return [
        f"edgediff build {model} --recipe {shlex.quote(recipe)} --target {shlex.quote(target)} --out {bundle}",
        f"edgediff verify {bundle}",
        f"edgediff profile {bundle}{option}",
        f"edgediff evaluate {bundle}{option}{prompts} --out {evaluation}",
        f"edgediff report {bundle} --evaluation {evaluation} --out report.html",
    ]


def _config_name(digest: str, names: Iterable[str], load: Callable[[str], Any]) -> str | None:
    """The shipped recipe or target of this very content; a changed or foreign one has no name here."""
    for candidate in names:
        try:
            if load(candidate).digest() == digest:
                return candidate
        except EdgeDiffError:
            continue
    return None


def _by_size(item: tuple[str, int]) -> int:
    return -item[1]
