"""Text to token ids: CLIP's byte-level BPE from a bundle's normal form, without torch or transformers.

What happens to a text, which Kotlin and Swift repeat (tests/golden/tokenizer.json is the check):
 1. Added tokens written out in the text (`<|endoftext|>`, and "!" where that is the padding) are taken out as
    they stand; those marked `normalized` are looked for after step 2 instead. One may stand for several ids.
 2. What lies between is put into Unicode NFC, every run of white space becomes one space, and every character is
    lowercased on its own (so a final capital sigma becomes an ordinary small one).
 3. It is cut into pieces: special tokens, 's 't 're 've 'm 'll 'd, runs of letters, single digits, runs of
    anything else that is not a space. Spaces vanish. A special token found here is ordinary text.
 4. A piece's UTF-8 bytes become GPT-2's 256 printable characters, the last one with `</w>`; then the pair that
    comes first in merges.txt is merged, everywhere, until no pair is left. An unknown symbol is the unk token.
 5. begin + ids + end, cut to max_length with the end token kept, padded to max_length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.errors import BundleError, ConfigError
from edgediff.runtime.document import read_document
from edgediff.runtime.manifest import Added, TokenizerSpec

MAX_ID = 2**24
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Merges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tokenizer:
    """A loaded CLIP tokenizer. `vocab_size` counts vocab.json; the ids are those of its embedding table."""

    begin: int
    end: int
    pad: int
    vocab_size: int
    _bpe: Any = field(repr=False)
    _ids: Sequence[tuple[int, ...]] = field(repr=False)  # by the number that the pipeline gives a token

    @classmethod
    def load(cls, folder: Path, spec: TokenizerSpec) -> Tokenizer:
        """A bundle's tokenizer. Raises ConfigError (`tokenizer`), naming the file, for one that is damaged."""
        vocab, merges = cls.read(folder, spec)
        return cls.make(vocab, merges, spec, where=str(folder / spec.vocab))

    @staticmethod
    def read(folder: Path, spec: TokenizerSpec) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Vocabulary and merges, checked, without making a tokenizer of them. Raises ConfigError as `load` does."""
        vocab = read_vocab(folder / spec.vocab)
        merges = read_merges(folder / spec.merges, vocab)
        _name_tokens(vocab, spec, str(folder / spec.vocab))
        return vocab, merges

    @classmethod
    def make(cls, vocab: Mapping[str, int], merges: Merges, spec: TokenizerSpec, *, where: str = "") -> Tokenizer:
        """The tokenizer of a vocabulary, its merges, and what the manifest says. Raises ConfigError (`tokenizer`) for a
        token that is neither in the vocabulary nor added."""
        named = _name_tokens(vocab, spec, where)
        numbers = {token: number for number, token in enumerate(vocab)}  # ids may have gaps, the pipeline's have none
        bpe = _build(numbers, merges, spec.unknown, spec.added)
        ids: list[tuple[int, ...]] = [(index,) for index in vocab.values()]
        ids += [()] * (bpe.get_vocab_size() - len(ids))
        for token in spec.added:
            ids[bpe.token_to_id(token.content)] = token.ids
        return cls(named["begin"], named["end"], named["pad"], len(vocab), bpe, ids)

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
                f"the prompt has half a surrogate pair at character {error.start}; pass valid Unicode", code="prompt"
            ) from error
        found = self._bpe.encode(text, add_special_tokens=False).ids
        ids = [index for number in found for index in self._ids[number]][: max_length - 2]
        return [self.begin, *ids, self.end] + [self.pad] * (max_length - 2 - len(ids))


def _name_tokens(vocab: Mapping[str, int], spec: TokenizerSpec, where: str) -> dict[str, int]:
    """The ids of `begin`, `end` and `pad`. Raises ConfigError (`tokenizer`)."""
    added, named = {token.content: token.ids for token in spec.added}, {}
    for key in ("begin", "end", "pad"):
        token = getattr(spec, key)
        ids = added.get(token) or ((vocab[token],) if token in vocab else ())
        if len(ids) != 1:
            raise _damaged(f"{key} '{token}' is no one token of this vocabulary, nor added to it", where)
        named[key] = ids[0]
    if spec.unknown not in vocab:
        raise _damaged(f"unknown '{spec.unknown}' is not in this vocabulary", where)
    return named


def _build(vocab: Mapping[str, int], merges: Merges, unknown: str, added: Sequence[Added]) -> Any:
    """The Rust pipeline that transformers 5 builds for CLIPTokenizer."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Pipeline
    from tokenizers.models import BPE

    pairs = list(dict.fromkeys(merges))  # where one stands twice, the first counts
    model = BPE(vocab=dict(vocab), merges=pairs, end_of_word_suffix="</w>", fuse_unk=False, unk_token=unknown)
    bpe = Pipeline(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.add_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.left_strip,
                rstrip=token.right_strip,
                normalized=token.normalized,
                special=True,
            )
            for token in added
        ]
    )
    return bpe


def read_vocab(path: Path) -> dict[str, int]:
    """Token -> id, within the limits that all JSON of a bundle has. Raises ConfigError (`tokenizer`)."""
    try:
        vocab = read_document(path.read_bytes(), str(path))
    except OSError as error:
        raise _damaged(f"cannot be read: {error.strerror}", str(path)) from error
    except BundleError as error:
        raise _damaged(error.message, str(path)) from error
    return check_vocab(vocab, str(path))


def check_vocab(vocab: Any, where: str) -> dict[str, int]:
    """Token -> id out of JSON. Raises ConfigError (`tokenizer`) for anything else."""
    if not isinstance(vocab, dict) or not vocab:
        kind = "no tokens" if isinstance(vocab, dict) else f"a {type(vocab).__name__}"
        raise _damaged(f"holds {kind}; it must be a JSON object that maps each token to its id", where)
    for token, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= MAX_ID:
            raise _damaged(f"token '{token}' has id {index!r:.40}; ids are whole numbers from 0 to {MAX_ID}", where)
    if len(set(vocab.values())) != len(vocab):
        raise _damaged("two tokens have the same id; every token needs its own", where)
    return vocab


def read_merges(path: Path, vocab: Mapping[str, int], *, windows: bool = False) -> list[tuple[str, str]]:
    """Pairs in order of preference; a first line that begins with `#version` is skipped. `windows` takes CR LF for
    an end of line too, which a model's own file may have and a bundle's may not. Raises ConfigError (`tokenizer`)."""
    try:
        text = path.read_bytes().decode("utf-8")  # read_text would take a lone CR for the end of a line
    except OSError as error:
        raise _damaged(f"cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        raise _damaged(f"is not UTF-8 (byte {error.start})", str(path)) from error
    text = text.replace("\r\n", "\n") if windows else text
    if "\r" in text:
        number = text[: text.index("\r")].count("\n") + 1
        raise _damaged(f"line {number} holds a carriage return; lines end with \\n alone", str(path))
    merges = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        if number == 1 and line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise _damaged(f"line {number} is '{line[:40]}'; it must be two tokens and one space", str(path))
        if missing := next((token for token in (first, second, first + second) if token not in vocab), None):
            raise _damaged(
                f"line {number} merges '{first}' and '{second}', but vocab.json has no '{missing}'; the two files "
                "must come from one tokenizer",
                str(path),
            )
        merges.append((first, second))
    return merges


def _damaged(message: str, where: str) -> ConfigError:
    return ConfigError(message, where=where, code="tokenizer")
