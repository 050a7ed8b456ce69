"""Trains the detector on examples, half of them passed through the autoencoder, and measures it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from edgediff.embedded.scenes.autoencoder import decode_latents
from edgediff.embedded.scenes.detector import CELLS, STRIDE, Detector, Maps, detect
from edgediff.embedded.scenes.findings import matches_scene
from edgediff.embedded.scenes.hard_negatives import Example, draw_example, index_background
from edgediff.embedded.scenes.render import render_scenes
from edgediff.embedded.scenes.scene import Scene, Thing, draw_scene
from edgediff.embedded.scenes.vocabulary import HUES, LARGEST, NOUNS, SMALLEST
from edgediff.embedded.training_loop import Training
from edgediff.embedded.training_settings import Settings, half_precision
from edgediff.embedded.vae_training import encode_pictures, to_signal

NOTHING = len(NOUNS)
IGNORED = -100  # cross_entropy's own mark
AUTOENCODED = 4_000  # examples that are passed through the autoencoder once and shown again and again
TRAIN_SEED, TEST_SEED = 400, 401


def make_targets(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """nouns (n, 16, 16) and hues (n, 16, 16) int64, geometry (n, 3, 16, 16), backgrounds (n,) int64.

    The cell of a centre bears the noun; the eight around it are left out of the loss; the others bear NOTHING.
    """
    count = len(examples)
    nouns = torch.full((count, CELLS, CELLS), NOTHING)
    hues = torch.full((count, CELLS, CELLS), IGNORED)
    geometry = torch.zeros(count, 3, CELLS, CELLS)
    for row, example in enumerate(examples):
        cells = [_locate(thing) for thing in example.things]
        for x, y, _ in cells:
            nouns[row, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = IGNORED
        for thing, (x, y, values) in zip(example.things, cells, strict=True):
            nouns[row, y, x] = list(NOUNS).index(thing.noun)
            hues[row, y, x] = list(HUES).index(thing.hue)
            geometry[row, :, y, x] = torch.tensor(values)
    return nouns, hues, geometry, torch.tensor([index_background(example) for example in examples])


def _locate(thing: Thing) -> tuple[int, int, tuple[float, float, float]]:
    """The cell (x, y) of a thing's centre, and what Maps.geometry should say there."""
    x, y = (int(c // STRIDE) for c in thing.centre)
    across, down = (c / STRIDE - cell for c, cell in zip(thing.centre, (x, y), strict=True))
    return x, y, (across, down, (thing.size - SMALLEST) / (LARGEST - SMALLEST))


def detector_loss(maps: Maps, targets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Focal cross-entropy (Lin et al. 2017, gamma 2) of the nouns per object, and the attributes at the objects."""
    nouns, hues, geometry, backgrounds = targets
    there = hues != IGNORED
    count = there.sum().clamp_min(1)
    entropy = F.cross_entropy(maps.nouns.float(), nouns, ignore_index=IGNORED, reduction="none")
    focal = ((1 - torch.exp(-entropy)).square() * entropy).sum() / count
    hue = F.cross_entropy(maps.hues.float(), hues, ignore_index=IGNORED, reduction="sum") / count
    places = ((maps.geometry.float() - geometry).abs() * there[:, None]).sum() / count
    known = (backgrounds >= 0).sum().clamp_min(1)
    ground = F.cross_entropy(maps.backgrounds.float(), backgrounds.clamp_min(-1), ignore_index=-1, reduction="sum")
    loss: torch.Tensor = focal + 0.5 * hue + places + 0.2 * ground / known
    return loss


def train_detector(vae: AutoencoderKL, settings: Settings) -> Detector:
    """Half of each batch is drawn anew, half is from the autoencoded examples."""
    torch.manual_seed(settings.seed)
    network = Detector()
    kept = [draw_example(TRAIN_SEED, i) for i in range(AUTOENCODED)]
    worn = autoencode(vae, np.stack([example.picture for example in kept]))

    def loss(generator: torch.Generator, count: int) -> torch.Tensor:
        first = AUTOENCODED + int(torch.randint(2**40, (1,), generator=generator))
        rows = torch.randint(AUTOENCODED, (count // 2,), generator=generator).tolist()
        fresh = [draw_example(TRAIN_SEED, first + i) for i in range(count - len(rows))]
        pictures = [torch.from_numpy(np.stack([example.picture for example in fresh])), worn[rows]]
        with half_precision(settings.device):
            maps = network(to_signal(torch.cat(pictures)))
        return detector_loss(maps, make_targets([*fresh, *(kept[row] for row in rows)]))

    network.load_state_dict(Training(network, loss, settings).run())
    return network.eval()


def autoencode(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) pictures as the autoencoder gives them back."""
    return decode_latents(vae, encode_pictures(vae, torch.from_numpy(pictures)))


def measure_detector(network: Detector, vae: AutoencoderKL, count: int = 300) -> dict[str, float]:
    """Shares on scenes that no training saw: renders read right, autoencoded ones too; negatives in which it finds."""
    scenes: list[Scene] = [draw_scene(TEST_SEED, i, pairs=0.85, held_out=i % 3 == 0) for i in range(count)]
    real = render_scenes(scenes)
    shares = {}
    for name, pictures in (("real", real), ("autoencoded", autoencode(vae, real).numpy())):
        read = detect(network, pictures)
        shares[name] = sum(matches_scene(s, f) for s, f in zip(scenes, read, strict=True)) / count
    for kind in ("mean", "blur"):
        pictures = np.stack([draw_example(TEST_SEED, i, kind).picture for i in range(count)])
        shares[f"found in {kind}"] = sum(bool(f.things) for f in detect(network, pictures)) / count
    for kind in ("ghost", "chimera", "duplicate"):
        examples = [draw_example(TEST_SEED, i, kind) for i in range(count)]
        read = detect(network, np.stack([example.picture for example in examples]))
        exact = [len(f.things) == len(e.things) for f, e in zip(read, examples, strict=True)]
        shares[f"count in {kind}"] = sum(exact) / count
    return shares
