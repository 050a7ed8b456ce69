"""`python -m edgediff.links._build_runner`: the C++ runner of `links/runner`, for Linux kernels on aarch64 or x86_64.

It is compiled against the libraries and headers that ExecuTorch's own wheel for that architecture carries (the C++
runtime and XNNPACK; no torch), which pip downloads: the version that edgediff pins. Debian and Ubuntu have the rest:
`apt install g++-aarch64-linux-gnu nlohmann-json3-dev`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgediff.config import dump_json
from edgediff.errors import EdgeDiffError, LinkError, OutputError
from edgediff.links._runners import DESCRIPTION, RunnerFacts, built_folder

SOURCES = Path(__file__).parent / "runner"
READER = SOURCES / "reader"
NAME = "edgediff-runner"
LIBRARIES = (
    "executorch",
    "executorch_backend_xnnpack",
    "executorch_etdump",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_threadpool",
)
# What a program on this C library needs of it and of the compiler. The loader comes first: it starts the program.
SYSTEM = {
    architecture: (loader, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libgcc_s.so.1", "libstdc++.so.6")
    for architecture, loader in (("aarch64", "ld-linux-aarch64.so.1"), ("x86_64", "ld-linux-x86-64.so.2"))
}
# The wheel's headers include one that only a build of PyTorch generates, unless the first is defined; its libraries are
# compiled with the second. Multiplications and additions are not fused, so that the program's own arithmetic gives the
# same bits as numpy's.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
    "-DET_EVENT_TRACER_ENABLED",
)
JSON_FOLDERS = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")


def build_runner(
    architecture: str = "aarch64", *, out: Path | None = None, wheel: Path | None = None, compiler: str | None = None
) -> Path:
    """Compiles the runner into the folder `out` (replaced; by default where `edgediff profile` looks) and returns it.

    `wheel` is ExecuTorch's for the architecture, downloaded unless given. Raises LinkError: a compiler or a header that
    is missing, with what to install; what pip or the compiler says when they fail.
    """
    if architecture not in SYSTEM:
        raise LinkError(f"unknown architecture '{architecture}' (allowed: {', '.join(SYSTEM)})", code="architecture")
    compiler = _found_compiler(architecture, compiler)
    json_header = _found_json()
    out = out or built_folder(architecture)
    if out.exists() and not (out / DESCRIPTION).is_file():
        raise OutputError("is there and is no runner; choose another folder", where=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".runner-") as name:
        work = Path(name)
        package, version = _unpacked(architecture, wheel, work)
        # On its own: the folder that it lies in holds the headers of this machine, not of the device.
        shutil.copytree(json_header, work / "include" / "nlohmann")
        made = work / "made"
        (made / "lib").mkdir(parents=True)
        _compile(compiler, package, version, work, made / NAME)
        for library in LIBRARIES:
            shutil.copy2(package / "lib" / f"lib{library}.so", made / "lib")
        for library in SYSTEM[architecture]:
            shutil.copy2(_of_compiler(compiler, library), made / "lib" / library)
        _describe(made, architecture, version)
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return out


def build_reader(out: Path, *, compiler: str | None = None) -> Path:
    """Compiles the runner's reader by itself into the program `out`, for this machine: it needs a compiler of C++17 and
    nothing else. Raises LinkError."""
    compiler = _found_compiler(platform.machine(), compiler)
    sources = [str(path) for path in sorted(READER.glob("*.cpp"))]
    _call([compiler, "-std=c++17", "-O2", *sources, "-o", str(out)], "the reader does not compile")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints where the runner is."""
    parser = argparse.ArgumentParser(prog="python -m edgediff.links._build_runner", description=__doc__)
    parser.add_argument("--architecture", default="aarch64", help=f"{' or '.join(SYSTEM)} (default aarch64)")
    parser.add_argument("--out", type=Path, help="its folder (default: where edgediff profile looks for it)")
    parser.add_argument("--wheel", type=Path, help="ExecuTorch's for the architecture (default: pip downloads it)")
    parser.add_argument("--reader", type=Path, metavar="PROGRAM", help="build only edgediff-read, for this machine")
    parser.add_argument("--compiler", help="a C++17 compiler for it (default: <architecture>-linux-gnu-g++)")
    given = parser.parse_args(arguments)
    try:
        if given.reader is not None:
            print(build_reader(given.reader, compiler=given.compiler))
            return 0
        print(build_runner(given.architecture, out=given.out, wheel=given.wheel, compiler=given.compiler))
    except EdgeDiffError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    return 0


