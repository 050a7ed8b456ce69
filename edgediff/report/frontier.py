"""Quality over cost: the plot, and the section about what the planner weighed under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from edgediff.documents.plan import Front
from edgediff.report.charts import key
from edgediff.report.markup import Child, Html, figure, join, table, tag

LEGEND = (("bundle", "reuse"), ("equal", "fewer steps, untouched network"))
CHOSEN = {"bundle": ("reference",), "equal": ()}


@dataclass(frozen=True)
class Spot:
    """One plan in the plot; `kind` is `bundle`, `equal` (a baseline) or `reference` (the chosen one)."""

    kind: str
    x: float
    y: float
    words: str


def scatter(spots: Sequence[Spot], label: str, x_words: str, y_words: str) -> Html:
    """Quality over cost, the cost on a logarithmic scale; every spot says its name when pointed at."""
    width, height, left, bottom = 640, 320, 48, 40
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    low, high, floor, top = min(xs), max(xs), min(ys), max(ys)
    ratio, span = max(high / low, 1.01), max(top - floor, 1.0)

    def x(value: float) -> float:
        return left + log(value / low) / log(ratio) * (width - left - 24) + 8

    def y(value: float) -> float:
        return 16 + (top - value) / span * (height - bottom - 28)

    drawn: list[Html] = [tag("path", d=f"M{left} 8V{height - bottom}H{width - 8}", fill="none", class_="axis")]
    for step in range(5):
        value = floor + span * step / 4
        drawn.append(tag("text", figure(value, 0), x=left - 6, y=y(value) + 3, class_="tick-text end"))
        place = low * ratio ** (step / 4)
        shown = figure(place, 0 if place >= 20 else 2)
        drawn.append(tag("text", shown, x=x(place), y=height - bottom + 14, class_="tick-text middle"))
    drawn.append(tag("text", x_words, x=width / 2, y=height - 6, class_="tick-text middle"))
    drawn.append(tag("text", y_words, x=left + 6, y=16, class_="tick-text"))
    for kind in ("equal", "bundle"):
        own = sorted((spot.x, spot.y) for spot in spots if spot.kind in (kind, *CHOSEN[kind]))
        front = [point for point in own if not any(o[0] <= point[0] and o[1] > point[1] for o in own)]
        points = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in front)
        if len(front) > 1:
            drawn.append(tag("path", d=f"M{points}", fill="none", class_=f"whisker {kind}"))
    for spot in spots:
        mark = tag("circle", cx=f"{x(spot.x):.1f}", cy=f"{y(spot.y):.1f}", r=5, class_=f"dot {spot.kind}")
        drawn.append(tag("g", tag("title", spot.words), mark))
    return tag("svg", *drawn, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=label)


def front_section(front: Front) -> Html:
    """What the planner weighed under a budget: the plot and the points that nothing beats."""
    chosen, measured = front.points[front.chosen], [p for p in front.points if p.snr_db is not None]
    spots = [
        Spot(
            "reference" if p is chosen else "equal" if p.baseline else "bundle",
            p.latency_ms,
            p.snr_db or 0.0,
            f"{p.what}: {p.latency_ms:.0f} ms, {p.snr_db:.1f} dB",
        )
        for p in measured
    ]
    rows: list[list[Child]] = [
        [
            join([p.what, " (chosen)" if p is chosen else None]),
            f"{p.latency_ms:.0f} ms",
            f"{p.memory_mb:.0f} MB",
            figure(p.snr_db or 0.0, 1),
        ]
        for p in front.best()
    ]
    over = f"Better ones are over the {' and the '.join(front.binding)} limit." if front.binding else ""
    words = (
        f"{len(front.points)} plans were priced ({front.target_source} time on the target), {len(measured)} measured: "
        f"the final latents' power over that of their error, on the calibration prompts. {over}"
    )
    plot = scatter(spots, "Quality over time of every plan that was weighed", "ms per image", "dB")
    head = ["Nothing is both faster and closer", "time", "memory", "dB"]
    return join([key(LEGEND), plot, tag("p", words, class_="note"), table(head, rows, numbers=(1, 2, 3))])
