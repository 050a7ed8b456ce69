"""What every reuse method costs on an architecture, from its unit graph alone: no weights, no arithmetic.

    python -m benchmarks.claims.presets [--architecture sd15|dit-xl-2|ddpm-cifar10|ldm-uncond|sdxl] [--steps 50]
                                  [--guidance 7.5] [--units] [--json FILE]

Per preset: graphs to ship, distinct rows (a held output counts as one more), carries and what they take in fp16 for one
prompt (a guided call keeps two of each), MACs of one picture and their share of the full run. MACs count convolutions
and matrix products, those of attention included; `published` leaves attention's two products out, as the papers do.
Methods that are calibrated have no schedule without a model, and some do not serve every family: these are not in the
table. `--units` lists what the network is made of; of a DiT's blocks, all alike, the second stands for all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgediff.errors import MethodError, PlanError
from edgediff.graph.schedule import HOLD, Schedule, carried, full_schedule, mixes, wire_schedule
from edgediff.graph.units import Unit, UnitGraph
from edgediff.networks import Sizes, unit_graph
from edgediff.pipeline import ARCHITECTURES
from edgediff.plugins import load_plugin
from edgediff.reuse import Setting
from edgediff.sampling.rows import plan_guidance
from edgediff.sampling.table import extract_step_table, make_scheduler
from edgediff.sampling.trace import guidance_calls

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
    ("FORA N=2", "fora", {"interval": 2}),
    ("FORA N=3", "fora", {"interval": 3}),
    ("FORA N=5", "fora", {"interval": 5}),
    ("Delta-DiT N=2, half of the blocks", "delta_dit", {"interval": 2}),
    ("Delta-DiT N=3, half of the blocks", "delta_dit", {"interval": 3}),
    ("Guidance interval 0.1 to 0.7", "guidance_interval", {}),
    ("Output hold, 10 uniform", "output_hold", {"count": 10}),
    ("DiP-GO 0.8 as released", "gates", {"preset": "dipgo-sd15-50-p0.80"}),
)
# The U-Net of SDXL base 1.0. Its pipeline, with two text encoders, is not described, so that no model has this name.
SDXL: dict[str, Any] = {
    "scheduler": {},
    "tokens": 77,
    "unet": {
        "sample_size": 128,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sd15")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--units", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    path = ARCHITECTURES / f"{args.architecture}.json"
    config = SDXL if args.architecture == "sdxl" else json.loads(path.read_text(encoding="utf-8"))
    graph = read_graph(config)
    table = extract_step_table(make_scheduler("ddim", config["scheduler"]), args.steps)
    setting = Setting(graph, table, guidance_calls(args.guidance, (0.0, 1.0), len(table.rows)))
    rows = [describe("Full", full_schedule(setting.calls), setting)]
    for name, kind, options in PRESETS:
        plugin = load_plugin("reuse", kind)
        try:
            schedule = plugin.propose(plugin.Spec.model_validate(options), setting)
        except (MethodError, PlanError):
            continue
        rows.append(describe(name, schedule, setting))
    print(as_markdown(rows))
    if args.units:
        print_units(graph)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read_graph(config: dict[str, Any]) -> UnitGraph:
    """The denoiser's unit graph, its weights never made."""
    import diffusers
    import torch

    part = config.get("transformer", config.get("unet"))
    with torch.device("meta"):
        network = getattr(diffusers, part.get("_class_name", "UNet2DConditionModel")).from_config(part)
    return unit_graph(network, Sizes(part["sample_size"], part["sample_size"], config.get("tokens", 77)))


def print_units(graph: UnitGraph) -> None:
    """Parameters, MACs of one sample and the MB of an fp16 output, by block; of a DiT's second block by unit."""
    products = sum(u.attention_macs for u in graph.units) / 1e9
    print(
        f"\n{graph.parameters() / 1e6:.2f} M parameters, {graph.macs() / 1e9:.2f} GMACs a call "
        f"({products:.2f} of them in the products of attention)\n"
    )
    print("| unit | M params | GMACs | MB out |\n|---|---|---|---|")
    groups: dict[str, list[Unit]] = {}
    for unit in graph.units:
        if graph.family == "dit" and unit.block.startswith("transformer_blocks."):
            if unit.block.endswith(".1"):
                groups[unit.name] = [unit]
        else:
            groups.setdefault(unit.block, []).append(unit)
    for name, units in groups.items():
        parameters, macs = sum(u.parameters for u in units) / 1e6, sum(u.macs for u in units) / 1e9
        print(f"| {name} | {parameters:.3f} | {macs:.4f} | {2 * units[-1].output_values / 1e6:.3f} |")


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
        "preset": name,
        "graphs": len(wirings),
        "rows": len(set(schedule.calls)),
        "full_calls": sum(
            not schedule.rows[call].hold and not schedule.rows[call].delta for call in schedule.calls if call != HOLD
        ),
        "carries": len(carries),
        "cache_mb_fp16": 2 * values / 1e6,
        "tmacs": macs / 1e12,
        "share": macs / whole,
        "published_tmacs_unguided": macs_of(published, schedule, [1] * setting.calls) / 1e12,
        "schedule": str(schedule),
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
