"""Sound as a runtime makes it: 16-bit samples and their rate, and the WAV file of them."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgediff.config import write_bytes_atomic
from edgediff.runtime.engine import Array

PEAK = 32767


@dataclass(frozen=True, eq=False)
class Sound:
    """`samples` int16 `[length, channels]`, `rate` of them a second."""

    samples: Array
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def save(self, path: str | Path) -> None:
        """Writes a WAV file, whole or not at all. Raises OutputError."""
        data = io.BytesIO()
        with wave.open(data, "wb") as file:
            file.setnchannels(self.samples.shape[1])
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(self.samples.astype("<i2").tobytes())
        write_bytes_atomic(Path(path), data.getvalue())


def to_samples(value: Array) -> Array:
    """int16 `[length, channels]` of `[channels, length]` in [-1, 1]: round(x * 32767), clamped."""
    whole: Array = np.rint(value.astype(np.float32).clip(-1.0, 1.0) * PEAK).astype(np.int16)
    return np.ascontiguousarray(whole.T)
