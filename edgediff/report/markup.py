"""HTML that cannot be injected into: text is escaped unless it was built here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

NOT_MEASURED = "not measured"
# Control characters, and those that turn the direction of the text after them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Markup. Only `tag`, `join` and the chart modules make it; any other `str` is text."""

    __slots__ = ()


Child = Html | str | int | float | None
VOID = {"meta", "img", "br", "hr"}
DRAWN = {"rect", "line", "circle", "path"}  # SVG: closed in the tag, or a parser nests what follows


def text(value: object) -> Html:
    """Escaped for content and attributes; what cannot be seen is shown as U+FFFD."""
    return Html(escape(_UNSEEN.sub("\ufffd", str(value)), quote=True))


def join(parts: Iterable[Child]) -> Html:
    """Children one after the other; None is nothing."""
    return Html("".join(p if isinstance(p, Html) else text(p) for p in parts if p is not None))


def tag(element: str, *children: Child, **attributes: object) -> Html:
    """`tag("td", "a < b", class_="number")`. Attributes: a trailing underscore is dropped, others become hyphens;
    None and False leave one out, True writes it bare."""
    written = []
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-").replace("viewbox", "viewBox")
        if value is True:
            written.append(f" {name}")
        elif value is not None and value is not False:
            written.append(f' {name}="{text(_plain(value))}"')
    start = f"<{element}{''.join(written)}"
    if element in VOID or element in DRAWN:
        return Html(f"{start}/>" if element in DRAWN else f"{start}>")
    return Html(f"{start}>{join(children)}</{element}>")


def svg(parts: Iterable[Child], width: float, height: float, kind: str, *, label: str = "") -> Html:
    """A drawing of this size in pixels. `label` says what it shows; without one, screen readers pass over it."""
    return tag(
        "svg",
        join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        class_=kind,
        role="img" if label else None,
        aria_label=label or None,
        aria_hidden=None if label else "true",
    )


def name(value: object) -> Html:
    """A name that somebody else chose: kept apart from the direction of the text around it."""
    return tag("bdi", str(value))


def code(value: object) -> Html:
    return tag("code", str(value))


def table(
    head: Iterable[Child], rows: Iterable[Iterable[Child]], *, numbers: Iterable[int] = (), kind: str = ""
) -> Html:
    """A table inside a box that scrolls sideways where it is too wide. `numbers`: columns set to the right."""
    right = set(numbers)

    def cells(element: str, row: Iterable[Child]) -> Html:
        made = (
            tag(
                "th" if index == 0 and element == "td" else element,
                cell,
                class_="n" if index in right else None,
                scope={"th": "col"}.get(element, "row" if index == 0 else None),
            )
            for index, cell in enumerate(row)
        )
        return tag("tr", *made)

    body = tag("tbody", *(cells("td", row) for row in rows))
    whole = tag("table", tag("thead", cells("th", head)), body, class_=kind or None)
    return tag("div", whole, class_="wide", tabindex="0")


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """A definition list: term, description."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs), class_="facts")


def missing(what: str, command: str) -> Html:
    """The sentence that stands where a measurement would."""
    return tag("p", f"{what}: {NOT_MEASURED}. Run ", code(command), class_="missing")


def figure(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with a fixed count of decimals and its unit; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}") + (f"\N{NO-BREAK SPACE}{unit}" if unit else "")


def percent(value: float | None, digits: int = 0) -> str:
    return figure(None if value is None else value * 100, digits, "%")


def milliseconds(value: float | None) -> str:
    """Three significant digits: 0.042 ms, 4.21 ms, 421 ms, 4.21 s."""
    if value is None:
        return "\N{EN DASH}"
    if value >= 1000:
        return figure(value / 1000, 2 if value < 10_000 else 1, "s")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return figure(value, digits, "ms")


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return figure(count / scale, 2 if count < 10 * scale else 1, unit)
    return figure(count, 0, "bytes")


def macs(count: float) -> str:
    """Multiply-accumulates: 14.2 GMAC, 678 MMAC."""
    for unit, scale in (("TMAC", 1e12), ("GMAC", 1e9), ("MMAC", 1e6)):
        if count >= scale:
            value = count / scale
            return figure(value, 2 if value < 10 else 1 if value < 100 else 0, unit)
    return figure(count, 0, "MAC")


def _plain(value: object) -> object:
    """Coordinates with three decimals at most."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
