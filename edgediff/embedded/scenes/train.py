"""Trains the model `scenes`: `python -m edgediff.embedded.scenes.train {all,vae,denoiser,detector,export,export-vae}`.

`all` is the autoencoder and then the denoiser. Every part goes on from its checkpoint in --work; Ctrl-C (SIGINT) ends
the step and saves. The autoencoder and the detector are trained for a number of steps, not for hours: on a machine that
gives this program little time, hours pass without any training. The denoiser's rate is constant, so that it can be
stopped and continued at any time: what is used is the average of its weights.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not take the workers' cores

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.autoencoder import load_vae, tune_vae
from edgediff.embedded.scenes.denoiser import train_scenes
from edgediff.embedded.scenes.detector import WEIGHTS, save_detector
from edgediff.embedded.scenes.detector_training import measure_detector, train_detector
from edgediff.embedded.scenes.export import SCENES, export_model, export_vae
from edgediff.embedded.scenes.schedule import Endless
from edgediff.embedded.training_settings import Budget, Settings
from edgediff.errors import EdgeDiffError

# part: samples per step, learning rate
PARTS = {"vae": (16, 2e-3), "denoiser": (32, 1e-3), "detector": (32, 2e-3)}


def make_settings(part: str, options: argparse.Namespace) -> Settings:
    """A part's settings, from its row in PARTS and the options that override it."""
    batch, rate = PARTS[part]
    steps = {"vae": options.vae_steps, "denoiser": options.steps, "detector": options.detector_steps}[part]
    budget = Endless(options.hours, steps) if part == "denoiser" else Budget(None, steps)
    return Settings(
        part,
        options.work,
        budget,
        options.batch or batch,
        options.rate or rate,
        "cpu",
        options.seed,
        options.workers,
    )


def _weights(options: argparse.Namespace) -> Path | None:
    """The folder of --from-weights; None where it holds no denoiser, only an autoencoder that is still to be tuned."""
    folder: Path | None = options.from_weights
    return folder if folder is not None and (folder / "unet").is_dir() else None


def run_vae(options: argparse.Namespace) -> None:
    """Tunes the autoencoder and freezes it."""
    tune_vae(make_settings("vae", options), options.from_weights or GLYPH)
    load_vae(options.work, make_settings("vae", options))


def run_denoiser(options: argparse.Namespace) -> None:
    """Trains the denoiser until the budget ends or it is interrupted."""
    vae = load_vae(options.work, make_settings("vae", options), _weights(options))
    train_scenes(vae, make_settings("denoiser", options), _weights(options))


def run_detector(options: argparse.Namespace) -> None:
    """Trains the detector, writes it beside this module and prints how it does."""
    vae = load_vae(options.work, make_settings("vae", options), _weights(options))
    network = train_detector(vae, make_settings("detector", options))
    save_detector(network)
    print(f"detector: wrote {WEIGHTS.name}; {measure_detector(network, vae)}")


def run_export(options: argparse.Namespace) -> None:
    """Writes the averaged weights of the work folder's last checkpoint."""
    vae = load_vae(options.work, make_settings("vae", options), _weights(options))
    print(f"export: {export_model(vae, make_settings('denoiser', options), options.out):,} bytes in {options.out}")


def run_all(options: argparse.Namespace) -> None:
    """The autoencoder, unless it is frozen already, and then the denoiser."""
    if _weights(options) is None and not (options.work / "vae-frozen.pt").is_file():
        run_vae(options)
    run_denoiser(options)


def run_export_vae(options: argparse.Namespace) -> None:
    """Writes the averaged autoencoder alone, from which --from-weights goes on tuning."""
    print(f"export-vae: {export_vae(make_settings('vae', options), options.out)}")


RUNS = {
    "all": run_all,
    "vae": run_vae,
    "denoiser": run_denoiser,
    "detector": run_detector,
    "export": run_export,
    "export-vae": run_export_vae,
}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edgediff.embedded.scenes.train", description=__doc__)
    parser.add_argument("part", choices=list(RUNS))
    parser.add_argument("--work", type=Path, default=Path("build/training-scenes"), help="checkpoints and latents")
    parser.add_argument("--hours", type=float, default=1000.0, help="of the denoiser")
    parser.add_argument("--steps", type=int, help="of the denoiser, instead of hours: a run that repeats exactly")
    parser.add_argument("--vae-steps", type=int, default=2_000)
    parser.add_argument("--detector-steps", type=int, default=4_000)
    parser.add_argument(
        "--from-weights", type=Path, nargs="?", const=SCENES, help="begin a new work folder with exported weights"
    )
    parser.add_argument("--out", type=Path, default=SCENES, help="where `export` writes the averaged fp16 weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="samples per step")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="threads that share a step")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    RUNS[options.part](options)


if __name__ == "__main__":
    try:
        main()
    except EdgeDiffError as error:
        sys.exit(str(error))
