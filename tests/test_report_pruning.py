"""The page about cuts and recovery says what the runs say."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages.pruning import render_pruning, verdicts


def run(method: str, features: str, seed: int, hits: float, probe: float, **more: Any) -> dict[str, Any]:
    time = {"median": 0.6, "quartile_low": 0.55, "quartile_high": 0.65, "pairs": 15}
    before = {"parameters": 0.5, "macs": 0.6, "time": time, "retrieval_at_1": 0.01, "frechet": 1.5, "psnr_db": 9.0}
    after = {"retrieval_at_1": hits, "frechet": 0.4, "psnr_db": 15.0}
    curve = [{"step": 0, "probe": 0.7}, {"step": 10, "probe": probe}]
    return {
        "size": "small",
        "method": method,
        "features": features,
        "feature": 1.0,
        "seed": seed,
        "before": before,
        "after": after,
        "curve": curve,
        **more,
    }


@pytest.fixture
def found() -> dict[str, Any]:
    runs = [
        run("laptop", "normalised", 0, 0.9, 0.1),
        run("laptop", "normalised", 1, 0.8, 0.2),
        run("laptop", "plain", 0, 0.7, 0.3),
        run("laptop", "plain", 1, 0.7, 0.3),
        run("bk_sdm", "normalised", 0, 0.5, 0.4),
    ]
    settings = {
        "steps": 10,
        "batch": 4,
        "rate": 1e-3,
        "precision": "fp32",
        "prompts": 8,
        "sampler_steps": 10,
        "command": "python x <y>",
    }
    return {"settings": settings, "reference": {"retrieval_at_1": 1.0, "frechet": 0.1}, "runs": runs}


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))


def test_verdicts_are_computed(found):
    text = words(str(verdicts(found)))
    assert "falls by 15.0\N{NO-BREAK SPACE}% (LAPTOP-Diff, n 2) and by 50.0\N{NO-BREAK SPACE}%" in text
    assert "Target, at most half: met." in text
    assert "leaves 50\N{NO-BREAK SPACE}% of the output loss that plain leaves (less in 2 of 2 seeds)" in text
    assert "and 15.0 points more retrieval@1. Target, better: met." in text
    assert str(verdicts(found)).count('class="better"') == 2
    worse = copy.deepcopy(found)
    worse["runs"][4]["after"]["retrieval_at_1"] = 0.8
    worse["runs"][1]["curve"][-1]["probe"] = 0.5
    text = str(verdicts(worse))
    assert "Target, at most half: missed." in text
    assert "(less in 1 of 2 seeds)" in text
    assert str(verdicts(worse)).count('class="worse"') == 2


def test_the_page_is_whole_and_self_contained(found, tmp_path: Path):
    scores = {"retrieval_at_1": 0.9, "frechet": 0.2, "psnr_db": 20.0, "macs": 0.8}
    found["switch"] = {
        "steps": 20,
        "prompts": 8,
        "rows": [
            {"size": "small", "method": "bk_sdm", "order": "first", "share": 0.5, **scores},
            {"method": "untouched", "order": "", "steps": 16, **scores},
        ],
    }
    tau = {"retrieval_at_1": 0.7, "frechet": 0.8, "psnr_db": 0.9}
    found["check"] = {"steps": [5, 10], "prompts": 8, "tau": tau, "rows": [{}, {}]}
    found["runs"].append(run("bk_sdm", "normalised", 0, 0.6, 0.3, phases=2))
    page = render_pruning(found, tmp_path / "p.html", sheet=b"\x89PNG").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http-equiv", "")
    text = words(page)
    for title in ("Verdicts", "Before and after", "Losses", "Switching", "Pictures", "How"):
        assert f" {title} " in text
    assert "85.0\N{NO-BREAK SPACE}%" in text, "the mean of two seeds"
    assert "untouched,  16 steps" in text or "untouched, 16 steps" in text
    assert "5 steps rank 2 distilled networks as 10 do up to Kendall's tau 0.7" in text.replace("&#x27;", "'")
    assert "with experts in 2 phases the output loss is 75\N{NO-BREAK SPACE}% of that without (n 1)" in text
    assert "and retrieval@1 10.0 points higher" in text
    assert "80.0\N{NO-BREAK SPACE}% to 90.0\N{NO-BREAK SPACE}%" in text
    assert page.count('<path d="M') >= 5, "a line for each seed and loss"
    assert "python x &lt;y&gt;" in page


def test_selections_and_additivity_are_there(found, tmp_path: Path):
    def row(loss: float) -> dict[str, float]:
        return {"output_loss": loss, "parameters": 0.5, "macs": 0.6}

    scores = {
        "quality": [
            {"size": "small", "method": "bk_sdm small", "seeds": [row(0.4), row(0.5)]},
            {"size": "small", "method": "laptop, one shot", "seeds": [row(0.2), row(0.1)]},
            {"size": "small", "method": "laptop, re-scored", "seeds": [row(0.1), row(0.09)]},
        ],
        "additivity": [
            {"seed": seed, "all": {"r2": r2, "r2_line": 0.8, "spearman": None, "n": 24}}
            for seed, r2 in enumerate((0.95, 0.4))
        ],
    }
    text = words(render_pruning(found, tmp_path / "p.html", scores=scores).read_text(encoding="utf-8"))
    assert "re-scored selections have 0.7 of the output loss of those scored once" in text
    assert "(median; less in 2 of 2 seeds)" in text
    assert "R\N{SUPERSCRIPT TWO} of at least 0.9 everywhere: missed" in text
    assert "undefined" in text
    scores["additivity"][1]["all"]["r2"] = 0.9
    assert "everywhere: met" in words(render_pruning(found, tmp_path / "q.html", scores=scores).read_text("utf-8"))


def test_operators_are_judged_by_time_and_distance(found, tmp_path: Path):
    def figures(frechet: float) -> dict[str, float]:
        return {"frechet": frechet, "retrieval_at_1": 0.9, "psnr_db": 20.0}

    run = {"after": figures(0.103), "reference": figures(0.1), "settings": {"steps": 9, "seed": 0}}
    measured = {
        "cut": {"cuts": [{}, {}], "scored": 7, "parameters": 0.4, "macs": 0.6, "checks": {"tau": {"first_rung": 0.8}}},
        "time": {"median": 0.66, "quartile_low": 0.6, "quartile_high": 0.7, "pairs": 9},
        "before": figures(0.2),
        "runs": [run],
    }
    for median, verdict in ((0.66, "met"), (0.71, "missed")):
        measured["time"]["median"] = median
        page = render_pruning(found, tmp_path / "p.html", scores={"operators": measured}).read_text(encoding="utf-8")
        assert f"Target, 30 % less at 5 % more: {verdict}." in words(page)
    assert "2 of 7 operators cut" in words(page)


def test_what_was_not_measured_is_said(found, tmp_path: Path):
    found["runs"][2]["after"] = found["runs"][3]["after"] = None
    found["runs"][4] = {**found["runs"][4], "after": None, "curve": []}
    page = words(render_pruning(found, tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "(less in 2 of 2 seeds) and retrieval@1 is not measured" in page
    assert page.count("not measured") == 1 + 3 * 2, "three figures of two methods, and the sentence"
    assert "Target, at most half" not in page


def test_what_was_not_run_is_left_out(found, tmp_path: Path):
    found["runs"] = found["runs"][:1]
    page = words(render_pruning(found, tmp_path / "p.html").read_text(encoding="utf-8"))
    for title in ("Switching", "Pictures", "Losses"):
        assert f" {title} " not in page
    assert "Target" not in page
