"""DiP-GO trained on glyph, beside its baselines at equal MACs.

    python -m benchmarks.claims.dip_go --device cpu --seeds 1 --steps 20 --iterations 60 --out DIR    a small run, CPU
    python -m benchmarks.claims.dip_go --device cuda --seeds 3 --out DIR                              at most 8 minutes

Each seed trains in a process of its own (`--processes` at a time), for `--seconds` at most; the baselines run beside
them. Then schedules are derived at every ratio and drawn for prompts that no training saw. DIR gets `gates_*.json`
(which `kind = "gates"` reads), `scores_*.json`, `table.json` and `table.md`. PSNR and SSIM are those of pictures
against the untouched network with all steps of DDIM, the same prompts and noise; intervals are bootstrapped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgediff.embedded.glyphs import load_glyphs
from edgediff.errors import EdgeDiffError
from edgediff.graph.schedule import HOLD, Schedule
from edgediff.metrics import bootstrap_interval, psnr, ssim
from edgediff.pipeline import load_pipeline
from edgediff.plugins import load_plugin, plugin_names
from edgediff.reuse import Setting, dip_go
from edgediff.sampling.rollout import Rollout
from edgediff.sampling.trace import guidance_calls, step_table

RATIOS = (0.5, 0.7, 0.8, 0.9)
SCALE = 2.0  # glyph's own guidance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--iterations", type=int, help="default 150 on cuda, 60 elsewhere")
    parser.add_argument("--batch", type=int, help="prompts of an iteration; default 8 on cuda, 2 elsewhere")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--explore", type=float, help="default 1 on cuda, 0.25 elsewhere")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per seed")
    parser.add_argument("--prompts", type=int, default=64, help="to train on")
    parser.add_argument("--held-out", type=int, default=64, help="to measure on")
    parser.add_argument("--max-graphs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", help="internal: baselines, or the number of a seed")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    args.iterations = args.iterations or (150 if cuda else 60)
    args.batch = args.batch or (8 if cuda else 2)
    args.explore = args.explore if args.explore is not None else (1.0 if cuda else 0.25)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.part is None:
        run_all(args)
    else:
        bench = Bench(args)
        rows = bench.baselines() if args.part == "baselines" else bench.train(int(args.part))
        (args.out / f"rows_{args.part}.json").write_text(json.dumps(rows), encoding="utf-8")


def run_all(args: argparse.Namespace) -> None:
    """Every part in its own process, then the table."""
    waiting = ["baselines", *map(str, range(args.seeds))]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    while waiting or running:
        while waiting and len(running) < args.processes:
            part = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.claims.dip_go", *sys.argv[1:], "--part", part]
            running[part] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
        for part, process in list(running.items()):
            if process.poll() is not None:
                del running[part]
                failed += [part] if process.returncode else []
        time.sleep(0.2)
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.out.glob("rows_*.json"))]
    rows = [row for part in parts for row in part]
    about = {key: value for key, value in vars(args).items() if key not in ("out", "part")}
    (args.out / "table.json").write_text(json.dumps({"settings": about, "rows": rows}, indent=1), encoding="utf-8")
    text = as_markdown(rows)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if failed:
        sys.exit(f"these parts failed: {failed}")


class Bench:
    """The model, the prompts, and the pictures of the full run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipeline = load_pipeline("glyph").to(args.device)
        names = sorted(glyph.primary for glyph in load_glyphs())
        order = np.random.default_rng(7).permutation(len(names))
        chosen = [names[index] for index in order]
        self.training, rest = chosen[: args.prompts], chosen[args.prompts :]
        held_out = rest[: args.held_out]
        batch = 64 if args.device != "cpu" else 16
        self.rollout = Rollout(self.pipeline, held_out, range(5000, 5000 + len(held_out)), batch=batch)
        self.setting = self.setting_of("ddim", args.steps)
        self.wanted = self.draw(self.setting, None)

    def setting_of(self, sampler: str, steps: int) -> Setting:
        table = step_table(self.pipeline, sampler, steps)
        scales = guidance_calls(SCALE, (0.0, 1.0), len(table.rows))
        return Setting(self.pipeline.graph, table, scales, self.args.max_graphs)

    def draw(self, setting: Setting, schedule: Schedule | None) -> np.ndarray:
        latents = self.rollout.run(setting.table, schedule, setting.guidance)
        return self.rollout.pictures(latents).numpy()

    def row(
        self, method: str, ratio: float, setting: Setting, schedule: Schedule | None, **more: Any
    ) -> dict[str, Any]:
        pictures = self.draw(setting, schedule)
        values = [psnr(a, b, 255.0) for a, b in zip(pictures, self.wanted, strict=True)]
        graph, calls = self.pipeline.graph, self.args.steps
        macs = (
            sum(graph.macs(graph.live(schedule.rows[name].actions(graph))) for name in schedule.calls if name != HOLD)
            if schedule
            else graph.macs() * setting.calls
        )
        row = {
            "method": method,
            "ratio": ratio,
            "psnr_db": statistics.mean(values),
            "interval": bootstrap_interval(np.array(values)),
            "ssim": statistics.mean(ssim(a, b) for a, b in zip(pictures, self.wanted, strict=True)),
            "kept": macs / (graph.macs() * calls),
            "schedule": str(schedule) if schedule else f"{setting.calls} steps",
            "graphs": len(schedule.rows) if schedule else 1,
            **more,
        }
        say(f"{method:<24} ratio {ratio:.2f} kept {row['kept']:.3f} {row['psnr_db']:.2f} dB {row['ssim']:.4f}")
        return row

    def baselines(self) -> list[dict[str, Any]]:
        rows = []
        for ratio in RATIOS:
            count = max(1, round((1 - ratio) * self.args.steps))
            rows.append(self.row("DDIM, fewer steps", ratio, self.setting_of("ddim", count), None))
            rows.append(self.row("DPM++ 2M, fewer steps", ratio, self.setting_of("dpmpp_2m", count), None))
            for name, propose in self.methods(ratio, count):
                try:
                    rows.append(self.row(name, ratio, self.setting, propose()))
                except EdgeDiffError as error:
                    say(f"{name} at ratio {ratio}: {error}")
        return rows

    def methods(self, ratio: float, count: int) -> list[tuple[str, Callable[[], Schedule]]]:
        """Reuse methods with no more MACs than the ratio leaves."""

        def by(kind: str, **options: Any) -> Schedule:
            plugin = load_plugin("reuse", kind)
            setting, spec = self.setting, plugin.Spec.model_validate(options)
            if hasattr(plugin, "measure"):
                seeds = range(len(self.training[:16]))
                rollout = Rollout(self.pipeline, self.training[:16], seeds, batch=self.rollout.batch)
                setting = dataclasses.replace(setting, measured=plugin.measure(spec, rollout, setting, None))
            found: Schedule = plugin.propose(spec, setting)
            return found

        found: list[tuple[str, Callable[[], Schedule]]] = [
            ("output hold, uniform", lambda: by("output_hold", count=count)),
            ("output hold, back-dense", lambda: by("output_hold", count=count, mode="back_dense")),
        ]
        for interval in range(2, self.args.steps + 1):
            schedule = by("deepcache", interval=interval)
            graph = self.pipeline.graph
            macs = sum(graph.macs(graph.live(schedule.rows[name].actions(graph))) for name in schedule.calls)
            if macs <= (1 - ratio) * graph.macs() * self.args.steps:
                found.append((f"DeepCache N={interval}", lambda n=interval: by("deepcache", interval=n)))
                break
        if "path_search" in plugin_names("reuse"):
            found.append(("path search", lambda: by("path_search", calls=count)))
        return found

    def train(self, seed: int) -> list[dict[str, Any]]:
        args = self.args
        spec = dip_go.Spec(
            iterations=args.iterations,
            batch=args.batch,
            rate=args.rate,
            explore=args.explore,
            seed=seed,
            checkpointed=args.device == "cpu",
        )
        rollout = Rollout(self.pipeline, self.training, range(len(self.training)), batch=self.rollout.batch)
        start, begun = time.monotonic(), time.process_time()
        training = dip_go.Training(spec, rollout, self.setting)
        while training.done < spec.iterations and time.monotonic() - start < args.seconds:
            training.step()
            if training.done % 10 == 0:
                now = training.log[-1]
                say(
                    f"seed {seed}: {training.done} iterations, {time.monotonic() - start:.0f} s "
                    f"({time.process_time() - begun:.0f} s of CPU), "
                    f"error {now['error']:.4f}, kept {now['kept']:.3f}, rows {now['rows']}"
                )
        measured, seconds = training.finish(), time.monotonic() - start
        spent = time.process_time() - begun
        (args.out / f"scores_{seed}.json").write_text(json.dumps(measured), encoding="utf-8")
        setting = dataclasses.replace(self.setting, measured=measured)
        rows = []
        for ratio in RATIOS:
            own = spec.model_copy(update={"ratio": ratio})
            gates = dip_go.export_gates(own, setting)
            (args.out / f"gates_{ratio:g}_{seed}.json").write_text(gates.to_json(), encoding="utf-8")
            rows.append(
                self.row(
                    "DiP-GO",
                    ratio,
                    setting,
                    dip_go.propose(own, setting),
                    seed=seed,
                    seconds=seconds,
                    cpu_seconds=spent,
                    iterations=training.done,
                )
            )
        return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    heads = ("ratio", "method", "MACs kept", "PSNR dB (95 %)", "SSIM", "graphs", "schedule")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: (row["ratio"], -row["psnr_db"])):
        low, high = row["interval"]
        name = row["method"] + (f", seed {row['seed']}" if "seed" in row else "")
        lines.append(
            f"| {row['ratio']:g} | {name} | {row['kept']:.3f} | {row['psnr_db']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['ssim']:.4f} | {row['graphs']} | `{row['schedule']}` |"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
