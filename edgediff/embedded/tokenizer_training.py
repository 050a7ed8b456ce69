"""Trains the tokenizer on the captions and writes it as CLIP writes its own: `vocab.json` and `merges.txt`.

The rules are CLIP's, unchanged: text is lower-cased and its white space collapsed, split by CLIP's pattern, turned into
byte-level symbols whose last one carries `</w>`, and merged pair by pair in the order of `merges.txt`. Only the merges
are ours, because forty-nine thousand entries would be most of a small model.
"""

import itertools
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
VOCABULARY = 2000  # entries, with 512 byte symbols and the two marks
LENGTH = 24  # tokens of a prompt, marks included; also the text encoder's positions
# CLIP's pattern, with the classes that `re` knows: a letter run, one digit, or a run of anything else.
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@lru_cache(maxsize=1)
def byte_symbols() -> dict[int, str]:
    """GPT-2's table: each byte as one printable character, in the order in which CLIP numbers them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def split_words(text: str) -> list[str]:
    return _WORDS.findall(re.sub(r"\s+", " ", text).strip().lower())


def spell(word: str) -> tuple[str, ...]:
    """A word as byte symbols, the last one closed by `</w>`."""
    table = byte_symbols()
    symbols = [table[b] for b in word.encode("utf-8")]
    return (*symbols[:-1], symbols[-1] + WORD_END)


def merge_pair(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged, at = [], 0
    while at < len(symbols):
        if symbols[at : at + 2] == pair:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(symbols[at])
            at += 1
    return tuple(merged)


def train_merges(captions: list[str], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs, greedily; ties go to the pair that sorts first, so that runs agree."""
    words = Counter(spell(word) for caption in captions for word in split_words(caption))
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, times in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({merge_pair(symbols, best): times for symbols, times in words.items()})
    return merges


def write_tokenizer(captions: list[str], folder: Path, vocabulary: int = VOCABULARY) -> None:
    """Writes the four files from which `CLIPTokenizer.from_pretrained(folder)` reads."""
    symbols = list(byte_symbols().values())
    merges = train_merges(captions, vocabulary - 2 * len(symbols) - 2)
    entries = [*symbols, *(s + WORD_END for s in symbols), *map("".join, merges), START, END]
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        **marks,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "clean_up_tokenization_spaces": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {entry: row for row, entry in enumerate(entries)})
    _write_json(folder / "special_tokens_map.json", marks)
    _write_json(folder / "tokenizer_config.json", settings)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
