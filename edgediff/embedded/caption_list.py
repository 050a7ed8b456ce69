"""Writes `captions.json`: which glyphs are in the set, and their names.

Needs the font and the `emoji` library; everybody else reads the committed file. Run
`python -m edgediff.embedded.caption_list` when the font gains glyphs, then train again: ids are positions.
"""

import json
import re
import unicodedata
from typing import Any

from edgediff.embedded.glyphs import CAPTIONS, FONT_PIXELS, find_font, is_drawable
from edgediff.errors import EdgeDiffError

_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "‐": "-"})
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_GENDERED = {0x2640, 0x2642, 0x1F468, 0x1F469}  # the signs, and "man" and "woman" inside a sequence
_SELECTOR, _KEYCAP = 0xFE0F, 0x20E3
_UNDRAWN = {"\U0001f1e8\U0001f1f6"}  # the flag of Sark: the font draws a question mark

Row = dict[str, Any]  # id, code_points, primary, alternatives


def is_wanted(text: str) -> bool:
    """A single code point, or a sequence without skin tone, gender or keycap.

    Gendered and toned sequences repeat one drawing up to 25 times: they would fill a small model with near-copies.
    """
    points = [ord(c) for c in text if ord(c) != _SELECTOR]
    if text in _UNDRAWN or any(p in _SKIN_TONES for p in points) or _KEYCAP in points:
        return False
    return len(points) == 1 or not _GENDERED.intersection(points)


def clean(name: str) -> str:
    """Lower case, plain quotes, single spaces: what a person types."""
    return re.sub(r"\s+", " ", name.strip(":").replace("_", " ").translate(_PLAIN)).strip().lower()


def name_glyph(text: str, short_name: str) -> tuple[str, list[str]]:
    """The primary caption (the CLDR short name; a flag is "flag of X") and the alternatives, best first."""
    short = clean(short_name)
    points = [ord(c) for c in text if ord(c) != _SELECTOR]
    is_flag = 0x1F1E6 <= points[0] <= 0x1F1FF or (points[0] == 0x1F3F4 and len(points) > 5)
    if is_flag:
        names = [f"flag of {short}", short]
    else:
        unicode_name = [unicodedata.name(chr(points[0]), "")] if len(points) == 1 else []
        names = [short] + [clean(n) for n in unicode_name if n]
    plain = ["".join(c for c in unicodedata.normalize("NFD", n) if not unicodedata.combining(c)) for n in names]
    unique = list(dict.fromkeys(names + plain))
    return unique[0], unique[1:]


def list_glyphs() -> list[Row]:
    """Every wanted emoji that the font draws as one picture, in the order of its code points."""
    import emoji
    from PIL import ImageFont

    font = ImageFont.truetype(str(find_font()), FONT_PIXELS)
    texts = [t for t, d in emoji.EMOJI_DATA.items() if d["status"] == emoji.STATUS["fully_qualified"] and is_wanted(t)]
    rows: list[Row] = []
    for text in sorted((t for t in texts if is_drawable(t, font)), key=lambda t: [ord(c) for c in t]):
        primary, alternatives = name_glyph(text, emoji.EMOJI_DATA[text]["en"])
        points = " ".join(f"{ord(c):X}" for c in text)
        rows.append({"id": len(rows), "code_points": points, "primary": primary, "alternatives": alternatives})
    return _disjoint(rows)


def _disjoint(rows: list[Row]) -> list[Row]:
    """Refuses equal primaries; drops an alternative that names another glyph too."""
    primaries = [row["primary"] for row in rows]
    if twice := sorted({p for p in primaries if primaries.count(p) > 1}):
        raise EdgeDiffError(f"two glyphs share a primary caption: {twice}", code="captions", where=CAPTIONS.name)
    taken = set(primaries)
    for row in rows:
        row["alternatives"] = [a for a in row["alternatives"] if a not in taken]
        taken.update(row["alternatives"])
    return rows


def main() -> None:
    head = {"font": "Noto Color Emoji", "names": "Unicode CLDR short names and Unicode character names"}
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in list_glyphs())
    CAPTIONS.write_text(json.dumps(head)[:-1] + ', "glyphs": [\n' + rows + "\n]}\n", encoding="utf-8")
    print(f"{CAPTIONS.name}: {len(json.loads(CAPTIONS.read_text(encoding='utf-8'))['glyphs'])} glyphs")


if __name__ == "__main__":
    main()
