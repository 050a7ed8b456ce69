"""The bundle on disk: a strict reader, an atomic writer, and one file to send it in.

Everything is checked before a runtime opens anything: the manifest, then every file's place, kind, size
and SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.bundle.archive import pack_bundle, unpack_bundle
from edgediff.bundle.files import MANIFEST, copy_hashed, refuse_pickle
from edgediff.bundle.reader import MANIFEST_LIMIT, check_folder
from edgediff.bundle.refusals import as_bundle_error, broken, format_size
from edgediff.bundle.writer import BundleWriter, check_output, update_manifest
from edgediff.config import read_outside
from edgediff.documents.plan import Plan
from edgediff.errors import did_you_mean
from edgediff.runtime.manifest import Manifest

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgediff.runtime import GenerationStep, Sound
    from edgediff.runtime.tokenizer import Tokenizer

__all__ = [
    "MANIFEST",
    "MANIFEST_LIMIT",
    "Bundle",
    "BundleWriter",
    "check_output",
    "copy_hashed",
    "open_bundle",
    "pack_bundle",
    "refuse_pickle",
    "unpack_bundle",
    "update_manifest",
]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the folder (absolute) and what its manifest says. Made by `open_bundle`."""

    folder: Path
    manifest: Manifest

    @cached_property
    def plan(self) -> Plan:
        """The decisions behind the bundle, read at first use. Raises BundleError when it is not a plan."""
        with as_bundle_error():
            return read_outside(self.path(self.manifest.plan), Plan)

    def path(self, relative: str) -> Path:
        """Where a listed file, or a folder of listed files, lies. Raises BundleError for any other."""
        names = [entry.path for entry in self.manifest.files]
        if relative not in names and not any(name.startswith(f"{relative}/") for name in names):
            message = f"the bundle lists no file '{relative}'{did_you_mean(relative, names)}"
            raise broken("missing_file", str(self.folder), message)
        return self.folder / relative

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None when the program has no text stage."""
        from edgediff.runtime.tokenizer import Tokenizer

        stage = self.manifest.program.tokenize
        return Tokenizer.load(self.path(stage.folder)) if stage else None

    def generate(self, prompt: str = "", **options: Any) -> Image | Sound:
        """One picture, or one sound; the options are those of `runtime.generate`."""
        from edgediff.runtime import generate

        return generate(self, prompt, **options)

    def generate_steps(self, prompt: str = "", **options: Any) -> Iterator[GenerationStep | Image | Sound]:
        """Every step, then the picture or the sound; the options are those of `runtime.generate_steps`."""
        from edgediff.runtime import generate_steps

        return generate_steps(self, prompt, **options)

    def __str__(self) -> str:
        """What is inside, in 80 columns."""
        m, rows = self.manifest, self.manifest.program.rows
        held = sum(row.graph is None for row in rows)
        guided = sum(row.guidance is not None and row.graph is not None for row in rows)
        counts = f"{held} held, {guided} guided ({m.program.mode})"
        lines = [
            f"bundle     {m.name[:40]} ({m.kind}, schema {m.schema_version})",
            f"files      {len(m.files)}, {format_size(sum(entry.bytes for entry in m.files))}",
            f"source     {m.source.model[:36]}, weights {m.source.weights[:12]}, {m.source.licence[:16]}",
            f"program    {m.program.sampler}, {m.program.steps} steps in {len(rows)} rows: {counts}",
            "",
            f"{'graph':<20}{'rows':>5}{'GMACs':>10}{'M params':>10}  backends",
        ]
        for name, graph in m.graphs.items():
            count = sum(row.graph == name for row in rows) or "-"
            sizes = f"{graph.macs / 1e9:>10.3f}{graph.parameters / 1e6:>10.2f}"
            lines.append(f"{name[:19]:<20}{count:>5}{sizes}  {' '.join(sorted(graph.artifacts))[:33]}")
        return "\n".join(lines)


def open_bundle(folder: str | Path, *, verify: bool = True) -> Bundle:
    """Reads and checks a bundle. `verify=False` leaves out the SHA-256 of the files and nothing else.

    Raises BundleError; its code is the rule that is broken: `not_a_bundle`, `syntax`, `version`,
    `unknown_key`, `value`, those of `Manifest.check` (`graph`, `tensor`, `carry`, `carry_before_write`,
    `history`, `file`), and of the files `path`, `link`, `file`, `pickle`, `missing_file`, `size`,
    `unlisted`, `hash`.
    """
    manifest = check_folder(Path(folder), str(folder), verify)
    return Bundle(Path(folder).resolve(), manifest)
