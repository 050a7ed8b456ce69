"""Pictures with captions that a user brings: a folder, or tar shards in webdataset's layout.

`name.png` (or .jpg, .jpeg, .webp) goes with `name.txt` beside it. In a folder, `metadata.jsonl` with the keys
`file_name` and `text` may take the place of the text files. Shards are read in place, by offset.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgediff.distill.encoding import encode_pictures, encode_texts
from edgediff.errors import MethodError

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
READERS = 8


@dataclass(frozen=True)
class Extent:
    """A file, or the bytes of one inside a shard."""

    path: Path
    name: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(-1 if self.size is None else self.size)


@dataclass(frozen=True)
class Pair:
    picture: Extent
    caption: str


def find_pairs(data: Path) -> list[Pair]:
    """All pairs of a folder, of a folder of .tar shards, or of one shard, in the order of their names.

    Raises MethodError: nothing there, no pairs, a picture without its caption, a caption that is not UTF-8, a
    shard that is cut short.
    """
    if not data.exists():
        raise MethodError("there is no such folder or shard", where=str(data), code="data")
    shards = sorted(data.glob("*.tar")) if data.is_dir() else [data]
    if shards:
        pairs = [pair for shard in shards for pair in _pair_up(_shard_extents(shard), shard)]
    elif (data / METADATA).is_file():
        pairs = _listed_pairs(data)
    else:
        files = (path for path in sorted(data.rglob("*")) if path.is_file())
        pairs = _pair_up((Extent(path, path.relative_to(data).as_posix()) for path in files), data)
    if not pairs:
        raise MethodError(
            f"has no pictures with captions: name.png (or {', '.join(PICTURES[1:])}) beside name.txt, "
            f"{METADATA}, or .tar shards of such pairs",
            where=str(data),
            code="data",
        )
    return pairs


class PairedPictures:
    """Pairs as `Samples`: pictures are cut to the middle square, resized, and encoded when they are drawn."""

    def __init__(self, pipeline: Pipeline, pairs: list[Pair]) -> None:
        self._pairs, self._vae = pairs, copy.deepcopy(pipeline.vae)
        self._ids = encode_texts(pipeline, [pair.caption for pair in pairs])
        vae: Any = pipeline.vae
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._pool = ThreadPoolExecutor(READERS, "read")  # Pillow decodes outside the interpreter's lock
        self._size = (pipeline.latent[1] * factor, pipeline.latent[2] * factor)
        listed = "\n".join(f"{pair.picture.name}\t{pair.caption}" for pair in pairs)
        self.digest = f"{len(pairs)} pairs {hashlib.sha256(listed.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._pairs)

    def draw(self, rows: Tensor, picks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        extents = [self._pairs[row].picture for row in rows.tolist()]
        pixels = torch.stack(list(self._pool.map(lambda extent: read_picture(extent, self._size), extents)))
        self._vae.to(device)
        return encode_pictures(self._vae, pixels.to(device)), self._ids[rows]


def read_picture(extent: Extent, size: tuple[int, int]) -> Tensor:
    """`[3, height, width]` in [-1, 1] of the middle square. Raises MethodError naming a picture that is none."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(extent.read())) as opened:
            picture = ImageOps.fit(opened.convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MethodError(
            f"'{extent.name}' is not a picture that can be read: {error}", where=str(extent.path), code="data"
        ) from error
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def _shard_extents(shard: Path) -> list[Extent]:
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise MethodError(f"is not an uncompressed tar shard: {error}", where=str(shard), code="data") from error
    length = shard.stat().st_size
    for member in members:
        if member.offset_data + member.size > length:
            raise MethodError(f"is cut short inside '{member.name}'", where=str(shard), code="data")
    return [Extent(shard, member.name, member.offset_data, member.size) for member in members]


def _pair_up(extents: Iterable[Extent], where: Path) -> list[Pair]:
    pictures: dict[str, Extent] = {}
    captions: dict[str, Extent] = {}
    for extent in extents:
        stem, dot, ending = extent.name.rpartition(".")
        if f"{dot}{ending}".lower() in PICTURES:
            pictures[stem] = extent
        elif ending == "txt":
            captions[stem] = extent
    alone = next((stem for stem in pictures if stem not in captions), None)
    if alone is not None:
        raise MethodError(
            f"picture '{pictures[alone].name}' has no caption; write one to '{alone}.txt'",
            where=str(where),
            code="data",
        )
    return [Pair(picture, _read_caption(captions[stem])) for stem, picture in pictures.items()]


def _read_caption(extent: Extent) -> str:
    try:
        return extent.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise MethodError(
            f"caption '{extent.name}' is not UTF-8 (byte {error.start})", where=str(extent.path), code="data"
        ) from error


def _listed_pairs(folder: Path) -> list[Pair]:
    path = folder / METADATA
    pairs = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MethodError(f"is not UTF-8 (byte {error.start})", where=str(path), code="data") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = str(row["file_name"]), str(row["text"])
        except (ValueError, TypeError, KeyError) as error:
            raise MethodError(
                f'line {number} is not {{"file_name": ..., "text": ...}}: {error}', where=str(path), code="data"
            ) from error
        if not (folder / name).is_file():
            raise MethodError(f"line {number} names '{name}', which is not there", where=str(path), code="data")
        pairs.append(Pair(Extent(folder / name, name), caption.strip()))
    return pairs
