"""The page around the sections: head, key figures, overview of several bundles, contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff import __version__
from edgediff.graph.units import UnitGraph
from edgediff.report.charts import Mark, dot_strip, key
from edgediff.report.decisions import plan_section, schedule_section
from edgediff.report.devices import devices_section
from edgediff.report.frontier import front_section
from edgediff.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    figure,
    join,
    macs,
    milliseconds,
    name,
    percent,
    size,
    table,
    tag,
)
from edgediff.report.origin import files_section, provenance_section
from edgediff.report.parity import parity_section, parity_words
from edgediff.report.quality import SEPARATE_RUNS, evaluate_command, pictures_section, quality_section
from edgediff.report.subject import Subject
from edgediff.report.timing import MADE, image_time, latency_section

if TYPE_CHECKING:
    from edgediff.estimate import PlanEstimate
    from edgediff.runtime.latency import LatencyTable

STYLE = Path(__file__).with_name("style.css")
# Nothing is fetched and nothing runs, whatever a name or a file might try.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def build_page(
    subjects: Sequence[Subject],
    graphs: Sequence[UnitGraph | None],
    when: datetime,
    estimates: Mapping[str, Sequence[PlanEstimate]],
) -> Html:
    """The whole document."""
    single = len(subjects) == 1
    articles = [
        _article(index, subject, subjects, graph, single)
        for index, (subject, graph) in enumerate(zip(subjects, graphs, strict=True))
    ]
    body = tag(
        "body",
        tag(
            "main",
            _masthead(subjects, when),
            None if single else _overview(subjects),
            *articles,
            devices_section(estimates) if estimates else None,
        ),
    )
    return _document(f"{_page_title(subjects)} - edgediff report", body)


def _page_title(subjects: Sequence[Subject]) -> str:
    """What the page is about: a bundle, the programs of one, or several bundles."""
    bundles = len({one.bundle.folder for one in subjects})
    if len(subjects) == 1:
        return subjects[0].title
    if bundles == 1:
        return f"{subjects[0].manifest.name}: {len(subjects)} programs"
    programs = f", {len(subjects)} programs" if len(subjects) > bundles else ""
    return f"{bundles} bundles compared{programs}"


def plain_page(title: str, lede: str, sections: Sequence[tuple[str, Child]]) -> Html:
    """A whole document that is about no bundle: a title, a sentence, and the sections that have content."""
    made = [tag("section", tag("h3", what), tag("div", body, class_="content")) for what, body in sections if body]
    header = tag(
        "header",
        tag("p", f"edgediff {__version__}", class_="kicker"),
        tag("h1", title),
        tag("p", lede, class_="lede"),
        class_="masthead",
    )
    return _document(f"{title} - edgediff", tag("body", tag("main", header, tag("article", *made))))


def _document(title: str, body: Html) -> Html:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", title),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        Html(f"<style>{STYLE.read_text(encoding='utf-8')}</style>"),
    )
    return Html(f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def _masthead(subjects: Sequence[Subject], when: datetime) -> Html:
    kicker = f"edgediff {__version__} report, {when.day} {when:%B %Y, %H:%M}"
    parts: list[Child] = [tag("p", kicker, class_="kicker")]
    if len(subjects) == 1:
        parts += [tag("h1", name(subjects[0].title)), _lede(subjects[0]), _key_figures(subjects[0])]
    else:
        links = [tag("li", _link(index, one)) for index, one in enumerate(subjects)]
        parts += [tag("h1", name(_page_title(subjects))), tag("ul", *links, class_="contents")]
    return tag("header", *parts, class_="masthead")


def _link(index: int, subject: Subject) -> Html:
    """To the article about a program."""
    return join([tag("a", name(subject.title), href=f"#bundle-{index}"), _role(subject)])


def _role(subject: Subject) -> Html | None:
    """Says which program runs when none is asked for."""
    return tag("small", f" {subject.role}") if subject.role else None


def _lede(subject: Subject) -> Html:
    plan, device = subject.plan, subject.profile.device if subject.profile else None
    share = percent(plan.cost.macs / plan.cost.reference_macs)
    where = ""
    if subject.profile and device:
        where = f" {MADE[subject.profile.source]} {device.cpu or device.name} with {device.runtime or device.backend}."
    return tag(
        "p",
        name(plan.model.id),
        " by the recipe ",
        name(plan.recipe_name),
        " for ",
        name(plan.target_name),
        f": {plan.sampler.kind}, {plan.sampler.steps} steps, {share} of the untouched model's arithmetic.{where}",
        class_="lede",
    )


def _key_figures(subject: Subject) -> Html:
    """The five numbers that decide; each with what it must be read beside."""
    cost, profile, found = subject.plan.cost, subject.profile, subject.figures()
    equal = subject.figures("equal_compute")
    state, words = parity_words(subject)
    parity = {"passed": "passed", "failed": "failed", "missing": None}[state]
    judged = found.get("retrieval_at_1") is not None
    quality = "retrieval_at_1" if judged else "ssim"
    titles = {"retrieval_at_1": "retrieval@1", "ssim": "SSIM to the untouched"}

    def written(value: float | None) -> str | None:
        return None if value is None else percent(value, 1) if judged else figure(value, 3)

    beside = f"same compute on fewer steps: {written(equal.get(quality))}" if equal.get(quality) is not None else ""
    entries = [
        _key_figure(
            "arithmetic",
            percent(cost.macs / cost.reference_macs),
            f"of the untouched model; {macs(cost.macs)} per image",
        ),
        _key_figure(titles[quality], written(found.get(quality)), beside, evaluate_command(subject)),
        _key_figure(
            "per image, p50",
            milliseconds(profile.end_to_end_ms.p50) if profile else None,
            _beside(profile),
            f"edgediff profile {subject.quoted}{subject.option}",
        ),
        _key_figure("conversion", parity, words, f"edgediff verify {subject.quoted}", state),
        _key_figure("on disk", size(subject.bytes), f"{len(subject.manifest.files)} files"),
    ]
    return tag("ul", *entries, class_="figures")


def _beside(profile: LatencyTable | None) -> str:
    if profile is None:
        return ""
    memory = f"peak memory {figure(profile.peak_rss_mb, 0, 'MB')}"
    return memory if profile.source == "measured" else f"{profile.source}, not measured"


def _key_figure(title: str, value: str | None, beside: str, command: str = "", state: str = "") -> Html:
    shown = tag("strong", value, class_=state or None) if value else tag("strong", NOT_MEASURED, class_="missing")
    note = beside if value else join(["run ", tag("code", command)])
    return tag("li", tag("span", title), shown, tag("small", note))


def _overview(subjects: Sequence[Subject]) -> Html:
    """One row per program, then cost and quality of those that were evaluated."""
    head = (
        "program" if any(one.role for one in subjects) else "bundle",
        "recipe",
        "MACs per image",
        "of untouched",
        "p50",
        "peak memory",
        "retrieval@1",
        "PSNR",
        "SSIM",
        "conversion",
        "on disk",
    )
    rows = [_overview_row(index, subject) for index, subject in enumerate(subjects)]
    made = table(head, rows, numbers=(2, 3, 4, 5, 6, 7, 8, 10), kind="overview")
    timed = sum(subject.profile is not None for subject in subjects) > 1
    note = tag("p", SEPARATE_RUNS, class_="note") if timed else None
    content = tag("div", made, note, _cost_quality(subjects), class_="content")
    return tag("section", tag("h3", "Side by side"), content, id="overview")


def _overview_row(index: int, subject: Subject) -> list[Child]:
    cost, profile, found = subject.plan.cost, subject.profile, subject.figures()
    sampler, (state, _) = subject.plan.sampler, parity_words(subject)
    return [
        _link(index, subject),
        join([name(subject.plan.recipe_name), tag("small", f"{sampler.kind}, {sampler.steps} steps")]),
        macs(cost.macs),
        percent(cost.macs / cost.reference_macs),
        image_time(profile),
        figure(profile.peak_rss_mb, 0, "MB") if profile else figure(None),
        percent(found.get("retrieval_at_1"), 1),
        figure(found.get("psnr_db"), 1, "dB"),
        figure(found.get("ssim"), 3),
        tag("span", {"missing": NOT_MEASURED}.get(state, state), class_=f"mark {_KIND[state]}"),
        size(subject.bytes),
    ]


_KIND = {"passed": "ok", "failed": "bad", "missing": "quiet"}


def _cost_quality(subjects: Sequence[Subject]) -> Html | None:
    """A row per program: its arithmetic, and its quality beside both baselines, all on one scale."""
    measured = [one for one in subjects if one.evaluation is not None]
    judged = all(one.figures().get("retrieval_at_1") is not None for one in measured)
    what, words = ("retrieval_at_1", "retrieval@1") if judged else ("ssim", "SSIM to the untouched model")
    most = max((one.plan.cost.reference_macs for one in measured), default=0)
    rows: list[list[Child]] = []
    for one in measured:
        parts = (("reference", "reference"), ("bundle", None), ("equal", "equal_compute"))
        columns = [(kind, one.figures(part)) for kind, part in parts]
        marks = [
            Mark(kind, column[what], tuple(column["retrieval_interval"]) if judged else None)
            for kind, column in columns
            if column.get(what) is not None
        ]
        cost, equal = one.plan.cost, one.plan.cost.equal_compute
        costs = [Mark("reference", cost.reference_macs), Mark("bundle", cost.macs), Mark("equal", equal.macs)]
        rows.append(
            [
                name(one.title),
                dot_strip(costs, f"Arithmetic of {one.title}", most, width=300),
                dot_strip(marks, f"{words} of {one.title}", 1.0, width=330),
            ]
        )
    if not rows:
        return None
    legend = key((("reference", "untouched model"), ("bundle", "bundle"), ("equal", "same compute, fewer steps")))
    head = ("", f"arithmetic, 0 to {macs(most)} per image", f"{words}, 0 to {'100 %' if judged else '1'}")
    return join([tag("h4", "Cost and quality"), legend, table(head, rows, kind="costs")])


def _article(index: int, subject: Subject, subjects: Sequence[Subject], graph: UnitGraph | None, single: bool) -> Html:
    others = [other for other in subjects if other is not subject]
    sections = (
        ("Pictures", pictures_section(subject)),
        ("Cost and quality", quality_section(subject, others)),
        ("Plan", plan_section(subject)),
        *((("What the planner weighed", front_section(subject.plan.front)),) if subject.plan.front else ()),
        ("Schedule", schedule_section(subject, graph)),
        ("Latency", latency_section(subject)),
        ("Conversion", parity_section(subject)),
        ("Files", files_section(subject)),
        ("Provenance", provenance_section(subject)),
    )
    head: Child = None
    if not single:
        head = join([tag("h2", name(subject.title), _role(subject)), _lede(subject), _key_figures(subject)])
    made = [tag("section", tag("h3", title), tag("div", content, class_="content")) for title, content in sections]
    return tag("article", head, *made, id=f"bundle-{index}")
