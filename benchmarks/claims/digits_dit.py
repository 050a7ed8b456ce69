"""A tiny class-conditional DiT on scikit-learn's digits, and what static reuse does to its pictures.

    python benchmarks/claims/digits_dit.py train --out FOLDER      minutes on one core; writes a diffusers folder
    python benchmarks/claims/digits_dit.py table [--model FOLDER]  methods beside fewer steps at equal MACs, as JSON

The model is DiTTransformer2DModel on 8 x 8 grey pixels (no VAE): 6 blocks of width 48 over 16 patches, class dropped
for one sample in ten. Pictures are judged by a support vector classifier of the digits (`right`: the share that it
takes for the class that was asked for), by the Frechet distance of their 64 pixels to those of all digits, and by PSNR
to the pictures of the untouched 50-step DDIM from the same noise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

ASSET = ROOT / "tests" / "assets" / "digits_dit"
CLASSES, SIZE = 10, 8
TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 6,
    "sample_size": SIZE,
    "patch_size": 2,
    "num_embeds_ada_norm": CLASSES,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
}
SCALE = 2.0
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("FORA, N = 2", {"kind": "fora", "interval": 2}),
    ("FORA, N = 5", {"kind": "fora", "interval": 5}),
    ("Delta-DiT, N = 2", {"kind": "delta_dit", "interval": 2}),
    ("Delta-DiT, N = 3, all blocks", {"kind": "delta_dit", "interval": 3, "share": 1.0}),
    ("SmoothCache, 0.18", {"kind": "smoothcache"}),
    ("TaylorSeer of the output, N = 5", {"kind": "taylorseer", "interval": 5}),
    ("output hold, 25 of 50", {"kind": "output_hold", "count": 25}),
    ("output hold, 10 of 50", {"kind": "output_hold", "count": 10}),
    ("path search, 25 of 50", {"kind": "path_search", "calls": 25}),
    ("path search, 10 of 50", {"kind": "path_search", "calls": 10}),
    ("linear forecast, 0.2", {"kind": "linear_forecast", "share": 0.2}),
    ("DiP-GO, 0.5", {"kind": "dip_go", "ratio": 0.5, "iterations": 20, "loss": "latent"}),
    ("DiP-GO, 0.8", {"kind": "dip_go", "ratio": 0.8, "iterations": 20, "loss": "latent"}),
]


def load_data() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[1797, 1, 8, 8]` in [-1, 1], and classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:, None] / 8.0 - 1.0).astype(np.float32), digits.target


# -- training -------------------------------------------------------------------------------------


def train(out: Path, start: Path | None, steps: int, batch: int, seed: int) -> None:
    """Noise prediction with AdamW and a cosine, averaged weights, everything drawn from one seed. Goes on from the
    model in `start`, if there is one. What there is is written every 500 steps."""
    from diffusers import DDPMScheduler, DiTTransformer2DModel

    from edgediff.pipeline import load_pipeline

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    pixels, classes = (torch.from_numpy(values) for values in load_data())
    network = DiTTransformer2DModel(**TRANSFORMER)
    if start is None:
        _start_at_identity(network)
    else:
        network.load_state_dict(load_pipeline(start).denoiser.state_dict())
    network.eval()  # no dropout of classes within the blocks, each of which would drop on its own
    average = {name: value.clone() for name, value in network.state_dict().items()}
    noising: Any = DDPMScheduler.from_config(SCHEDULER)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    began, running = time.process_time(), 1.0
    for step in range(steps):
        rows = torch.randint(len(pixels), (batch,))
        labels = torch.where(torch.rand(batch) < 0.1, CLASSES, classes[rows])
        times, noise = torch.randint(1000, (batch,)), torch.randn(batch, 1, SIZE, SIZE)
        noisy = noising.add_noise(pixels[rows], noise, times)
        loss = functional.mse_loss(network(noisy, times, labels).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.998, (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1.0 - decay)
        running = 0.99 * running + 0.01 * float(loss.detach())
        if (step + 1) % 250 == 0:
            said = {"step": step + 1, "loss": round(running, 4), "cpu_s": round(time.process_time() - began, 1)}
            print(json.dumps(said), flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            whole = DiTTransformer2DModel(**TRANSFORMER)
            whole.load_state_dict(average)
            write_model(whole, out)


def _start_at_identity(network: Any) -> None:
    """adaLN-Zero as in DiT: every block and the output start at zero. diffusers leaves that to checkpoints."""
    last = (network.proj_out_1, network.proj_out_2)
    for layer in (*(block.norm1.linear for block in network.transformer_blocks), *last):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in network.transformer_blocks:
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)


def write_model(network: Any, out: Path) -> None:
    """A DiTPipeline folder without a VAE, its weights in fp16."""
    from edgediff.pipeline import quiet_libraries

    with quiet_libraries():
        network.half().save_pretrained(out / "transformer")
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "id2label": {str(digit): str(digit) for digit in range(CLASSES)},
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


# -- judging --------------------------------------------------------------------------------------


class Judge:
    """A support vector classifier trained on every second digit; `held_out` is its accuracy on the others."""

    def __init__(self) -> None:
        from sklearn.svm import SVC

        pixels, classes = load_data()
        flat = pixels.reshape(len(pixels), -1)
        self.classifier = SVC(gamma=0.06).fit(flat[::2], classes[::2])
        self.held_out = float(self.classifier.score(flat[1::2], classes[1::2]))
        self.gallery = flat

    def figures(self, latents: torch.Tensor, asked: np.ndarray, reference: torch.Tensor | None) -> dict[str, float]:
        from edgediff.metrics import frechet_distance

        flat = latents.clamp(-1.0, 1.0).numpy().reshape(len(latents), -1)
        found = {
            "right": float((self.classifier.predict(flat) == asked).mean()),
            "frechet": float(frechet_distance(flat, self.gallery)),
        }
        if reference is not None:
            same = reference.clamp(-1.0, 1.0).numpy().reshape(len(flat), -1)
            error = ((flat - same) ** 2).mean(axis=1)
            found["psnr_db"] = float(np.mean(10 * np.log10(4.0 / np.maximum(error, 4e-10))))
        return found


# -- the table ------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One model, its judge, and the noise of `pictures` pictures for each seed."""

    pipeline: Any
    judge: Judge
    pictures: int
    reference: dict[int, torch.Tensor]
    seeds: tuple[int, ...]

    def row(self, name: str, table: Any, schedule: Any, guidance: Any, share: float) -> dict[str, Any]:
        """Figures of one schedule: the mean over the seeds, and lowest to highest."""
        from edgediff.sampling.rollout import Rollout

        asked = np.arange(self.pictures) % CLASSES
        every: list[dict[str, float]] = []
        for seed in self.seeds:
            prompts = [str(digit) for digit in asked]
            rollout = Rollout(self.pipeline, prompts, range(seed, seed + self.pictures), batch=self.pictures)
            finals = rollout.run(table, schedule, guidance)
            every.append(self.judge.figures(finals, asked, self.reference.get(seed)))
            self.reference.setdefault(seed, finals)
        means = {key: round(float(np.mean([one[key] for one in every])), 4) for key in every[-1]}
        spread = {key: [round(f([one[key] for one in every]), 4) for f in (min, max)] for key in every[-1]}
        return {"method": name, "macs_share": round(share, 4), **means, "low_high": spread}


