"""Devices against recipes: what an image takes on each, with the interval of every estimate, as an SVG of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgediff.report.markup import Html, join, tag

if TYPE_CHECKING:
    from edgediff.estimate import PlanEstimate

COLOURS = ("#3b6fb6", "#c05a2e", "#3f8f5b", "#8a5aa8")
WIDTH, LEFT, RIGHT, ROW, TOP = 760, 190, 120, 26, 34


def devices_section(estimates: Mapping[str, Sequence[PlanEstimate]]) -> Html:
    """The plot, and under it what each estimate stands on."""
    bases = {one.target: one.basis for found in estimates.values() for one in found}
    notes = [tag("li", f"{target}: {basis}") for target, basis in bases.items()]
    return tag(
        "section",
        tag("h2", "On devices that are not here"),
        Html(devices_plot(estimates)),
        tag("ul", *notes, class_="note"),
        class_="devices",
    )


def devices_plot(estimates: Mapping[str, Sequence[PlanEstimate]]) -> str:
    """One row per device in the order of the first recipe, a mark per recipe at the middle estimate with a line over
    its 80 % interval, on a logarithmic axis of milliseconds; what does not fit into memory is hollow and says so."""
    names = list(dict.fromkeys(one.target for found in estimates.values() for one in found))
    spans = [one.latency_ms for found in estimates.values() for one in found]
    low = math.floor(math.log10(min(span.low for span in spans)))
    high = math.ceil(math.log10(max(span.high for span in spans)))
    height = TOP + ROW * len(names) + 40

    def at(value: float) -> float:
        return round(LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    parts: list[Html] = [tag("rect", width=WIDTH, height=height, fill="#fff")]
    for power in range(low, high + 1):
        x = at(10.0**power)
        parts.append(tag("path", d=f"M{x} {TOP}V{height - 40}", stroke="#ddd"))
        parts.append(tag("text", f"{10.0**power:g} ms", x=x, y=height - 22, text_anchor="middle"))
    for row, name in enumerate(names):
        y = TOP + ROW * row + ROW / 2
        parts.append(tag("text", name, x=LEFT - 10, y=y + 4, text_anchor="end"))
        for index, (recipe, found) in enumerate(estimates.items()):
            for one in (one for one in found if one.target == name):
                parts += _mark(one, recipe, at, y + 5 * index, COLOURS[index % len(COLOURS)])
    for index, recipe in enumerate(estimates):
        parts.append(tag("text", recipe, x=LEFT + 110 * index, y=18, fill=COLOURS[index % len(COLOURS)]))
    words = "estimated, not measured; lines hold 4 of 5"
    parts.append(tag("text", words, x=WIDTH - 8, y=18, text_anchor="end", fill="#666"))
    drawn = tag(
        "svg",
        join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        font_size="12",
        font_family="sans-serif",
        role="img",
        aria_label="Estimated time of an image on each device",
    )
    return f"{drawn}\n"


def _mark(one: PlanEstimate, recipe: str, place: Callable[[float], float], y: float, colour: str) -> list[Html]:
    span = one.latency_ms
    fits = one.fits is not False
    title = f"{one.target}, {recipe}: {span.p50:.3g} ms ({span.low:.3g} to {span.high:.3g}), {one.memory_mb:.0f} MB"
    drawn = [
        tag("path", d=f"M{place(span.low)} {y}H{place(span.high)}", stroke=colour, stroke_width=2, opacity=0.5),
        tag(
            "g",
            tag("title", title),
            tag(
                "circle",
                cx=place(span.p50),
                cy=y,
                r=4.5,
                stroke=colour,
                stroke_width=2,
                fill=colour if fits else "#fff",
            ),
        ),
    ]
    if not fits:
        drawn.append(tag("text", "does not fit", x=WIDTH - RIGHT + 12, y=y + 4, fill="#b00"))
    return drawn
