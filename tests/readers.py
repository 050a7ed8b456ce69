"""Whether all readers of bundles give the same verdict, and the same code: `make readers`.

`python -m tests.readers [--count 100000] [--seed 0]` shows every reader that can be had here (Python, C++, Kotlin) the
manifests of tests/hostile.py and tests/program_cases.py, and that many seeded mutations of them. It prints every
disagreement, and how often each code was given; what was disagreed on lies in `build/readers/found`. Exit code 1 where
there is a disagreement, 2 where there are no two readers to compare.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgediff.bundle.reader import parse_manifest
from edgediff.errors import BundleError, LinkError
from tests.hostile import CASES, valid_tree
from tests.mutations import Mutator
from tests.program_cases import make_cases

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "readers"
JAR = ROOT / "android_demo" / "runner" / "target" / "edgediff-run.jar"
CHUNK = 500
STEPS_2_TO_5 = (
    *("syntax", "version", "unknown_key", "value", "path", "file", "tensor", "carry", "graph", "shape", "condition"),
    *("decoder", "preview", "program", "takes", "guidance", "history", "carry_before_write", "tokenizer"),
)


class Reader(Protocol):
    """One reader. `judge` gives `ok` or the code of each manifest, or what went wrong with the reader itself."""

    name: str

    def judge(self, manifests: Sequence[bytes]) -> list[str]: ...


class PythonReader:
    """The reader of this package."""

    name = "python"

    def judge(self, manifests: Sequence[bytes]) -> list[str]:
        return [self._one(data) for data in manifests]

    def _one(self, data: bytes) -> str:
        try:
            parse_manifest(data, "manifest.json")
        except BundleError as error:
            return error.code
        except Exception as error:  # a defect, which must not come out as a code
            return f"crash: {type(error).__name__}: {error}"
        return "ok"


class ProgramReader:
    """A program that reads frames (a decimal count of bytes, a newline, the bytes) and answers one line for each."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.command = name, list(command)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """Ends the program."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def judge(self, manifests: Sequence[bytes]) -> list[str]:
        """Where the program ends before it has answered, that manifest is to blame, and it is started again."""
        answers: list[str] = []
        while len(answers) < len(manifests):
            answers += self._judge(manifests[len(answers) :])
            if len(answers) < len(manifests):
                code = self._process.wait()
                answers.append(f"crash: ended with {code}")
                self._process = self._start()
        return answers

    def _judge(self, manifests: Sequence[bytes]) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._write, manifests)
            answers = []
            for _ in manifests:
                line = self._process.stdout.readline()
                if not line:
                    break
                answers.append(line.decode("utf-8", "replace").rstrip("\r\n"))
            writing.result()
        return answers

    def _write(self, manifests: Sequence[bytes]) -> None:
        assert self._process.stdin is not None
        try:
            for data in manifests:
                self._process.stdin.write(b"%d\n%s" % (len(data), data))
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended, which `judge` notices


@dataclass(frozen=True)
class Manifest:
    """A manifest to judge: where it comes from, and the code that it must get, where that is known."""

    name: str
    data: bytes
    code: str | None = None


def list_readers(cpp: Path | None, jar: Path | None) -> list[Reader]:
    """Those that can be had here; of the others it says why not."""
    found: list[Reader] = [PythonReader()]
    program = cpp or _build_cpp()
    if program is not None:
        found.append(ProgramReader("c++", [str(program), "--read-manifests"]))
    archive = jar or JAR
    if not archive.is_file():
        print(f"no Kotlin reader: {archive} is not there (make kotlin-runner)")
    elif shutil.which("java") is None:
        print("no Kotlin reader: there is no java")
    else:
        found.append(ProgramReader("kotlin", ["java", "-jar", str(archive), "--read-manifests"]))
    return found


def _build_cpp() -> Path | None:
    from edgediff.links._build_runner import build_reader

    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        return build_reader(BUILD / "edgediff-read")
    except LinkError as error:
        print(f"no C++ reader: {error}")
        return None


def list_manifests(count: int, seed: int) -> Iterator[Manifest]:
    """The valid ones, the hostile ones, then the mutations."""
    bases = [valid_tree().files["manifest.json"].decode()]
    yield Manifest("valid", bases[0].encode(), "ok")
    for program in make_cases():
        bases.append(program.manifest.to_json())
        yield Manifest(f"program {program.name}", bases[-1].encode(), "ok")
    for case in CASES:
        data = case.tree().files.get("manifest.json")
        if data is not None and case.code in STEPS_2_TO_5:
            own = parse_code(data)
            yield Manifest(f"hostile {case.name}", data, None if own == "ok" else case.code)
            if own not in ("syntax", "ok") and data.startswith(b"{") and len(data) < 100_000:
                bases.append(data.decode())
    mutator = Mutator(bases, seed)
    for number in range(count):
        yield Manifest(f"mutation {seed}:{number}", mutator.make(number))


def parse_code(data: bytes) -> str:
    """What Python's reader says of a manifest: `ok`, or the code."""
    return PythonReader().judge([data])[0]


def compare(readers: Sequence[Reader], manifests: Iterator[Manifest]) -> tuple[Counter[str], int]:
    """How often each code was given, and how many manifests a reader got wrong or readers disagree on; those are
    printed, and kept in
    `build/readers/found`."""
    totals: Counter[str] = Counter()
    wrong, start = 0, time.monotonic()
    with ThreadPoolExecutor(len(readers)) as pool:
        while chunk := list(itertools.islice(manifests, CHUNK)):
            data = [one.data for one in chunk]
            answers = [one.result() for one in [pool.submit(reader.judge, data) for reader in readers]]
            for one, given in zip(chunk, zip(*answers, strict=True), strict=True):
                totals[given[0]] += 1
                known = given[0] == "ok" or given[0] in STEPS_2_TO_5
                if len(set(given)) > 1 or not known or one.code not in (None, given[0]):
                    _report(wrong, one, readers, given)
                    wrong += 1
            done = sum(totals.values())
            if done % (20 * CHUNK) < CHUNK:
                print(f"{done} manifests, {wrong} disagreements, {time.monotonic() - start:.0f} s", flush=True)
    return totals, wrong


def _report(number: int, one: Manifest, readers: Sequence[Reader], answers: Sequence[str]) -> None:
    file = BUILD / "found" / f"{number}.json"
    file.write_bytes(one.data)
    wanted = "" if one.code is None else f", it must be {one.code}"
    told = ", ".join(f"{reader.name} {answer}" for reader, answer in zip(readers, answers, strict=True))
    print(f"{one.name}: {told}{wanted} ({file.relative_to(ROOT)})", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.readers", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutations (default 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpp", type=Path, metavar="PROGRAM", help="edgediff-read (default: built here)")
    parser.add_argument("--jar", type=Path, help=f"edgediff-run.jar (default: {JAR.relative_to(ROOT)})")
    given = parser.parse_args(arguments)
    readers = list_readers(given.cpp, given.jar)
    names = ", ".join(reader.name for reader in readers)
    shutil.rmtree(BUILD / "found", ignore_errors=True)
    (BUILD / "found").mkdir(parents=True)
    totals, wrong = compare(readers, list_manifests(given.count, given.seed))
    print(f"readers: {names}")
    print("verdicts: " + ", ".join(f"{code} {number}" for code, number in totals.most_common()))
    print(f"{sum(totals.values())} manifests (seed {given.seed}), {wrong} disagreements")
    if len(readers) < 2:
        print("there is one reader only, so nothing was compared", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
