"""The three sets of pictures, and the cache that spares making those of the untouched model twice."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgediff.config import dump_json
from edgediff.errors import OutputError
from edgediff.plugins import Progress
from edgediff.runtime import open_session

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.documents.plan import Plan
    from edgediff.pipeline import Pipeline
    from edgediff.runtime.manifest import Manifest

Picture = NDArray[np.uint8]
Stream = tuple[str, int]  # prompt, seed

BATCH = 8
FORMAT = 1  # of the cache; another number makes all keys new


@dataclass(frozen=True)
class Sampling:
    """How the untouched model samples. `guidance` are the plan's scales by call; with fewer steps a call takes
    the scale at its own relative place in the trajectory."""

    sampler: str
    steps: int
    guidance: tuple[float | None, ...]

    @classmethod
    def of_plan(cls, plan: Plan) -> Sampling:
        return cls(plan.sampler.kind, plan.sampler.steps, plan.guidance.reference)

    @classmethod
    def of_equal_compute(cls, plan: Plan) -> Sampling:
        equal = plan.cost.equal_compute
        return cls(equal.sampler, equal.steps, plan.guidance.reference)

    def scales(self, calls: int) -> tuple[float | None, ...]:
        """The guidance scale of each of `calls` network calls."""
        last = len(self.guidance) - 1
        return tuple(self.guidance[round(index * last / max(calls - 1, 1))] for index in range(calls))


class PictureCache:
    """Pictures by the hash of everything they depend on, one `.npz` each, in `<folder>/pictures`.

    Files are written whole or not at all. One that cannot be read counts as absent and is made again.
    Everything in it may be deleted at any time.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """`create=False` is for reading only. Raises OutputError when the folder cannot be made or written to."""
        self.folder = folder.absolute()
        self._pictures = self.folder / "pictures"
        if create:
            self._make_folder()

    def _make_folder(self) -> None:
        try:
            self._pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from error
        if not os.access(self._pictures, os.W_OK):
            raise OutputError(f"pictures cannot be kept there: read-only{_HINT}", where=str(self.folder))

    def read(self, key: str) -> Picture | None:
        """The picture [height, width, channels], or None."""
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            return None
        try:
            with np.load(self._file(key), allow_pickle=False) as file:
                picture: Picture = file["picture"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return picture if picture.dtype == np.uint8 and picture.ndim == 3 else None

    def write(self, key: str, picture: Picture) -> None:
        """Keeps a picture. Raises OutputError."""
        path = self._file(key)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                np.savez_compressed(file, picture=picture)
            os.replace(beside, path)
        except OSError as error:
            raise self._error(error) from error
        finally:
            beside.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._pictures / key[:2] / f"{key}.npz"

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"pictures cannot be kept there: {error.strerror}{_HINT}", where=str(self.folder))


_HINT = "; set EDGEDIFF_CACHE to a folder that can be written"


def picture_keys(
    manifest: Manifest, backend: str, weights: str, samplings: tuple[Sampling, Sampling], prompt: str, seed: int
) -> dict[str, str]:
    """Cache keys of one prompt's three pictures; `samplings` are those of the reference and of equal compute."""
    reference, equal = (reference_key(weights, sampling, prompt, seed) for sampling in samplings)
    digest = program_digest(manifest)
    compressed = _key({"program": digest, "backend": backend, "prompt": prompt, "seed": seed})
    return {"reference": reference, "compressed": compressed, "equal_compute": equal}


def reference_key(weights: str, sampling: Sampling, prompt: str, seed: int) -> str:
    """Hash of what a picture of the untouched model depends on, the versions that draw it included."""
    tools = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
    return _key(
        {
            "weights": weights,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": list(sampling.guidance),
            "prompt": prompt,
            "seed": seed,
            "tools": tools,
        }
    )


def program_digest(manifest: Manifest) -> str:
    """SHA-256 of the manifest without what was measured about it: program, graphs and the hashes of all files."""
    return manifest.model_copy(update={"evidence": {}}).digest()


def reference_pictures(
    model: Pipeline,
    sampling: Sampling,
    streams: Sequence[Stream],
    cache: PictureCache,
    progress: Progress | None,
    what: str,
) -> Picture:
    """uint8 [n, height, width, channels] by the untouched network in eager torch; only what the cache lacks is
    made, `BATCH` at a time, and kept as soon as it is."""
    keys = [reference_key(model.weights, sampling, prompt, seed) for prompt, seed in streams]
    found = [cache.read(key) for key in keys]
    missing = [index for index, picture in enumerate(found) if picture is None]
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        if progress is not None:
            progress(what, len(streams) - len(missing) + start, len(streams))
        for index, picture in zip(part, _sample(model, sampling, [streams[i] for i in part]), strict=True):
            found[index] = picture
            cache.write(keys[index], picture)
    if progress is not None:
        progress(what, len(streams), len(streams))
    return np.stack([picture for picture in found if picture is not None])


def compressed_pictures(
    bundle: Bundle, backend: str, streams: Sequence[Stream], cache: PictureCache, progress: Progress | None
) -> Picture:
    """uint8 [n, height, width, channels] by the bundle's own runtime: always made anew, kept for the report."""
    session = open_session(bundle, backend)
    digest, made = program_digest(bundle.manifest), []
    for index, (prompt, seed) in enumerate(streams):
        latent: Any = None
        for step in session.steps(prompt, seed=seed):
            latent = step.latent
        picture = session.decode(latent)
        cache.write(_key({"program": digest, "backend": backend, "prompt": prompt, "seed": seed}), picture)
        made.append(picture)
        if progress is not None:
            progress("bundle", index + 1, len(streams))
    return np.stack(made)


def _sample(model: Pipeline, sampling: Sampling, streams: list[Stream]) -> Picture:
    """A batch by the untouched network. Rounds to 8 bit as `runtime.Session.decode` does."""
    import torch

    from edgediff.sampling.trace import sample_latents, step_table

    table = step_table(model, sampling.sampler, sampling.steps)
    prompts, seeds = zip(*streams, strict=True)
    scales = sampling.scales(len(table.rows))
    with torch.inference_mode():
        values = model.decode(sample_latents(model, table, scales, prompts, seeds, batch=BATCH))
    pixels = values.permute(0, 2, 3, 1).numpy().astype(np.float32)
    picture: Picture = np.rint((pixels * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return picture


def _key(basis: dict[str, Any]) -> str:
    return hashlib.sha256(dump_json({"format": FORMAT, **basis}).encode()).hexdigest()
