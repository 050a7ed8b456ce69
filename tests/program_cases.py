"""Programs that use everything a manifest can say, on graphs of one line each: the same in Python, Kotlin and C++.

A stand-in graph computes in float64 and rounds once, so that every reader gets the same float32. With t the timestep,
c one number for a side and p one for each value of the sample, both of them the sum of what the graph reads by name:

    c   encoder_hidden_states  v[1, 0] + v[2, 0] / 2 + v[1, last] / 4
        class_labels           / 100                                attention_mask its sum / 10
        guidance               / 10                                 text_embeds    its last value
        time_ids               its sum / 1000
    p   image_latents / 10      masked_image_latents / 15      mask / 20 (in every channel)

    full            out = 0.3 sample + 0.05 c + t / 10000 + p       mid = 0.5 (the sample's first 32 values) + t / 10000
    shallow         out = 0.2 sample + 0.1 mid[i mod 32] + 0.05 c + p
    text_encoder    out[i, j] = ids[i] / 10 + j / 100
    text_encoder_2  hidden[i, j] = mask[i] (ids[i] / 7 + j / 50)      pooled[j] = (sum of mask[i] ids[i]) / 20 + j / 10
    vae_encoder     mean[c, y, x] = pixels[c mod 3, 2 y, 2 x] / 2 + c / 10      deviation = 0.1 + |mean| / 5
    vae_decoder     image = the first three channels of z / 2, each value twice in both directions
    small           rgb = the first three channels of z / 3
    safety          score = the largest value of image
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgediff.runtime import Session
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import Condition, Manifest, Program, ProgramRow
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import Clip, Update
from tests.valid_bundle import CARRY, LATENT, LENGTH, WIDTH, make_manifest

EVERY = 17  # of a latent's values, the golden file keeps one in so many
SIZE = 16  # of pictures


@dataclass(frozen=True)
class ProgramCase:
    """A manifest, which of its programs, and what it is asked to make. `picture` and `mask` are seeds of theirs."""

    name: str
    manifest: Manifest
    prompt: str = "a"
    negative_prompt: str = ""
    seed: int = 0
    program: str | None = None
    guidance: float | None = None
    picture: int | None = None
    mask: int | None = None
    noise: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Keywords of `Session.steps` besides the prompts and the seed."""
        found: dict[str, Any] = {"guidance": self.guidance}
        if self.picture is not None:
            found["picture"] = _bytes(self.picture, SIZE, SIZE, 3)
        if self.mask is not None:
            found["mask"] = _bytes(self.mask, SIZE, SIZE)
        if self.noise is not None:
            found["noise"] = Rng(self.noise).normal((1, *self.manifest.program(self.program).latent))
        return found


@dataclass
class Letters:
    """The tokenizer of the hostile bundle's vocabulary, in short: begin, one id for `a`, end, padding."""

    end: int = field(default=2)

    def encode(self, text: str, max_length: int) -> list[int]:
        ids = [1, *(0 for word in text.split() if word == "a")]
        return (ids + [2] * max_length)[:max_length]


Inputs = dict[str, Array]


