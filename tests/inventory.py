"""What the files of this repository name of one another: classes, modules, files and folders.

`missing(tracked, read)` is what is named and not tracked, each as `who names what`. Names are taken from where tools
take them: manifests, build files, package metadata, imports, `Path(__file__)` in Python, `#include`, and what READMEs
and scripts write down. A name with a placeholder (`targets/<name>.toml`, `android_demo/*/pom.xml`) needs one match.
"""

from __future__ import annotations

import ast
import fnmatch
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import PurePosixPath

Read = Callable[[str], str]

# What tools write; nothing there is a source. Anchored, as ignore rules are: a package may be called `demo`.
GENERATED = re.compile(r"(build|demo|dist|\.git|android_demo/([^/]+/)?(target|build))(/|$)")
# Written down for people and shells, where a path is a word among others.
PROSE = ("*.md", "*.sh", "Makefile", ".ci/run", "*.kts", "*pom.xml")
HISTORY = "CHANGELOG.md"  # names what is gone
PATH_WORD = re.compile(r"(?<![\w/.:$}-])[\w.*<>-]+(?:/[\w.*<>-]+)+")
MODULE_WORD = re.compile(r"-m\W{1,5}((?:edgediff|benchmarks|tests)(?:\.\w+)+)")
SCRIPT_WORD = re.compile(r"python[\d.]* ([\w/]+/\w+\.py)")
FILE_WORD = re.compile(r"(?<![\w/.*<>-])[\w-]+\.(?:py|kt|swift)(?![\w/])")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)")
COMPONENT = re.compile(
    r"<(?:activity|service|receiver|provider|application)\b[^>]*?android:name=\"([^\"]+)\"", re.DOTALL
)


def missing(tracked: set[str], read: Read) -> set[str]:
    """`who names what` for all that is named and not tracked. `tracked` has paths from the root, `/` between parts."""
    folders = {str(parent) for path in tracked for parent in PurePosixPath(path).parents}
    found: set[str] = set()
    for path in sorted(tracked):
        for name in _names(path, read, tracked, folders):
            if not _is_there(name, tracked, folders):
                found.add(f"{path} names {name}")
    return found | _missing_classes(tracked, read)


def _is_there(name: str, tracked: set[str], folders: set[str]) -> bool:
    if "*" in name:
        return any(fnmatch.fnmatchcase(one, name) for one in (*tracked, *folders))
    return name in tracked or name in folders


def _names(path: str, read: Read, tracked: set[str], folders: set[str]) -> Iterator[str]:
    """Every path that a file names, from the root."""
    if path != HISTORY and any(fnmatch.fnmatchcase(path, pattern) for pattern in PROSE):
        yield from _written(path, read(path), tracked, folders)
    if path.endswith("pom.xml"):
        yield from _modules_of_pom(path, read(path))
    elif path.endswith("settings.gradle.kts"):
        for module in re.findall(r'":(\w+)"', read(path)):
            yield _join(path, f"{module}/build.gradle.kts")
    elif path == "pyproject.toml":
        yield from _package_metadata(tomllib.loads(read(path)))
    elif path.endswith((".cpp", ".hpp")):
        for name in re.findall(r'#include "([^"]+)"', read(path)):
            yield _join(path, name)
    elif path.endswith(".py"):
        modules, paths = _python_names(path, read(path))
        yield from (_module_file(module, tracked) for module in modules)
        yield from paths


def _join(path: str, name: str) -> str:
    """`name` as the file at `path` means it, from the root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def _written(path: str, text: str, tracked: set[str], folders: set[str]) -> Iterator[str]:
    """Paths in prose and scripts, from the root or from the file's own folder; bare names of sources; modules."""
    for word in PATH_WORD.findall(text):
        name = re.sub(r"<[^>]*>|NAME", "*", word).rstrip(".")
        first = name.partition("/")[0]
        meant = [one for one, start in ((name, first), (_join(path, name), _join(path, first))) if start in folders]
        if meant and not any(GENERATED.match(one) for one in meant) and not {"<", ">"} & set(name):
            yield next((one for one in meant if _is_there(one, tracked, folders)), meant[0])
    for module in MODULE_WORD.findall(text):
        yield _module_file(module, tracked)
    known = {posixpath.basename(one) for one in tracked}
    yield from (word for word in FILE_WORD.findall(text) if word not in known)
    for link in LINK.findall(text) if path.endswith(".md") else ():
        yield _join(path, link)


def _modules_of_pom(path: str, text: str) -> Iterator[str]:
    """The poms of a pom's modules, and the sources that they inherit; main classes are `_missing_classes`'."""
    sources = re.search(r"<sourceDirectory>([^<]+)<", text)
    for module in re.findall(r"<module>([^<]+)</module>", text):
        yield _join(path, f"{module}/pom.xml")
        if sources:
            yield _join(path, f"{module}/{sources[1]}")


