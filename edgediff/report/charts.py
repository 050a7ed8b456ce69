"""Small charts as inline SVG, coloured by classes of the style sheet so that they follow light and dark.

Every chart says in its `aria-label` what it shows, and no figure stands in a chart alone: a table has it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgediff.report.markup import Html, join, tag


@dataclass(frozen=True)
class Mark:
    """One value on a scale: `kind` is `reference`, `bundle` or `equal`; `interval` its 95 % interval."""

    kind: str
    value: float
    interval: tuple[float, float] | None = None


SHAPES = {"reference": "square", "bundle": "disc", "equal": "diamond"}


def dot_strip(marks: Sequence[Mark], label: str, *, width: int = 170, height: int = 34) -> Html:
    """Marks on one horizontal scale from the least to the largest value shown, intervals included."""
    ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
    low, high = float(min(ends)), float(max(ends))
    span = (high - low) or 1.0
    pad = 9

    def x(value: float) -> float:
        return pad + (value - low) / span * (width - 2 * pad)

    middle = height / 2
    lanes = {"reference": middle - 8, "bundle": middle, "equal": middle + 8}
    parts = [tag("line", x1=pad, x2=width - pad, y1=middle, y2=middle, class_="axis")]
    for mark in marks:
        if mark.interval:
            start, end = (x(value) for value in mark.interval)
            y = lanes[mark.kind]
            parts.append(tag("line", x1=start, x2=end, y1=y, y2=y, class_=f"whisker {mark.kind}"))
    parts += [_shape(mark.kind, x(mark.value), lanes[mark.kind]) for mark in marks]
    return _svg(parts, width, height, label, "strip")


def bars(rows: Sequence[tuple[str, str, float, str]], label: str, *, width: int = 640) -> Html:
    """Horizontal bars: (class, name, value, text). The longest fills the width; names stand above the bars, so
    that they fit a phone."""
    top = max((value for _, _, value, _ in rows), default=0.0) or 1.0
    made = []
    for kind, title, value, shown in rows:
        share = f"{max(value / top * 100, 0.4):.2f}%"
        made.append(
            tag("div", tag("span", title, class_="bar-name"), tag("span", shown, class_="bar-value"),
                tag("span", tag("span", style=f"width:{share}", class_=f"fill {kind}"), class_="bar"), class_="bar-row")
        )  # fmt: skip
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
    return _svg([*lines, tag("path", d=path, class_="tick")], width, 20, label, "ticks")


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
    return _svg(parts, width, 18, label, "floor-bar")


def scatter(
    marks: Sequence[tuple[str, str, float, float, tuple[float, float] | None]], label: str, axes: tuple[str, str]
) -> Html:
    """Points (class, name, x, y, interval of y) with x from 0: cost to the right, quality upwards."""
    width, height, left, bottom, top, right = 640, 300, 56, 40, 16, 24
    ys = [end for _, _, _, y, interval in marks for end in (y, *(interval or ()))]
    low, high = min(ys), max(ys)
    margin = (high - low or abs(high) or 1.0) * 0.12
    low, high = low - margin, high + margin
    far = max(x for _, _, x, _, _ in marks) * 1.08 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / far * (width - left - right), top + (high - y) / (high - low) * (height - top - bottom)

    parts: list[Html] = []
    for step in _round_steps(low, high):
        y = place(0, step)[1]
        parts.append(tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{step:g}", x=left - 8, y=y + 4, class_="tick-text end"))
    for step in _round_steps(0, far):
        parts.append(tag("text", f"{step:g}", x=place(step, low)[0], y=height - bottom + 18, class_="tick-text middle"))
    parts.append(tag("text", axes[0], x=width - right, y=height - 4, class_="axis-text end"))
    parts.append(tag("text", axes[1], x=left, y=top - 4, class_="axis-text"))
    for kind, title, value, y, interval in marks:
        px, py = place(value, y)
        if interval:
            ends = [place(value, end)[1] for end in interval]
            parts.append(tag("line", x1=px, x2=px, y1=ends[0], y2=ends[1], class_=f"whisker {kind}"))
        parts.append(_shape(kind, px, py))
        flip = px > width * 0.72
        kind = "point-text end" if flip else "point-text"
        parts.append(tag("text", title, x=px + (-10 if flip else 10), y=py + 4, class_=kind))
    return _svg(parts, width, height, label, "scatter")


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """The legend of `reference`, `bundle` and `equal` marks: (class, words)."""
    made = [
        tag("li", _svg([_shape(kind, 8, 8)], 16, 16, "", "mark"), words) for kind, words in entries
    ]
    return tag("ul", *made, class_="key")


def _shape(kind: str, x: float, y: float) -> Html:
    """A form as well as a colour for each side."""
    if SHAPES[kind] == "square":
        return tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=f"dot {kind}")
    if SHAPES[kind] == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z", class_=f"dot {kind}")
    return tag("circle", cx=x, cy=y, r=5, class_=f"dot {kind}")


def _round_steps(low: float, high: float) -> list[float]:
    """Up to six round values between two ends."""
    raw = (high - low) / 5
    power = 10.0 ** _floor_log10(raw)
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = int(low / step) if low >= 0 else int(low / step) - 1
    values = [round(step * index, 10) for index in range(first, first + 12)]
    return [value for value in values if low <= value <= high]


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _svg(parts: Sequence[Html], width: float, height: float, label: str, kind: str) -> Html:
    hidden = not label
    return tag(
        "svg", join(parts), viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}", class_=kind,
        role=None if hidden else "img", aria_label=label or None, aria_hidden="true" if hidden else None,
    )  # fmt: skip