class StandIn:
    """One graph of the module's docstring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, inputs: Inputs) -> Inputs:
        wide = {name: value.astype(np.float64) for name, value in inputs.items()}
        made = STAGES[self.name](wide) if self.name in STAGES else self._denoise(wide)
        return {name: value.astype(np.float32) for name, value in made.items()}

    def _denoise(self, inputs: Inputs) -> Inputs:
        sample, time = inputs["sample"], float(inputs["timestep"].flat[0]) / 10000
        rest = 0.05 * _condition(inputs).reshape(-1, 1, 1, 1) + _pictured(inputs)
        if self.name == "shallow":
            mid = inputs["cache_in_mid"].reshape(len(sample), -1)
            tiled = np.tile(mid, sample[0].size // mid.shape[1]).reshape(sample.shape)
            return {"noise_pred": 0.2 * sample + 0.1 * tiled + rest}
        mid = 0.5 * sample.reshape(len(sample), -1)[:, : CARRY[0] * CARRY[1] * CARRY[2]] + time
        return {"noise_pred": 0.3 * sample + rest + time, "cache_out_mid": mid.reshape(len(sample), *CARRY)}


def _condition(inputs: Inputs) -> Array:
    """c, one number for each side."""
    total = np.zeros(len(inputs["sample"]))
    for name, read in CONDITIONS.items():
        if name in inputs:
            total = total + read(inputs[name])
    return total


def _pictured(inputs: Inputs) -> Array | float:
    """p, as large as the sample."""
    parts = {"image_latents": 10, "masked_image_latents": 15, "mask": 20}
    total: Array | float = 0.0
    for name, part in parts.items():
        if name in inputs:
            total = total + inputs[name] / part
    return total


def _text_encoder(inputs: Inputs) -> Inputs:
    return {"last_hidden_state": inputs["input_ids"][..., None] / 10 + np.arange(WIDTH) / 100}


def _text_encoder_2(inputs: Inputs) -> Inputs:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    hidden = mask[..., None] * (ids[..., None] / 7 + np.arange(WIDTH) / 50)
    return {"hidden": hidden, "pooled": (mask * ids).sum(axis=1, keepdims=True) / 20 + np.arange(WIDTH)[None] / 10}


def _vae_encoder(inputs: Inputs) -> Inputs:
    pixels, channels = inputs["pixels"][:, :, ::2, ::2], np.arange(LATENT[0])
    mean = pixels[:, channels % 3] / 2 + channels[None, :, None, None] / 10
    return {"mean": mean, "deviation": 0.1 + abs(mean) / 5}


CONDITIONS: dict[str, Callable[[Array], Array]] = {
    "encoder_hidden_states": lambda value: value[:, 1, 0] + value[:, 2, 0] / 2 + value[:, 1, -1] / 4,
    "class_labels": lambda value: value / 100,
    "attention_mask": lambda value: value.sum(axis=1) / 10,
    "guidance": lambda value: value / 10,
    "text_embeds": lambda value: value[:, -1],
    "time_ids": lambda value: value.sum(axis=1) / 1000,
}
STAGES: dict[str, Callable[[Inputs], Inputs]] = {
    "text_encoder": _text_encoder,
    "text_encoder_2": _text_encoder_2,
    "vae_encoder": _vae_encoder,
    "vae_decoder": lambda inputs: {"image": inputs["z"][:, :3].repeat(2, axis=2).repeat(2, axis=3) / 2},
    "small": lambda inputs: {"rgb": inputs["z"][:, :3] / 3},
    "safety": lambda inputs: {"score": inputs["image"].max().reshape(1, 1)},
}


def run_case(case: ProgramCase) -> dict[str, Any]:
    """What Python makes of it: one in `EVERY` values of each latent, and of the pixels of the picture and of the first
    step's preview."""
    runners = {name: StandIn(name) for name in case.manifest.graphs}
    tokenizers = {name: Letters() for name in case.manifest.tokenizers}
    session = Session(case.manifest, tokenizers, runners, program=case.program)
    given = case.arguments()
    steps = list(session.steps(case.prompt, case.negative_prompt, case.seed, **given))
    pixels, flagged = session.decode_judged(steps[-1].latent)
    preview = session.preview(steps[0].latent)
    return {
        "name": case.name,
        "program": session.name,
        "prompt": case.prompt,
        "negative_prompt": case.negative_prompt,
        "seed": str(case.seed),
        "guidance": case.guidance,
        **{what: given[what].ravel().tolist() if what in given else None for what in ("picture", "mask", "noise")},
        "manifest": case.manifest.model_dump(mode="json", by_alias=True, exclude_none=True),
        "latents": [[float(f"{value:.8g}") for value in step.latent.ravel()[::EVERY]] for step in steps],
        "shape": list(pixels.shape),
        "pixels": [int(value) for value in pixels.ravel()[::EVERY]],
        "flagged": flagged,
        "preview": [int(value) for value in preview.ravel()[::EVERY]],
    }


