"""The bundle on disk: a strict reader, an atomic writer, and one file to send it in.

Everything is checked before a runtime opens anything: the manifest, then every file's place, kind, size
and SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from edgediff.runtime.evidence import Evidence, read_evidence
from edgediff.runtime.manifest import Manifest, Program

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgediff.runtime import GenerationStep, Sound
    from edgediff.runtime.engine import Array
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
        """The decisions behind the bundle, read at first use; those of the default program alone where the plan has
        another default. Raises BundleError when it is not a plan, or decides no such program."""
        with as_bundle_error():
            whole = read_outside(self.path(self.manifest.plan), Plan)
        default, programs = self.manifest.default, whole.programs()
        if default not in programs:
            message = f"has no program '{default}'{did_you_mean(default, programs)}"
            raise broken("program", str(self.folder / self.manifest.plan), message)
        return whole if default == whole.program else programs[default]

    @cached_property
    def evidence(self) -> Evidence:
        """What was found out about the bundle, read at first use. Raises BundleError (`evidence`)."""
        return read_evidence(self.manifest.evidence, str(self.folder / MANIFEST))

    def as_program(self, name: str | None) -> Bundle:
        """The bundle with another of its programs as the default one, in manifest and plan; itself for None. Raises
        ConfigError naming those that it has."""
        if name is None or name == self.manifest.default:
            return self
        self.manifest.program(name)
        return replace(self, manifest=self.manifest.model_copy(update={"default": name}))

    def path(self, relative: str) -> Path:
        """Where a listed file, or a folder of listed files, lies. Raises BundleError for any other."""
        names = [entry.path for entry in self.manifest.files]
        if relative not in names and not any(name.startswith(f"{relative}/") for name in names):
            message = f"the bundle lists no file '{relative}'{did_you_mean(relative, names)}"
            raise broken("missing_file", str(self.folder), message)
        return self.folder / relative

    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """Every tokenizer by its name, loaded anew. Raises BundleError (`tokenizer`) for one that is damaged."""
        from edgediff.runtime.tokenizer import Tokenizer

        with as_bundle_error():
            return {name: Tokenizer.load(self.folder, spec) for name, spec in self.manifest.tokenizers.items()}

    def generate(
        self,
        prompt: str = "",
        *,
        negative_prompt: str = "",
        seed: int = 0,
        program: str | None = None,
        noise: Array | None = None,
        picture: Any = None,
        mask: Any = None,
        strength: float | None = None,
        guidance: float | None = None,
        backend: str | None = None,
        threads: int | None = None,
        progress: Callable[[GenerationStep], None] | None = None,
    ) -> Image | Sound:
        """One picture, or one sound: see `runtime.generate`."""
        from edgediff.runtime import generate

        return generate(
            self,
            prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            program=program,
            noise=noise,
            picture=picture,
            mask=mask,
            strength=strength,
            guidance=guidance,
            backend=backend,
            threads=threads,
            progress=progress,
        )

    def generate_steps(
        self,
        prompt: str = "",
        *,
        negative_prompt: str = "",
        seed: int = 0,
        program: str | None = None,
        noise: Array | None = None,
        picture: Any = None,
        mask: Any = None,
        strength: float | None = None,
        guidance: float | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Iterator[GenerationStep | Image | Sound]:
        """Every step, then the picture or the sound: see `runtime.generate_steps`. `noise` [1, *latent] is the standard
        normal draw that the first latent is made from, before any scaling."""
        from edgediff.runtime import generate_steps

        return generate_steps(
            self,
            prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            program=program,
            noise=noise,
            picture=picture,
            mask=mask,
            strength=strength,
            guidance=guidance,
            backend=backend,
            threads=threads,
        )

    def __str__(self) -> str:
        """What is inside, in 80 columns."""
        m = self.manifest
        lines = [
            f"bundle     {m.name[:40]} (makes {m.makes}, schema {m.schema_version})",
            f"files      {len(m.files)}, {format_size(sum(entry.bytes for entry in m.files))}",
            f"source     {m.source.model[:36]}, weights {m.source.weights[:12]}, {m.source.licence[:16]}",
            "",
            f"{'program':<16}{'sampler':<14}{'steps':>5}{'rows':>6}{'held':>6}{'guided':>8}  takes",
            *(_program_line(name, program, name == m.default) for name, program in m.programs.items()),
            "",
            f"{'graph':<20}{'rows':>5}{'GMACs':>10}{'M params':>10}  backends",
        ]
        for name, graph in m.graphs.items():
            count = sum(row.graph == name for program in m.programs.values() for row in program.rows) or "-"
            sizes = f"{graph.macs / 1e9:>10.3f}{graph.parameters / 1e6:>10.2f}"
            lines.append(f"{name[:19]:<20}{count:>5}{sizes}  {' '.join(sorted(graph.artifacts))[:33]}")
        return "\n".join(lines)


def _program_line(name: str, program: Program, is_default: bool) -> str:
    """One program; the default one has a star."""
    held = sum(row.graph is None for row in program.rows)
    guided = sum(row.guidance is not None for row in program.rows)
    shown = f"{name[:13]} *" if is_default else name[:15]
    counts = f"{program.steps:>5}{len(program.rows):>6}{held:>6}{guided:>8}"
    takes = ", ".join(word.replace("_prompt", "") for word in program.takes) or "nothing"
    return f"{shown:<16}{program.sampler[:13]:<14}{counts}  {takes[:23]}"


def open_bundle(folder: str | Path, *, verify: bool = True) -> Bundle:
    """Reads and checks a bundle. `verify=False` leaves out the SHA-256 of the files and nothing else.

    Raises BundleError; its code is the rule that is broken: section 9 of `docs/format.md`.
    """
    manifest = check_folder(Path(folder), str(folder), verify)
    return Bundle(Path(folder).resolve(), manifest)
