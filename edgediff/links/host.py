"""This machine: a bundle is measured in a fresh Python process, so that the first load and the memory are the bundle's
own and not what the caller has imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff import errors
from edgediff.config import parse
from edgediff.errors import EdgeDiffError, LinkError
from edgediff.plugins import Progress
from edgediff.runtime.latency import LatencyTable

if TYPE_CHECKING:
    from edgediff.bundle import Bundle


@dataclass(frozen=True)
class Host:
    """The one device of this link."""

    serial: str = "host"


def find_device(name: str | None = None) -> Host:
    """This machine. Raises LinkError for a name, which it has not."""
    if name is not None:
        raise LinkError(f"host is this machine and has no serial '{name}'; give --device host", code="unknown_device")
    return Host()


def push(bundle: Bundle, device: Host) -> str:
    """Where the bundle lies: it is here."""
    return str(bundle.folder)


def run(
    bundle: Bundle,
    device: Host,
    runner: Path | None = None,
    *,
    runs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    sustained: float | None = None,
    per_op: bool = False,
    backend: str = "",
    progress: Progress | None = None,
) -> LatencyTable:
    """Raises BackendError, BundleError, and EdgeDiffError `profiling` when the process dies."""
    job = {
        "what": "profile",
        "bundles": [push(bundle, device)],
        "backend": backend,
        "program": bundle.manifest.default,
        "runs": runs,
        "warmup": warmup,
        "threads": threads,
        "sustained": sustained,
        "per_op": per_op,
    }
    return parse(run_worker(job, progress), LatencyTable, where=f"profile of {bundle.manifest.name}")


def pull(device: Host, remote: str, out: Path) -> Path:
    """Copies a file."""
    shutil.copyfile(remote, out)
    return out


def run_worker(job: dict[str, Any], progress: Progress | None) -> Any:
    """Runs `python -m edgediff.profiling` on the job and hands on its progress, its result or its error."""
    environment = dict(os.environ)
    package = str(Path(errors.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "edgediff.profiling", json.dumps(job)]
    result: Any = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, env=environment, encoding="utf-8"
        ) as worker:
            try:
                for line in worker.stdout or ():
                    message = json.loads(line)
                    if "progress" in message and progress is not None:
                        progress(*message["progress"])
                    result = message.get("result", result)
                    if "error" in message:
                        raise _as_raised(message["error"])
            except BaseException:
                worker.kill()
                raise
        if result is None or worker.returncode != 0:
            said.seek(0)
            raise EdgeDiffError(_why_died(worker.returncode, said.read()), code="profiling")
    return result


def _as_raised(error: dict[str, Any]) -> EdgeDiffError:
    """The worker's error as the class it was there."""
    kind = getattr(errors, error["class"], EdgeDiffError)
    raised: EdgeDiffError = kind(error["message"], code=error["code"], where=error["where"])
    return raised


def _why_died(code: int, said: str) -> str:
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    if code < 0:
        hint = " (the system does that when memory runs out)" if code == -9 else ""
        return f"the measuring process was ended by signal {-code}{hint}; its last words: {last[0]}"
    return f"the measuring process failed with status {code}: {last[0]}"
