"""Token ids: transformers' CLIPTokenizer, and the golden file that Kotlin and Swift read.

`EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_tokenizer.py` writes tests/golden/tokenizer.json anew.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from edgediff.errors import ConfigError
from edgediff.pipeline.tokenizers import load_tokenizer, read_length, read_tokenizer
from edgediff.runtime.manifest import Added, TokenizerSpec
from edgediff.runtime.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "tokenizer.json"
EMBEDDED = Path(__file__).parent.parent / "edgediff" / "embedded" / "glyph" / "tokenizer"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CORPUS = """a photo of a red heart on the table it's the man's they'll we've i'd i'm you're can't
a small blue star in the night sky over water with a golden crown and three green leaves an oil painting
highly detailed digital art portrait of an old king walking through the rain in a forest café naïve"""
SPECIAL = {  # what special_tokens_map.json says: nothing, SD 2's padding, normalized tokens, SD 1.5's mix
    "plain": {},
    "pad": {"pad_token": "!"},
    "normalized": {
        key: {"content": text, "normalized": True, "lstrip": False, "rstrip": False, "single_word": False}
        for key, text in (("bos_token", BEGIN), ("eos_token", END), ("unk_token", END), ("pad_token", END))
    },
    "sd15": {
        "bos_token": {"content": BEGIN, "normalized": True},
        "eos_token": {"content": END, "normalized": True},
        "unk_token": {"content": END, "normalized": True},
        "pad_token": END,
    },
}
WRITTEN = [
    "",
    " ",
    "a",
    "A photo of a RED heart",
    "  two   spaces\tand\ttabs\n\nand lines\r\n ",
    "it's we've I'D can't",
    "''s 's's !'s 'S ’s",
    "don't'll",
    "123 4567 3.14 ½ ² Ⅷ ٣ ४",
    "hello!!! ... ?!?",
    "snake_case kebab-case",
    END,
    f"a {END} b",
    f"{BEGIN}{BEGIN} a",
    "<|ENDOFTEXT|> x <|EndOfText|>",
    "<|endoftext |>",
    "<|startoftext",
    "a!b ! !!",
    "café cafe\u0301 CAFE\u0301",
    "ÅÅA\u030a",
    "ΣΑΣ ΟΔΟΣ σς",
    "İstanbul IĞDIR ıi",
    "STRASSE straße ẞ",
    "ﬁ ﬂ ﬀ",
    "Ǆ ǅ ǆ",
    "中文字符 测试",
    "日本語のテキスト カタカナ ｶﾞ",
    "한국어 한",
    "हिन्दी क्षि",
    "ไทย",
    "עברית שָׁלוֹם",
    "العربية مُحَمَّد",
    "🙂",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇫🇷 flags",
    "👍🏽 thumbs",
    "❤️ ❤",
    "a🙂b",
    "☃★♥♦",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙",
    "\u00a0nbsp\u00a0",
    "\u3000wide\u3000",
    "\u2028line\u2029para",
    "\u0085next",
    "\u1680ogham",
    "\u180emvs",
    "zero\u200bwidth",
    "join\u200der",
    "\ufeffbom",
    "\u202eright to left",
    "soft\u00adhyphen",
    "\x00nul",
    "\x07\x1b[0m",
    "\x1c\x1d\x1e\x1f",
    "\x0b\x0c",
    "\x7f\x80\x9f",
    "\ufffd\uffff",
    "\ue000private",
    "\U000e0041tag",
    "\U0010ffff",
    "a\u0300\u0301\u0302\u0303",
    "\u0301leading mark",
    "e\u0301\u0301",
    "\u1e9b\u0323",
    "\u212b \u2126 \u212a",
    "Ϋ́ ΰ",
    "the the the",
    "THE",
    "t he",
    "a" * 100,
    "the " * 60,
    "1" * 90,
    "heart" * 30,
    "!" * 40,
    "中" * 50,
    "tab\tend\t",
    "quote \"double\" 'single' `tick`",
    "back\\slash /slash",
    "emoji🙂🙂🙂 mixed文字 text123",
    "ªº ¹²³ ¼ ¨ ´",
    "№ ℃ ™ © ®",
    "—–-‐‑",
    "…",
    "‘’“”«»",
    "•·‣",
    "ʼn ŉ ǰ",
    "Ω ω Ω",
    "ı̇",
    "j̇",
    "Ⓐⓐ Ⅰⅰ",
    "Ա ա Ⴀ ⴀ",
]
ADDED = (  # of the group `added`: every property that a token may have, one id and several
    {"content": "<cat>", "ids": (700, 701, 702)},
    {"content": "<word>", "ids": (703,), "single_word": True},
    {"content": "<left>", "ids": (704,), "left_strip": True},
    {"content": "<right>", "ids": (705,), "right_strip": True},
    {"content": "red heart", "ids": (706, 707), "normalized": True},
    {"content": "<whole>", "ids": (708,), "normalized": True, "single_word": True, "left_strip": True},
    {"content": "\u00c9t\u00e9", "ids": (709,), "normalized": True},
)
ADDED_TEXTS = [
    "<cat>",
    "a <cat> on the table",
    "a<cat>b<cat><cat>",
    "<CAT> <Cat>",
    "<word> a <word>b c<word> d <word>.",
    "a_<word> 1<word> <word><word>",
    "a  <left>  b<left> <left>",
    "a  <right>  b<right> <right>",
    "red heart RED HEART Red  Heart",
    "redheart red\nheart xred hearty",
    "<whole> a  <WHOLE>  b<whole> <whole>c",
    "\u00e9t\u00e9 \u00c9T\u00c9 e\u0301te\u0301",
    "<cat" + "><cat>",
    f"<cat>{END}<cat>",
    "<cat> " * 20,
    "<left><right><cat><word>",
]
RANGES = [  # in Unicode since version 3.2 at the latest, where the category is asked for
    (0x20, 0x7E),
    (0x00, 0xFF),
    (0x100, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2100, 0x21FF),
    (0x2600, 0x26FF),
    (0x3040, 0x30FF),
    (0x4E00, 0x4EFF),
    (0xAC00, 0xAC7F),
    (0xFF00, 0xFFEF),
    (0x1D400, 0x1D4FF),
]


def make_texts() -> list[str]:
    """500 texts: the written ones, then seeded mixtures of words, marks and odd characters."""
    chance = random.Random(0)
    known = [
        [chr(c) for c in range(low, high + 1) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs")]
        for low, high in RANGES
    ]
    words = [*CORPUS.split(), "'s", "'ll", "'", "!", "<|", "|>", "  ", "\n", "🙂", "👍🏽", "٣", "é", "HEART", END]
    texts = list(WRITTEN)
    while len(texts) < 500:
        if len(texts) % 2:
            parts = [chance.choice(words) for _ in range(chance.randint(1, 12))]
            texts.append(chance.choice(["", " "]).join(parts))
        else:
            pools = chance.sample(known, 2)
            texts.append("".join(chance.choice(chance.choice(pools)) for _ in range(chance.randint(1, 16))))
    return texts


def byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, as in every CLIP vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(len(odd))]


def train(count: int) -> tuple[dict[str, int], list[str]]:
    """A CLIP-format vocabulary with `count` merges learned from CORPUS; ties go to the smaller pair."""
    table = dict(zip([*range(33, 127), *range(161, 173), *range(174, 256)], byte_characters(), strict=False))
    rest = [byte for byte in range(256) if byte not in table]
    table.update({byte: chr(256 + n) for n, byte in enumerate(rest)})
    words = [[table[b] for b in word.encode()] for word in CORPUS.replace("'", " '").split()]
    words = [[*word[:-1], word[-1] + "</w>"] for word in words]
    vocab = {c: i for i, c in enumerate([*byte_characters(), *(c + "</w>" for c in byte_characters())])}
    merges: list[str] = []
    for _ in range(count):
        pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{first} {second}")
        vocab[first + second] = len(vocab)
        words = [merge(word, first, second) for word in words]
    vocab.update({BEGIN: len(vocab), END: len(vocab) + 1})
    return vocab, merges


def merge(word: list[str], first: str, second: str) -> list[str]:
    out: list[str] = []
    for symbol in word:
        if out and out[-1] == first and symbol == second:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def write_folder(folder: Path, vocab: dict, merges: list[str], special: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    if special:
        (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return folder


def added_spec(spec: TokenizerSpec) -> TokenizerSpec:
    """The plain tokenizer with the tokens of `ADDED` besides."""
    return spec.model_copy(update={"added": (*spec.added, *(Added(**one) for one in ADDED))})


def golden_groups(tmp_path: Path, vocab: dict[str, int], merges: list[str]) -> list[tuple[str, dict, Tokenizer, dict]]:
    """(name, what the manifest says, the tokenizer, what the model's folder says) of each group."""
    found = []
    for name, special in SPECIAL.items():
        parts = read_tokenizer(write_folder(tmp_path / name, vocab, merges, special))
        found.append((name, parts.spec(77), parts.load(), special))
    parts = read_tokenizer(write_folder(tmp_path / "added", vocab, merges, {}))
    spec = added_spec(parts.spec(77))
    found.append(("added", spec, Tokenizer.make(parts.vocab, parts.merges, spec), {}))
    return [(name, spec.model_dump(exclude_none=True), tokenizer, special) for name, spec, tokenizer, special in found]


def golden_text(tmp_path: Path) -> str:
    """The golden file: JSON with one case a line, so that a diff shows the case."""
    vocab, merges = train(120)
    groups = []
    for name, spec, tokenizer, special in golden_groups(tmp_path, vocab, merges):
        texts = {"plain": make_texts(), "added": [*ADDED_TEXTS, *WRITTEN]}.get(name, WRITTEN)
        lines = []
        for i, text in enumerate(texts):
            length = (16, 24, 77)[2 if i % 40 == 0 else i % 2]
            case = {"text": text, "max_length": length, "ids": tokenizer.encode(text, length)}
            lines.append("      " + json.dumps(case))
        said = f'"special_tokens_map": {json.dumps(special)},\n     "tokenizer": {json.dumps(spec)}'
        head = f'    {{"name": "{name}", {said}, "cases": [\n'
        groups.append(head + ",\n".join(lines) + "\n    ]}")
    about = (
        "Ids as transformers' CLIPTokenizer(text, padding='max_length', truncation=True, max_length=...) gives "
        "them; `tokenizer` is what a bundle's manifest says of it. Written by "
        "EDGEDIFF_WRITE_GOLDEN=1 pytest tests/test_tokenizer.py"
    )
    head = [f'  "about": {json.dumps(about)}', f'  "vocab": {json.dumps(vocab)}', f'  "merges": {json.dumps(merges)}']
    return "{\n" + ",\n".join(head) + ',\n  "groups": [\n' + ",\n".join(groups) + "\n  ]\n}\n"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_golden_file_holds_what_the_tokenizer_gives(tmp_path: Path):
    text = golden_text(tmp_path)
    if os.environ.get("EDGEDIFF_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", SPECIAL)
def test_ids_are_those_of_transformers(name: str, golden: dict, tmp_path: Path):
    from transformers import CLIPTokenizer

    group = next(group for group in golden["groups"] if group["name"] == name)
    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], group["special_tokens_map"])
    theirs, ours = CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert len(group["cases"]) >= (500 if name == "plain" else 80)
    for case in group["cases"]:
        length = case["max_length"]
        expected = theirs(case["text"], padding="max_length", truncation=True, max_length=length).input_ids
        assert ours.encode(case["text"], length) == expected == case["ids"], repr(case["text"])


