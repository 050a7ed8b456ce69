"""The caption grammar of scenes, and the token ids of a caption.

    caption  = thing [" " relation " " thing | " and " thing] [" on " background]
    thing    = ("a" | "an") [" " size] [" " hue] " " noun
    relation = "left of" | "right of" | "above" | "under"

Captions never say where in the picture a thing is. Each attribute that could be said is left out half the time, so that
one caption has many pictures. Every word is one token, so ids are looked up, without the tokenizer's merges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.scene import Scene, Thing
from edgediff.embedded.scenes.split import is_held_out_kind, is_held_out_pair
from edgediff.embedded.scenes.vocabulary import OPPOSITE
from edgediff.embedded.tokenizer_training import END, LENGTH, START, WORD_END

ATTRIBUTE_SHARE = 0.5  # of the hues, sizes and backgrounds that are said
RELATION_SHARE = 0.7  # of the relations that are said, where captions have relations at all


@dataclass(frozen=True)
class Mention:
    """A thing as the caption names it; None for what it leaves open."""

    noun: str
    hue: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.hue, self.noun) if word)
        return f"{'an' if words[0] in 'aeiou' or words.startswith('hour') else 'a'} {words}"


@dataclass(frozen=True)
class Caption:
    """What a caption demands of a picture; `str()` is its text. `relation` is of the first mention to the second."""

    mentions: tuple[Mention, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        text = f" {self.relation or 'and'} ".join(map(str, self.mentions))
        return f"{text} on {self.background}" if self.background else text

    @property
    def held_out(self) -> bool:
        """Whether the words themselves name a held-out pair, or a noun in a held-out hue."""
        nouns = [mention.noun for mention in self.mentions]
        kinds = [(mention.noun, mention.hue) for mention in self.mentions if mention.hue]
        return any(is_held_out_kind(*kind) for kind in kinds) or (len(nouns) == 2 and is_held_out_pair(*nouns))


def caption_scene(
    scene: Scene,
    rng: np.random.Generator,
    attributes: float = ATTRIBUTE_SHARE,
    relations: float = RELATION_SHARE,
) -> Caption:
    """A true caption of the scene: a random order of its things, each attribute kept with its probability."""
    keep, relation = rng.random(8), scene.relation
    mentions = [_mention(thing, keep[2 * i : 2 * i + 2], attributes) for i, thing in enumerate(scene.things)]
    if relation and keep[6] < 0.5:
        mentions, relation = mentions[::-1], OPPOSITE[relation]
    return Caption(
        tuple(mentions),
        relation if keep[5] < relations else None,
        scene.background if keep[4] < attributes else None,
    )


def _mention(thing: Thing, keep: NDArray[np.float64], share: float) -> Mention:
    return Mention(thing.noun, thing.hue if keep[0] < share else None, thing.size_word if keep[1] < share else None)


@lru_cache(maxsize=1)
def _word_ids() -> dict[str, int]:
    entries: dict[str, int] = json.loads((GLYPH / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    return entries


def encode_caption(text: str) -> list[int]:
    """The LENGTH token ids of a caption of this grammar (or of the empty one), as glyph's tokenizer gives them."""
    entries = _word_ids()
    ids = [entries[START], *(entries[word + WORD_END] for word in text.split())]
    return ids + [entries[END]] * (LENGTH - len(ids))
