"""What a judge finds in a picture, and how that is held against a caption.

Both judges answer with findings; everything that is scored follows from them, so that a judge can be exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgediff.embedded.scenes.captions import Caption, Mention
from edgediff.embedded.scenes.scene import Scene, relate
from edgediff.embedded.scenes.vocabulary import LARGE_FROM, SMALL_TO

SIZE_SLACK = 2.0  # pixels by which a measured size may miss the word


@dataclass(frozen=True)
class Finding:
    """One object. `centre` (x, y) and `size` in pixels; `score` 0 to 1, the judge's own measure of certainty."""

    noun: str
    hue: str
    size: float
    centre: tuple[float, float]
    score: float

    def fits_size(self, word: str | None) -> bool:
        if word is None:
            return True
        return self.size <= SMALL_TO + SIZE_SLACK if word == "small" else self.size >= LARGE_FROM - SIZE_SLACK


@dataclass(frozen=True)
class Findings:
    """All objects of one picture, the most certain first, and the nearest background."""

    things: tuple[Finding, ...]
    background: str

    def find_only(self, noun: str) -> Finding | None:
        """The finding of this noun; None where there is none or more than one."""
        same = [thing for thing in self.things if thing.noun == noun]
        return same[0] if len(same) == 1 else None


@dataclass(frozen=True)
class Verdict:
    """One picture against one caption. None: the caption does not ask.

    objects: every mentioned noun is found exactly once, and nothing else is found. relation: the objects are found and
    the relation along the dominant axis is the caption's (chance is a quarter). right: both, and every attribute that
    the caption states.
    """

    objects: bool
    relation: bool | None
    right: bool


def judge_caption(caption: Caption, findings: Findings) -> Verdict:
    found = [findings.find_only(mention.noun) for mention in caption.mentions]
    things = [thing for thing in found if thing is not None]
    objects = len(things) == len(caption.mentions) == len(findings.things)
    relation = None
    if caption.relation is not None:
        relation = objects and relate(things[0].centre, things[1].centre) == caption.relation
    attributes = objects and all(_fits(m, t) for m, t in zip(caption.mentions, things, strict=True))
    ground = caption.background in (None, findings.background)
    return Verdict(objects, relation, bool(attributes and ground and relation is not False))


def _fits(mention: Mention, thing: Finding) -> bool:
    return mention.hue in (None, thing.hue) and thing.fits_size(mention.size)


def matches_scene(scene: Scene, findings: Findings, slack: float = 3.0) -> bool:
    """Whether a judge read a real render right: nouns, hues, background, places and sizes within `slack` pixels."""
    if len(findings.things) != len(scene.things) or findings.background != scene.background:
        return False
    for thing in scene.things:
        found = findings.find_only(thing.noun)
        if found is None or found.hue != thing.hue or abs(found.size - thing.size) > slack:
            return False
        if max(abs(a - b) for a, b in zip(found.centre, thing.centre, strict=True)) > slack:
            return False
    return True


@dataclass(frozen=True)
class Shares:
    """Shares over many verdicts, 0 to 1. `relation` is over the captions that state one, found or not."""

    count: int
    objects: float
    relation: float
    right: float

    def __str__(self) -> str:
        return (
            f"{self.count} pictures: objects {self.objects:.3f}, relation {self.relation:.3f}, "
            f"all right {self.right:.3f}"
        )


def sum_up(verdicts: Sequence[Verdict]) -> Shares:
    """The shares; `relation` is NaN where no caption states a relation."""
    related = [verdict.relation for verdict in verdicts if verdict.relation is not None]
    count = len(verdicts)
    return Shares(
        count,
        sum(verdict.objects for verdict in verdicts) / count,
        sum(related) / len(related) if related else float("nan"),
        sum(verdict.right for verdict in verdicts) / count,
    )