def test_added_tokens_of_tokenizer_config_are_read_as_transformers_reads_them(golden: dict, tmp_path: Path):
    from transformers import CLIPTokenizer

    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {"pad_token": "ignored here"})
    common = {"lstrip": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "added_tokens_decoder": {
            "0": {"content": "!", "normalized": False, "special": True, **common},
            str(golden["vocab"][BEGIN]): {"content": BEGIN, "normalized": True, "special": True, **common},
            str(golden["vocab"][END]): {"content": END, "normalized": False, "special": True, **common},
        },
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": END,
        "pad_token": "!",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert ours.pad == 0
    for text in [*WRITTEN, "<|STARTOFTEXT|>a<|ENDOFTEXT|>!"]:
        expected = theirs(text, padding="max_length", truncation=True, max_length=20).input_ids
        assert ours.encode(text, 20) == expected, repr(text)


def agree(folder: Path, texts: list[str], length: int = 24) -> None:
    from transformers import CLIPTokenizer

    theirs, ours = CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in texts:
        expected = theirs(text, padding="max_length", truncation=True, max_length=length).input_ids
        assert ours.encode(text, length) == expected, repr(text)


@pytest.mark.parametrize("name", SPECIAL)
def test_tokenizer_json_alone_is_enough(name: str, golden: dict, tmp_path: Path):
    """What transformers 5 saves."""
    from transformers import CLIPTokenizer

    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], SPECIAL[name])
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    agree(tmp_path / "saved", WRITTEN)
    two, one = read_tokenizer(folder), read_tokenizer(tmp_path / "saved")
    assert (one.vocab, list(one.merges), one.named) == (two.vocab, list(two.merges), two.named)


