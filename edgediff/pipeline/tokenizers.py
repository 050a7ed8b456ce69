"""A model's tokenizer, whatever files it comes in, in the one normal form that bundles hold.

CLIP's byte pairs come as `vocab.json` and `merges.txt` with two files of special tokens beside them, as one
`tokenizer.json` (all that transformers 5 writes), and with `added_tokens.json` (textual inversion as transformers 4.2x
saved it). Which token is special follows transformers' rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from edgediff.config import Limits, dump_json, parse, read_outside
from edgediff.errors import ConfigError
from edgediff.runtime.manifest import Added, TokenizerSpec
from edgediff.runtime.tokenizer import Merges, Tokenizer, check_vocab, read_merges, read_vocab

_SAVED = Limits(whole=1e31)  # transformers writes 'no limit' as int(1e30)
_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_NAMES = {"bos_token": "begin", "eos_token": "end", "unk_token": "unknown", "pad_token": "pad"}


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer in normal form: `named` begin, end, unknown and pad; `added` in the order of looking for them."""

    vocab: Mapping[str, int]
    merges: Merges
    named: Mapping[str, str]
    added: tuple[Added, ...]

    def spec(self, length: int, folder: str = "tokenizer") -> TokenizerSpec:
        """What the manifest says of it, with its two files in `folder`."""
        files = {"vocab": f"{folder}/vocab.json", "merges": f"{folder}/merges.txt"}
        return TokenizerSpec(kind="clip", length=length, added=self.added, **files, **self.named)

    def write(self, folder: Path) -> None:
        """Writes `vocab.json` and `merges.txt` into the new folder."""
        folder.mkdir()
        lines = ["#version: 0.2", *(f"{first} {second}" for first, second in self.merges)]
        (folder / "vocab.json").write_bytes(dump_json(dict(self.vocab)).encode())
        (folder / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode())

    def load(self, length: int = 77) -> Tokenizer:
        """The tokenizer itself."""
        return Tokenizer.make(self.vocab, self.merges, self.spec(length))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model's folder. Raises ConfigError naming the file that is missing or damaged."""
    return read_tokenizer(Path(folder)).load()


def read_tokenizer(folder: Path) -> TokenizerParts:
    """Reads whichever files there are. Raises ConfigError (`tokenizer`), naming the file, when one is missing or
    damaged."""
    if not (folder / "vocab.json").is_file() and (folder / "tokenizer.json").is_file():
        return _read_single(folder)
    vocab = read_vocab(folder / "vocab.json")
    merges = read_merges(folder / "merges.txt", vocab, windows=True)
    named, added = _read_special(folder)
    return _make(folder / "vocab.json", vocab, merges, named, added)


def _read_single(folder: Path) -> TokenizerParts:
    """`tokenizer.json` alone. Raises ConfigError for another kind of tokenizer than CLIP's."""
    path = folder / "tokenizer.json"
    whole = _read_object(path)
    model = whole.get("model")
    steps = [
        _kinds(whole.get(key), inner)
        for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
    ]
    if not isinstance(model, dict) or (model.get("type"), model.get("end_of_word_suffix"), steps) != _CLIP:
        kind = model.get("type") if isinstance(model, dict) else None
        message = (
            f"holds a tokenizer of kind {kind!r:.40} after {steps!r:.160}; CLIP's is served: byte pairs (BPE) with "
            f"'</w>' at the end of a word, after {_CLIP[2]}"
        )
        raise _damaged(message, path)
    listed = whole.get("added_tokens") or []
    if not isinstance(listed, list):
        raise _damaged("'added_tokens' must be a list", path)
    tokens = [_token(value, path) for value in listed]
    vocab = check_vocab(model.get("vocab"), str(path))
    merges = _merges(model.get("merges"), vocab, path)
    named, special = _read_special(folder)
    known = {token["content"] for token in tokens}
    return _make(path, vocab, merges, named, tokens + [token for token in special if token["content"] not in known])


def _kinds(step: Any, inner: str) -> list[Any]:
    """The kinds of a pipeline's steps, such as `["NFC", "Replace", "Lowercase"]`."""
    if not isinstance(step, dict):
        return []
    parts = step.get(inner) if step.get("type") == "Sequence" else [step]
    return [part.get("type") if isinstance(part, dict) else None for part in parts] if isinstance(parts, list) else []


def _merges(value: Any, vocab: Mapping[str, int], path: Path) -> list[tuple[str, str]]:
    """Pairs, each given as two tokens or as one text with a space between them."""
    if not isinstance(value, list):
        raise _damaged("'model.merges' must be a list", path)
    found = []
    for index, one in enumerate(value):
        pair = one.split(" ") if isinstance(one, str) else one
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise _damaged(f"'model.merges[{index}]' = {one!r:.60}: it must be two tokens", path)
        first, second = pair
        if not {first, second, first + second} <= vocab.keys() or any(letter in first + second for letter in " \n"):
            raise _damaged(
                f"'model.merges[{index}]' = {one!r:.60}: its tokens and their joined text must be tokens", path
            )
        found.append((first, second))
    return found


