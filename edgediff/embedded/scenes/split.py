"""What is never trained on: a fifth of the pairs of nouns, and a fifth of the combinations of noun and hue.

Both lists are drawn once from a fixed seed, with a cap per noun (and per hue), so that nothing is learnt from much less
data than its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product

import numpy as np

from edgediff.embedded.scenes.vocabulary import HUES, NOUNS

SHARE = 0.2
SEED = 17


def _choose(candidates: Sequence[tuple[str, str]], caps: dict[str, int]) -> frozenset[tuple[str, str]]:
    """The first SHARE of the shuffled candidates that leave every member within its cap."""
    wanted, taken = round(SHARE * len(candidates)), Counter[str]()
    chosen: list[tuple[str, str]] = []
    for row in np.random.default_rng(SEED).permutation(len(candidates)):
        candidate = candidates[row]
        if len(chosen) < wanted and all(taken[member] < caps[member] for member in candidate):
            chosen.append(candidate)
            taken.update(candidate)
    return frozenset(chosen)


@lru_cache(maxsize=1)
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Unordered pairs of nouns, each in the order of NOUNS: 55 of 276."""
    return _choose(list(combinations(NOUNS, 2)), dict.fromkeys(NOUNS, 6))


@lru_cache(maxsize=1)
def held_out_kinds() -> frozenset[tuple[str, str]]:
    """Combinations (noun, hue): 29 of 144."""
    return _choose(list(product(NOUNS, HUES)), {**dict.fromkeys(NOUNS, 2), **dict.fromkeys(HUES, 6)})


def is_held_out_pair(first: str, second: str) -> bool:
    return (first, second) in held_out_pairs() or (second, first) in held_out_pairs()


def is_held_out_kind(noun: str, hue: str) -> bool:
    return (noun, hue) in held_out_kinds()
