"""A page about reuse: every schedule in one plot of quality against compute, fewer steps among them.

`benchmarks/claims/reuse_table.py` measures and calls this.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgediff.config import write_text_atomic
from edgediff.report.charts import key
from edgediff.report.frontier import LEGEND, Spot, scatter
from edgediff.report.markup import Child, Html, code, figure, join, percent, table, tag
from edgediff.report.page import plain_page

Row = Mapping[str, Any]


def render_reuse(found: Mapping[str, Any], out: Path, *, sheet: bytes | None = None) -> Path:
    """Writes the page to `out`, whole or not at all. `found`: `reference` and `rows`, as the bench writes them;
    `sheet` is the contact sheet as PNG."""
    rows: Sequence[Row] = found["rows"]
    spots = [
        Spot(
            "equal" if r["baseline"] else "bundle",
            r["share"],
            r["psnr_db"],
            f"{r['name']}: {percent(r['share'])} of the compute, {r['psnr_db']:.1f} dB",
        )
        for r in rows
    ]
    plot = scatter(spots, "PSNR over compute of every method", "share of the untouched denoiser's compute", "PSNR dB")
    sections: list[tuple[str, Child]] = [
        ("Verdicts", verdicts(rows)),
        ("Quality against compute", join([key(LEGEND), plot, _table(found)])),
        ("Pictures at equal compute", _picture(sheet)),
        ("Schedules", _schedules(rows)),
        ("How", _how(found)),
    ]
    lede = "Schedules that skip work, and the untouched network with fewer steps, at the same compute."
    write_text_atomic(out, plain_page("Reuse beside fewer steps", lede, sections))
    return out


def verdicts(rows: Sequence[Row]) -> Html:
    """Each method beside the best baseline that costs at most as much, or the cheapest one if all cost more."""
    lines = []
    for row in rows:
        rival = best_baseline(rows, row["share"])
        if row["baseline"] or rival is None:
            continue
        gap = row["psnr_db"] - rival["psnr_db"]
        state = "better" if gap > 0 else "worse"
        text = (
            f"{row['name']} at {percent(row['share'])}: {figure(abs(gap), 1)} dB {state} than {rival['name']} at "
            f"{percent(rival['share'])} ({figure(row['psnr_db'], 1)} against {figure(rival['psnr_db'], 1)})"
        )
        lines.append(tag("li", text, class_=state))
    return tag("ul", *lines, class_="verdicts")


def best_baseline(rows: Sequence[Row], share: float) -> Row | None:
    """The baseline to beat at a compute: the closest to the reference of those with the next higher compute at most.

    A baseline may cost up to one step more than the method, never less than allowed, which favours the baseline.
    """
    fewer = [row for row in rows if row["baseline"]]
    steps = sorted({row["share"] for row in fewer})
    limit = next((value for value in steps if value >= share - 1e-9), steps[-1] if steps else 0.0)
    allowed = [row for row in fewer if row["share"] <= limit + 1e-9]
    return max(allowed, key=lambda row: row["psnr_db"], default=None)


def contact_sheet(folder: Path, found: Mapping[str, Any], shown: Sequence[str], prompts: Sequence[str]) -> bytes | None:
    """PNG: a row per prompt; the reference, then each plan in `shown` beside the best baseline of equal compute."""
    import numpy as np
    from PIL import Image

    def pictures(name: str) -> Any:
        path = folder / f"{name.replace(' ', '_').replace('=', '').replace(',', '')}-0.npy"
        return np.load(path) if path.is_file() else None

    rows = {row["name"]: row for row in found["rows"]}
    columns = [np.load(folder / "reference-pictures-0.npy")] if (folder / "reference-pictures-0.npy").is_file() else []
    for name in shown:
        rival = best_baseline(found["rows"], rows[name]["share"]) if name in rows else None
        if rival is not None:
            columns += [one for one in (pictures(name), pictures(rival["name"])) if one is not None]
    if not columns:
        return None
    sheet = np.concatenate([np.concatenate(list(one[: len(prompts)]), axis=0) for one in columns], axis=1)
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, "PNG", optimize=True)
    return data.getvalue()


def _table(found: Mapping[str, Any]) -> Html:
    own = found["reference"]
    rows: list[list[Child]] = [
        [
            f"untouched, {own['sampler']} {own['steps']}",
            percent(1.0),
            "-",
            percent(own["retrieval_at_1"], 1),
            figure(own["frechet"], 4),
            "1",
        ]
    ]
    for row in found["rows"]:
        spread = f" ({figure(row['psnr_low'], 1)} to {figure(row['psnr_high'], 1)})" if row["seeds"] > 1 else ""
        rows.append(
            [
                tag("em", row["name"]) if row["baseline"] else row["name"],
                percent(row["share"]),
                f"{figure(row['psnr_db'], 1)}{spread}",
                percent(row["retrieval_at_1"], 1),
                figure(row["frechet"], 4),
                f"{row['graphs']}",
            ]
        )
    head = ["Plan (baselines slanted)", "compute", "PSNR dB", "retrieval@1", "Fr\u00e9chet", "graphs"]
    return table(head, rows, numbers=(1, 2, 3, 4, 5))


def _schedules(rows: Sequence[Row]) -> Html:
    lines = [tag("li", row["name"], ": ", code(row["schedule"])) for row in rows if not row["baseline"]]
    words = "One sign per network call: capital, everything runs; small, part of it; a dot, no graph runs."
    return join([tag("p", words, class_="note"), tag("ul", *lines, class_="letters")])


def _picture(sheet: bytes | None) -> Html:
    if sheet is None:
        return Html("")
    source = "data:image/png;base64," + base64.b64encode(sheet).decode()
    words = "Columns: untouched; then each plan beside the best baseline of its compute. Nobody picked the prompts."
    return join([tag("p", words, class_="note"), tag("img", src=source, alt=words)])


def _how(found: Mapping[str, Any]) -> Html:
    own, row = found["reference"], found["rows"][0]
    words = (
        f"Reference: the untouched network, {own['sampler']} with {own['steps']} steps, guidance {own['guidance']:g}. "
        f"{row['prompts']} prompts, {max(r['seeds'] for r in found['rows'])} seed(s); compute is multiply-accumulates "
        "of the denoiser, both prompts counted. A baseline may cost up to a step more than what it stands beside. Made "
        "by benchmarks/claims/reuse_table.py."
    )
    return tag("p", words, class_="note")
