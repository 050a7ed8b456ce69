"""Cuts beside their baselines, before and after the same short distillation of the embedded model.

    python benchmarks/claims/pruning_table.py run --work build/pruning [--seeds 3] [--steps 100] [--jobs 2] [--limit N]
    python benchmarks/claims/pruning_table.py switch --work build/pruning     two networks in one schedule (A-SDM)
    python benchmarks/claims/pruning_table.py check --work build/pruning      the same networks by twice as many steps
    python benchmarks/claims/pruning_table.py render --work build/pruning  benchmarks/claims/pruning_table.{json,html}

The page also shows what `pruning_scores.py quality` and `additivity` wrote to `pruning_scores.json`, and what
operators_recovered.py wrote.
`run` makes what is missing in the work folder, in the order of `list_runs`, `jobs` runs side by side and at most
`limit` of them, so that it can be stopped and started again at any time. `render` writes the committed table of what
is there. Sizes are those of BK-SDM's presets. The cuts are chosen once, on the calibration prompts;
the three seeds are of the distillation. `switch` and `check` use the networks of seed 0 that `run` left. 256 captions,
each from the noise of its own seed; `--sampler-steps` DDIM steps without guidance (glyph draws as well without it as
with 2; see its model card).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from benchmarks.pages.pruning import render_pruning
from edgediff.distill import distill_network, load_samples, prepare_folder
from edgediff.distill.checkpoint import read_losses
from edgediff.documents.plan import Cut
from edgediff.documents.recipe import DistillTable, Recipe
from edgediff.embedded.evaluation import choose_prompts
from edgediff.embedded.judge import SAME, load_judge
from edgediff.errors import EdgeDiffError
from edgediff.evaluation.scoring import Scorer
from edgediff.graph.units import UnitGraph
from edgediff.networks import evaluate
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.pipeline.distilled import RECORD, DistilledFolder, read_distilled
from edgediff.plugins import load_plugin
from edgediff.runtime.steps import StepTable
from edgediff.sampling.trace import Conditions, record_trace, sample_latents, step_table
from edgediff.variants import cut_network, load_network, load_phases

HERE = Path(__file__).parent
SCORES = HERE / "pruning_scores.json"  # what pruning_scores.py quality and additivity found
OPERATORS = HERE / "operators_recovered.json"  # what operators_recovered.py found
SHOWN, BATCH, PAIRS = 12, 64, 15
SWITCH_STEPS, SWITCH_PROMPTS = 10, 64
SWITCH_SHARES = (0.5,)  # of the calls, for the light network


@dataclass(frozen=True)
class Run:
    """One distillation: `method` at the parameters of BK-SDM's preset `size`; `phases` above 1 with experts."""

    size: str
    method: str
    features: str
    seed: int
    feature: float = 1.0
    phases: int = 1

    @property
    def key(self) -> str:
        weight = "" if self.feature == 1.0 else f"-{self.feature:g}"
        phases = "" if self.phases == 1 else f"-phases{self.phases}"
        return f"{self.size}-{self.method}-{self.features}{weight}{phases}-{self.seed}"


def list_runs(seeds: int) -> list[Run]:
    """What decides comes first; then the other baselines, the other sizes, and the ablations of the losses.

    The losses are compared on BK-SDM's cut, which needs recovery; LAPTOP's of that size hardly does.
    """
    every = range(seeds)
    pair, lots = ("bk_sdm", "laptop"), ("random", "magnitude")
    main = [Run(size, m, "normalised", s) for size in ("small", "base") for s in every for m in pair]
    others = [Run("small", m, "normalised", s) for s in every for m in lots]
    curves = [Run("small", "bk_sdm", "plain", s) for s in every]
    lighter = [Run("base", m, "normalised", s) for s in every for m in lots]
    ablations = [Run("small", "bk_sdm", "none", 0), Run("small", "bk_sdm", "plain", 0, 0.05)]
    assembled = [Run(size, "assembly", "normalised", 0) for size in ("base", "small")]
    routed = [Run("small", "bk_sdm", "normalised", s, phases=2) for s in every]
    harder = [Run("tiny", m, "normalised", s) for s in every for m in pair]
    return [*main, *others, *curves, *routed, *lighter, *ablations, *assembled, *harder]


