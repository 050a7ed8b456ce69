"""No test reaches the network or the user's cache; the last lines say which tests did not run, and how to run them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

HOW_TO_RUN = {  # every marker of pyproject.toml, which leaves them all out of `make test`
    "slow": "make test-slow",
    "aarch64": "make test-aarch64",
    "optimum": "make test-optimum",
    "deepcache": "pip install -e '.[bench]', then pytest -m deepcache",
}
LEFT_OUT = pytest.StashKey[Counter[str]]()

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.pop("EDGEDIFF_DEBUG", None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Tiny networks run faster on one thread, above all where other work wants the cores too."""
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        counts = item.config.stash.setdefault(LEFT_OUT, Counter())
        counts.update(marker for marker in HOW_TO_RUN if item.get_closest_marker(marker))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its counts on: the lines are written by the process that started it."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["left_out"] = dict(session.config.stash.get(LEFT_OUT, Counter()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker leaves out the same tests."""
    counts = node.config.stash.setdefault(LEFT_OUT, Counter())
    for marker, count in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        counts[marker] = max(counts[marker], count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for marker, count in sorted(config.stash.get(LEFT_OUT, Counter()).items()):
        tests = "test" if count == 1 else "tests"
        terminalreporter.write_line(f"not run: {count} {tests} marked {marker} ({HOW_TO_RUN[marker]})")
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")] += 1
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"skipped: {count} ({reason})")
