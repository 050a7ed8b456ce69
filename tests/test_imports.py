"""The public surface, what importing it costs, and that every name is public or private on purpose."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgediff

PACKAGE = Path(edgediff.__file__).parent
TESTS = Path(__file__).parent
TORCH_FREE = (
    "errors",
    "config",
    "plugins",
    "graph.units",
    "graph.schedule",
    "runtime.steps",
    "documents.recipe",
    "documents.target",
    "documents.plan",
    "runtime.manifest",
    "runtime.latency",
    "metrics",
    "documents.schemas",
    "runtime.rng",
    "runtime.tokenizer",
    "bundle",
    "runtime",
    "profiling",
    "report",
    "cli.main",
    "cli.doctor",
    "estimate",
    "links.adb",
    "links._imports",
    "links.ai_hub",
    "links._build_runner",
    "profiling.calibrate",
)
QUICK_COMMANDS = (["recipes"], ["devices"], ["methods"], ["inspect", "nowhere"])


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_every_public_name_is_there():
    for name in edgediff.__all__:
        value = getattr(edgediff, name)
        if name != "__version__":
            assert value.__module__ == f"edgediff.{edgediff._PUBLIC[name]}", f"edgediff.{name} is defined elsewhere"
            assert value.__doc__, f"edgediff.{name} has no docstring"


def test_the_surface_is_what_it_says():
    assert dir(edgediff) == sorted(edgediff.__all__)
    with pytest.raises(AttributeError, match="module 'edgediff' has no attribute 'make_coffee'"):
        _ = edgediff.make_coffee


def test_type_checkers_see_the_same_table():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {node.names[0].name: node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == {name: f"edgediff.{module}" for name, module in edgediff._PUBLIC.items()}


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in TORCH_FREE)], ids=lambda name: f"edgediff{name}")
def test_torch_is_not_imported_by(module):
    assert run_python(f"import sys, edgediff{module}; print('torch' in sys.modules)") == "False\n"


def test_import_edgediff_imports_next_to_nothing():
    heavy = run_python("import sys, edgediff; print(*({'pydantic', 'numpy', 'torch', 'rich'} & set(sys.modules)))")
    assert heavy == "\n"


def test_the_command_line_with_all_its_commands_imports_next_to_nothing():
    heavy = "{'pydantic', 'numpy', 'torch', 'rich', 'PIL', 'subprocess'}"
    assert run_python(f"import sys, edgediff.cli.main; print(*({heavy} & set(sys.modules)))") == "\n"


@pytest.mark.parametrize("arguments", QUICK_COMMANDS, ids=" ".join)
def test_quick_commands_do_without_torch(arguments):
    code = "import sys; from edgediff.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    assert run_python(code, *arguments).endswith("False\n")


# Public on purpose: in `edgediff.__all__`, used by another module or a test, part of a protocol below, or at least
# documented for whoever composes stages of their own. Everything else wears an underscore.
PROTOCOLS = {
    "prune": {"score", "propose"},
    "reuse": {"score", "propose"},
    "tokens": {"propose"},
    "networks": {"describe_units", "run_unit", "pass_unit", "example_inputs", "unit_parameters", "stream_parameters"},
    "backends": {"lower", "open_runner"},
    "links": {"push", "run", "pull"},
}


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def names_used(path: Path) -> set[str]:
    """Every name, attribute and imported name in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
    return found


USED = {path: names_used(path) for path in [*module_files(), *TESTS.rglob("*.py")]}


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_function_is_public_or_private_on_purpose(path):
    if path.parent.name == "embedded":
        return  # programs that train the demo model
    used = set(edgediff.__all__) | PROTOCOLS.get(path.parent.name, set()) | {"main"}
    used |= {name for other, names in USED.items() if other != path for name in names}
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    public = [f for f in functions if not f.name.startswith("_") and not f.decorator_list]  # those are in a table
    lonely = [f.name for f in public if f.name not in used and not ast.get_docstring(f)]
    assert not lonely, f"{path.name}: {lonely} have neither a user elsewhere nor a docstring; give them an underscore"


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_in_their_module(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgediff"):
            taken = [
                alias.name
                for alias in node.names
                if alias.name.startswith("_")
                and not alias.name.startswith("__")
                and not (PACKAGE.parent / str(node.module).replace(".", "/") / f"{alias.name}.py").is_file()
            ]
            assert not taken, f"{path.name}:{node.lineno} imports private {taken} of {node.module}"
