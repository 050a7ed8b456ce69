"""Words that say what a graph stores and what it computes; every reader of a bundle has the same list.

    fp32 fp16 bf16      weights and arithmetic in this type
    tf32                fp32 whose products round their factors to 10 bits of mantissa (NVIDIA tensor cores)
    w8 w4               weights in 8 or 4 bits, arithmetic floating: a weight is scaled back before it is multiplied
    w8a8 w8a16 w4a8     weights in as many bits as stands after `w`, multiplied as integers with activations in as many
                        bits as stands after `a`

A word is true of the layers that a backend has such products for. Which these are, and what is between them, a backend
says beside every word that it serves (`precisions` of its module).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

Word = Literal["fp32", "tf32", "fp16", "bf16", "w8", "w8a8", "w8a16", "w4", "w4a8"]
PRECISIONS: tuple[Word, ...] = get_args(Word)
RENAMED = {
    "int8": "'w8' (weights in 8 bits, floating arithmetic), 'w8a8' (both in 8 bits) or 'w8a16' (activations in 16)",
    "int4": "'w4' (weights in 4 bits, floating arithmetic) or 'w4a8' (activations in 8)",
}


def refuse_renamed(value: Any) -> Any:
    """The value, which may still be no precision. Raises ValueError for a word that one backend's users could not tell
    from another's, naming those that took its place."""
    if isinstance(value, str) and value in RENAMED:
        raise ValueError(f"there is no such precision any more: {RENAMED[value]} took its place")
    return value


Precision = Annotated[Word, BeforeValidator(refuse_renamed)]


def weight_bits(word: str) -> int | None:
    """Bits that a precision stores weights in as integers; None for floating ones."""
    match = re.match(r"w(\d+)", word)
    return int(match[1]) if match else None
