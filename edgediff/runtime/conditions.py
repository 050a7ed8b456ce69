"""What a program's graphs read beside latent, time and carries: worked out once for a picture, from its sources.

Every value has one row per side, in the order empty side, prompt side; one row (the prompt's) where no row guides.
Section 3 of `docs/format.md` is the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgediff.errors import ConfigError
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import Classes, Condition, Constant, Manifest, Program, TensorSpec, Text, TextMask

RunOnce = Callable[[str, dict[str, Array], tuple[str, ...]], list[Array]]
PER_ROW = ("latent", "timestep")  # what changes from row to row


class TextTokenizer(Protocol):
    """What `tokenizer.Tokenizer` offers."""

    end: int

    def encode(self, text: str, max_length: int) -> list[int]: ...


@dataclass(frozen=True)
class Pictures:
    """The picture's latent, the masked picture's `[1, c, h, w]`, and the latent mask `[1, 1, h, w]`."""

    latent: Array | None = None
    masked: Array | None = None
    mask: Array | None = None


def read_inputs(manifest: Manifest, program: Program) -> dict[str, TensorSpec]:
    """Input name -> its tensor, of every input of the program's graphs that is no carry, in order of first use."""
    graphs = [manifest.graphs[name] for name in program.graphs()]
    return {spec.name: spec for graph in graphs for spec in graph.free_inputs()}


def used_encoders(manifest: Manifest, program: Program) -> tuple[str, ...]:
    """Encoders that a condition of the program's graphs names, in order of first use."""
    found: list[str] = []
    for name in read_inputs(manifest, program):
        condition = manifest.conditions[name]
        if isinstance(condition, Text):
            found += [output.encoder for output in condition.outputs]
        elif isinstance(condition, TextMask):
            found.append(condition.encoder)
    return tuple(dict.fromkeys(found))


class Texts:
    """Texts through the encoders, each text and encoder once."""

    def __init__(self, manifest: Manifest, tokenizers: Mapping[str, TextTokenizer], run: RunOnce) -> None:
        self.manifest, self.tokenizers, self.run = manifest, tokenizers, run
        self._outputs: dict[tuple[str, str], dict[str, Array]] = {}

    def ids(self, encoder: str, text: str) -> list[int]:
        """The ids of a text. Raises ConfigError where it is no text, or the session has no such tokenizer."""
        if not isinstance(text, str):
            raise ConfigError(f"a prompt is one text, not {type(text).__name__} ({text!r:.60})", code="prompt")
        name = self.manifest.encoders[encoder].tokenizer
        if name not in self.tokenizers:
            message = f"this session has no tokenizer '{name}'; pass the conditions in place of a prompt"
            raise ConfigError(message, code="prompt")
        return self.tokenizers[name].encode(text, self.manifest.tokenizers[name].length)

    def mask(self, encoder: str, text: str) -> Array:
        """`[1, length]` int64: 1 up to the first end token, 0 after it."""
        ids = self.ids(encoder, text)
        end = ids.index(self.tokenizers[self.manifest.encoders[encoder].tokenizer].end, 1)
        return np.array([[1] * (end + 1) + [0] * (len(ids) - end - 1)], np.int64)

    def output(self, encoder: str, output: str, text: str) -> Array:
        """One output of an encoder for a text, at batch 1."""
        if (encoder, text) not in self._outputs:
            spec = self.manifest.encoders[encoder]
            graph = self.manifest.graphs[spec.graph]
            types = {tensor.name: tensor.dtype for tensor in graph.inputs}
            inputs = {spec.ids: np.array([self.ids(encoder, text)], types[spec.ids])}
            if spec.mask is not None:
                inputs[spec.mask] = self.mask(encoder, text).astype(types[spec.mask])
            names = tuple(tensor.name for tensor in graph.outputs)
            self._outputs[encoder, text] = dict(zip(names, self.run(spec.graph, inputs, names), strict=True))
        return self._outputs[encoder, text][output]

    def joined(self, condition: Text, text: str, *, negative: bool = False) -> Array:
        """The condition's value for one text."""
        parts = [self.output(one.encoder, one.output, text) for one in condition.outputs]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return np.zeros_like(value) if negative and not text and condition.empty == "zeros" else value


def make_conditions(
    manifest: Manifest,
    program: Program,
    texts: Texts,
    prompt: str,
    negative_prompt: str,
    pictures: Pictures,
    embedded_guidance: float | None = None,
) -> dict[str, Array]:
    """Input name -> value, of all that stays the same in every row. Raises ConfigError for a prompt that is no class."""
    values: dict[str, Array] = {}
    for name, spec in read_inputs(manifest, program).items():
        condition = manifest.conditions[name]
        if condition.source in PER_ROW:
            continue
        both = _sides(condition, spec, texts, prompt, negative_prompt)
        if both is None:
            both = _fed(condition, program, pictures, embedded_guidance)
        values[name] = np.concatenate(both) if program.guides else both[1]
    return values


def _sides(
    condition: Condition, spec: TensorSpec, texts: Texts, prompt: str, negative_prompt: str
) -> tuple[Array, Array] | None:
    """The empty and the prompt side of what depends on them."""
    if isinstance(condition, Text):
        value = texts.joined(condition, prompt)
        return texts.joined(condition, negative_prompt, negative=True), value
    if isinstance(condition, TextMask):
        return texts.mask(condition.encoder, negative_prompt), texts.mask(condition.encoder, prompt)
    if isinstance(condition, Classes):
        found = condition.find(prompt)
        return np.array([found if condition.null is None else condition.null]), np.array([found])
    if isinstance(condition, Constant):
        empty = condition.values if condition.empty is None else condition.empty
        shape = (1, *spec.sized(1)[1:])
        return np.array(empty, np.float32).reshape(shape), np.array(condition.values, np.float32).reshape(shape)
    return None


def _fed(
    condition: Condition, program: Program, pictures: Pictures, embedded_guidance: float | None
) -> tuple[Array, Array]:
    """What is the same on both sides."""
    if condition.source == "guidance" and program.embedded_guidance is not None:
        asked = program.embedded_guidance.scale if embedded_guidance is None else embedded_guidance
        value: Array | None = np.array([asked], np.float32)
    else:
        by_source = {"picture": pictures.latent, "masked_picture": pictures.masked, "mask": pictures.mask}
        value = by_source[condition.source]
    assert value is not None, "rules 17 to 20 and the check of the caller's arguments see to it"
    return value, value
