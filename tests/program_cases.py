"""Programs that use everything a manifest can say, on graphs of one line each: the same in Python and Kotlin.

A stand-in graph computes in float64 and rounds once, so that every reader gets the same float32. With t the timestep
and c the condition of a side (its embedding's second token, or its class / 100):

    text_encoder   out[i, j] = ids[i] / 10 + j / 100
    full           out = 0.3 sample + 0.05 c + t / 10000      mid = 0.5 (the sample's first 32 values) + t / 10000
    shallow        out = 0.2 sample + 0.1 mid[i mod 32] + 0.05 c
    vae_decoder    image = the first three channels of z / 2, each value twice in both directions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hostile import CARRY, LATENT, LENGTH, WIDTH, make_manifest, valid_tree

from edgediff.runtime import Session
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import Classes, Decode, Manifest, ProgramRow, TensorSpec
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import Clip, Update

EVERY = 17  # of a latent's values, the golden file keeps one in so many
LABEL = TensorSpec(name="class_labels", dtype="int64", shape=("batch",))


@dataclass(frozen=True)
class ProgramCase:
    """A program of the two denoiser graphs, and what it is asked to make."""

    name: str
    manifest: Manifest
    prompt: str = "a"
    negative_prompt: str = ""
    seed: int = 0


@dataclass
class Letters:
    """The tokenizer of the hostile bundle's vocabulary, in short: begin, one id for `a`, end, padding."""

    length: int = field(default=LENGTH)

    def encode(self, text: str, max_length: int) -> list[int]:
        ids = [1, *(0 for word in text.split() if word == "a")]
        return (ids + [2] * max_length)[:max_length]