def make_table(model: Path, pictures: int, seeds: int, only: str | None) -> None:
    from edgediff.documents.recipe import Recipe
    from edgediff.errors import EdgeDiffError
    from edgediff.flow import plan_build
    from edgediff.pipeline import load_pipeline
    from edgediff.plugins import plugin_names
    from edgediff.sampling.trace import guidance_calls, step_table

    pipeline, judge = load_pipeline(model), Judge()
    graph = pipeline.graph
    say({"judge_held_out": round(judge.held_out, 4), "parameters": graph.parameters(), "macs": graph.macs()})
    bench = Bench(pipeline, judge, pictures, {}, tuple(range(0, 1000 * seeds, 1000)))

    def untouched(kind: str, steps: int) -> dict[str, Any]:
        table = step_table(pipeline, kind, steps)
        guidance = guidance_calls(SCALE, (0.0, 1.0), len(table.rows))
        return bench.row(f"untouched {kind}, {steps} steps", table, None, guidance, steps / 50)

    say(untouched("ddim", 50))
    baselines: set[tuple[str, int]] = set()
    for name, stage in METHODS:
        if only is not None and only not in name:
            continue
        if stage["kind"] not in plugin_names("reuse"):
            say({"method": name, "skipped": f"there is no reuse method '{stage['kind']}'"})
            continue
        recipe = Recipe.model_validate(
            {
                "name": "digits",
                "sampler": {"kind": "ddim", "steps": 50},
                "guidance": {"scale": SCALE},
                "calibration": {"prompts": 20, "seed": 50_000},
                "reuse": [stage],
                "max_graphs": 4,
            }
        )
        start = time.process_time()
        try:
            plan = plan_build(pipeline, recipe=recipe, target="host", backends=["onnxruntime"])
        except EdgeDiffError as error:
            say({"method": name, "error": str(error)})
            continue
        seconds = round(time.process_time() - start, 1)
        share, table = plan.cost.macs / plan.cost.reference_macs, step_table(pipeline, "ddim", 50)
        found = bench.row(name, table, plan.schedule, plan.guidance, share)
        say({**found, "schedule": str(plan.schedule), "graphs": len(plan.graphs), "planning_cpu_s": seconds})
        for kind in ("ddim", "dpmpp_2m"):
            if (pair := (kind, plan.cost.equal_compute.steps)) not in baselines:
                baselines.add(pair)
                say(untouched(*pair))


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--start", type=Path, help="a folder to go on from")
    training.add_argument("--steps", type=int, default=1000)
    training.add_argument("--batch", type=int, default=64)
    training.add_argument("--seed", type=int, default=0)
    table = commands.add_parser("table")
    table.add_argument("--model", type=Path, default=ASSET)
    table.add_argument("--pictures", type=int, default=300)
    table.add_argument("--seeds", type=int, default=3)
    table.add_argument("--only", help="methods whose name holds this")
    chosen = parser.parse_args()
    if chosen.command == "train":
        train(chosen.out, chosen.start, chosen.steps, chosen.batch, chosen.seed)
    else:
        make_table(chosen.model, chosen.pictures, chosen.seeds, chosen.only)


if __name__ == "__main__":
    main()
