"""Estimated against measured, as an SVG that stands alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

COLOURS = ("#3b6fb6", "#c05a2e", "#3f8f5b", "#8a5aa8", "#7a7a7a")
SIZE, EDGE = 540, 72
ACROSS = "estimated by a fit that had not seen the family, ms"


def scatter(points: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG of (measured, estimated) milliseconds per class, both axes logarithmic, with the diagonal and the
    lines of a factor of 1.5 either way."""
    values = [v for pairs in points.values() for pair in pairs for v in pair]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def at(value: float) -> float:
        return EDGE + (math.log10(value) - low) / (high - low) * (SIZE - 2 * EDGE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" font-family="sans-serif" font-size="12">',
        f'<rect width="{SIZE}" height="{SIZE}" fill="#fff"/>',
    ]
    for power in range(low, high + 1):
        place, label = at(10.0**power), f"{10.0**power:g}"
        parts += [
            f'<path d="M{place:.1f} {EDGE}V{SIZE - EDGE}M{EDGE} {SIZE - place:.1f}H{SIZE - EDGE}" stroke="#ddd"/>',
            f'<text x="{place:.1f}" y="{SIZE - EDGE + 16}" text-anchor="middle">{label}</text>',
            f'<text x="{EDGE - 6}" y="{SIZE - place + 4:.1f}" text-anchor="end">{label}</text>',
        ]
    for index, (name, pairs) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        dots = "".join(f"M{at(x):.1f} {SIZE - at(y):.1f}h0" for x, y in pairs)
        parts.append(f'<path d="{dots}" stroke="{colour}" stroke-width="3" stroke-linecap="round" opacity=".45"/>')
        parts.append(f'<text x="{EDGE + 10}" y="{EDGE + 16 + 16 * index}" fill="{colour}">{name} ({len(pairs)})</text>')
    for factor, dash in ((1.0, ""), (1.5, ' stroke-dasharray="4 4"'), (1 / 1.5, ' stroke-dasharray="4 4"')):
        first, last = max(10.0**low, 10.0**low / factor), min(10.0**high, 10.0**high / factor)
        parts.append(
            f'<path d="M{at(first):.1f} {SIZE - at(first * factor):.1f}L{at(last):.1f} '
            f'{SIZE - at(last * factor):.1f}" stroke="#333" fill="none"{dash}/>'
        )
    parts += [
        f'<text x="{SIZE / 2}" y="{SIZE - 12}" text-anchor="middle">measured, ms</text>',
        f'<text x="14" y="{SIZE / 2}" text-anchor="middle" transform="rotate(-90 14 {SIZE / 2})">{ACROSS}</text>',
        "</svg>\n",
    ]
    return "\n".join(parts)
