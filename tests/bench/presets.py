"""What every reuse method costs on an architecture, from its unit graph alone: no weights, no arithmetic.

    python -m tests.bench.presets [--architecture sd15] [--steps 50] [--guidance 7.5] [--json FILE]

Per preset: graphs to ship, distinct rows (a held output counts as one more), carries and what they take in fp16 for one
prompt (a guided call keeps two of each), MACs of one picture and their share of the full run. MACs count convolutions
and matrix products, those of attention included; `published` leaves attention's two products out, as the papers do.
Methods that are calibrated have no schedule without a model: they are not in the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgediff.networks import Sizes, unit_graph
from edgediff.pipeline import PACKAGE
from edgediff.plugins import load_plugin
from edgediff.reuse import Setting
from edgediff.rows import plan_guidance
from edgediff.sampler import extract_step_table, make_scheduler
from edgediff.schedule import HOLD, Schedule, carried, full_schedule, mixes, wire_schedule
from edgediff.trace import guidance_calls
from edgediff.units import UnitGraph

PRESETS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("DeepCache N=2, branch 0", "deepcache", {"interval": 2}),
    ("DeepCache N=3, branch 0", "deepcache", {"interval": 3}),
    ("DeepCache N=5, branch 0", "deepcache", {"interval": 5}),
    ("DeepCache N=5, branch 1", "deepcache", {"interval": 5, "branch": 1}),
    ("DeepCache N=5, non-uniform", "deepcache", {"interval": 5, "mode": "non_uniform"}),
    ("DeepCache N=5, non-uniform as released", "deepcache", {"interval": 5, "mode": "released"}),
    ("Faster Diffusion, published keys", "faster_diffusion", {}),
    ("Inheritance, blocks, uniform", "inherit", {"level": "block"}),
    ("Inheritance, layers, front-dense", "inherit", {"level": "layer", "mode": "front_dense"}),
    ("Inheritance, units, uniform", "inherit", {"level": "unit"}),
    ("Inheritance, units' changes, uniform", "inherit", {"level": "unit", "form": "change"}),
    ("T-GATE, gate 20", "tgate", {"gate": 20}),
    ("T-GATE, gate 20, self-attention every 5th", "tgate", {"gate": 20, "self_interval": 5}),
    ("T-GATE, gate 20, guidance stays", "tgate", {"gate": 20, "guidance_off": False}),
    ("TaylorSeer N=4 O=1, output", "taylorseer", {"interval": 4, "order": 1}),
    ("TaylorSeer N=4 O=2, deep feature", "taylorseer", {"interval": 4, "order": 2, "what": "features"}),
    ("Guidance interval 0.1 to 0.7", "guidance_interval", {}),
    ("Output hold, 10 uniform", "output_hold", {"count": 10}),
    ("DiP-GO 0.8 as released", "gates", {"preset": "dipgo-sd15-50-p0.80"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sd15")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = json.loads((PACKAGE / "architectures" / f"{args.architecture}.json").read_text(encoding="utf-8"))
    graph = read_graph(config)
    table = extract_step_table(make_scheduler("ddim", config["scheduler"]), args.steps)
    setting = Setting(graph, table, guidance_calls(args.guidance, (0.0, 1.0), len(table.rows)))
    rows = [describe("Full", full_schedule(setting.calls), setting)]
    for name, kind, options in PRESETS:
        plugin = load_plugin("reuse", kind)
        rows.append(describe(name, plugin.propose(plugin.Spec.model_validate(options), setting), setting))
    print(as_markdown(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read_graph(config: dict[str, Any]) -> UnitGraph:
    """The denoiser's unit graph, its weights never made."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config["unet"])
    size = config["unet"]["sample_size"]
    return unit_graph(network, Sizes(size, size, config["tokens"]))


def describe(name: str, schedule: Schedule, setting: Setting) -> dict[str, Any]:
    graph, wirings = setting.graph, wire_schedule(schedule, setting.graph)
    carries = carried(wirings.values())
    weights = mixes(schedule)
    depth = {c: max([1, *(len(mix.get(c, ())) for mix in weights)]) for c in carries}
    values = sum(graph.by_name[carry.rstrip("+")].output_values * depth[carry] for carry in carries)
    passes = [1 if scale is None else 2 for scale in plan_guidance(setting.guidance, schedule, "batched").calls]
    macs = macs_of(graph, schedule, passes)
    whole = graph.macs() * sum(1 if scale is None else 2 for scale in setting.guidance)
    published = replace(graph, units=tuple(replace(u, macs=u.macs - u.attention_macs) for u in graph.units))
    return {
        "preset": name, "graphs": len(wirings), "rows": len(set(schedule.calls)), "full_calls": sum(
            not schedule.rows[call].hold and not schedule.rows[call].delta for call in schedule.calls if call != HOLD
        ),
        "carries": len(carries), "cache_mb_fp16": 2 * values / 1e6, "tmacs": macs / 1e12, "share": macs / whole,
        "published_tmacs_unguided": macs_of(published, schedule, [1] * setting.calls) / 1e12, "schedule": str(schedule),
    }


def macs_of(graph: UnitGraph, schedule: Schedule, passes: list[int]) -> int:
    wirings = wire_schedule(schedule, graph)
    price = {name: graph.macs(wiring.live) for name, wiring in wirings.items()}
    return sum(price[name] * n for name, n in zip(schedule.calls, passes, strict=True) if name != HOLD)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    heads = ("preset", "graphs", "rows", "full calls", "carries", "cache MB (fp16)", "T MACs", "share", "published T")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        lines.append(
            f"| {row['preset']} | {row['graphs']} | {row['rows']} | {row['full_calls']} | {row['carries']} | "
            f"{row['cache_mb_fp16']:.2f} | {row['tmacs']:.2f} | {row['share']:.1%} | "
            f"{row['published_tmacs_unguided']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