# -- cuts -----------------------------------------------------------------------------------------


def find_cuts(pipeline: Pipeline, size: str, method: str, work: Path) -> list[Cut]:
    """The cuts of a method, kept in the work folder."""
    path = work / f"cuts-{size}-{method}.json"
    if path.is_file():
        return [Cut.model_validate(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    graph = pipeline.graph
    preset = load_plugin("prune", "bk_sdm").preset_cuts(graph, size)
    share = graph.with_cuts(preset).parameters() / graph.parameters()
    options: dict[str, Any] = {"preset": size} if method == "bk_sdm" else {"budget": {"parameters": share}}
    recipe = Recipe.model_validate(
        {
            "name": "table",
            "sampler": {"kind": "ddim", "steps": 10},
            "guidance": {"scale": 1.0},
            "calibration": {"prompts": 8},
            "prune": [{"kind": method, **options}],
        }
    )
    plugin = load_plugin("prune", method)
    spec = plugin.Spec.model_validate(options)
    cuts = plugin.propose(spec, plugin.score(spec, pipeline, record_trace(pipeline, recipe)), graph)
    write_json(path, [cut.model_dump(mode="json") for cut in cuts])
    return list(cuts)


# -- pictures and figures -------------------------------------------------------------------------

Network = tuple[torch.nn.Module, UnitGraph]


class Pictures:
    """Draws the prompts with a network and scores them beside the untouched one's."""

    def __init__(self, pipeline: Pipeline, work: Path, steps: int, count: int) -> None:
        self.pipeline, self.work, self.count = pipeline, work, count
        self.table = step_table(pipeline, "ddim", steps)
        self.prompts = choose_prompts(count)
        self.scorer = Scorer((load_judge(), SAME), self.prompts)
        path = work / f"reference-{count}-{steps}.npy"
        if not path.is_file():
            np.save(path, self.draw(lambda index: (pipeline.denoiser, pipeline.graph)))
        self.reference = np.load(path)

    def draw(self, network_at: Callable[[int], Network], table: StepTable | None = None) -> np.ndarray[Any, Any]:
        """uint8 [n, height, width, 3]; `network_at` gives the network of each call, `table` other steps."""
        table = table or self.table
        place = {row.timestep: index for index, row in enumerate(table.rows)}

        def predict(sample: torch.Tensor, when: torch.Tensor, conditions: Conditions) -> torch.Tensor:
            network, graph = network_at(place[float(when[0])])
            inputs = {"sample": sample, "timestep": when, **conditions}
            return evaluate(network, graph, graph.live(), inputs)[0]

        calls = len(table.rows)
        latents = sample_latents(
            self.pipeline, table, (None,) * calls, self.prompts, range(self.count), batch=BATCH, denoiser=predict
        )
        pixels = torch.cat([self.pipeline.decode(part) for part in latents.split(BATCH)]).permute(0, 2, 3, 1)
        return np.rint((pixels.numpy() * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)

    def figures(self, pictures: np.ndarray[Any, Any], name: str) -> dict[str, Any]:
        """The figures; the first pictures are kept for the contact sheet."""
        np.save(self.work / f"shown-{name}.npy", pictures[:SHOWN])
        return self.scorer.figures(pictures, self.reference).data

    def figures_of(self, network: Network, name: str) -> dict[str, Any]:
        return self.figures(self.draw(lambda index: network), name)


def time_ratio(pipeline: Pipeline, network: Network) -> dict[str, float]:
    """Time of one call of the cut network over the untouched one's, one sample each, by turns."""
    whole: Network = (pipeline.denoiser, pipeline.graph)
    example = {
        "sample": torch.randn(1, *pipeline.latent),
        "timestep": torch.tensor([501.0]),
        "encoder_hidden_states": pipeline.encode(["red heart"]),
    }
    ratios = []
    with torch.inference_mode():
        for index in range(PAIRS + 2):
            taken = []
            for module, graph in (whole, network):
                start = time.perf_counter()
                evaluate(module, graph, graph.live(), example)
                taken.append(time.perf_counter() - start)
            if index >= 2:
                ratios.append(taken[1] / taken[0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high, "pairs": PAIRS}


# -- one run --------------------------------------------------------------------------------------


def make_run(run: Run, args: argparse.Namespace) -> None:
    """Cut, measure, distil, measure; the result is one JSON file."""
    started = time.monotonic()
    pipeline, work = load_pipeline("glyph"), args.work
    cuts = find_cuts(pipeline, run.size, run.method, work)
    pictures = Pictures(pipeline, work, args.sampler_steps, args.prompts)
    before = measure_before(pipeline, pictures, run, cuts, work)
    table = DistillTable(
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        precision=args.precision,
        seed=run.seed,
        features=run.features,
        feature=run.feature,
        phases=run.phases,
        probe_every=max(1, args.steps // 5),
    )
    out = work / "networks" / run.key
    if not (out / RECORD).is_file() or read_distilled(out).settings != table:
        prepare_folder(out, resume=False, overwrite=True)
        distill_network(pipeline, cuts, table, load_samples(pipeline, None), out, device=args.device)
    trained = time.monotonic()
    networks = load_phased(out, pipeline)
    phases = read_distilled(out).phases
    places = [phases.at(row.timestep) if phases else 0 for row in pictures.table.rows]
    after = pictures.figures(pictures.draw(lambda index: networks[places[index]]), run.key)
    write_json(
        work / f"run-{run.key}.json",
        {
            **asdict(run),
            "settings": table.model_dump(mode="json"),
            "before": before,
            "after": after,
            "curve": read_losses(out / "losses.jsonl"),
            "prompts": args.prompts,
            "sampler_steps": args.sampler_steps,
            "reference": pictures.scorer.figures(pictures.reference).data,
            "seconds": {"distil": trained - started, "all": time.monotonic() - started},
        },
    )


def load_phased(folder: Path, pipeline: Pipeline) -> list[Network]:
    """The distilled network of each phase of the timesteps; one, where there are no phases."""
    network, graph = load_network(folder / "unet", pipeline.graph)
    later = load_phases(DistilledFolder(folder, read_distilled(folder)), network)
    return [(network, graph), *((one, graph) for one in later.values())]


def measure_before(pipeline: Pipeline, pictures: Pictures, run: Run, cuts: list[Cut], work: Path) -> dict[str, Any]:
    path = work / f"before-{run.size}-{run.method}.json"
    if not path.is_file():
        network, graph = cut_network(pipeline.denoiser, pipeline.graph, [cut.unit for cut in cuts])
        whole = pipeline.graph
        write_json(
            path,
            {
                "cuts": [cut.unit for cut in cuts],
                "parameters": graph.parameters() / whole.parameters(),
                "macs": graph.macs() / whole.macs(),
                "time": time_ratio(pipeline, (network, graph)),
                **pictures.figures_of((network, graph), f"before-{run.size}-{run.method}"),
            },
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure_switches(args: argparse.Namespace) -> None:
    """A-SDM's switching: a distilled network in the first or the last calls, the untouched one in the others; and the
    untouched one alone by so few steps that it costs at least as much."""
    pipeline = load_pipeline("glyph")
    pictures = Pictures(pipeline, args.work, SWITCH_STEPS, SWITCH_PROMPTS)
    whole: Network = (pipeline.denoiser, pipeline.graph)
    rows: list[dict[str, Any]] = []
    for run in (Run("small", method, "normalised", 0) for method in ("bk_sdm", "laptop")):
        folder = args.work / "networks" / run.key
        if not (folder / RECORD).is_file():
            continue
        light = load_network(folder / "unet", pipeline.graph)
        for share in (*SWITCH_SHARES, 1.0):
            count = round(share * SWITCH_STEPS)
            macs = (count * light[1].macs() + (SWITCH_STEPS - count) * whole[1].macs()) / whole[1].macs() / SWITCH_STEPS
            for order in ("first", "last") if count < SWITCH_STEPS else ("alone",):
                early, late = (light, whole) if order != "last" else (whole, light)
                middle = count if order != "last" else SWITCH_STEPS - count
                drawn = pictures.draw(lambda i, m=middle, e=early, n=late: e if i < m else n)  # type: ignore[misc]
                found = pictures.figures(drawn, f"switch-{run.key}-{order}-{count}")
                about = {"size": run.size, "method": run.method, "order": order, "share": share, "macs": macs}
                rows.append({**about, **found})
    for steps in sorted({-(-round(row["macs"] * SWITCH_STEPS, 6) // 1) for row in rows}):
        table = step_table(pipeline, "ddim", int(steps))
        found = pictures.figures(pictures.draw(lambda index: whole, table), f"switch-untouched-{int(steps)}")
        rows.append({"method": "untouched", "order": "", "macs": steps / SWITCH_STEPS, "steps": int(steps), **found})
    write_json(args.work / "switch.json", {"steps": SWITCH_STEPS, "prompts": SWITCH_PROMPTS, "rows": rows})


def check_steps(args: argparse.Namespace) -> None:
    """Whether pictures by fewer steps rank the networks as pictures by twice as many do: networks of seed 0, drawn by
    both on the same captions; Kendall's tau of retrieval@1, of the Frechet distance and of PSNR."""
    from scipy.stats import kendalltau

    pipeline = load_pipeline("glyph")
    more = Pictures(pipeline, args.work, 2 * args.sampler_steps, args.prompts)
    rows: list[dict[str, Any]] = []
    for path in sorted(args.work.glob("run-*-0.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        network = load_network(args.work / "networks" / path.stem.removeprefix("run-") / "unet", pipeline.graph)
        rows.append({"run": path.stem, "few": run["after"], "more": more.figures_of(network, f"check-{path.stem}")})
    keys = ("retrieval_at_1", "frechet", "psnr_db")
    tau = {
        key: float(kendalltau(*zip(*((r["few"][key], r["more"][key]) for r in rows), strict=True)).statistic)
        for key in keys
    }
    plain = [{"run": row["run"], **{w: {k: row[w][k] for k in keys} for w in ("few", "more")}} for row in rows]
    steps = (args.sampler_steps, 2 * args.sampler_steps)
    write_json(args.work / "check.json", {"steps": steps, "prompts": args.prompts, "tau": tau, "rows": plain})


def write_json(path: Path, value: Any) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


# -- all runs -------------------------------------------------------------------------------------


def make_runs(args: argparse.Namespace) -> None:
    """Each run in a process of its own, `jobs` side by side: one core each is what the small operators use well."""
    args.work.mkdir(parents=True, exist_ok=True)
    todo = [run for run in list_runs(args.seeds) if not (args.work / f"run-{run.key}.json").is_file()]
    if args.only:
        todo = [run for run in todo if run.key == args.only]
    todo = todo[: args.limit]
    if args.jobs <= 1:
        for run in todo:
            print(f"{time.strftime('%H:%M:%S')} {run.key}", flush=True)
            make_run(run, args)
        return
    children: list[subprocess.Popen[bytes]] = []
    for run in todo:
        while sum(child.poll() is None for child in children) >= args.jobs:
            time.sleep(0.2)
        own = ("--jobs", "1", "--limit", "1", "--only", run.key)  # of two, argparse takes the last
        children.append(subprocess.Popen([sys.executable, __file__, *sys.argv[1:], *own]))
    failed = [child.args for child in children if child.wait()]
    if failed:
        raise EdgeDiffError(f"{len(failed)} runs failed, the first: {failed[0]}")


# -- what is committed ----------------------------------------------------------------------------


def collect_runs(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All runs that are there: also those distilled but not drawn, and cuts without a run. Raises EdgeDiffError for
    none, and for runs of other settings than these."""
    runs: list[dict[str, Any]] = []
    befores = {path.stem.removeprefix("before-"): json.loads(path.read_text()) for path in work.glob("before-*.json")}
    for run in list_runs(args.seeds):
        path, log = work / f"run-{run.key}.json", work / "networks" / run.key / "losses.jsonl"
        before = befores.get(f"{run.size}-{run.method}")
        if path.is_file():
            runs.append(json.loads(path.read_text(encoding="utf-8")))
        elif log.is_file() and before and read_losses(log)[-1]["step"] == args.steps:
            runs.append({**asdict(run), "before": before, "after": None, "curve": read_losses(log)})
    for name, before in befores.items():
        size, method = name.split("-")
        if not any((run["size"], run["method"]) == (size, method) for run in runs):
            runs.append({**asdict(Run(size, method, "normalised", 0)), "before": before, "after": None, "curve": []})
    settings = {key: getattr(args, key) for key in ("steps", "batch", "rate", "precision", "prompts", "sampler_steps")}
    for run in runs:
        made = {**run, **run.pop("settings", {})}
        if any(made.get(key, settings[key]) != settings[key] for key in settings):
            raise EdgeDiffError(f"run {run['method']} of {run['size']} has other settings", where=str(work))
        run["curve"] = [{"step": row["step"], "probe": row["probe"]} for row in run["curve"]]
    if not runs:
        raise EdgeDiffError("there are no runs; make them first: pruning_table.py run --work ...", where=str(work))
    options = " ".join(
        f"--{key.replace('_', '-')} {value:g}" if not isinstance(value, str) else f"--{key} {value}"
        for key, value in settings.items()
    )
    for run in runs:
        run.pop("switched", None)
        run.setdefault("phases", 1)
    reference = np.load(work / f"reference-{args.prompts}-{args.sampler_steps}.npy")
    extra = {
        name: json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("switch", "check")
        if (work / f"{name}.json").is_file()
    }
    scorer = Scorer((load_judge(), SAME), choose_prompts(args.prompts))
    return {
        "settings": {**settings, "command": f"python benchmarks/claims/pruning_table.py run --work FOLDER {options}"},
        "reference": scorer.figures(reference).data,
        "runs": runs,
        **extra,
    }


def contact_sheet(args: argparse.Namespace) -> bytes | None:
    """PNG: the untouched pictures, then for each cut those right after it and those after distillation."""
    from PIL import Image

    work = args.work
    rows = [np.load(work / f"reference-{args.prompts}-{args.sampler_steps}.npy")[:SHOWN]]
    for size in ("base", "small", "tiny"):
        for method in ("laptop", "bk_sdm"):
            names = (f"before-{size}-{method}", f"{size}-{method}-normalised-0")
            files = [work / f"shown-{name}.npy" for name in names]
            if all(path.is_file() for path in files):
                rows += [np.load(path) for path in files]
    if len(rows) < 2:
        return None
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    buffer = io.BytesIO()
    Image.fromarray(whole).quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "switch", "check", "render"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", help="the key of one run")
    return parser.parse_args()


def main() -> None:
    args = read_options()
    makers = {"run": make_runs, "switch": measure_switches, "check": check_steps}
    if args.what in makers:
        makers[args.what](args)
    else:
        found = collect_runs(args.work, args)
        write_json(HERE / "pruning_table.json", found)
        scores = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}
        if OPERATORS.is_file():
            scores["operators"] = json.loads(OPERATORS.read_text(encoding="utf-8"))
        render_pruning(found, HERE / "pruning_table.html", scores=scores, sheet=contact_sheet(args))


if __name__ == "__main__":
    main()
