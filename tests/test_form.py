"""The form of the code that a formatter does not see to: how long functions and files are, and which tests wait."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import HOW_TO_RUN

ROOT = Path(__file__).parent.parent
FUNCTION_LINES, FILE_LINES = 60, 500


def functions_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and place of every function, from its `def` (or the first decorator) to its end."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.end_lineno - first + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_no_function_is_long(record_property):
    files = [path for folder in ("edgediff", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = sorted((one for path in files for one in functions_of(path)), reverse=True)
    assert len(found) > 2000, "the functions were not found"
    record_property("longest", found[0])
    long = [f"{place}: {lines} lines" for lines, place in found if lines > FUNCTION_LINES]
    assert not long, f"over {FUNCTION_LINES} lines (the longest of the others: {found[len(long)]})"


def test_no_file_is_long():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "edgediff").rglob("*.py")}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in sizes.items() if lines > FILE_LINES]
    assert not long, f"over {FILE_LINES} lines"
    assert len(sizes) > 200, "the files were not found"


def test_every_marker_has_tests_and_is_counted_where_it_did_not_run():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    registered = {line.partition(":")[0] for line in settings["markers"]}
    left_out = set(re.findall(r"not (\w+)", settings["addopts"][1]))
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    used = {name for name in registered if re.search(rf"pytest\.mark\.{name}\b", text)}
    assert set(HOW_TO_RUN) == registered == left_out == used
