"""The schedule as a map: calls from left to right, layers from top to bottom, what each call does to each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from edgediff.documents.plan import Plan
from edgediff.graph.schedule import HOLD
from edgediff.report.markup import Html, join, svg, tag

CELL, LABELS, TOP, SHARES = 13, 132, 40, 74
# State -> letter and words; the letter is written into the cells, so that nobody has to tell colours apart.
STATES = {
    "run": ("", "runs"),
    "part": ("", "runs in part (some units cut or held)"),
    "held": ("h", "held: its cached output stands in"),
    "skipped": ("\N{MIDDLE DOT}", "not needed: nothing that runs reads it"),
    "cut": ("\N{MULTIPLICATION SIGN}", "cut from the network"),
    "output": ("", "whole call held: the last output stands in"),
}
BRIEF = (
    ("_blocks.", " "),
    ("mid_block", "mid"),
    (".layers.", " \N{MIDDLE DOT} "),
    (".downsamplers.0", " \N{DOWNWARDS ARROW}"),
    (".upsamplers.0", " \N{UPWARDS ARROW}"),
    ("_", " "),
)


def letters_of(plan: Plan) -> dict[str, str]:
    """Row name -> the letter that `str(schedule)` writes for it."""
    return dict(zip(plan.schedule.calls, str(plan.schedule), strict=True))


def draw_schedule(plan: Plan, layers: Sequence[Mapping[str, Any]]) -> Html:
    """The map with its legend. Labels stay in view while the map scrolls sideways."""
    rows = [_states(plan, layer) for layer in layers]
    seen = {state for row in rows for state in row}
    legend = tag("ul", *(_legend_entry(state) for state in STATES if state in seen), class_="states")
    height = TOP + CELL * len(rows) + 8
    labels = svg([*_labels(layers)], LABELS, height, "map-labels")
    body = svg(
        [*_calls(plan), *_cells(rows), *_shares(layers, CELL * len(plan.schedule.calls) + 10)],
        CELL * len(plan.schedule.calls) + 10 + SHARES,
        height,
        "map-body",
        label=f"Schedule of {len(plan.schedule.calls)} calls and {len(rows)} layers: {plan.schedule}",
    )
    return join([tag("div", labels, body, class_="map wide", tabindex="0"), legend])


def draw_calls(plan: Plan) -> Html:
    """What is known from the plan alone: letters and the cost of each call."""
    height = TOP + 60
    full = max(graph.macs for graph in plan.graphs.values())
    parts = [*_calls(plan)]
    for index, name in enumerate(plan.schedule.calls):
        tall = 0.0 if name == HOLD else plan.graphs[name].macs / full * 52
        parts.append(tag("rect", x=index * CELL + 1, width=CELL - 2, y=TOP + 54 - tall, height=tall, class_="cell run"))
    width = CELL * len(plan.schedule.calls) + 10
    drawn = svg(parts, width, height, "map-body", label=f"Cost of each call: {plan.schedule}")
    return tag("div", drawn, class_="map wide", tabindex="0")


def _states(plan: Plan, layer: Mapping[str, Any]) -> list[str]:
    """The state of one layer at every call."""
    if layer["cut"] >= 1.0:
        return ["cut"] * len(plan.schedule.calls)
    states = []
    for name in plan.schedule.calls:
        if name == HOLD:
            states.append("output")
            continue
        share = layer["runs"].get(name, 0.0)
        partial = "run" if share >= 0.9995 else "part"
        idle = "held" if name in layer["held"] else "skipped"
        states.append(partial if share > 0 else idle)
    return states


def _cells(rows: Sequence[Sequence[str]]) -> list[Html]:
    """Equal neighbours are one rectangle; lines drawn over them make the cells, which keeps the file small."""
    parts: list[Html] = []
    for index, row in enumerate(rows):
        at, y = 0, TOP + index * CELL
        for state, run in groupby(row):
            count = len(list(run))
            parts.append(tag("rect", x=at * CELL, y=y, width=count * CELL, height=CELL, class_=f"cell {state}"))
            if letter := STATES[state][0]:
                for place in range(at, at + count):
                    x, below = place * CELL + CELL / 2, y + CELL / 2 + 3.2
                    parts.append(tag("text", letter, x=x, y=below, class_=f"letter {state}"))
            at += count
    columns, bottom = len(rows[0]) if rows else 0, TOP + len(rows) * CELL
    path = "".join(f"M{index * CELL} {TOP}V{bottom}" for index in range(columns + 1))
    path += "".join(f"M0 {TOP + index * CELL}H{columns * CELL}" for index in range(len(rows) + 1))
    return [*parts, tag("path", d=path, class_="mesh")]


def _calls(plan: Plan) -> list[Html]:
    """Above the map: the number of every tenth call, a letter for the row, a dot where the prompt is guided."""
    parts: list[Html] = []
    for index, (letter, name) in enumerate(zip(str(plan.schedule), plan.schedule.calls, strict=True)):
        x = index * CELL + CELL / 2
        if index % 10 == 0 or index == len(plan.schedule.calls) - 1:
            parts.append(tag("text", index + 1, x=x, y=10, class_="tick-text middle"))
        if plan.guidance.calls[index] is not None and name != HOLD:
            parts.append(tag("circle", cx=x, cy=18, r=1.8, class_="guided"))
        parts.append(tag("text", letter, x=x, y=33, class_="call-letter"))
    return parts


def _labels(layers: Sequence[Mapping[str, Any]]) -> list[Html]:
    parts = [
        tag("text", "call", x=LABELS - 8, y=10, class_="tick-text end"),
        tag("text", "guided", x=LABELS - 8, y=21, class_="tick-text end"),
        tag("text", "graph", x=LABELS - 8, y=33, class_="tick-text end"),
    ]
    for index, layer in enumerate(layers):
        y = TOP + index * CELL + CELL / 2 + 3.2
        parts.append(tag("text", brief(layer["name"]), x=LABELS - 8, y=y, class_="layer-text end"))
    return parts


def brief(layer: str) -> str:
    """`down_blocks.0.layers.1` -> `down 0 · 1`."""
    for old, new in BRIEF:
        layer = layer.replace(old, new)
    return layer


def _shares(layers: Sequence[Mapping[str, Any]], left: float) -> list[Html]:
    """To the right of the map: each layer's part of the untouched network's MACs."""
    total = sum(layer["macs"] for layer in layers) or 1
    top = max((layer["macs"] for layer in layers), default=0) or 1
    parts = [tag("text", "share of MACs", x=left, y=33, class_="tick-text")]
    for index, layer in enumerate(layers):
        y, wide = TOP + index * CELL, layer["macs"] / top * (SHARES - 34)
        parts.append(tag("rect", x=left, y=y + 3.5, width=max(wide, 0.5), height=CELL - 7, class_="share"))
        words = f"{layer['macs'] / total:.0%}"
        parts.append(tag("text", words, x=left + wide + 4, y=y + CELL / 2 + 3.2, class_="tick-text"))
    return parts


def _legend_entry(state: str) -> Html:
    letter, words = STATES[state]
    parts = [tag("rect", x=0.5, y=0.5, width=CELL, height=CELL, class_=f"cell {state}")]
    if letter:
        parts.append(tag("text", letter, x=CELL / 2 + 0.5, y=CELL / 2 + 3.7, class_=f"letter {state}"))
    return tag("li", svg(parts, CELL + 1, CELL + 1, "swatch"), words)
