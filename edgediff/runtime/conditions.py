"""What a program's graphs read beside latent, time and carries: worked out once for a picture, from its sources.

Every value has one row per side, in the order empty side, prompt side; one row (the prompt's) where no row guides.
Section 3 of `docs/format.md` is the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgediff.errors import ConfigError
from edgediff.runtime.engine import Array
from edgediff.runtime.manifest import Classes, Condition, Constant, Manifest, Program, TensorSpec, Text, TextMask

RunOnce = Callable[[str, dict[str, Array], tuple[str, ...]], list[Array]]
PER_ROW = ("latent", "timestep")  # what changes from row to row
PICTURED = ("picture", "masked_picture", "mask")  # what comes from the caller's picture and mask


class TextTokenizer(Protocol):
    """What `tokenizer.Tokenizer` offers."""

    @property
    def end(self) -> int: ...

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

    def joined(self, condition: Text, text: str) -> Array:
        """The condition's value for one text."""
        parts = [self.output(one.encoder, one.output, text) for one in condition.outputs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class Asked:
    """What a caller gives beside seed and scale: `embedded_guidance` None is the program's own."""

    prompt: str = ""
    negative_prompt: str = ""
    pictures: Pictures = Pictures()
    embedded_guidance: float | None = None


def make_conditions(
    manifest: Manifest, program: Program, texts: Texts, asked: Asked, leave_out: Container[str] = ()
) -> dict[str, Array]:
    """Input name -> value, of all that stays the same in every row, but for the names in `leave_out`. Raises
    ConfigError for a prompt that is no class."""
    values: dict[str, Array] = {}
    for name, spec in read_inputs(manifest, program).items():
        condition = manifest.conditions[name]
        if condition.source in PER_ROW or name in leave_out:
            continue
        value = _prompt_side(condition, spec, program, texts, asked)
        if program.guides:
            value = np.concatenate([_empty_side(condition, value, texts, asked), value])
        values[name] = value
    return values


def _prompt_side(condition: Condition, spec: TensorSpec, program: Program, texts: Texts, asked: Asked) -> Array:
    """The value at batch 1, for the prompt."""
    if isinstance(condition, Text):
        return texts.joined(condition, asked.prompt)
    if isinstance(condition, TextMask):
        return texts.mask(condition.encoder, asked.prompt)
    if isinstance(condition, Classes):
        return np.array([condition.find(asked.prompt)])
    if isinstance(condition, Constant):
        return np.array(condition.values, np.float32).reshape(1, *spec.sized(1)[1:])
    if condition.source == "guidance" and program.embedded_guidance is not None:
        own = program.embedded_guidance.scale
        return np.array([own if asked.embedded_guidance is None else asked.embedded_guidance], np.float32)
    found = asked.pictures
    by_source = {"picture": found.latent, "masked_picture": found.masked, "mask": found.mask}
    value = by_source[condition.source]
    assert value is not None, "rules 17 to 20 and the check of the caller's arguments see to it"
    return value


def _empty_side(condition: Condition, prompt: Array, texts: Texts, asked: Asked) -> Array:
    """The value at batch 1 for the negative prompt, or for no class; the prompt's own for what depends on neither."""
    if isinstance(condition, Text):
        if condition.empty == "zeros" and not asked.negative_prompt:
            return np.zeros_like(prompt)
        return texts.joined(condition, asked.negative_prompt)
    if isinstance(condition, TextMask):
        return texts.mask(condition.encoder, asked.negative_prompt)
    if isinstance(condition, Classes) and condition.null is not None:
        return np.array([condition.null])
    if isinstance(condition, Constant) and condition.empty is not None:
        return np.array(condition.empty, np.float32).reshape(prompt.shape)
    return prompt
