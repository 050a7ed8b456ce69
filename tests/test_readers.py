"""The comparison of readers: reproducible, and able to fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import readers
from tests.mutations import Mutator
from tests.readers import Manifest, ProgramReader, PythonReader, compare, list_manifests, parse_code
from tests.valid_bundle import valid_tree

VALID = valid_tree().files["manifest.json"]
FRAMES = """
import sys
while line := sys.stdin.buffer.readline():
    data = sys.stdin.buffer.read(int(line))
    if data == b"die": sys.exit(3)
    print("ok" if data.startswith(b"{") else "syntax", flush=True)
"""


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found").mkdir()
    monkeypatch.setattr(readers, "BUILD", tmp_path)
    monkeypatch.setattr(readers, "ROOT", tmp_path)


def test_the_same_seed_gives_the_same_bytes_and_another_others() -> None:
    first, again, other = (Mutator([VALID.decode()], seed) for seed in (3, 3, 4))
    assert [first.make(number) for number in (5, 0, 7)] == [again.make(number) for number in (5, 0, 7)]
    assert [first.make(number) for number in range(9)] != [other.make(number) for number in range(9)]


def test_mutations_reach_every_step_and_most_rules() -> None:
    codes = [parse_code(one.data) for one in list_manifests(1500, 0) if one.name.startswith("mutation")]
    assert len(codes) == 1500
    assert {"ok", "syntax", "version", "unknown_key", "value", "path", "file", "tensor", "carry", "shape"} <= set(codes)
    assert set(codes) <= {"ok", *readers.STEPS_2_TO_5}
    assert codes.count("value") < 0.7 * len(codes)


class Stubborn:
    """A reader that says the same of everything."""

    name = "stubborn"

    def judge(self, manifests: Sequence[bytes]) -> list[str]:
        return ["ok"] * len(manifests)


def test_a_disagreement_is_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = [Manifest("good", VALID, "ok"), Manifest("bad", b"{", None), Manifest("odd", VALID, "value")]
    totals, wrong = compare([PythonReader(), Stubborn()], iter(manifests))
    assert (totals, wrong) == ({"ok": 2, "syntax": 1}, 2)
    assert "bad: python syntax, stubborn ok (found/0.json)" in capsys.readouterr().out
    assert (tmp_path / "found" / "0.json").read_bytes() == b"{"


def test_a_reader_in_a_process_answers_frames_and_may_die() -> None:
    reader = ProgramReader("frames", [sys.executable, "-c", FRAMES])
    assert reader.judge([b"{}", b"", b"[]", b"{" * 200_000]) == ["ok", "syntax", "syntax", "ok"]
    assert reader.judge([b"{}", b"die", b"{}"]) == ["ok", "crash: ended with 3", "ok"]
    reader.close()