def test_added_tokens_json_adds_tokens(golden: dict, tmp_path: Path):
    """Textual inversion as transformers 4 saved it: tokens after the vocabulary, looked for after lowercasing."""
    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {})
    size = len(golden["vocab"])
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": size, "Big": size + 1, END: size - 1}))
    texts = [*WRITTEN, "a <cat-toy> b", "a<CAT-TOY>b", "big Big BIG", "xbigx", f"<cat-toy>{END}"]
    agree(folder, texts)
    ids = load_tokenizer(folder).encode("a <cat-toy> b", 8)
    assert size in ids
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": size + 6}))
    with pytest.raises(ConfigError, match=f"has id {size + 6}, and transformers would give it {size}"):
        load_tokenizer(folder)


def test_properties_of_added_tokens_are_those_of_transformers(golden: dict, tmp_path: Path):
    """The group `added` of the golden file, but for its tokens of several ids, as a tokenizer_config.json says it."""
    folder, vocab = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {}), golden["vocab"]
    names = {"single_word": "single_word", "left_strip": "lstrip", "right_strip": "rstrip", "normalized": "normalized"}
    listed = [{"content": BEGIN}, {"content": END}, *ADDED]
    decoder = {
        str(len(vocab) - 2 + index): {
            "content": one["content"],
            "special": True,
            **{theirs: one.get(ours, False) for ours, theirs in names.items()},
        }
        for index, one in enumerate(listed)
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), encoding="utf-8")
    agree(folder, [*ADDED_TEXTS, *WRITTEN])


