"""What pruning scores are worth, and what they cost.

    python benchmarks/claims/pruning_scores.py quality [--seeds 3]  output loss beside its baselines (glyph)
    python benchmarks/claims/pruning_scores.py additivity [--seeds 3] [--subsets 24] loss of many, and their sum
    python benchmarks/claims/pruning_scores.py reuse [--model glyph] [--rounds 3]  scoring with and without prefix reuse
    python benchmarks/claims/pruning_scores.py units [--model random:sd15]           the unit table
    python benchmarks/claims/pruning_scores.py full-size [--model random:sd15]  one whole scoring run: time and memory
    python benchmarks/claims/pruning_scores.py operators [--latency 0.65] [--by per_ms] [--draws 8]  LD-Pruner (glyph)

`quality` selects on the calibration prompts of each seed and measures what the selections cost on other prompts and
noise, all layers of a selection removed together, before any recovery. Sizes are those of BK-SDM's presets base and
small, met to within one layer: no selection may keep more parameters than the preset. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.documents.recipe import Recipe
from edgediff.pipeline import Pipeline, load_pipeline
from edgediff.plugins import load_plugin
from edgediff.sampling.trace import Trace, record_trace

TIMESTEPS = 2  # of every calibration prompt
HELD_OUT = 1000  # added to a seed: prompts and noise that no selection has seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "additivity", "reuse", "units", "full-size", "operators"))
    parser.add_argument("--model", help="default: glyph, or random:sd15 for units and full-size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subsets", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2, help="reuse: calibration prompts, four timesteps of each")
    parser.add_argument("--timesteps", type=int, default=2, choices=(1, 2), help="full-size: samples that are scored")
    parser.add_argument("--latency", type=float, default=0.65, help="operators: the share of a call's time that stays")
    parser.add_argument("--by", default="per_ms", help="operators: score, per_mac or per_ms")
    parser.add_argument("--draws", type=int, default=8, help="operators: seeds, a multiple of 8")
    parser.add_argument("--json", type=Path, help="quality, additivity: a file to which the figures are added")
    args = parser.parse_args()
    full_size = args.what in ("units", "full-size")
    args.model = args.model or ("random:sd15" if full_size else "glyph")
    {
        "quality": quality,
        "additivity": additivity,
        "reuse": reuse,
        "units": units,
        "full-size": score_full_size,
        "operators": operators,
    }[args.what](args)


# -- quality --------------------------------------------------------------------------------------


def quality(args: argparse.Namespace) -> None:
    pipeline = load_pipeline(args.model)
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        trace, unseen = trace_of(pipeline, seed), trace_of(pipeline, seed + HELD_OUT)
        for preset in ("base", "small"):
            for name, kind, options in methods(pipeline, preset, seed):
                say(f"seed {seed}, {preset}, {name}")
                removed = cut_by(pipeline, trace, kind, options)
                rows.setdefault((preset, name), []).append(measure_cuts(pipeline, unseen, removed))
        say(f"after {seed + 1} of {args.seeds} seeds\n{quality_table(rows)}")
    print(quality_table(rows))
    plain = [{"size": size, "method": name, "seeds": found} for (size, name), found in rows.items()]
    add_figures(args.json, "quality", plain)


def additivity(args: argparse.Namespace) -> None:
    pipeline = load_pipeline(args.model)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        found.append(check_additivity(pipeline, trace_of(pipeline, seed), args.subsets, seed))
        say(f"after {seed + 1} of {args.seeds} seeds\n{additivity_table(found)}")
    print(additivity_table(found))
    add_figures(args.json, "additivity", found)


def add_figures(path: Path | None, key: str, value: Any) -> None:
    if path is not None:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**known, key: value}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def methods(pipeline: Pipeline, preset: str, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(name in the table, kind, options): all at the size of BK-SDM's preset."""
    graph = pipeline.graph
    bk_sdm = load_plugin("prune", "bk_sdm")
    cut = graph.with_cuts(bk_sdm.preset_cuts(graph, preset))
    budget = {"parameters": cut.parameters() / graph.parameters()}
    return [
        (f"bk_sdm {preset}", "bk_sdm", {"preset": preset}),
        ("random, best of 20", "random", {"budget": budget, "seed": 1000 * seed, "timesteps": TIMESTEPS}),
        ("magnitude", "magnitude", {"budget": budget}),
        ("laptop, one shot", "laptop", {"budget": budget, "rescore": "never"}),
        ("laptop, one shot, greedy", "laptop", {"budget": budget, "rescore": "never", "solver": "greedy"}),
        ("laptop, re-scored", "laptop", {"budget": budget, "rescore": "always"}),
        ("laptop, pairs, one shot", "laptop", {"budget": budget, "granularity": "pair", "rescore": "never"}),
        ("laptop, sub-layers, one shot", "laptop", {"budget": budget, "granularity": "unit", "rescore": "never"}),
    ]