class StandIn:
    """One graph of the module's docstring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        if self.name == "text_encoder":
            ids, places = inputs["input_ids"][0].astype(np.float64), np.arange(WIDTH)
            value = ids[:, None] / 10 + places[None, :] / 100
            return {"last_hidden_state": value[None].astype(np.float32)}
        if self.name == "vae_decoder":
            wide = inputs["z"][:, :3].astype(np.float64).repeat(2, axis=2).repeat(2, axis=3) / 2
            return {"image": wide.astype(np.float32)}
        sample, time = inputs["sample"].astype(np.float64), float(inputs["timestep"].flat[0]) / 10000
        shape = (len(sample), 1, 1, 1)
        condition = 0.05 * self._condition(inputs).reshape(shape)
        if self.name == "shallow":
            mid = inputs["cache_in_mid"].astype(np.float64).reshape(len(sample), -1)
            tiled = np.tile(mid, sample[0].size // mid.shape[1]).reshape(sample.shape)
            return {"noise_pred": (0.2 * sample + 0.1 * tiled + condition).astype(np.float32)}
        mid = 0.5 * sample.reshape(len(sample), -1)[:, : CARRY[0] * CARRY[1] * CARRY[2]] + time
        return {
            "noise_pred": (0.3 * sample + condition + time).astype(np.float32),
            "cache_out_mid": mid.reshape(len(sample), *CARRY).astype(np.float32),
        }

    def _condition(self, inputs: dict[str, Array]) -> Array:
        if "class_labels" in inputs:
            return inputs["class_labels"].astype(np.float64) / 100
        if "encoder_hidden_states" in inputs:
            return inputs["encoder_hidden_states"][:, 1, 0].astype(np.float64)
        return np.zeros(1)


def run_case(case: ProgramCase) -> dict[str, Any]:
    """What Python makes of it: one in `EVERY` values of each latent, and all pixels."""
    runners = {name: StandIn(name) for name in case.manifest.graphs}
    session = Session(case.manifest, Letters(), runners)
    latents, latent = [], np.zeros(0, np.float32)
    for step in session.steps(case.prompt, case.negative_prompt, case.seed):
        latent = step.latent
        latents.append([float(f"{value:.8g}") for value in latent.ravel()[::EVERY]])
    picture = session.decode(latent)
    return {
        "name": case.name,
        "prompt": case.prompt,
        "negative_prompt": case.negative_prompt,
        "seed": str(case.seed),
        "manifest": case.manifest.model_dump(mode="json", exclude_none=True),
        "latents": latents,
        "shape": list(picture.shape),
        "pixels": [int(value) for value in picture.ravel()[::EVERY]],
    }


def make_cases() -> list[ProgramCase]:
    """Each of them states one thing that the others do not."""
    plain = make_manifest(files=tuple(valid_files()))
    rows = plain.program.rows
    mixed = _rows(("full", 3.0), ("full", 3.0), ("shallow", 3.0), ("full", 3.0), ("shallow", None))
    mixed = (*mixed[:2], _with(mixed[2], mix={"mid": (2.0, -1.0)}), mixed[3], _with(mixed[4], mix={"mid": (1.5, -0.5)}))
    held = _rows(("full", 3.0), ("full", None), ("shallow", None), ("full", 2.0), ("full", None))
    weights = ((), (2.0,), (1.5,), (), (3.0, -1.25))
    held = tuple(_with(row, held_guidance=given or None) for row, given in zip(held, weights, strict=True))
    noisy = tuple(
        _with(
            row,
            input_scale=1.0 - 0.1 * index,
            update=Update(x=(0.5, 0.2, 0.1)[: index + 1], e=(-0.2, 0.1)[: index + 1], noise=0.3 if index % 2 else 0.0),
        )
        for index, row in enumerate(rows)
    )
    clipped = tuple(
        _with(row, update=Update(x=(0.5,), e=(), clip=Clip(x=1.1, e=-0.7, limit=0.8, weight=0.45))) for row in rows
    )
    pixels = Decode(scale=1.5, shift=0.1)
    labels = Classes(count=10, null=10, names=("zero", "one", "two"))
    return [
        ProgramCase("batched", plain),
        ProgramCase("negative_prompt", plain, prompt="a a", negative_prompt="a", seed=7),
        ProgramCase("sequential", _program(plain, mode="sequential"), seed=2**32 + 1),
        ProgramCase("mixed", _program(plain, rows=mixed)),
        ProgramCase("mixed_sequential", _program(plain, rows=mixed, mode="sequential")),
        ProgramCase("held_guidance", _program(plain, rows=held)),
        ProgramCase("held_guidance_sequential", _program(plain, rows=held, mode="sequential")),
        ProgramCase("noise_philox", _with(_program(plain, rows=noisy, init_scale=1.6), rng={"kind": "philox"})),
        ProgramCase("noise_mt19937", _program(plain, rows=noisy)),
        ProgramCase("clipped", _program(plain, rows=clipped)),
        ProgramCase("unguided", _program(plain, rows=_rows(("full", None), ("shallow", None), (None, None)))),
        ProgramCase("classes_by_name", _labelled(plain, labels), prompt="two"),
        ProgramCase("classes_by_number", _labelled(plain, labels, mode="sequential"), prompt=" 9 "),
        ProgramCase("no_prompt", _unconditional(plain), prompt=""),
        ProgramCase("pixels", _unconditional(_three_channels(plain), decode=pixels), prompt=""),
    ]


def valid_files() -> Any:
    return Manifest.model_validate(valid_tree().manifest).files


def _with(value: Any, **changes: Any) -> Any:
    """A changed copy, validated again."""
    return type(value).model_validate({**value.model_dump(), **changes})


def _program(manifest: Manifest, **changes: Any) -> Manifest:
    rows = changes.get("rows", manifest.program.rows)
    return _with(manifest, program=_with(manifest.program, steps=len(rows), **changes))


def _rows(*calls: tuple[str | None, float | None]) -> tuple[ProgramRow, ...]:
    return tuple(
        ProgramRow(
            graph=graph,
            guidance=guidance,
            timestep=900.0 - 150.0 * index,
            update=Update(x=(1.0 - 0.05 * index,), e=(-0.1 - 0.02 * index,)),
        )
        for index, (graph, guidance) in enumerate(calls)
    )


def _labelled(manifest: Manifest, classes: Classes, mode: str = "batched") -> Manifest:
    graphs = {
        name: _with(graph, inputs=[LABEL if spec.name == "encoder_hidden_states" else spec for spec in graph.inputs])
        for name, graph in manifest.graphs.items()
    }
    program = _with(manifest.program, tokenize=None, encode=None, classes=classes, mode=mode)
    return _with(manifest, kind="class-to-image", graphs=graphs, program=program)


def _unconditional(manifest: Manifest, **changes: Any) -> Manifest:
    graphs = {
        name: _with(graph, inputs=[spec for spec in graph.inputs if spec.name != "encoder_hidden_states"])
        for name, graph in manifest.graphs.items()
    }
    rows = _rows(("full", None), ("shallow", None), ("full", None))
    program = _with(manifest.program, tokenize=None, encode=None, rows=rows, steps=len(rows), **changes)
    return _with(manifest, kind="unconditional-image", graphs=graphs, program=program)


def _three_channels(manifest: Manifest) -> Manifest:
    shape = ("batch", 3, *LATENT[1:])
    graphs = {
        name: _with(
            graph,
            **{
                side: [
                    _with(spec, shape=shape) if spec.shape == ("batch", *LATENT) else spec
                    for spec in getattr(graph, side)
                ]
                for side in ("inputs", "outputs")
            },
        )
        for name, graph in manifest.graphs.items()
    }
    return _with(manifest, graphs=graphs, program=_with(manifest.program, latent=shape[1:]))


def draw(seed: int, count: int) -> Array:
    return Rng(seed).normal((count,))
