"""What was decided: sampler, graphs, cuts, and the schedule as a map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgediff.documents.plan import Plan
from edgediff.evaluation.layers import map_layers
from edgediff.graph.schedule import HOLD
from edgediff.graph.units import UnitGraph
from edgediff.report.heatmap import draw_calls, draw_schedule, letters_of
from edgediff.report.markup import Child, Html, code, facts, figure, join, macs, name, percent, size, table, tag
from edgediff.report.quality import evaluate_command
from edgediff.report.subject import Subject

FOLD = 8  # longer lists are folded


def plan_section(subject: Subject) -> Html:
    """Decisions, graphs, precision, cuts."""
    plan = subject.plan
    sampler, cost, equal = plan.sampler, plan.cost, plan.cost.equal_compute
    share = percent(cost.macs / cost.reference_macs)
    pairs: list[tuple[str, Child]] = [
        ("Recipe", name(plan.recipe_name)),
        ("Target", name(plan.target_name)),
        ("Sampler", f"{sampler.kind}, {sampler.steps} steps, {sampler.calls} network calls"),
        ("Guidance", _guidance(plan)),
        ("Compute", f"{macs(cost.macs)} per image, {share} of the untouched model's {macs(cost.reference_macs)}"),
        ("Same compute", f"{equal.sampler} with {equal.steps} steps, {macs(equal.macs)}"),
        ("Backends", ", ".join(f"{key} {one.precision}" for key, one in plan.backends.items())),
    ]
    return join([facts(pairs), _graphs(subject), _cuts(plan)])


def schedule_section(subject: Subject, graph: UnitGraph | None) -> Html:
    """The map, drawn from the unit graph if the caller has it, else from what the evaluation kept of it."""
    plan = subject.plan
    layers = map_layers(plan, graph) if graph is not None else _kept_layers(subject)
    counts = Counter(plan.schedule.calls)
    letters = letters_of(plan)
    told = [
        tag("li", code(letters[row]), f" {row}: {count} of {len(plan.schedule.calls)} calls")
        for row, count in counts.items()
    ]
    head = tag("ul", *told, class_="letters")
    if layers:
        return join([head, draw_schedule(plan, layers)])
    words = tag(
        "p",
        "Which layers each call computes is known where the model is: run ",
        code(evaluate_command(subject)),
        " and pass the file on. Below, what each call costs.",
        class_="missing",
    )
    return join([head, words, draw_calls(plan)])


def _kept_layers(subject: Subject) -> Sequence[Mapping[str, Any]]:
    return subject.figures().get("layers") or []


def _graphs(subject: Subject) -> Html:
    plan, counts = subject.plan, Counter(subject.plan.schedule.calls)
    head = ("graph", "calls", "per call", "parameters", "reads from cache", "writes to cache")
    rows: list[list[Child]] = [
        [
            code(key),
            counts[graph.row],
            macs(graph.macs),
            _millions(graph.parameters),
            _carries(subject, graph.reads),
            _carries(subject, graph.writes),
        ]
        for key, graph in plan.graphs.items()
    ]
    if counts[HOLD]:
        rows.append([tag("em", "none: output held"), counts[HOLD], macs(0), figure(None), "", ""])
    return join([tag("h4", "Graphs of the denoiser"), table(head, rows, numbers=(1, 2, 3))])


def _carries(subject: Subject, carries: Sequence[str]) -> Child:
    """Names and the memory that they take for one sample in fp32."""
    if not carries:
        return tag("span", "nothing", class_="quiet")
    specs = subject.manifest.carries
    from edgediff.graph.schedule import carry_name

    known = [specs[carry_name(carry)] for carry in carries if carry_name(carry) in specs]
    count = sum(_values(spec.sized(1)) for spec in known) * 4
    shown = [code(carry) for carry in carries[:2]]
    more = f" and {len(carries) - 2} more" if len(carries) > 2 else None
    return join([*_between(shown, ", "), more, tag("small", f"{size(count)} per prompt") if known else None])


def _cuts(plan: Plan) -> Html:
    if not plan.cuts:
        return join([tag("h4", "Cuts"), tag("p", "Nothing was cut from the network.", class_="note")])
    rows: list[list[Child]] = [[code(cut.unit), cut.by, f"{cut.score:.3g}"] for cut in plan.cuts]
    made = table(("unit", "by", "score"), rows, numbers=(2,))
    title = f"{len(plan.cuts)} unit{'s' if len(plan.cuts) > 1 else ''} cut"
    if len(rows) > FOLD:
        made = tag("details", tag("summary", "all of them"), made)
    return join([tag("h4", title), made])


def _guidance(plan: Plan) -> str:
    scales = [scale for scale in plan.guidance.calls if scale is not None]
    if not scales:
        return "none"
    shown = f"{min(scales):g}" if min(scales) == max(scales) else f"{min(scales):g} to {max(scales):g}"
    how = {"batched": "both prompts in one batch", "sequential": "one prompt after the other"}[plan.guidance.mode]
    return f"{shown} on {len(scales)} of {len(plan.guidance.calls)} calls, {how}"


def _millions(count: int) -> str:
    return figure(count / 1e6, 2, "M")


def _values(shape: Sequence[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _between(parts: Sequence[Html], gap: str) -> list[Child]:
    made: list[Child] = []
    for index, part in enumerate(parts):
        made += [gap, part] if index else [part]
    return made
