"""One door for what other tools measured: which kind of file it is, and the latency tables in it."""

from __future__ import annotations

import json
from pathlib import Path

from edgediff.config import parse, read_text
from edgediff.errors import ConfigError
from edgediff.links._imports import TRACE, import_ai_hub, import_etdump, import_onnxruntime_trace
from edgediff.runtime.latency import LatencyTable

KNOWN = (
    "a table of `edgediff profile --json`, an ONNX Runtime trace (.json), an ExecuTorch ETDump (.etdp, .etdump), "
    "an AI Hub perf.yaml"
)


def read_measurements(
    file: Path,
    *,
    graph: str | None = None,
    device: str | None = None,
    runtime: str | None = None,
    precision: str = "float",
) -> dict[str, LatencyTable]:
    """The tables in a file by graph. `graph` names the graph of a trace, which does not (default: the file's name);
    `device` and `runtime` choose among those of a perf.yaml, or say where a trace was made.

    Raises ConfigError for a file that is none of the kinds read here, or is damaged.
    """
    if not file.exists():
        raise ConfigError("there is no such file", where=str(file), code="no_file")
    if file.suffix == ".mlperf":
        raise ConfigError(
            f"Apple documents no format for Xcode's performance reports, so their times are not read; what is: {KNOWN}",
            where=str(file),
            code="kind",
        )
    name = graph or file.stem
    if file.suffix in (".yaml", ".yml"):
        if device is None or runtime is None:
            raise ConfigError(
                "a perf.yaml has many devices and runtimes: choose with --device and --runtime",
                where=str(file),
                code="choose",
            )
        return import_ai_hub(file, device=device, runtime=runtime, precision=precision)
    if file.suffix in (".etdp", ".etdump"):
        table = import_etdump(file, graph=name)
    elif file.suffix == ".json":
        own = _own_table(file)
        if own is not None:
            return {own.bundle or name: own}
        table = import_onnxruntime_trace(file, graph=name)
    else:
        raise ConfigError(
            f"'{file.suffix or file.name}' is no kind of measurement that is read: {KNOWN}",
            where=str(file),
            code="kind",
        )
    if device is not None:
        table = table.model_copy(update={"device": table.device.model_copy(update={"name": device})})
    return {name: table}


def _own_table(file: Path) -> LatencyTable | None:
    """A latency table, which keeps the source that it says; None for other JSON."""
    try:
        data = json.loads(read_text(file, limits=TRACE))
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(file), code="syntax") from error
    return parse(data, LatencyTable, where=str(file)) if isinstance(data, dict) and "source" in data else None