def test_one_token_may_stand_for_several_ids(golden: dict, tmp_path: Path):
    parts = read_tokenizer(write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {}))
    tokenizer = Tokenizer.make(parts.vocab, parts.merges, added_spec(parts.spec(77)))
    a, begin, end = golden["vocab"]["a</w>"], golden["vocab"][BEGIN], golden["vocab"][END]
    assert tokenizer.encode("a <cat> a", 8) == [begin, a, 700, 701, 702, a, end, end]
    assert tokenizer.encode("a <cat> a", 5) == [begin, a, 700, 701, end], "cut in the middle of it"


def test_the_normal_form_is_the_same_tokenizer(golden: dict, tmp_path: Path):
    """What a bundle holds, read by `Tokenizer.load`; ids may have gaps, and a merge that stands twice counts once."""
    parts = read_tokenizer(write_folder(tmp_path / "t", golden["vocab"], golden["merges"], SPECIAL["sd15"]))
    parts.write(tmp_path / "tokenizer")
    ours, again = parts.load(), Tokenizer.load(tmp_path, parts.spec(77))
    assert all(ours.encode(text, 24) == again.encode(text, 24) for text in WRITTEN)
    sparse = {token: 3 * index for token, index in parts.vocab.items()}
    added = tuple(one.model_copy(update={"ids": tuple(3 * i for i in one.ids)}) for one in parts.added)
    spec = parts.spec(77).model_copy(update={"added": added})
    wide = Tokenizer.make(sparse, [*parts.merges, *parts.merges[:5][::-1]], spec)
    assert all([3 * index for index in ours.encode(text, 24)] == wide.encode(text, 24) for text in WRITTEN)


