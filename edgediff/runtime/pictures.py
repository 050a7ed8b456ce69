"""Pictures that a program takes: 8 bit to [-1, 1], to a latent; masks to the latent's size. Section 3 of the format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgediff.errors import ConfigError
from edgediff.runtime.conditions import Pictures, RunOnce
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import Manifest, Program

Draw = Callable[[tuple[int, ...]], Array]  # shape -> standard normal noise


class PictureReader:
    """Turns the caller's picture and mask into what the rows read."""

    def __init__(self, manifest: Manifest, program: Program, run: RunOnce) -> None:
        self.manifest, self.program, self.run = manifest, program, run
        graphs = [manifest.graphs[name] for name in program.graphs()]
        self.sources = {manifest.conditions[spec.name].source for graph in graphs for spec in graph.free_inputs()}

    def check(self, picture: Any, mask: Any) -> tuple[Array | None, Array | None]:
        """The picture `[3, H, W]` in [-1, 1] and the mask `[H, W]` of 0 and 1. Raises ConfigError (`picture`, `mask`)
        for one that is missing, not taken, of another size, with an alpha channel, or black all over."""
        takes, spec = self.program.takes, self.manifest.picture
        for what, given in (("picture", picture), ("mask", mask)):
            if (what in takes) != (given is not None):
                verb = "needs" if what in takes else "takes no"
                raise ConfigError(f"this program {verb} {what}", where=f"--{what}", code=what)
        if picture is None and mask is None:
            return None, None
        assert spec is not None, "rule 18"
        pixels = None if picture is None else _pixels(picture, "picture", (*spec.size, 3))
        painted = None if mask is None else _pixels(mask, "mask", tuple(spec.size))
        if painted is not None and not (painted >= 128).any():
            message = "is below 128 all over, so nothing would be painted; white (128 and above) means paint here"
            raise ConfigError(message, where="--mask", code="mask")
        values = None if pixels is None else (pixels.transpose(2, 0, 1) / np.float32(127.5) - 1).astype(np.float32)
        return values, None if painted is None else (painted >= 128).astype(np.float32)

    def encode(self, picture: Array, draw: Draw) -> Array:
        """The latent `[1, c, h, w]` of a picture `[3, H, W]`; `draw` gives a posterior's noise, of the mean's shape."""
        spec = self.manifest.picture
        assert spec is not None, "rule 18"
        names = (spec.mean, *([spec.deviation] if spec.deviation is not None else []))
        found = self.run(spec.graph, {spec.input: picture[None]}, names)
        value = found[0].astype(np.float32)
        if spec.deviation is not None:
            value = value + found[1].astype(np.float32) * draw(value.shape)
        latent: Array = (value - np.float32(spec.shift)) * np.float32(spec.scale)
        return latent

    def read(self, picture: Array | None, mask: Array | None, before: Draw, after: Callable[[], None]) -> Pictures:
        """All that the rows read. `before` draws for a posterior; `after` is called between the picture's and the
        masked picture's draw, where x_0 has its place in the stream of noise."""
        needs_latent = self.program.init.picture != 0 or any(row.blend for row in self.program.rows)
        latent = None
        if picture is not None and (needs_latent or "picture" in self.sources):
            latent = self.encode(picture, before)
        after()
        masked = None
        if picture is not None and mask is not None and "masked_picture" in self.sources:
            masked = self.encode(picture * (1 - mask)[None], before)
        return Pictures(latent, masked, None if mask is None else self.latent_mask(mask))

    def latent_mask(self, mask: Array) -> Array:
        """`[1, 1, h, w]`: the mask's pixel at the upper left of each place of the latent."""
        height, width = self.program.latent[1:]
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        return np.ascontiguousarray(mask[rows][:, columns])[None, None]


def _pixels(value: Any, what: str, shape: tuple[int, ...]) -> Array:
    pixels = np.asarray(value)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        wanted = "x".join(map(str, shape))
        shown = f"{'x'.join(map(str, pixels.shape))} {pixels.dtype}"
        message = f"is {shown}; this bundle takes {wanted} of 8 bits (no alpha channel): resize and convert it first"
        raise ConfigError(message, where=f"--{what}", code=what)
    return pixels