def make_cases() -> list[ProgramCase]:
    """Each of them states one thing that the others do not."""
    plain = make_manifest()
    return [
        ProgramCase("batched", plain),
        ProgramCase("negative_prompt", plain, prompt="a a", negative_prompt="a", seed=7),
        ProgramCase("sequential", _program(plain, mode="sequential"), seed=2**32 + 1),
        ProgramCase("second_program", plain, program="fast"),
        *_row_cases(plain),
        *_condition_cases(plain),
        *_guidance_cases(plain),
        *_picture_cases(plain),
        ProgramCase("unguided", _unguided(plain, ("full", None), ("shallow", None), (None, None))),
        ProgramCase("no_prompt", _unconditional(plain), prompt=""),
        ProgramCase("pixels", _pixels(plain), prompt=""),
        ProgramCase("noise_given", _program(plain, rows=_noisy(plain)), noise=11),
        ProgramCase("flagged", _judged(plain, 0.5)),
        ProgramCase("not_flagged", _judged(plain, 50.0)),
        ProgramCase("preview_by_weights", _changed(plain, preview=COLOURS)),
        ProgramCase("preview_by_graph", _with_graph(plain, "small", SMALL, preview=SMALL_PREVIEW)),
    ]


def _row_cases(plain: Manifest) -> list[ProgramCase]:
    """Carries, held guidance, history, noise, clipping."""
    mixed = _rows(("full", 3.0), ("full", 3.0), ("shallow", 3.0), ("full", 3.0), ("shallow", None))
    mixed = (*mixed[:2], _with(mixed[2], mix={"mid": (2.0, -1.0)}), mixed[3], _with(mixed[4], mix={"mid": (1.5, -0.5)}))
    held = _rows(("full", 3.0), ("full", None), ("shallow", None), ("full", 2.0), ("full", None))
    weights = ((), (2.0,), (1.5,), (), (3.0, -1.25))
    held = tuple(_with(row, held={"weights": w} if w else None) for row, w in zip(held, weights, strict=True))
    clip = Update(x=(0.5,), e=(), clip=Clip(x=1.1, e=-0.7, limit=0.8, weight=0.45))
    clipped = tuple(_with(row, update=clip) for row in plain.program().rows)
    philox = _changed(_program(plain, rows=_noisy(plain), init={"noise": 1.6}), rng="philox")
    return [
        ProgramCase("mixed", _program(plain, rows=mixed)),
        ProgramCase("mixed_sequential", _program(plain, rows=mixed, mode="sequential")),
        ProgramCase("held_guidance", _program(plain, rows=held)),
        ProgramCase("held_guidance_sequential", _program(plain, rows=held, mode="sequential")),
        ProgramCase("noise_philox", philox),
        ProgramCase("noise_mt19937", _program(plain, rows=_noisy(plain))),
        ProgramCase("clipped", _program(plain, rows=clipped)),
    ]


def _condition_cases(plain: Manifest) -> list[ProgramCase]:
    """Where values come from."""
    labels = {"from": "class", "count": 10, "null": 10, "names": [f"number {index}" for index in range(10)]}
    zeros = _condition_of(plain, "encoder_hidden_states", {**HIDDEN, "empty": "zeros"})
    sizes = _fed(plain, "time_ids", {"from": "constant", "values": TIMES}, "batch", 6)
    empty = _fed(plain, "time_ids", {"from": "constant", "values": TIMES, "empty": [1.0] * 6}, "batch", 6)
    masked = _fed(plain, "attention_mask", {"from": "text_mask", "encoder": "text"}, "batch", LENGTH)
    return [
        ProgramCase("classes_by_name", _labelled(plain, labels), prompt="number 2"),
        ProgramCase("classes_by_number", _program(_labelled(plain, labels), mode="sequential"), prompt=" 9 "),
        ProgramCase("zeros_for_no_negative_prompt", zeros),
        ProgramCase("zeros_and_a_negative_prompt", zeros, negative_prompt="a a"),
        ProgramCase("text_mask", masked, prompt="a a"),
        ProgramCase("text_mask_sequential", _program(masked, mode="sequential"), prompt="a a a", negative_prompt="a"),
        ProgramCase("constant", sizes),
        ProgramCase("constant_with_another_for_the_empty_side", empty),
        ProgramCase("two_encoders", _two_encoders(plain), prompt="a a", negative_prompt="a"),
        ProgramCase("two_encoders_sequential", _program(_two_encoders(plain), mode="sequential"), prompt="a"),
    ]


