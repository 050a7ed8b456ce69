"""Draws scenes: a flat background, and over it each thing as luminance times tint, blended by its coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.scenes.atlas import load_stamp
from edgediff.embedded.scenes.scene import Scene
from edgediff.embedded.scenes.vocabulary import BACKGROUNDS, HUES, SIDE


def render_scene(scene: Scene) -> NDArray[np.uint8]:
    """(64, 64, 3) sRGB; later things lie over earlier ones."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        stamp = load_stamp(thing.noun, thing.size)
        area = picture[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        area *= 1 - stamp[..., 1:]
        area += stamp[..., :1] * np.array(HUES[thing.hue], np.float32)
    return picture.round().clip(0, 255).astype(np.uint8)


def render_scenes(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """(n, 64, 64, 3) sRGB."""
    return np.stack([render_scene(scene) for scene in scenes])
