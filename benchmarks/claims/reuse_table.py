"""Every reuse method on glyph, beside fewer steps of DDIM and DPM++ 2M: quality against compute.

    python -m benchmarks.claims.reuse_table run --out build/reuse --prompts 64 [--seeds 1] [--device cuda] [--only NAME]
    python -m benchmarks.claims.reuse_table report --out build/reuse     (table.md, reuse.html, results.json)

The reference is the untouched network with 50 steps of DDIM and glyph's own guidance. All schedules are run by
`Rollout`, which executes the rows that a bundle has. Compute is the denoiser's MACs over the reference's. A run that
was stopped goes on where it was: one file per candidate and seed in `--out`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pages.reuse import contact_sheet, render_reuse
from edgediff.config import write_text_atomic
from edgediff.documents.plan import Plan
from edgediff.documents.recipe import Recipe
from edgediff.documents.target import load_target
from edgediff.embedded.evaluation import choose_prompts
from edgediff.embedded.judge import SAME, load_judge
from edgediff.errors import EdgeDiffError
from edgediff.evaluation.scoring import Scorer
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.planning.calibration import Calibration
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import step_table

STEPS, SCALE = 50, 2.0
LADDER = (5, 6, 8, 10, 12, 15, 20, 25, 30)
SHOWN = ("linear_forecast 0.20", "linear_forecast 0.11")  # on the contact sheet, each beside the best of equal cost
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"deepcache N={n}", {"kind": "deepcache", "interval": n, "branch": 0}) for n in (2, 3, 5)),
    ("faster_diffusion", {"kind": "faster_diffusion"}),
    ("inherit blocks", {"kind": "inherit"}),
    ("tgate 20", {"kind": "tgate", "gate": 20}),
    ("smoothcache 0.18", {"kind": "smoothcache"}),
    ("magcache", {"kind": "magcache"}),
    *(
        (f"taylorseer N={n} O={o}", {"kind": "taylorseer", "interval": n, "order": o})
        for n, o in ((4, 1), (6, 1), (6, 2))
    ),
    *((f"output_hold {n}", {"kind": "output_hold", "count": n}) for n in (10, 20)),
    ("dipgo-sd15 table", {"kind": "gates", "preset": "dipgo-sd15-50-p0.80"}),
    *((f"path_search {n}", {"kind": "path_search", "calls": n}) for n in (6, 10, 15, 25)),
    *(
        (f"linear_forecast {share:.2f}", {"kind": "linear_forecast", "share": share})
        for share in (0.08, 0.11, 0.15, 0.2, 0.32, 0.5)
    ),
    ("linear_forecast 0.20, guidance never held", {"kind": "linear_forecast", "share": 0.2, "oldest": 0}),
)


@dataclass(frozen=True)
class Candidate:
    name: str
    recipe: Recipe
    baseline: bool


def list_candidates(only: list[str] | None) -> list[Candidate]:
    def make(name: str, baseline: bool, **tables: Any) -> Candidate:
        base = {"name": "bench", "guidance": {"scale": SCALE}, "calibration": {"prompts": 12}}
        return Candidate(name, Recipe.model_validate({**base, **tables}), baseline)

    found = [
        make(f"{kind} {steps}", True, sampler={"kind": kind, "steps": steps})
        for kind in ("ddim", "dpmpp_2m")
        for steps in LADDER
    ]
    found += [
        make(name, False, sampler={"kind": "ddim", "steps": STEPS}, reuse=[stage], max_graphs=50)
        for name, stage in METHODS
    ]
    return [one for one in found if not only or any(word in one.name for word in only)]


@dataclass
class Bench:
    """One seed: its reference, and the figures of any plan."""

    pipeline: Pipeline
    prompts: list[str]
    seed: int
    folder: Path
    scorer: Scorer = field(init=False)

    def __post_init__(self) -> None:
        self.scorer = Scorer((load_judge(), SAME), self.prompts)
        first = 10_000 * (self.seed + 1)  # calibration draws from small seeds
        self.rollout = Rollout(self.pipeline, self.prompts, range(first, first + len(self.prompts)), batch=32)

    @cached_property
    def reference(self) -> torch.Tensor:
        path = self.folder / f"reference-{self.seed}-{len(self.prompts)}.npy"
        if not path.is_file():
            table = step_table(self.pipeline, "ddim", STEPS)
            np.save(path, self.rollout.run(table, None, (SCALE,) * len(table.rows)).cpu().numpy())
        return torch.from_numpy(np.load(path)).to(self.pipeline.device)

    @cached_property
    def pictures(self) -> np.ndarray:
        return self.rollout.pictures(self.reference).numpy()

    def figures(self, plan: Plan, keep: Path | None = None) -> dict[str, Any]:
        table = step_table(self.pipeline, plan.sampler.kind, plan.sampler.steps)
        finals = self.rollout.run(table, plan.schedule, plan.guidance)
        made = self.rollout.pictures(finals).numpy()
        if keep is not None:
            np.save(keep, made[:8])
        data = self.scorer.figures(made, self.pictures).data
        error = float(((finals - self.reference) ** 2).mean())
        return {**data, "snr_db": float(10 * np.log10(float((self.reference**2).mean()) / max(error, 1e-12)))}


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline("glyph")
    pipeline.graph  # noqa: B018  counted before anything moves
    pipeline.to(args.device)
    prompts = choose_prompts(args.prompts, seed=3)
    for seed in range(args.seeds):
        bench = Bench(pipeline, prompts, seed, args.out)
        own = args.out / f"own-{seed}.json"
        if not own.is_file():
            write_text_atomic(own, json.dumps(bench.scorer.figures(bench.pictures).data))
            np.save(args.out / f"reference-pictures-{seed}.npy", bench.pictures[:8])
        for one in list_candidates(args.only):
            path = args.out / f"{one.name.replace(' ', '_').replace('=', '').replace(',', '')}-{seed}.json"
            if path.is_file():
                continue
            try:
                plan = make_plan(pipeline, one)
            except EdgeDiffError as error:
                print(f"{one.name}: {error}", flush=True)
                continue
            found = bench.figures(plan, path.with_suffix(".npy"))
            whole = plan.cost.reference_macs * (STEPS / plan.sampler.steps if one.baseline else 1.0)
            row = {
                "name": one.name,
                "baseline": one.baseline,
                "seed": seed,
                "prompts": len(prompts),
                "share": plan.cost.macs / whole,
                "schedule": str(plan.schedule),
                "graphs": len(plan.graphs),
                "passes": passes_of(plan),
                **found,
            }
            write_text_atomic(path, json.dumps(row))
            print(f"{one.name:<44}{row['share']:7.3f}{found['psnr_db']:8.2f} dB", flush=True)


def make_plan(pipeline: Pipeline, one: Candidate) -> Plan:
    """The plan, calibrated on the device that the pipeline is on."""
    from edgediff.planning.planner import make_plan as plan_of
    from edgediff.scoring.scores import Scores

    return plan_of(
        pipeline,
        Scores(pipeline.graph),
        one.recipe,
        load_target("host"),
        calibrator=Calibration(pipeline, one.recipe, None),
    )


def passes_of(plan: Plan) -> int:
    """Network passes of one picture: both prompts are two."""
    calls = zip(plan.schedule.calls, plan.guidance.calls, strict=True)
    return sum(1 if scale is None else 2 for name, scale in calls if name != "hold")


def collect(folder: Path) -> Iterator[dict[str, Any]]:
    """One row per candidate: means over seeds, with the least and the most."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        if "name" in row:
            rows.setdefault(row["name"], []).append(row)
    for name, group in rows.items():
        keys = ("psnr_db", "ssim", "retrieval_at_1", "frechet", "snr_db", "share")
        spread = {key: [float(r[key]) for r in group] for key in keys}
        yield {
            "name": name,
            "baseline": group[0]["baseline"],
            "seeds": len(group),
            "prompts": group[0]["prompts"],
            "schedule": group[0]["schedule"],
            "graphs": group[0]["graphs"],
            "passes": group[0]["passes"],
            **{key: float(np.mean(values)) for key, values in spread.items()},
            "psnr_low": min(spread["psnr_db"]),
            "psnr_high": max(spread["psnr_db"]),
        }


