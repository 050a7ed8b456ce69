"""Pictures from a bundle: a program of the manifest, executed with numpy around any backend's runners.

The loop is a generator (`Session.steps`), so progress, preview and cancelling need no callbacks. Verification
runs the same loop on eager runners. What a program means is section 3 of `docs/format.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgediff.errors import BundleError, ConfigError
from edgediff.runtime.conditions import TextTokenizer
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Manifest
from edgediff.runtime.runners import choose_backend, find_stand_in, latent_input, list_backends, used_graphs
from edgediff.runtime.session import MAX_SEED, GenerationStep, OpenedBundle, Session, open_session
from edgediff.runtime.sound import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MAX_SEED",
    "GenerationStep",
    "OpenedBundle",
    "Runner",
    "Session",
    "Sound",
    "TextTokenizer",
    "choose_backend",
    "choose_program",
    "find_stand_in",
    "generate",
    "generate_steps",
    "latent_input",
    "list_backends",
    "open_session",
    "used_graphs",
]


def choose_program(manifest: Manifest, program: str | None, strength: float | None) -> str:
    """The program that is asked for: by name, by its strength, else the default. Raises ConfigError (`program`,
    `strength`)."""
    if strength is None:
        manifest.program(program)
        return manifest.default if program is None else program
    if program is not None:
        message = "give the program or the strength, not both: a strength is a choice among programs"
        raise ConfigError(message, where="--strength", code="strength")
    known = {name: one.strength for name, one in manifest.programs.items() if one.strength is not None}
    found = [name for name, value in known.items() if abs(value - strength) < 1e-6]
    if not found:
        have = ", ".join(f"{value:g} ('{name}')" for name, value in known.items()) or "none"
        message = f"no program has strength {strength:g}; this bundle has {have}"
        raise ConfigError(message, where="--strength", code="strength")
    return found[0]


def generate_steps(
    bundle: OpenedBundle,
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
    """Yields every step and, last, the picture (PIL; `info["flagged"]` is True where the bundle's safety checker marks
    it) or the sound. Closing the generator cancels. `program` None is the default one. `noise` [1, *latent] stands in
    for the standard normal draw that x_0 is made from; `picture` and `mask` are PIL images or uint8 arrays."""
    from PIL import Image

    session = open_session(bundle, backend, threads, choose_program(bundle.manifest, program, strength))
    latent: Array | None = None
    asked = {"noise": noise, "picture": picture, "mask": mask, "guidance": guidance}
    for step in session.steps(prompt, negative_prompt, seed, **asked):
        latent = step.latent
        yield step
    if latent is None:
        raise BundleError("the program has no rows", code="graph")
    if bundle.manifest.makes == "audio":
        yield session.sound(latent)
        return
    pixels, flagged = session.decode_judged(latent)
    made = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if flagged:
        made.info["flagged"] = True
    yield made


def generate(
    bundle: OpenedBundle,
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
    """One picture (PIL), or one sound; the options are those of `generate_steps`. `progress` is called after every
    step. The same bundle, backend, seed and texts give the same picture. Raises ConfigError for bad arguments,
    BackendError, BundleError."""
    last: Any = None
    for last in generate_steps(
        bundle,
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
    ):
        if progress is not None and isinstance(last, GenerationStep):
            progress(last)
    made: Image | Sound = last
    return made