def _found_compiler(architecture: str, given: str | None) -> str:
    own = f"{architecture}-linux-gnu-g++"
    candidates = [given] if given else [own, *(["g++"] if platform.machine() == architecture else [])]
    for name in candidates:
        if (found := shutil.which(name)) is not None:
            return found
    package = f"g++-{architecture.replace('_', '-')}-linux-gnu"
    raise LinkError(f"there is no compiler {' or '.join(candidates)}: apt install {package}", code="no_compiler")


def _found_json() -> Path:
    for folder in JSON_FOLDERS:
        if (Path(folder) / "nlohmann" / "json.hpp").is_file():
            return Path(folder) / "nlohmann"
    raise LinkError(
        "nlohmann/json.hpp is not installed: apt install nlohmann-json3-dev (Debian, Ubuntu), brew install "
        "nlohmann-json (macOS)",
        code="no_compiler",
    )


def _unpacked(architecture: str, wheel: Path | None, work: Path) -> tuple[Path, str]:
    """ExecuTorch's package for the architecture, and its version."""
    if wheel is None:
        here = importlib.util.find_spec("executorch")
        if platform.machine() == architecture and sys.platform == "linux" and here is not None:
            folders = list(here.submodule_search_locations or ())
            return Path(folders[0]), importlib.metadata.version("executorch")
        wheel = _download(architecture, work)
    found = re.match(r"executorch-([^-]+)-", wheel.name)
    if found is None or architecture not in wheel.name:
        raise LinkError(f"is not ExecuTorch's wheel for {architecture}", where=str(wheel), code="wheel")
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if n.startswith(("executorch/include/", "executorch/lib/lib"))]
        archive.extractall(work, wanted)
    return work / "executorch", found[1]


def _download(architecture: str, work: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        f"manylinux_2_28_{architecture}",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--dest",
        str(work),
        f"executorch=={_pinned()}",
    ]
    _call(command, f"pip cannot download ExecuTorch's wheel for {architecture}")
    return next(work.glob("executorch-*.whl"))


def _pinned() -> str:
    """The version in edgediff's own extra, so that runner and bundles agree."""
    for requirement in importlib.metadata.requires("edgediff") or ():
        if (found := re.match(r"executorch==([\w.]+)", requirement)) is not None:
            return found[1]
    raise LinkError("edgediff's metadata does not say which executorch it needs; install edgediff again", code="wheel")


def _compile(compiler: str, package: Path, version: str, work: Path, program: Path) -> None:
    include = package / "include"
    folders = (work / "include", include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10")
    flags = [*FLAGS, f'-DEDGEDIFF_EXECUTORCH="{version}"', *(f"-isystem{one}" for one in folders)]

    sources = [*SOURCES.glob("*.cpp"), *(one for one in READER.glob("*.cpp") if one.name != "main.cpp")]

    def compile_one(source: Path) -> str:
        made = str(work / f"{source.stem}.o")
        _call([compiler, *flags, "-c", str(source), "-o", made], f"{source.name} does not compile")
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(sources)))
    # Nothing in the program names kernels and delegates: they register themselves when they are loaded.
    link = ["-s", f"-L{package / 'lib'}", "-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES)]
    _call([compiler, *objects, "-o", str(program), *link, "-Wl,-rpath,$ORIGIN/lib"], "the runner cannot be linked")


def _of_compiler(compiler: str, library: str) -> Path:
    """The compiler's own copy of a system library."""
    said = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=False).stdout
    if not (path := Path(said.strip())).is_absolute():
        raise LinkError(f"{compiler} has no {library}; install it again", code="no_compiler")
    return path


def _describe(folder: Path, architecture: str, version: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = RunnerFacts(
        name=f"runner-{architecture}",
        architecture=architecture,
        backend="executorch",
        runtime=f"executorch {version}",
        command=(f"./lib/{SYSTEM[architecture][0]}", "--library-path", "lib", f"./{NAME}"),
        files={path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    )
    (folder / DESCRIPTION).write_text(dump_json(facts.model_dump(mode="json")), encoding="utf-8")


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = next((line for line in said if "error" in line.lower()), said[-1] if said else "it says nothing")
        raise LinkError(f"{what}: {last.strip()}", code="build")


if __name__ == "__main__":
    sys.exit(main())
