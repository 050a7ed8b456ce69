"""Small charts as inline SVG, coloured by classes of the style sheet so that they follow light and dark.

Every chart says in its `aria-label` what it shows, and no figure stands in a chart alone: a table has it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgediff.report.markup import Html, svg, tag


@dataclass(frozen=True)
class Mark:
    """One value on a scale: `kind` is `reference`, `bundle` or `equal`; `interval` its 95 % interval."""

    kind: str
    value: float
    interval: tuple[float, float] | None = None


SHAPES = {"reference": "square", "bundle": "disc", "equal": "diamond"}


def dot_strip(marks: Sequence[Mark], label: str, top: float, *, width: int = 170, height: int = 34) -> Html:
    """Marks and their intervals on one horizontal scale from 0 to `top`: it starts at 0, so that a small
    difference looks small. Each side has a lane of its own, so that equal values stay apart."""
    pad, middle = 7, height / 2

    def x(value: float) -> float:
        return pad + min(max(value / top, 0.0), 1.0) * (width - 2 * pad) if top else float(pad)

    lanes = {"reference": middle - 9, "bundle": middle, "equal": middle + 9}
    parts = [tag("path", d=f"M{pad} {middle - 12}V{middle + 12}M{pad} {middle}H{width - pad}", class_="axis")]
    for mark in marks:
        if mark.interval:
            start, end = (x(value) for value in mark.interval)
            y = lanes[mark.kind]
            parts.append(tag("line", x1=start, x2=end, y1=y, y2=y, class_=f"whisker {mark.kind}"))
    parts += [_shape(mark.kind, x(mark.value), lanes[mark.kind]) for mark in marks]
    return svg(parts, width, height, "strip", label=label)


def bars(rows: Sequence[tuple[str, str, float, str]], label: str, *, width: int = 640) -> Html:
    """Horizontal bars: (class, name, value, text). The longest fills the width; names stand above the bars, so
    that they fit a phone."""
    top = max((value for _, _, value, _ in rows), default=0.0) or 1.0
    made = []
    for kind, title, value, shown in rows:
        share = f"{max(value / top * 100, 0.4):.2f}%"
        made.append(
            tag(
                "div",
                tag("span", title, class_="bar-name"),
                tag("span", shown, class_="bar-value"),
                tag("span", tag("span", style=f"width:{share}", class_=f"fill {kind}"), class_="bar"),
                class_="bar-row",
            )
        )
    return tag("div", *made, class_="bars", role="img", aria_label=label)


def stacked(parts: Sequence[tuple[str, str, float]], label: str) -> Html:
    """One bar of a whole in parts: (class, title, value); parts below half a percent stay visible."""
    total = sum(value for _, _, value in parts) or 1.0
    made = [
        tag("span", class_=f"part {kind}", style=f"flex-grow:{max(value / total, 0.005):.4f}", title=title)
        for kind, title, value in parts
    ]
    return tag("div", *made, class_="stacked", role="img", aria_label=label)


def ticks(samples: Sequence[float], low: float, high: float, label: str, *, width: int = 180) -> Html:
    """Every sample as a thin line on a scale from `low` to `high`: the spread that percentiles stand for."""
    span = (high - low) or 1.0
    places = [4 + (value - low) / span * (width - 8) for value in samples]
    lines = [tag("line", x1=4, x2=width - 4, y1=16, y2=16, class_="axis")]
    path = "".join(f"M{place:.1f} 4V14" for place in places)
    return svg([*lines, tag("path", d=path, class_="tick")], width, 20, "ticks", label=label)


def floor_bar(value: float, floor: float | None, top: float, state: str, label: str, *, width: int = 180) -> Html:
    """A bar up to `value` with a mark at the floor that it must reach; `state`: passed, failed or plain."""
    x = min(value, top) / top * width
    parts = [
        tag("rect", x=0, y=6, width=width, height=6, class_="rail"),
        tag("rect", x=0, y=6, width=max(x, 1.0), height=6, class_=f"level {state}"),
    ]
    if floor is not None:
        at = min(floor, top) / top * width
        parts.append(tag("line", x1=at, x2=at, y1=1, y2=17, class_="floor"))
    return svg(parts, width, 18, "floor-bar", label=label)


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """The legend of `reference`, `bundle` and `equal` marks: (class, words)."""
    made = [tag("li", svg([_shape(kind, 8, 8)], 16, 16, "mark"), words) for kind, words in entries]
    return tag("ul", *made, class_="key")


def _shape(kind: str, x: float, y: float) -> Html:
    """A form as well as a colour for each side."""
    if SHAPES[kind] == "square":
        return tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=f"dot {kind}")
    if SHAPES[kind] == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z", class_=f"dot {kind}")
    return tag("circle", cx=x, cy=y, r=5, class_=f"dot {kind}")