def _guidance_cases(plain: Manifest) -> list[ProgramCase]:
    """Scales that a caller may ask for."""
    scale = {"scale": 3.0, "low": 1.0, "high": 9.0}
    asked = _program(plain, rows=tuple(_symbolic(row) for row in plain.program().rows), guidance=scale)
    held = _rows(("full", 3.0), ("shallow", 3.0), ("shallow", None))
    held = (*map(_symbolic, held[:2]), _with(held[2], held={"weights": (0.75, 0.25), "times": "scale_minus_one"}))
    follows = _program(plain, rows=held, guidance=scale)
    embedded = _fed(plain, "guidance", {"from": "guidance"}, "batch")
    embedded = _changed(
        embedded, programs={name: _embedded(program, scale) for name, program in embedded.programs.items()}
    )
    return [
        ProgramCase("guidance_of_the_program", asked),
        ProgramCase("guidance_asked", asked, guidance=5.1),
        ProgramCase("guidance_asked_sequential", _program(asked, mode="sequential"), guidance=1.7),
        ProgramCase("held_scale_minus_one", follows),
        ProgramCase("held_scale_minus_one_asked", follows, guidance=6.3),
        ProgramCase("embedded_guidance", embedded, program="fast"),
        ProgramCase("embedded_guidance_asked", embedded, program="fast", guidance=7.7),
        ProgramCase("embedded_guidance_beside_guidance", embedded, guidance=3.0),
    ]


def _picture_cases(plain: Manifest) -> list[ProgramCase]:
    """Pictures and masks."""
    takes = ("prompt", "negative_prompt", "picture")
    start = {"noise": 0.6, "picture": 0.8}
    mean = _with_picture(plain, deviation=None)
    drawn = _with_picture(plain)
    noisy = {"rows": _noisy(plain), "takes": takes}
    blend = tuple(
        _with(row, blend={"picture": 0.2 * index, "noise": 0.9 - 0.3 * index})
        for index, row in enumerate(plain.program().rows)
    )
    nine = _fed(_fed(drawn, "mask", {"from": "mask"}, "batch", 1, *LATENT[1:]), *MASKED)
    nine = _changed(nine, programs={name: _takes(one, "picture", "mask") for name, one in nine.programs.items()})
    told = _fed(drawn, "image_latents", {"from": "picture"}, "batch", *LATENT)
    told = _changed(told, programs={name: _takes(one, "picture") for name, one in told.programs.items()})
    return [
        ProgramCase("picture_mean", _program(mean, init=start, takes=takes), picture=1),
        ProgramCase("picture_drawn", _program(drawn, init=start, takes=takes), picture=2),
        ProgramCase("picture_and_row_noise", _program(drawn, init=start, **noisy), picture=3),
        ProgramCase("picture_without_noise", _program(drawn, init={"noise": 0, "picture": 1.0}, **noisy), picture=4),
        ProgramCase("blended", _program(drawn, rows=blend, takes=(*takes, "mask")), picture=5, mask=6),
        ProgramCase(
            "blended_sequential",
            _program(mean, rows=blend, takes=(*takes, "mask"), mode="sequential"),
            picture=5,
            mask=7,
        ),
        ProgramCase("masked_picture", nine, picture=8, mask=9),
        ProgramCase("masked_picture_unguided", nine, picture=8, mask=10, program="fast"),
        ProgramCase("masked_picture_noise_given", nine, picture=8, mask=9, noise=12),
        ProgramCase("picture_as_condition", told, picture=13, seed=5),
    ]


# Parts of manifests

TIMES = (16.0, 16.0, 0.0, 0.0, 32.0, 48.0)
HIDDEN = {"from": "text", "outputs": [{"encoder": "text", "output": "last_hidden_state"}]}
COLOURS = {
    "weights": [[0.3, 0.2, 0.1], [-0.2, 0.25, 0.05], [0.1, -0.15, 0.35], [0.05, 0.1, -0.3]],
    "bias": [0.1, -0.05, 0.02],
}
MASKED = ("masked_image_latents", {"from": "masked_picture"}, "batch", *LATENT)
SMALL_PREVIEW = {"graph": "small", "input": "z", "output": "rgb"}


