"""Pictures from a bundle: the program of the manifest, executed with numpy around any backend's runners.

The loop is a generator (`Session.steps`), so progress, preview and cancelling need no callbacks. Verification
runs the same loop on eager runners. Classifier-free guidance at network call i, with scale s:

    e_i = e(x_i, negative) + s (e(x_i, prompt) - e(x_i, negative))        in float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgediff.errors import BundleError
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.runners import choose_backend, find_stand_in, list_backends, used_graphs
from edgediff.runtime.session import (
    FIXED_INPUTS,
    MAX_SEED,
    GenerationStep,
    OpenedBundle,
    Session,
    TextTokenizer,
    open_session,
)
from edgediff.runtime.sound import Sound

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FIXED_INPUTS",
    "MAX_SEED",
    "GenerationStep",
    "OpenedBundle",
    "Runner",
    "Session",
    "Sound",
    "TextTokenizer",
    "choose_backend",
    "find_stand_in",
    "generate",
    "generate_steps",
    "list_backends",
    "open_session",
    "used_graphs",
]


def generate_steps(
    bundle: OpenedBundle,
    prompt: str = "",
    *,
    negative_prompt: str = "",
    seed: int = 0,
    backend: str | None = None,
    threads: int | None = None,
) -> Iterator[GenerationStep | Image | Sound]:
    """Yields every step and, last, the picture or the sound. Closing the generator cancels."""
    from PIL import Image

    session = open_session(bundle, backend, threads)
    latent: Array | None = None
    for step in session.steps(prompt, negative_prompt, seed):
        latent = step.latent
        yield step
    if latent is None:
        raise BundleError("the program has no rows", code="graph")
    if bundle.manifest.program.decode.sample_rate is not None:
        yield session.sound(latent)
        return
    pixels = session.decode(latent)
    yield Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def generate(
    bundle: OpenedBundle,
    prompt: str = "",
    *,
    negative_prompt: str = "",
    seed: int = 0,
    backend: str | None = None,
    threads: int | None = None,
    progress: Callable[[GenerationStep], None] | None = None,
) -> Image | Sound:
    """One picture (PIL), or one sound. `progress` is called after every step. The same bundle, backend, seed and
    texts give the same picture. Raises ConfigError for bad arguments, BackendError, BundleError."""
    last: Any = None
    for last in generate_steps(
        bundle, prompt, negative_prompt=negative_prompt, seed=seed, backend=backend, threads=threads
    ):
        if progress is not None and isinstance(last, GenerationStep):
            progress(last)
    made: Image | Sound = last
    return made
