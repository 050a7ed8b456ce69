"""What the runtime adds to its graphs: guidance, carries and the update, around runners that do nothing.

The phones' loops do the same arithmetic; this is the cost of the Python one. By hand:
`python -m benchmarks.claims.overhead`.
"""

from __future__ import annotations

import time

import numpy as np

from edgediff.runtime import Session
from edgediff.runtime.manifest import Manifest, TensorSpec
from tests.hostile import LENGTH, WIDTH, make_manifest

Array = np.ndarray

LATENTS = {"glyph": (4, 16, 16), "sd15": (4, 64, 64)}
ROWS, REPEATS = 50, 7


class Nothing:
    """Returns the same arrays at every call."""

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.outputs = outputs

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self.outputs


def at_size(latent: tuple[int, ...]) -> Manifest:
    """The tiny manifest with 50 guided rows, full and shallow in turn, for a latent of this size."""
    calls = tuple(("full" if row % 2 == 0 else "shallow", 3.0) for row in range(ROWS))
    manifest = make_manifest(calls=calls)
    sized = ("sample", "noise_pred", "z")

    def grown(spec: TensorSpec) -> TensorSpec:
        shape = (spec.shape[0], *latent) if spec.name in sized else spec.shape
        return spec.model_copy(update={"shape": shape})

    graphs = {
        name: graph.model_copy(
            update={"inputs": tuple(map(grown, graph.inputs)), "outputs": tuple(map(grown, graph.outputs))}
        )
        for name, graph in manifest.graphs.items()
    }
    program = manifest.program().model_copy(update={"latent": latent})
    return manifest.model_copy(update={"graphs": graphs, "programs": {manifest.default: program}})


def milliseconds_per_row(latent: tuple[int, ...]) -> float:
    manifest = at_size(latent)
    runners = {
        name: Nothing({spec.name: np.full(spec.sized(2), 0.01, spec.dtype) for spec in graph.outputs})
        for name, graph in manifest.graphs.items()
    }
    session = Session(manifest, {}, runners)
    given = {"encoder_hidden_states": np.zeros((2, LENGTH, WIDTH), np.float32)}
    best = np.inf
    for seed in range(REPEATS):
        start = time.perf_counter()
        steps = list(session.steps(seed=seed, given=given))
        best = min(best, time.perf_counter() - start)
        assert len(steps) == ROWS
    return best / ROWS * 1e3


def main() -> None:
    for model, latent in LATENTS.items():
        taken = milliseconds_per_row(latent)
        print(f"{model}: {taken:.3f} ms of overhead a network call, {taken * ROWS:.1f} ms in a picture of {ROWS}")


if __name__ == "__main__":
    main()