def cut_by(pipeline: Pipeline, trace: Trace, kind: str, options: dict[str, Any]) -> list[str]:
    """The units that a method removes. `re-scored` is what re-scoring chose, whether or not it was the better."""
    plugin = load_plugin("prune", kind)
    common = {"subsets": 0, "timesteps": TIMESTEPS} if kind == "laptop" else {}
    spec = plugin.Spec.model_validate({**options, **common})
    scores = plugin.score(spec, pipeline, trace)
    if options.get("rescore") == "always":
        return scores.checks["selections"]["rescored"]["units"]
    return [cut.unit for cut in plugin.propose(spec, scores, pipeline.graph)]


def measure_cuts(pipeline: Pipeline, trace: Trace, units: list[str]) -> dict[str, float]:
    from edgediff.prune._measure import open_output_loss

    graph = pipeline.graph
    loss, memo = open_output_loss(pipeline, trace, timesteps=TIMESTEPS, memory_gb=2.0)
    with memo:
        [measured] = loss.measure([units])
    cut = graph.with_cuts(units)
    return {
        "output_loss": measured,
        "parameters": cut.parameters() / graph.parameters(),
        "macs": cut.macs() / graph.macs(),
        "units": len(graph.expand(units)),
    }


def check_additivity(pipeline: Pipeline, trace: Trace, count: int, seed: int) -> dict[str, Any]:
    """Random subsets that remove up to 30 % and up to 50 % of the parameters: of all layers, and of those that
    selections are made of (the half that hurts least)."""
    from edgediff.prune._additivity import compare_sums, draw_subsets
    from edgediff.prune._budget import Budget
    from edgediff.prune._candidates import candidates
    from edgediff.prune._measure import open_output_loss

    graph = pipeline.graph
    names = candidates(graph, "layer")
    loss, memo = open_output_loss(pipeline, trace, timesteps=TIMESTEPS, memory_gb=2.0)
    found: dict[str, Any] = {"seed": seed}
    with memo:
        singles = dict(zip(names, loss.measure([[name] for name in names]), strict=True))
        mild = sorted(names, key=singles.__getitem__)[: len(names) // 2]
        for label, among in (("all layers", names), ("the milder half", [name for name in names if name in mild])):
            for most in (0.3, 0.5):
                say(f"seed {seed}, additivity of {label} up to {most:.0%}")
                subsets = draw_subsets(among, graph, Budget(parameters=0.5), {}, most, count, seed)
                measured = loss.measure(subsets)
                removed = [1 - graph.with_cuts(s).parameters() / graph.parameters() for s in subsets]
                result = compare_sums(subsets, singles, measured, removed)
                found[f"{label}, up to {most:.0%}"] = {
                    "r2": result.r2,
                    "r2_line": result.r2_line,
                    "spearman": result.spearman,
                    "n": len(subsets),
                }
    return found


def quality_table(rows: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    lines = [
        "| size of | method | parameters left | MACs left | output loss, median (least to most) | of BK-SDM's |",
        "|---|---|---|---|---|---|",
    ]
    for (preset, name), found in rows.items():
        losses = [row["output_loss"] for row in found]
        handmade = rows[preset, f"bk_sdm {preset}"]
        ratios = [ours["output_loss"] / theirs["output_loss"] for ours, theirs in zip(found, handmade, strict=True)]
        sizes = " to ".join(sorted({f"{row['parameters']:.1%}" for row in found}))
        macs = " to ".join(sorted({f"{row['macs']:.1%}" for row in found}))
        spread = f"{statistics.median(losses):.3g} ({min(losses):.3g} to {max(losses):.3g})"
        lines.append(f"| {preset} | {name} | {sizes} | {macs} | {spread} | {statistics.median(ratios):.3g} |")
    return "\n".join(lines)


def additivity_table(found: list[dict[str, Any]]) -> str:
    lines = ["| subsets | n | R2 of the sum itself | R2 of a line | Spearman |", "|---|---|---|---|---|"]
    for label in (key for key in found[0] if key != "seed"):
        cells = [" ".join(f"{seed[label][key]:.3f}" for seed in found) for key in ("r2", "r2_line", "spearman")]
        lines.append(f"| {label} | {found[0][label]['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- cost -----------------------------------------------------------------------------------------


def reuse(args: argparse.Namespace) -> None:
    """The same scores with and without prefix reuse, candidate by candidate in turn; nothing is read from disk. The
    pass of the whole network that both need (and that keeps the activations) is counted."""
    from edgediff.prune._candidates import candidates
    from edgediff.prune._prefix import OutputLoss, calibration_batch

    pipeline = load_pipeline(args.model)
    inputs = calibration_batch(trace_of(pipeline, 0, steps=4, prompts=args.prompts), 4)
    names = candidates(pipeline.graph, "layer")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    losses: dict[bool, list[float]] = {}
    for turn in range(args.rounds + 1):  # the first round warms up
        both = {reused: OutputLoss(pipeline.denoiser, pipeline.graph, inputs, reuse=reused) for reused in (True, False)}
        losses, taken = {True: [], False: []}, {True: 0.0, False: 0.0}
        for index, name in enumerate(names):
            for reused in (index % 2 == 0, index % 2 == 1):
                start = time.process_time()
                losses[reused] += both[reused].measure([[name]])
                taken[reused] += time.process_time() - start
        say(f"round {turn}: {taken[True]:.2f} s of CPU time with reuse, {taken[False]:.2f} s without")
        if turn:
            for reused, spent in taken.items():
                seconds[reused].append(spent)
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses[True], losses[False], strict=True)]
    print(
        json.dumps(
            {
                "model": args.model,
                "candidates": len(names),
                "samples": len(inputs["sample"]),
                "cpu_s": {"reuse": seconds[True], "naive": seconds[False]},
                "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
                "largest_relative_difference": max(gaps),
                "macs_ratio": macs_ratio(pipeline, names),
            },
            indent=2,
        )
    )


def macs_ratio(pipeline: Pipeline, names: tuple[str, ...]) -> float:
    """What the ratio should be if time went with MACs: everything from the cut on, plus one whole pass."""
    graph = pipeline.graph
    order = [unit.name for unit in graph.units]
    ours, naive = graph.macs(), graph.macs()
    for name in names:
        cut = graph.with_cuts([name])
        first = min(order.index(unit) for unit in graph.expand([name]))
        ours += cut.macs(cut.live(dict.fromkeys(order[:first], "hold")))
        naive += cut.macs()
    return ours / naive


def units(args: argparse.Namespace) -> None:
    """What every candidate is worth by itself."""
    from edgediff.prune._candidates import candidates

    graph = describe_model(args.model)
    total, macs = graph.parameters(), graph.macs()
    print(f"{args.model}: {total / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMACs a call\n")
    print("| layer | M parameters | share | GMACs | share |\n|---|---|---|---|---|")
    for name in candidates(graph, "layer"):
        cut = graph.with_cuts([name])
        saved, less = total - cut.parameters(), macs - cut.macs()
        print(f"| {name} | {saved / 1e6:.3f} | {saved / total:.2%} | {less / 1e9:.3f} | {less / macs:.2%} |")
    rest = graph.with_cuts(candidates(graph, "layer"))
    print(
        f"| (stays) | {rest.parameters() / 1e6:.3f} | {rest.parameters() / total:.2%} "
        f"| {rest.macs() / 1e9:.3f} | {rest.macs() / macs:.2%} |"
    )


def describe_model(model: str) -> Any:
    """Its unit graph; a `random:` U-Net is described without its weights."""
    import torch

    from edgediff import pipeline
    from edgediff.networks import Sizes, unit_graph
    from edgediff.pipeline.parts import make_part

    path = pipeline.ARCHITECTURES / f"{model.removeprefix('random:')}.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "unet" not in config:
        return load_pipeline(model).graph
    with torch.device("meta"):
        network = make_part("unet", config["unet"])
    size = config["unet"]["sample_size"]
    return unit_graph(network, Sizes(size, size, config.get("tokens", 0)))


def score_full_size(args: argparse.Namespace) -> None:
    """`laptop` at half of the parameters on one prompt and `--timesteps` of a trajectory of two calls, additivity and
    re-scoring left out; and what the same costs at 8 prompts and 4 timesteps."""
    clock = [(time.perf_counter(), time.process_time())]

    def lap() -> dict[str, float]:
        clock.append((time.perf_counter(), time.process_time()))
        wall, cpu = (now - before for now, before in zip(clock[-1], clock[-2], strict=True))
        return {"wall": round(wall, 1), "cpu": round(cpu, 1)}

    pipeline = load_pipeline(args.model)
    seconds = {"load": lap()}
    trace = trace_of(pipeline, 0, steps=2, prompts=1, scale=1.0)
    seconds["trace of 2 calls"] = lap()
    laptop = load_plugin("prune", "laptop")
    spec = laptop.Spec(budget={"parameters": 0.5}, timesteps=args.timesteps, subsets=0, rescore="never")
    scores = laptop.score(spec, pipeline, trace, lambda text, done, total: say(f"{text} {done}/{total}"))
    seconds["scoring"] = lap()
    samples = 8 * 4 / args.timesteps
    print(
        json.dumps(
            {
                "model": args.model,
                "candidates": len(scores.values),
                "samples": args.timesteps,
                "seconds": seconds,
                "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
                "cut": list(scores.selection or ()),
                "selections": scores.checks["selections"],
                "projected_cpu_hours": {
                    "trace of 8 prompts, 50 guided calls": round(seconds["trace of 2 calls"]["cpu"] * 8 * 50 / 3600, 2),
                    "scoring 8 prompts x 4 timesteps": round(seconds["scoring"]["cpu"] * samples / 3600, 2),
                },
            },
            indent=2,
        )
    )


def operators(args: argparse.Namespace) -> None:
    """What LD-Pruner chooses under a budget of time, and what a call then takes: full and cut network in turn."""
    from collections import Counter

    from edgediff.variants import cut_network

    pipeline = load_pipeline(args.model)
    graph, ld_pruner = pipeline.graph, load_plugin("prune", "ld_pruner")
    spec = ld_pruner.Spec(budget={"latency": args.latency}, by=args.by, seeds=args.draws, steps=4)
    trace = trace_of(pipeline, 0, steps=4, prompts=8, scale=1.0)
    scores = ld_pruner.score(spec, pipeline, trace, lambda text, done, total: done % 20 or say(f"{text}: {done}"))
    cuts = [cut.unit for cut in ld_pruner.propose(spec, scores, graph)]
    network, cut = cut_network(pipeline.denoiser, graph, cuts)
    taken = time_in_turn([(pipeline.denoiser, graph), (network, cut)], pipeline, 5 * args.rounds)
    ratios = [small / full for full, small in zip(*taken, strict=True)]
    kinds = Counter((graph.operators if name in graph.operators else graph.by_name)[name].kind for name in cuts)
    print(
        json.dumps(
            {
                "by": args.by,
                "operators": len(scores.values),
                "cut": len(cuts),
                "kinds": dict(kinds),
                "parameters": round(cut.parameters() / graph.parameters(), 4),
                "macs": round(cut.macs() / graph.macs(), 4),
                "predicted_time": spec.budget.measure(cut, scores.costs) / spec.budget.measure(graph, scores.costs),
                "measured_time": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
                "checks": scores.checks,
                "units": cuts,
            },
            indent=2,
        )
    )


def time_in_turn(networks: list[tuple[Any, Any]], pipeline: Pipeline, rounds: int) -> list[list[float]]:
    """CPU seconds of one call of each network for one sample, through PyTorch, round by round."""
    import torch

    from edgediff.networks import evaluate, family_of

    inputs = family_of(pipeline.denoiser).example_inputs(pipeline.denoiser, pipeline.sizes, batch=1)
    taken: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for (network, graph), found in zip(networks, taken, strict=True):
                start = time.process_time()
                evaluate(network, graph, graph.live(), inputs)
                if turn > 1:
                    found.append(time.process_time() - start)
    return taken


# -- both -----------------------------------------------------------------------------------------


def trace_of(pipeline: Pipeline, seed: int, *, steps: int = 12, prompts: int = 4, scale: float = 2.0) -> Trace:
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "sampler": {"kind": "ddim", "steps": steps},
            "guidance": {"scale": scale},
            "calibration": {"prompts": prompts, "seed": seed},
        }
    )
    say(f"calibration prompts of seed {seed}")
    return record_trace(pipeline, recipe)


say: Callable[[str], None] = lambda text: print(f"# {text}", file=sys.stderr, flush=True)  # noqa: E731

if __name__ == "__main__":
    main()