def test_truncation_keeps_the_end_and_padding_fills_up(golden: dict, tmp_path: Path):
    tokenizer = load_tokenizer(write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {}))
    short, long = tokenizer.encode("a", 8), tokenizer.encode("the red heart " * 50, 8)
    assert (len(short), len(long)) == (8, 8)
    assert (short[0], short[2:]) == (tokenizer.begin, [tokenizer.end] * 6)
    assert (long[0], long[-1]) == (tokenizer.begin, tokenizer.end)
    assert tokenizer.end not in long[:-1]
    assert tokenizer.encode("", 2) == [tokenizer.begin, tokenizer.end]
    assert tokenizer.vocab_size == len(golden["vocab"])
    with pytest.raises(ConfigError, match="max_length = 1; a text needs at least 2 tokens"):
        tokenizer.encode("a", 1)
    with pytest.raises(ConfigError, match="half a surrogate pair at character 2"):
        tokenizer.encode("ab\ud83d", 8)


DAMAGE = {
    "vocab missing": ("vocab.json", None, "No such file"),
    "merges missing": ("merges.txt", None, "No such file"),
    "vocab cut off": ("vocab.json", '{"a": 0, "b"', "is not JSON"),
    "vocab a list": ("vocab.json", "[1]", "holds a list; it must be a JSON object"),
    "vocab empty": ("vocab.json", "{}", "holds no tokens"),
    "id a text": ("vocab.json", '{"a": "0"}', "token 'a' has id '0'; ids are whole numbers from 0"),
    "id twice": ("vocab.json", '{"a": 0, "b": 0}', "two tokens have the same id"),
    "merge of three": ("merges.txt", "#version: 0.2\na b c\n", "line 2 is 'a b c'; it must be two tokens"),
    "merge unknown": ("merges.txt", "t hx\n", "line 1 merges 't' and 'hx', but vocab.json has no 'hx'"),
    "pad unknown": ("special_tokens_map.json", '{"pad_token": "<pad>"}', "pad_token '<pad>' is not in this voc"),
    "token a number": ("special_tokens_map.json", '{"pad_token": 3}', "a special token is 3; it must be text"),
    "config cut off": ("tokenizer_config.json", "{", "is not JSON"),
    "config of 5000 digits": ("tokenizer_config.json", '{"a": ' + "9" * 5000 + "}", "is not JSON"),
    "pad false": ("tokenizer_config.json", '{"pad_token": false}', "a special token is False"),
    "decoder a list": ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "it must map ids to tokens"),
    "decoder a text": ("tokenizer_config.json", '{"added_tokens_decoder": "x"}', "it must map ids to tokens"),
    "decoder of words": ("tokenizer_config.json", '{"added_tokens_decoder": {"a": "x"}}', "it must map ids"),
    "flag a text": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"0": {"content": "!", "single_word": "x"}}}',
        "single_word = 'x'; it is true or false",
    ),
    "added a list": ("added_tokens.json", "[]", "holds a list; it must be a JSON object"),
    "added id a text": ("added_tokens.json", '{"<cat>": "5"}', "has id '5'"),
    "merges with CR alone": ("merges.txt", "#version: 0.2\rt h\r", "line 1 holds a carriage return"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_missing_or_damaged_file_is_named(name: str, golden: dict, tmp_path: Path):
    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {})
    file, content, message = DAMAGE[name]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_tokenizer(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert file in str(error.value) or name == "pad unknown"


def test_the_tokenizer_needs_neither_torch_nor_transformers(golden: dict, tmp_path: Path):
    folder = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {})
    code = (
        "import sys; from edgediff.pipeline.tokenizers import load_tokenizer; "
        f"load_tokenizer({str(folder)!r}).encode('a heart', 8); "
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=GOLDEN.parent.parent.parent)


