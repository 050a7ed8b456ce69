"""Seeded mutations of manifests: of their structure, and of their text. The same seed and number, the same bytes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgediff.runtime import manifest as tables

RAW = "\ue000"  # on both sides of what stands in the JSON as it is, without quotes
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    {},
    [],
    [[]],
    [1.0, -1.0],
    ["batch", 2],
    ["batch", 4, 8, 8],
    [1, 6],
    [[0.1, 0.2, 0.3]] * 4,
    {"mid": "cache_out_mid"},
    {"mid": [1.0]},
    {"weights": [1.0]},
    {"weights": [1.0, 0.5], "times": "scale_minus_one"},
    {"scale": 3.0, "low": 1.0, "high": 9.0},
    {"picture": 1.0, "noise": 0.0},
    {"from": "latent"},
    {"from": "timestep"},
    {"from": "mask"},
    {"from": "guidance"},
    {"from": "class", "count": 10, "null": 10},
    {"from": "constant", "values": [1.0] * 24},
    {"from": "text_mask", "encoder": "text"},
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POWERS = [
    number for power in (14, 16, 20, 24, 28, 31, 32, 53, 63, 64) for number in (2**power - 1, 2**power, 2**power + 1)
]
NUMBERS: tuple[float, ...] = (
    *(-1, 0, 1, 2, 3, 4, 6, 8, 16, 64, 65, 200, 201, 512, 513, 1000, 1001, 4096, 4097, 10_000, 10_001, *POWERS, 10**39),
    *(-1.5, -0.0, 0.0, 0.5, 1.0, 1.5, 3.0, 1000.5, 1e30, 1.0000000001e30, -1e30, 1e-320, 1e308),
)
TOKENS = (  # of JSON, or nearly
    *_words("NaN Infinity -Infinity - 01 -01 1. .5 +1 1e 1e+ 0x10 1_000 -0 -0.0 0e0 1e400 -1e400 1E2 1e+2 1e-400"),
    *_words("100e-2 4.0 4e0 1.7976931348623157e308 1.7976931348623159e308 1e00000000000000000000000000000001"),
    *("1" * 40, "1" * 41, "0." + "0" * 38, "0." + "0" * 39, "-" + "9" * 39, "-" + "9" * 40, '{"a":1 "b":2}', "[1 2]"),
    *_words("""tru nul True None '' 'a' [1,] [,] {"a":1,} {"a"} {1:2} undefined " "\\ /**/ //a"""),
    *_words(
        r""" "\ud83d\ude00" "\ud83d" "\ude00\ud83d" "\uD83Dx" "\u12" "\u00e9" "\x41" "\/" "\u0000" "\ud800\u0061" """
    ),
    *_words(r""" "\uDBFF\uDFFF" "\b\f\n\r\t\"\\" "\ud83D\uDE00x" "\UD83D" "\u+123" "\u-123" """),
    *('"a\tb"', '"a\x7fb"', '"\x00"', "[" * 28 + "]" * 28, "[" * 31 + "]" * 31, "[" * 33 + "]" * 33),
    *('{"a":' * 30 + "1" + "}" * 30, "[" * 100_000),
)
TEXTS = (
    *("", " ", "A" * 64, "0" * 64, "x" * 200, "x" * 201, "x" * 400, "x" * 401, "a\x00", "a\n", "\x7f", "\x80", "\x9f"),
    *("\u00ad", "\u2028", "\ufeff", "\uffff", "\u212a", "e\u0301", "caf\u00e9", "\U0001f43c" * 200, "\U0001f43c" * 201),
    *_words("a K ../x /x x/ a//b ./a a/.. plan.json PLAN.JSON manifest.json tokenizer onnxruntime onnxruntime/unet"),
    *_words("a\\b C:x 1.0 2 2.0 2.1 2.00 02.0 3.0 2.0.0 batch scale encode zeros one image audio philox float16 int64"),
    *_words(
        "int32 fp16 w4a8 sequential batched prompt negative_prompt picture mask latent masked_picture constant text"
    ),
)
BYTES = (
    *(bytes([byte]) for byte in b'\x00\t\x0b\x0c\r\x1f \x7f\x80\xbf\xfe\xff"\\{}[],:0-e.un'),
    *(b"\xc0\xaf", b"\xc2\xa0", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xef\xbb\xbf", b"\xef\xbf\xbf"),
    *(b"\xf0\x80\x80\x80", b"\xf0\x9f\x90\xbc", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),
)


def _fields() -> tuple[str, ...]:
    """Every key of every table."""
    models = [one for one in vars(tables).values() if isinstance(one, type) and issubclass(one, tables.Model)]
    keys = {field.alias or name for model in models for name, field in model.model_fields.items()}
    return tuple(sorted({*keys, "source", "schema", "Name", "", "mid", "x" * 201, "a\n"}))


KEYS = _fields()


class Mutator:
    """Changes of valid documents. `bases` are texts of manifests."""

    def __init__(self, bases: Sequence[str], seed: int) -> None:
        self.bases, self.seed = bases, seed

    def make(self, number: int) -> bytes:
        """The mutation of that number."""
        chance = random.Random(f"{self.seed}:{number}")
        tree = json.loads(self.bases[chance.randrange(len(self.bases))])
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
            chance.choices(CHANGES, WEIGHTS)[0](chance, tree)
        text = _write(chance, tree)
        data = text.encode("utf-8", "surrogatepass")
        for _ in range(chance.choice((0,) * 17 + (1, 1, 2))):
            data = _damage(chance, data)
        return data


def _write(chance: random.Random, tree: Any) -> str:
    """JSON of the tree in one of several layouts."""
    layout = {"indent": chance.choice((None, None, 2)), "ensure_ascii": chance.random() < 0.5}
    separators = chance.choice(((",", ":"), (", ", ": "), (" ,\t", "\r\n:\n")))
    text = json.dumps(tree, separators=separators, **layout)
    marks = f"(?:{RAW}|{re.escape(json.dumps(RAW)[1:-1])})"
    return re.sub(f'"{marks}(\\d+){marks}"', _token, text)


def _token(match: re.Match[str]) -> str:
    return TOKENS[int(match[1])]


def _damage(chance: random.Random, data: bytes) -> bytes:
    """Bytes put in, taken out, repeated, or cut off."""
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 1, 2, 5, 40)))
    return chance.choice(
        (
            data[:at] + chance.choice(BYTES) + data[at:],
            data[:at] + chance.choice(BYTES) + data[end:],
            data[:at] + data[end:],
            data[:at] + data[at:end] + data[at:],
            data[:at],
            data + chance.choice(BYTES),
            chance.choice(BYTES) + data,
        )
    )


