"""The one graph of a bundle that tools without feature reuse can run."""

from __future__ import annotations

from edgediff.errors import BackendError
from edgediff.runtime.manifest import Manifest, ProgramRow

UNET_INPUTS = ("sample", "timestep", "encoder_hidden_states")
LEGACY_EOS = 2  # CLIP configs from before 2023 give 2; there the end of the text is the largest id


def find_whole_row(manifest: Manifest, layout: str, needed_by: str) -> ProgramRow:
    """The default program's first row whose graph reads no carries. Raises BackendError (`layout`) where there is none,
    or for inputs other than UNET_INPUTS."""
    for row in manifest.program().rows:
        if row.graph is None or manifest.graphs[row.graph].carries_in:
            continue
        names = tuple(spec.name for spec in manifest.graphs[row.graph].inputs)
        if names != UNET_INPUTS:
            message = f"graph '{row.graph}' reads {names}; the layout '{layout}' covers {UNET_INPUTS}"
            raise BackendError(message, code="layout")
        return row
    raise BackendError(f"the bundle has no denoiser graph without carries, which {needed_by} needs", code="layout")
