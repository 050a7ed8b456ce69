"""Words for weights in fewer bits: what each means, and what a tensor takes.

`palette6` (64 values in one table), `palette4/16` (a table of 16 values for every 16 output channels), `w8` (one scale
per output channel), `w4/32` (one scale for every 32 weights of a row), `sparse50` (the smaller half of the weights is
zero), `sparse50+palette4`, `sparse50+w8` (what is left is coded in its turn). `edgediff.weight_codes` codes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgediff.errors import ConfigError

BITS = {"palette": (1, 2, 3, 4, 6, 8), "w": (4, 8)}
WORD = re.compile(r"^(?:sparse(?P<sparse>\d+))?(?:\+|^|$)(?:(?P<kind>palette|w)(?P<bits>\d+)(?:/(?P<group>\d+))?)?$")


@dataclass(frozen=True)
class Format:
    """A parsed format. `kind` is `palette`, `w` (codes times scales) or empty; `sparse` is the share of zeros in
    percent, `group` the channels of a table or the weights of a scale (0: one table per tensor, one scale per output
    channel)."""

    kind: str = ""
    bits: int = 16
    group: int = 0
    sparse: int = 0

    def size_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that a tensor of fp16 weights takes in this format, tables and scales included."""
        count = math.prod(shape)
        kept = count - round(count * self.sparse / 100)
        size = kept * self.bits + (count if self.sparse else 0)
        if self.kind == "palette":
            tables = -(-shape[0] // self.group) if self.group and not self.sparse else 1
            size += tables * 16 * 2**self.bits
        elif self.kind == "w":
            row = math.prod(shape[1:])
            size += 16 * shape[0] * (row // self.group if self.group and not self.sparse else 1)
        return size


def parse_format(word: str) -> Format:
    """Raises ConfigError for a word that is no format, or one with bits that Core ML has not."""
    match = WORD.match(word)
    if not word or match is None:
        now = re.sub(r"\bint(?=\d)", "w", word)
        if now != word and WORD.match(now):
            raise ConfigError(f"weight format '{word}' is now written '{now}'", code="format")
        raise ConfigError(
            f"'{word}' is no weight format: palette1 to palette8, palette4/16, w8, w4/32, sparse50, "
            "sparse50+palette4 and the like are",
            code="format",
        )
    kind, bits, group = match["kind"] or "", int(match["bits"] or 16), int(match["group"] or 0)
    if kind and bits not in BITS[kind]:
        allowed = ", ".join(f"{kind}{count}" for count in BITS[kind])
        raise ConfigError(f"there is no weight format '{word}': {kind} has {allowed}", code="format")
    sparse = int(match["sparse"] or 0)
    if not 0 <= sparse < 100 or (match["sparse"] and not sparse):
        raise ConfigError(f"weight format '{word}': a share of zeros lies between 1 and 99 percent", code="format")
    return Format(kind, bits, group, sparse)
