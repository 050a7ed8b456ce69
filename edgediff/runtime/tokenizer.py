"""Text to token ids: CLIP's byte-level BPE from `vocab.json` and `merges.txt`, without torch or transformers.

What happens to a text, which Kotlin and Swift repeat (tests/golden/tokenizer.json is the check):
 1. Special tokens written out in the text (`<|endoftext|>`, and "!" where that is the padding) are taken out as
    they stand; those marked `normalized` are looked for after step 2 instead.
 2. What lies between is put into Unicode NFC, every run of white space becomes one space, and every character is
    lowercased on its own (so a final capital sigma becomes an ordinary small one).
 3. It is cut into pieces: special tokens, 's 't 're 've 'm 'll 'd, runs of letters, single digits, runs of
    anything else that is not a space. Spaces vanish. A special token found here is ordinary text.
 4. A piece's UTF-8 bytes become GPT-2's 256 printable characters, the last one with `</w>`; then the pair that
    comes first in merges.txt is merged, everywhere, until no pair is left. An unknown symbol is the unk token.
 5. begin + ids + end, cut to max_length with the end token kept, padded to max_length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.config import read_text
from edgediff.errors import ConfigError

_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


@dataclass(frozen=True)
class Tokenizer:
    """A loaded CLIP tokenizer. `vocab_size` counts vocab.json; the ids are those of its embedding table."""

    begin: int
    end: int
    pad: int
    vocab_size: int
    _bpe: Any = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads vocab.json, merges.txt and, where present, tokenizer_config.json and special_tokens_map.json.

        Raises ConfigError, naming the file, when one is missing or damaged.
        """
        folder = Path(folder)
        vocab = _read_vocab(folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt", vocab)
        special, added = _read_special(folder)
        for key, token in special.items():
            if token["content"] not in vocab:
                raise ConfigError(
                    f"{key} '{token['content']}' is not in this vocabulary; vocab.json and the special tokens "
                    "must come from one tokenizer",
                    where=str(folder / "vocab.json"),
                )
        ids = {key: vocab[token["content"]] for key, token in special.items()}
        bpe = _build(vocab, merges, special["unk_token"]["content"], added)
        return cls(ids["bos_token"], ids["eos_token"], ids["pad_token"], len(vocab), bpe)

    def encode(self, text: str, max_length: int) -> list[int]:
        """`max_length` ids: begin, the text (cut where it is too long), end, padding.

        As `CLIPTokenizer(text, padding="max_length", truncation=True, max_length=max_length)`. Raises
        ConfigError for a max_length below 2 and for a text that is no Unicode (a lone surrogate).
        """
        if max_length < 2:
            raise ConfigError(
                f"max_length = {max_length}; a text needs at least 2 tokens, its begin and its end", code="text"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the prompt has half a surrogate pair at character {error.start}; pass valid Unicode", code="text"
            ) from error
        ids = self._bpe.encode(text, add_special_tokens=False).ids[: max_length - 2]
        return [self.begin, *ids, self.end] + [self.pad] * (max_length - 2 - len(ids))


def _build(vocab: dict[str, int], merges: list[tuple[str, str]], unk: str, added: list[dict[str, Any]]) -> Any:
    """The Rust pipeline that transformers 5 builds for CLIPTokenizer."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Pipeline
    from tokenizers.models import BPE

    bpe = Pipeline(BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", fuse_unk=False, unk_token=unk))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.add_tokens([AddedToken(**token) for token in added])
    return bpe


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = _read_object(path)
    if not vocab:
        raise ConfigError("holds no tokens; it must map each token to its id", where=str(path))
    for token, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ConfigError(f"token '{token}' has id {index!r}; ids are whole numbers from 0", where=str(path))
    if len(set(vocab.values())) != len(vocab):
        raise ConfigError("two tokens have the same id; every token needs its own", where=str(path))
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in order of preference; lines that begin with `#version` are skipped."""
    merges = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise ConfigError(f"line {number} is '{line[:40]}'; it must be two tokens and one space", where=str(path))
        if missing := next((token for token in (first, second, first + second) if token not in vocab), None):
            raise ConfigError(
                f"line {number} merges '{first}' and '{second}', but vocab.json has no '{missing}'; the two files "
                "must come from one tokenizer",
                where=str(path),
            )
        merges.append((first, second))
    return merges


def _read_special(folder: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Begin, end, unk and padding, and all added tokens, as AddedToken arguments, by transformers' rules.

    `added_tokens_decoder` in tokenizer_config.json decides where it exists; otherwise special_tokens_map.json
    goes before tokenizer_config.json, and CLIP's own tokens stand for what neither names. Where one text is
    added twice with other properties, the last one counts (in SD 1.5 the padding, which is not normalized).
    """
    path = folder / "tokenizer_config.json"
    config = _read_object(path, optional=True)
    decoder = config.get("added_tokens_decoder")
    added = [_token(value, path) for _, value in sorted((decoder or {}).items(), key=_by_number)]
    known = {token["content"] for token in added}
    if decoder is None:
        path = folder / "special_tokens_map.json"
        config = {**config, **_read_object(path, optional=True)}
    named = {key: _token(config.get(key) or default, path) for key, default in _DEFAULTS.items()}
    texts = {token["content"] for token in named.values()}
    added = [{**token, "special": token["special"] or token["content"] in texts} for token in added]
    return named, added + [token for token in named.values() if token["content"] not in known]


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    return len(item[0]), item[0]


def _token(value: Any, path: Path) -> dict[str, Any]:
    """AddedToken's arguments from its text or its JSON; a token given as text is matched before normalizing."""
    if isinstance(value, str):
        return {"content": value, "normalized": False, "special": True}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ConfigError(
            f"a special token is {value!r}; it must be text, or an object with 'content'", where=str(path)
        )
    keys = ("content", "single_word", "lstrip", "rstrip", "normalized")
    return {**{key: value[key] for key in keys if key in value}, "special": value.get("special", True)}


def _read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(path), code="syntax") from error
    if not isinstance(value, dict):
        raise ConfigError(f"holds a {type(value).__name__}; it must be a JSON object", where=str(path))
    return value
