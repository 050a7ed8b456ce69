"""Imports point down: every module of edgediff stands on a floor and imports only from its own or lower ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgediff"

# From the ground up; a folder counts as one module, and each name stands once. `embedded` is the trained model with the
# scripts that trained it: data to all above. `runtime` is what Kotlin and Swift repeat, so it knows nothing that is
# decided before a bundle exists; `bundle` stands below `verify`, `profiling` and `evaluation`, which open and run one.
FLOORS = """
    errors
    config plugins metrics embedded
    runtime
    graph
    documents
    weight_codes
    networks
    pipeline
    sampling
    scoring
    prune reuse
    estimate
    variants
    planning distill
    mil
    backends
    bundle
    verify
    links layouts
    evaluation profiling
    report
    flow
    cli
"""
FLOOR_OF = {name: index for index, floor in enumerate(FLOORS.strip().splitlines()) for name in floor.split()}
ENTRANCES = {"__init__", "__main__"}  # the public surface and `python -m edgediff` may name anything


def module_of(path: Path) -> str:
    """`edgediff/prune/laptop.py` -> `prune`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if module_of(path) not in ENTRANCES)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top module of every import of edgediff, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [
                f"{node.module}.{alias.name}" if node.module == "edgediff" else str(node.module) for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "edgediff" and name != "edgediff.__version__":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def test_the_floors_are_the_exact_list() -> None:
    there, listed = {module_of(path) for path in modules()}, FLOORS.split()
    assert sorted(listed) == sorted(there), "every module has one floor, and every name is a module"


def test_the_house_stays_small() -> None:
    """At most 12 modules and 36 rooms (folders and modules) at the top, 220 imports between rooms."""
    top = {path.name for path in PACKAGE.glob("*.py")}
    rooms = {module_of(path) for path in PACKAGE.rglob("*.py")}
    pairs = {(module_of(path), name) for path in PACKAGE.rglob("*.py") for _, name in imports_of(path)}
    between = {(here, there) for here, there in pairs if here != there}
    assert len(top) <= 12 and len(rooms) <= 36 and len(between) <= 220, (len(top), len(rooms), len(between))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = module_of(path)
    for line, name in imports_of(path):
        where = f"edgediff/{path.relative_to(PACKAGE)}:{line}"
        assert name in FLOOR_OF, f"{where} imports edgediff.{name}, which has no floor"
        assert FLOOR_OF[name] <= FLOOR_OF[here], (
            f"{where} imports edgediff.{name}, which stands above edgediff.{here}; "
            "move what both need to a lower module"
        )


def test_modules_of_one_floor_do_not_import_in_circles() -> None:
    edges: dict[str, set[str]] = {name: set() for name in FLOOR_OF}
    for path in modules():
        top = ast.parse(path.read_text(encoding="utf-8")).body
        lines = {node.lineno for node in top if isinstance(node, ast.Import | ast.ImportFrom)}
        edges[module_of(path)] |= {name for line, name in imports_of(path) if line in lines} - {module_of(path)}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise AssertionError(f"these import each other when they load: {' -> '.join(error.args[1])}") from None
