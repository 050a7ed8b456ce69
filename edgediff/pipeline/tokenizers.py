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

from edgediff.config import dump_json, read_outside
from edgediff.errors import ConfigError
from edgediff.runtime.manifest import Added, TokenizerSpec
from edgediff.runtime.tokenizer import Merges, Tokenizer, read_merges, read_vocab

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
    """Reads whichever files there are. Raises ConfigError, naming the file, when one is missing or damaged."""
    if not (folder / "vocab.json").is_file() and (folder / "tokenizer.json").is_file():
        return _read_single(folder)
    vocab = read_vocab(folder / "vocab.json")
    merges = read_merges(folder / "merges.txt", vocab, windows=True)
    named, added = _read_special(folder)
    extra = _read_object(folder / "added_tokens.json", optional=True)
    ids = {**vocab, **{str(token): index for token, index in extra.items()}}
    return _make(folder / "vocab.json", vocab, merges, named, added, ids)


def _read_single(folder: Path) -> TokenizerParts:
    """`tokenizer.json` alone. Raises ConfigError for another kind of tokenizer than CLIP's."""
    path = folder / "tokenizer.json"
    whole = _read_object(path)
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        kind = model.get("type") if isinstance(model, dict) else None
        message = f"holds a tokenizer of kind {kind!r:.40}; CLIP's byte pairs (BPE, end of word '</w>') are served"
        raise ConfigError(message, where=str(path), code="tokenizer")
    listed = whole.get("added_tokens") or []
    tokens = [_token(value, path) for value in listed] if isinstance(listed, list) else []
    added_ids = {value["content"]: value.get("id") for value in listed if isinstance(value, dict)}
    vocab = _vocab(model.get("vocab"), path)
    merges = _merges(model.get("merges"), vocab, path)
    named, special = _read_special(folder)
    known = {token["content"] for token in tokens}
    added = tokens + [token for token in special if token["content"] not in known]
    return _make(path, vocab, merges, named, added, {**vocab, **added_ids})


def _vocab(value: Any, path: Path) -> dict[str, int]:
    if not isinstance(value, dict) or not all(
        isinstance(index, int) and 0 <= index <= 2**24 for index in value.values()
    ):
        raise ConfigError("'model.vocab' must map tokens to ids", where=str(path), code="tokenizer")
    return value


def _merges(value: Any, vocab: Mapping[str, int], path: Path) -> list[tuple[str, str]]:
    pairs = [tuple(one.split(" ")) if isinstance(one, str) else one for one in value] if isinstance(value, list) else []
    found = []
    for index, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair) or "".join(pair) not in vocab:
            message = f"'model.merges[{index}]' = {pair!r:.60}: two tokens whose joined text is one too"
            raise ConfigError(message, where=str(path), code="tokenizer")
        found.append((pair[0], pair[1]))
    return found


def _make(
    path: Path,
    vocab: Mapping[str, int],
    merges: Merges,
    named: Mapping[str, dict[str, Any]],
    added: list[dict[str, Any]],
    ids: Mapping[str, Any],
) -> TokenizerParts:
    for key, token in named.items():
        if token["content"] not in ids:
            message = f"{key} '{token['content']}' is not in this vocabulary; the files must come from one tokenizer"
            raise ConfigError(message, where=str(path), code="tokenizer")
    last: dict[str, dict[str, Any]] = {}
    for token in added:  # where one text is added twice, the last one counts, in its place
        last.pop(token["content"], None)
        last[token["content"]] = token
    following = max(vocab.values()) + 1
    found = []
    for content, token in last.items():
        index = ids.get(content)
        if index is None:
            index, following = following, following + 1
        flags = {new: bool(token.get(old, False)) for old, new in _FLAGS.items()}
        found.append(Added(content=content, ids=(index,), **flags))
    return TokenizerParts(vocab, merges, {_NAMES[key]: token["content"] for key, token in named.items()}, tuple(found))


_FLAGS = {"normalized": "normalized", "single_word": "single_word", "lstrip": "left_strip", "rstrip": "right_strip"}


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
    found: dict[str, Any] = read_outside(path, RootModel[dict[str, Any]]).root
    return found
