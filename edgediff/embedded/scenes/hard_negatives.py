"""What the detector is trained on: renders, and pictures that resemble renders without being right.

Positives are renders only (and, in training, renders that went through the autoencoder). The rest is what a poor
generator makes: the mean of many answers, a ghost of an object, half of one and half of another, blur, an object twice.
An object that is not all there is not labelled; an object that is there twice is labelled twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edgediff.embedded.scenes.atlas import load_stamp
from edgediff.embedded.scenes.render import render_scene, render_scenes
from edgediff.embedded.scenes.scene import Scene, Thing, draw_scene
from edgediff.embedded.scenes.vocabulary import BACKGROUNDS, HUES, NOUNS, SIDE

GHOST = (0.1, 0.5)  # strength of what is not labelled
BLUR = (3.0, 6.0)  # deviation in pixels, past which a person cannot name a glyph of 20 to 36 pixels for sure
MEAN = (2, 16)  # renders in a mean, both ends included


@dataclass(frozen=True)
class Example:
    """`picture` (64, 64, 3) uint8 and what is to be found in it; `background` None where there is no single one."""

    kind: str
    picture: NDArray[np.uint8]
    things: tuple[Thing, ...]
    background: str | None


def draw_example(seed: int, index: int, kind: str | None = None) -> Example:
    """Example `index` of a seed, of a kind drawn by KINDS' shares or of the given one."""
    rng = np.random.default_rng((seed, index, 1))
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))
    held_out = bool(rng.random() < 0.3)  # the judge, unlike the denoiser, knows every pair and kind
    scene = draw_scene(seed, index, pairs=0.85, held_out=held_out)
    return KINDS[kind][1](scene, rng)


def _plain(scene: Scene, rng: np.random.Generator) -> Example:
    return Example("plain", render_scene(scene), scene.things, scene.background)


def _mean(scene: Scene, rng: np.random.Generator) -> Example:
    """The mean of renders; half the time all on one background, as for a caption that names it."""
    count = int(rng.integers(MEAN[0], MEAN[1] + 1))
    scenes = [draw_scene(int(rng.integers(2**40)), i, pairs=0.85) for i in range(count)]
    same = bool(rng.random() < 0.5)
    if same:
        scenes = [replace(other, background=scene.background) for other in scenes]
    picture = render_scenes(scenes).mean(axis=0).round().astype(np.uint8)
    return Example("mean", picture, (), scene.background if same else None)


def _ghost(scene: Scene, rng: np.random.Generator) -> Example:
    """The first thing is a ghost of strength GHOST."""
    with_it = render_scene(scene).astype(np.float32)
    without = render_scene(replace(scene, things=scene.things[1:])).astype(np.float32)
    strength = rng.uniform(*GHOST)
    picture = (without + strength * (with_it - without)).round().astype(np.uint8)
    return Example("ghost", picture, scene.things[1:], scene.background)


def _chimera(scene: Scene, rng: np.random.Generator) -> Example:
    """The first thing is half itself and half another noun: side by side, one above the other, or both at once."""
    thing = scene.things[0]
    other = str(rng.choice([noun for noun in NOUNS if noun != thing.noun]))
    mask = np.zeros((thing.size, thing.size, 1), np.float32)
    way = rng.integers(3)
    if way == 0:
        mask[:, thing.size // 2 :] = 1
    elif way == 1:
        mask[thing.size // 2 :] = 1
    else:
        mask[:] = 0.5
    stamp = (1 - mask) * load_stamp(thing.noun, thing.size) + mask * load_stamp(other, thing.size)
    picture = render_scene(replace(scene, things=scene.things[1:])).astype(np.float32)
    area = picture[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
    area *= 1 - stamp[..., 1:]
    area += stamp[..., :1] * np.array(HUES[thing.hue], np.float32)
    return Example("chimera", picture.round().clip(0, 255).astype(np.uint8), scene.things[1:], scene.background)


def _blur(scene: Scene, rng: np.random.Generator) -> Example:
    deviation = rng.uniform(*BLUR)
    picture = ndimage.gaussian_filter(render_scene(scene).astype(np.float32), (deviation, deviation, 0), mode="nearest")
    return Example("blur", picture.round().astype(np.uint8), (), scene.background)


def _duplicate(scene: Scene, rng: np.random.Generator) -> Example:
    """The first thing again where it overlaps nothing; a plain render where there is no room."""
    thing = scene.things[0]
    for x, y in rng.integers(0, SIDE - thing.size + 1, size=(40, 2)):
        again = replace(thing, x=int(x), y=int(y))
        if not any(_overlap(again, other) for other in scene.things):
            both = replace(scene, things=(*scene.things, again))
            return Example("duplicate", render_scene(both), both.things, scene.background)
    return _plain(scene, rng)


def _overlap(a: Thing, b: Thing) -> bool:
    return a.x < b.x + b.size and b.x < a.x + a.size and a.y < b.y + b.size and b.y < a.y + a.size


KINDS: dict[str, tuple[float, Callable[[Scene, np.random.Generator], Example]]] = {
    "plain": (0.5, _plain),
    "mean": (0.12, _mean),
    "ghost": (0.1, _ghost),
    "chimera": (0.1, _chimera),
    "blur": (0.1, _blur),
    "duplicate": (0.08, _duplicate),
}


def index_background(example: Example) -> int:
    """The background's place in BACKGROUNDS; -1 where there is none."""
    return -1 if example.background is None else list(BACKGROUNDS).index(example.background)