def report(args: argparse.Namespace) -> None:
    rows = sorted(collect(args.out), key=lambda row: (row["share"], row["name"]))
    own = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.out.glob("own-*.json"))]
    reference = {key: float(np.mean([one[key] for one in own])) for key in ("retrieval_at_1", "frechet")}
    found = {"reference": {"sampler": "ddim", "steps": STEPS, "guidance": SCALE, **reference}, "rows": rows}
    write_text_atomic(args.out / "results.json", json.dumps(found, indent=1) + "\n")
    sheet = contact_sheet(args.out, found, SHOWN, choose_prompts(rows[0]["prompts"], seed=3)[:8])
    print(render_reuse(found, args.out / "reuse.html", sheet=sheet))
    write_text_atomic(args.out / "table.md", as_markdown(found))
    print(as_markdown(found))


def as_markdown(found: dict[str, Any]) -> str:
    own = found["reference"]
    lines = ["| plan | compute | PSNR dB | retrieval@1 | Frechet | graphs |", "|---|---|---|---|---|---|"]
    lines.append(f"| untouched, ddim {STEPS} | 1 | - | {own['retrieval_at_1']:.3f} | {own['frechet']:.4f} | 1 |")
    for r in found["rows"]:
        name = f"*{r['name']}*" if r["baseline"] else r["name"]
        figures = f"{r['psnr_db']:.1f} | {r['retrieval_at_1']:.3f} | {r['frechet']:.4f}"
        lines.append(f"| {name} | {r['share']:.3f} | {figures} | {r['graphs']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="candidates whose name has one of these words")
    args = parser.parse_args()
    run(args) if args.what == "run" else report(args)


if __name__ == "__main__":
    main()