def _make(
    path: Path,
    vocab: Mapping[str, int],
    merges: Merges,
    named: Mapping[str, dict[str, Any]],
    added: list[dict[str, Any]],
) -> TokenizerParts:
    """The parts. A token that the vocabulary has not gets the next free id, as with transformers; where the model's
    files say another one, their tokenizer and their embedding table do not meet, and that is an error."""
    last: dict[str, dict[str, Any]] = {}
    for token in added:  # where one text is added twice, the last one counts, in its place
        last.pop(token["content"], None)
        last[token["content"]] = token
    following, found = max(vocab.values()) + 1, []
    known = {*vocab, *(content for content, token in last.items() if "id" in token)}
    for key, token in named.items():
        if token["content"] not in known:
            message = f"{key} '{token['content']}' is not in this vocabulary; the files must come from one tokenizer"
            raise _damaged(message, path)
    for content, token in last.items():
        index = vocab.get(content, following)
        following = max(following, index + 1)
        if token.get("id", index) != index:
            message = f"added token '{content:.60}' has id {token['id']!r:.20}, and transformers would give it {index}"
            raise _damaged(f"{message}; save the tokenizer again", path)
        values = {new: token[old] for old, new in _FLAGS.items() if old in token}
        found.append(parse({"content": content, "ids": [index], **values}, Added, where=str(path)))
    return TokenizerParts(vocab, merges, {_NAMES[key]: token["content"] for key, token in named.items()}, tuple(found))


_CLIP = ("BPE", "</w>", [["NFC", "Replace", "Lowercase"], ["Split", "ByteLevel"]])
_FLAGS = {"normalized": "normalized", "single_word": "single_word", "lstrip": "left_strip", "rstrip": "right_strip"}


def read_length(folder: Path) -> int | None:
    """`model_max_length`, in tokens; None where nothing limits it. Raises ConfigError for anything but a number."""
    path = folder / "tokenizer_config.json"
    length = _read_object(path, optional=True).get("model_max_length")
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
        raise _damaged(f"'model_max_length' = {length!r:.60}: it must be a number of tokens, 1 or more", path)
    return int(length)


def _read_special(folder: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Begin, end, unk and padding, and all added tokens, as AddedToken arguments, by transformers' rules.

    `added_tokens_decoder` in tokenizer_config.json decides where it exists; otherwise special_tokens_map.json
    goes before tokenizer_config.json, and CLIP's own tokens stand for what neither names. Where one text is
    added twice with other properties, the last one counts (in SD 1.5 the padding, which is not normalized).
    `added_tokens.json` counts where there is no `added_tokens_decoder`.
    """
    path = folder / "tokenizer_config.json"
    config = _read_object(path, optional=True)
    given = {key: (config[key], path) for key in _DEFAULTS if config.get(key) is not None}
    if (decoder := config.get("added_tokens_decoder")) is None:
        path = folder / "special_tokens_map.json"
        special = _read_object(path, optional=True)
        given |= {key: (special[key], path) for key in _DEFAULTS if special.get(key) is not None}
    named = {key: _token(*given.get(key, (default, path))) for key, default in _DEFAULTS.items()}
    if decoder is None:
        added = _saved_by_version_4(folder / "added_tokens.json", {named[key]["content"] for key in given})
    else:
        added = _decoded(decoder, path)
    known = {token["content"] for token in added}
    return named, added + [token for token in named.values() if token["content"] not in known]


def _saved_by_version_4(path: Path, special: set[str]) -> list[dict[str, Any]]:
    """The tokens of `added_tokens.json`: token -> id. Those that are not special are looked for after lowercasing."""
    if not path.exists():
        return []
    ids = check_vocab(read_outside(path, RootModel[Any]).root, str(path))
    found = sorted(ids.items(), key=lambda item: item[1])
    return [{"content": text, "normalized": text not in special, "id": index} for text, index in found]


def _decoded(decoder: Any, path: Path) -> list[dict[str, Any]]:
    """The tokens of `added_tokens_decoder`: id -> token, in the order of their ids."""
    if decoder is None:
        return []
    if not isinstance(decoder, dict) or not all(key.isascii() and key.isdecimal() for key in decoder):
        raise _damaged(f"'added_tokens_decoder' = {decoder!r:.60}: it must map ids to tokens", path)
    return [{**_token(value, path), "id": int(key)} for key, value in sorted(decoder.items(), key=_by_number)]


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    return len(item[0]), item[0]


def _token(value: Any, path: Path) -> dict[str, Any]:
    """AddedToken's arguments from its text or its JSON; a token given as text is matched before normalizing."""
    if isinstance(value, str):
        return {"content": value, "normalized": False}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise _damaged(f"a special token is {value!r:.60}; it must be text, or an object with 'content'", path)
    for key in _FLAGS:
        if not isinstance(value.get(key, False), bool):
            raise _damaged(f"token '{value['content']:.60}' has {key} = {value[key]!r:.40}; it is true or false", path)
    return {key: value[key] for key in ("content", "id", *_FLAGS) if key in value}


def _read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    found: dict[str, Any] = read_outside(path, RootModel[dict[str, Any]], limits=_SAVED).root
    return found


def _damaged(message: str, path: Path) -> ConfigError:
    return ConfigError(message, where=str(path), code="tokenizer")