def _tensor(name: str, *shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


SMALL = {
    "component": "preview",
    "inputs": [_tensor("z", 1, *LATENT)],
    "outputs": [_tensor("rgb", 1, 3, *LATENT[1:])],
}


def _with(value: Any, **changes: Any) -> Any:
    """A changed copy, validated again."""
    return type(value).model_validate({**value.model_dump(by_alias=True), **changes})


def _changed(manifest: Manifest, **changes: Any) -> Manifest:
    return _with(manifest, **changes)


def _program(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest with its program `main` changed."""
    main = _with(manifest.programs["main"], **changes)
    return _changed(manifest, programs={**manifest.programs, "main": _with(main, steps=len(main.rows))})


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


def _noisy(manifest: Manifest) -> tuple[ProgramRow, ...]:
    return tuple(
        _with(
            row,
            input_scale=1.0 - 0.1 * index,
            update=Update(x=(0.5, 0.2, 0.1)[: index + 1], e=(-0.2, 0.1)[: index + 1], noise=0.3 if index % 2 else 0.0),
        )
        for index, row in enumerate(manifest.programs["main"].rows)
    )


def _symbolic(row: ProgramRow) -> ProgramRow:
    changed: ProgramRow = _with(row, guidance=None if row.guidance is None else "scale")
    return changed


def _embedded(program: Program, scale: dict[str, float]) -> Program:
    changed: Program = _with(program, embedded_guidance={**scale, "scale": 3.5})
    return changed


def _takes(program: Program, *words: str) -> Program:
    changed: Program = _with(program, takes=(*program.takes, *words))
    return changed


def _condition_of(manifest: Manifest, name: str, source: dict[str, Any]) -> Manifest:
    return _changed(manifest, conditions={**manifest.conditions, name: source})


def _reshaped(manifest: Manifest, change: Callable[[str, Any], dict[str, Any]]) -> Manifest:
    """The manifest with its two denoiser graphs changed."""
    graphs = dict(manifest.graphs)
    for name in ("full", "shallow"):
        graphs[name] = _with(graphs[name], **change(name, graphs[name]))
    return _changed(manifest, graphs=graphs)


def _fed(manifest: Manifest, name: str, source: dict[str, Any], *shape: int | str) -> Manifest:
    """The manifest with one more input of the denoiser graphs."""
    changed = _reshaped(manifest, lambda _, graph: {"inputs": [*graph.inputs, _tensor(name, *shape)]})
    return _condition_of(changed, name, source)


def _with_graph(manifest: Manifest, name: str, graph: dict[str, Any], **changes: Any) -> Manifest:
    return _changed(manifest, graphs={**manifest.graphs, name: graph}, **changes)


def _judged(manifest: Manifest, threshold: float) -> Manifest:
    score = [_tensor("score", 1, 1)]
    graph = {"component": "safety", "inputs": [_tensor("image", 1, 3, SIZE, SIZE)], "outputs": score}
    safety = {"graph": "safety", "input": "image", "output": "score", "threshold": threshold}
    return _with_graph(manifest, "safety", graph, safety=safety)


def _with_picture(manifest: Manifest, deviation: str | None = "deviation") -> Manifest:
    outputs = [_tensor("mean", 1, *LATENT), _tensor("deviation", 1, *LATENT)]
    graph = {"component": "vae", "inputs": [_tensor("pixels", 1, 3, SIZE, SIZE)], "outputs": outputs}
    spec = {"graph": "vae_encoder", "input": "pixels", "mean": "mean", "deviation": deviation}
    return _with_graph(
        manifest, "vae_encoder", graph, picture={**spec, "scale": 0.7, "shift": 0.1, "size": (SIZE, SIZE)}
    )


def _two_encoders(manifest: Manifest) -> Manifest:
    """Hidden states of two encoders side by side, the second one's pooled text, its mask and SDXL's six sizes."""
    ids = [_tensor("input_ids", 1, LENGTH, dtype="int64"), _tensor("attention_mask", 1, LENGTH, dtype="int32")]
    outputs = [_tensor("hidden", 1, LENGTH, WIDTH), _tensor("pooled", 1, WIDTH)]
    graph = {"component": "text_encoder_2", "inputs": ids, "outputs": outputs}
    second = {"tokenizer": "clip", "graph": "text_encoder_2", "ids": "input_ids", "mask": "attention_mask"}
    wide = _with_graph(manifest, "text_encoder_2", graph, encoders={**manifest.encoders, "second": second})
    shape = ("batch", LENGTH, 2 * WIDTH)
    wide = _reshaped(
        wide,
        lambda _, graph: {
            "inputs": [
                _tensor(spec.name, *shape) if spec.name == "encoder_hidden_states" else spec for spec in graph.inputs
            ]
        },
    )
    joined = {"from": "text", "outputs": [*HIDDEN["outputs"], {"encoder": "second", "output": "hidden"}]}
    pooled = {"from": "text", "outputs": [{"encoder": "second", "output": "pooled"}], "empty": "zeros"}
    wide = _condition_of(wide, "encoder_hidden_states", joined)
    wide = _fed(wide, "text_embeds", pooled, "batch", WIDTH)
    return _fed(wide, "time_ids", {"from": "constant", "values": TIMES}, "batch", 6)


def _labelled(manifest: Manifest, source: dict[str, Any]) -> Manifest:
    """Classes in the place of text."""
    label = _tensor("class_labels", "batch", dtype="int64")
    graphs = _reshaped(
        manifest,
        lambda _, graph: {"inputs": [label if spec.name == "encoder_hidden_states" else spec for spec in graph.inputs]},
    )
    programs = {name: _with(program, takes=("prompt",)) for name, program in manifest.programs.items()}
    return _changed(
        _without_text(graphs), conditions={**_fed_conditions(manifest), "class_labels": source}, programs=programs
    )


def _fed_conditions(manifest: Manifest) -> dict[str, Condition]:
    return {name: one for name, one in manifest.conditions.items() if name != "encoder_hidden_states"}


def _without_text(manifest: Manifest) -> Manifest:
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "text_encoder"}
    return manifest.model_copy(update={"graphs": graphs, "encoders": {}, "tokenizers": {}})


def _unguided(manifest: Manifest, *calls: tuple[str | None, float | None]) -> Manifest:
    return _program(manifest, rows=_rows(*calls), takes=("prompt",), guidance=None)


def _unconditional(manifest: Manifest) -> Manifest:
    graphs = _reshaped(
        manifest,
        lambda _, graph: {"inputs": [spec for spec in graph.inputs if spec.name != "encoder_hidden_states"]},
    )
    changed = _without_text(graphs).model_copy(update={"conditions": _fed_conditions(manifest)})
    main = _with(_unguided(manifest, ("full", None), ("shallow", None), ("full", None)).programs["main"], takes=())
    return _changed(changed, programs={"main": main})


def _pixels(manifest: Manifest) -> Manifest:
    """A network of pixels: what it ends with is the picture."""
    shape = ("batch", 3, *LATENT[1:])

    def narrow(_: str, graph: Any) -> dict[str, Any]:
        def one(spec: Any) -> Any:
            return _with(spec, shape=shape) if spec.shape == ("batch", *LATENT) else spec

        return {"inputs": [one(spec) for spec in graph.inputs], "outputs": [one(spec) for spec in graph.outputs]}

    changed = _program(_reshaped(_unconditional(manifest), narrow).model_copy(update={}), latent=shape[1:])
    return _changed(changed, decoder={"scale": 1.5, "shift": 0.1})


def _bytes(seed: int, *shape: int) -> Array:
    """8 bit values from a seed, `Rng(seed)`'s normal draws around 128."""
    values = Rng(seed).normal(shape) * np.float32(60.0) + np.float32(128.0)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def draw(seed: int, count: int) -> Array:
    return Rng(seed).normal((count,))