def _package_metadata(project: dict) -> Iterator[str]:
    """What pip reads and what the wheel and the sdist take along."""
    about, hatch = project["project"], project["tool"]["hatch"]["build"]["targets"]
    yield from (about["readme"], *about["license-files"])
    yield from (*hatch["wheel"]["packages"], *hatch["wheel"]["force-include"], *hatch["sdist"]["include"])
    yield from project["tool"]["pytest"]["ini_options"]["testpaths"]
    for entry in about["scripts"].values():
        yield entry.partition(":")[0].replace(".", "/") + ".py"


def _module_file(module: str, tracked: set[str]) -> str:
    """`a.b` -> `a/b/__init__.py` or `a/b.py`, whichever is tracked."""
    base = module.replace(".", "/")
    return f"{base}/__init__.py" if f"{base}/__init__.py" in tracked else f"{base}.py"


@cache
def _python_names(path: str, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modules of this repository that a Python file imports or runs, and paths that it names."""
    tree = ast.parse(text)
    modules = (*MODULE_WORD.findall(text), *_imports(tree))
    return tuple(dict.fromkeys(modules)), (*SCRIPT_WORD.findall(text), *dict.fromkeys(_python_paths(path, tree)))


def _imports(tree: ast.Module) -> Iterator[str]:
    """Modules of this repository that are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [node.module]
            if "." not in node.module and node.module != "edgediff":  # a folder of scripts: its modules are the names
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (module for module in modules if module.partition(".")[0] in ("edgediff", "tests", "benchmarks"))


def _python_paths(path: str, tree: ast.Module) -> Iterator[str]:
    """`Path(__file__).parent / "data" / "x.json"`, also through a name that the module gives to a part of it."""
    known: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _path_of(node.value, path, known)
            if value is not None:
                known[node.targets[0].id] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.Call):
            value = _path_of(node, path, known)
            if value is not None and not value.startswith("..") and not GENERATED.match(value):
                yield value


def _path_of(node: ast.expr, path: str, known: dict[str, str]) -> str | None:
    """The path that an expression is, from the root; None for what is none, or is not known before it runs."""
    match node:
        case ast.Name(id=name):
            return known.get(name)
        case ast.Call(func=ast.Name(id="Path"), args=[ast.Name(id="__file__")]):
            return path
        case ast.Attribute(value=inner, attr="parent"):
            base = _path_of(inner, path, known)
            return None if base is None else posixpath.dirname(base)
        case ast.Subscript(value=ast.Attribute(value=inner, attr="parents"), slice=ast.Constant(value=int(count))):
            base = _path_of(inner, path, known)
            return None if base is None else _up(base, count + 1)
        case ast.Call(func=ast.Attribute(value=inner, attr="with_name"), args=[ast.Constant(value=str(name))]):
            base = _path_of(inner, path, known)
            return None if base is None else posixpath.join(posixpath.dirname(base), name)
        case ast.Call(func=ast.Attribute(value=inner, attr="with_suffix"), args=[ast.Constant(value="")]):
            base = _path_of(inner, path, known)
            return None if base is None else posixpath.splitext(base)[0]
        case ast.BinOp(left=inner, op=ast.Div(), right=ast.Constant(value=str(name))):
            base = _path_of(inner, path, known)
            return None if base is None else posixpath.normpath(posixpath.join(base, name))
    return None


def _up(path: str, count: int) -> str:
    for _ in range(count):
        path = posixpath.dirname(path)
    return path


def _missing_classes(tracked: set[str], read: Read) -> set[str]:
    """Classes of AndroidManifests (in the namespace of the module's build file) and main classes of poms."""
    declared = {name for path in tracked if path.endswith(".kt") for name in _declared(path, read(path))}
    found: set[str] = set()
    for path in tracked:
        if path.endswith("AndroidManifest.xml"):
            build = path.partition("/src/")[0] + "/build.gradle.kts"
            space = re.search(r'namespace = "([^"]+)"', read(build) if build in tracked else "")
            prefix = space[1] if space else ""
            names = [f"{prefix}{name}" if name.startswith(".") else name for name in COMPONENT.findall(read(path))]
        elif path.endswith("pom.xml"):
            names = re.findall(r"<mainClass>([^<]+)<", read(path))
        else:
            continue
        found |= {f"{path} names {name}" for name in names if name not in declared}
    return found


@cache
def _declared(path: str, text: str) -> tuple[str, ...]:
    """Kotlin's classes of a file by their full names, the class of its own top level included."""
    package = re.search(r"^package ([\w.]+)", text, re.MULTILINE)
    space = f"{package[1]}." if package else ""
    names = (f"{PurePosixPath(path).stem}Kt", *re.findall(r"\b(?:class|object)\s+(\w+)", text))
    return tuple(f"{space}{name}" for name in names)