Place = tuple[Any, Any]  # a container, and a key or an index in it


def _places(tree: Any) -> Iterator[Place]:
    waiting = [tree]
    while waiting:
        current = waiting.pop()
        for key, value in list(current.items() if isinstance(current, dict) else enumerate(current)):
            yield current, key
            if isinstance(value, dict | list):
                waiting.append(value)


def _pick(chance: random.Random, tree: Any, kind: type | tuple[type, ...] = object) -> Place | None:
    """A place whose value is of a kind; every depth as likely as another."""
    found = [(at, key) for at, key in _places(tree) if isinstance(at[key], kind)]
    if not found:
        return None
    if chance.random() < 0.5:  # by its key, so that rows and files do not crowd out the rest
        key = chance.choice(sorted({str(key) for _, key in found}))
        found = [place for place in found if str(place[1]) == key]
    return chance.choice(found)


def _replace(chance: random.Random, tree: Any) -> None:
    if place := _pick(chance, tree):
        place[0][place[1]] = _value(chance, tree)


def _value(chance: random.Random, tree: Any) -> Any:
    kind = chance.randrange(6)
    if kind == 0:
        return chance.choice(NUMBERS)
    if kind == 1:
        return chance.choice(TEXTS)
    if kind == 2:
        return f"{RAW}{chance.randrange(len(TOKENS))}{RAW}"
    if kind == 3 and (place := _pick(chance, tree)):
        return json.loads(json.dumps(place[0][place[1]]))
    return json.loads(json.dumps(chance.choice(VALUES)))


def _other_number(chance: random.Random, tree: Any) -> None:
    place = _pick(chance, tree, (int, float))
    if place is None:
        return
    at, key = place
    value = at[key]
    near = (value + 1, value - 1, -value, value * 2, float(value), value + 0.5, int(value), str(value), 1 - value)
    at[key] = chance.choice(near if chance.random() < 0.7 else NUMBERS)


def _other_text(chance: random.Random, tree: Any) -> None:
    place = _pick(chance, tree, str)
    if place is None:
        return
    at, key = place
    other_at, other_key = _pick(chance, tree, str) or place
    near = (at[key] + "x", at[key][:-1], at[key].upper(), at[key] * 2, at[key] + "\u0301", chance.choice(TEXTS))
    keys = [name for one, _ in _places(tree) if isinstance(one, dict) for name in one]
    at[key] = chance.choice((other_at[other_key], other_at[other_key], chance.choice(near), chance.choice(keys)))


def _remove(chance: random.Random, tree: Any) -> None:
    if place := _pick(chance, tree):
        del place[0][place[1]]


def _rename(chance: random.Random, tree: Any) -> None:
    place = _pick(chance, tree)
    if place is None or not isinstance(place[0], dict):
        return
    at, key = place
    new = chance.choice((chance.choice(KEYS), chance.choice(TEXTS), f"{key}x", chance.choice(list(at))))
    items = [(new if name == key else name, value) for name, value in at.items()]
    at.clear()
    at.update(items)


def _add(chance: random.Random, tree: Any) -> None:
    place = _pick(chance, tree, (dict, list))
    at = tree if place is None else place[0][place[1]]
    if isinstance(at, dict):
        at[chance.choice(KEYS)] = _value(chance, tree)
    else:
        at.insert(chance.randrange(len(at) + 1), _value(chance, tree))


def _repeat(chance: random.Random, tree: Any) -> None:
    """A list's items again, up to and beyond the limits of short lists."""
    place = _pick(chance, tree, list)
    if place is None or not place[0][place[1]]:
        return
    items = place[0][place[1]]
    copies = json.loads(json.dumps([chance.choice(items) for _ in range(chance.choice((1, 2, 8, 65)))]))
    items[chance.randrange(len(items) + 1) :] = copies


def _reorder(chance: random.Random, tree: Any) -> None:
    place = _pick(chance, tree, (dict, list))
    at = tree if place is None else place[0][place[1]]
    if isinstance(at, dict):
        items = list(at.items())
        chance.shuffle(items)
        at.clear()
        at.update(items)
    else:
        chance.shuffle(at)


def _swap(chance: random.Random, tree: Any) -> None:
    """Two scalars change places, or two values of one object."""
    kind = chance.choice((str, int, float))
    first, second = _pick(chance, tree, kind), _pick(chance, tree, kind)
    if first is not None and second is not None:
        (a, i), (b, j) = first, second
        a[i], b[j] = b[j], a[i]


CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    *(_replace, _other_number, _other_text, _remove, _rename, _add, _repeat, _reorder, _swap),
)
WEIGHTS = (2, 7, 8, 3, 2, 2, 1, 1, 4)