SINGLE = {
    "no JSON": ("{", "is not JSON"),
    "Unigram": ('{"model": {"type": "Unigram"}}', "of kind 'Unigram'"),
    "no end of word": ('{"model": {"type": "BPE"}}', "CLIP's is served"),
    "another normalizer": ("normalizer", {"type": "NFD"}, "CLIP's is served"),
    "no vocabulary": ("model.vocab", None, "holds a NoneType"),
    "a merge of three": ("model.merges", ["t h e"], "it must be two tokens"),
    "a merge of what is no token": ("model.merges", [["t", "hx"]], "must be tokens"),
    "added tokens a text": ("added_tokens", "x", "'added_tokens' must be a list"),
    "an added token without content": ("added_tokens", [{"id": 3}], "an object with 'content'"),
    "another id": ("added_tokens", [{"content": "<cat>", "id": 9}], "transformers would give it"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_damaged_tokenizer_json_is_named(name: str, golden: dict, tmp_path: Path):
    from transformers import CLIPTokenizer

    *change, message = SINGLE[name]
    folder = tmp_path / "saved"
    source = write_folder(tmp_path / "t", golden["vocab"], golden["merges"], {})
    CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
    if len(change) == 1:
        (folder / "tokenizer.json").write_text(change[0])
    else:
        whole = json.loads((folder / "tokenizer.json").read_text())
        at, (*parents, last) = whole, change[0].split(".")
        for part in parents:
            at = at[part]
        at[last] = change[1]
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_tokenizer(folder)
    assert "tokenizer.json" in str(error.value)


@pytest.mark.skipif(not (EMBEDDED / "vocab.json").exists(), reason="the embedded model is not built yet")
def test_the_embedded_model_s_tokenizer_agrees_with_transformers():
    from transformers import CLIPTokenizer

    theirs, ours = CLIPTokenizer.from_pretrained(EMBEDDED), load_tokenizer(EMBEDDED)
    for text in make_texts():
        expected = theirs(text, padding="max_length", truncation=True, max_length=24).input_ids
        assert ours.encode(text, 24) == expected, repr(text)


def test_a_length_without_limit_is_the_encoders_own(tmp_path):
    """transformers writes int(1e30) where a tokenizer has no limit."""
    path = tmp_path / "tokenizer_config.json"
    assert read_length(tmp_path) is None
    for written, length in (("77", 77), ("1000000000000000019884624838656", 10**30 + 19884624838656), ("null", None)):
        path.write_text(f'{{"model_max_length": {written}}}')
        assert read_length(tmp_path) == length
    for written in ("true", '"77"', "0", "-1", "[]"):
        path.write_text(f'{{"model_max_length": {written}}}')
        with pytest.raises(ConfigError, match="'model_max_length' = .*: it must be a number of tokens"):
            read_length(tmp_path)
