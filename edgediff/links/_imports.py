"""Latencies that other tools measured, as latency tables: ONNX Runtime's trace, ExecuTorch's ETDump, Qualcomm AI Hub's
perf.yaml."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgediff.config import Limits, read_text
from edgediff.errors import ConfigError, unknown
from edgediff.plugins import import_or_explain
from edgediff.runtime.latency import DeviceFacts, LatencyTable, LoadTimes, Samples, graph_times, image_times

MICROSECONDS = 1e-3
TRACE = Limits(bytes=1 << 30)  # every call of every operator is a line
UNITS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "gpu",
    "QNNExecutionProvider": "npu",
    "CoreMLExecutionProvider": "coreml",
    "XnnpackExecutionProvider": "cpu",
}


def import_onnxruntime_trace(file: Path, *, graph: str = "graph") -> LatencyTable:
    """A trace of `SessionOptions.enable_profiling`: every call of one session, and per operator kind its share of a
    call and where it ran. The first call, which pays what is done late, is left out where there are more.

    Raises ConfigError for a file that is not such a trace.
    """
    events = _json(file)
    if not isinstance(events, list):
        raise ConfigError("is not an ONNX Runtime trace: a list of events is expected", where=str(file), code="trace")
    runs = [event["dur"] * MICROSECONDS for event in events if event.get("name") == "model_run"]
    if not runs:
        raise ConfigError("holds no 'model_run' event: the session was never run", where=str(file), code="trace")
    start = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    from_second = start[1] if len(start) > 1 else start[0]
    kept = runs[1:] or runs
    shares: dict[str, float] = {}
    placed: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= from_second:
            kind = event["args"].get("op_name", "?")
            shares[kind] = shares.get(kind, 0.0) + event["dur"] * MICROSECONDS / len(kept)
            provider = event["args"].get("provider", "")
            placed[event["name"].removesuffix("_kernel_time")] = UNITS.get(provider, provider)
    loads = [event["dur"] * MICROSECONDS for event in events if event.get("name") == "session_initialization"]
    times = tuple(round(value, 4) for value in kept)
    return LatencyTable(
        source="measured",
        device=DeviceFacts(name="where the trace was made", backend="onnxruntime"),
        load_ms=LoadTimes(graphs={graph: loads[0]} if loads else {}),
        graphs={graph: graph_times(times)},
        end_to_end_ms=image_times(times),
        first_run_ms=runs[0],
        samples=Samples(end_to_end_ms=times, graphs={graph: times}),
        operators_ms={kind: round(value, 5) for kind, value in sorted(shares.items(), key=lambda item: -item[1])},
        placement=placed or None,
    )


def import_etdump(file: Path, *, graph: str = "graph") -> LatencyTable:
    """An ETDump of one method: every call, and per operator kind its share of a call and where it ran. `cpu` is a
    kernel of ExecuTorch's own, `delegate` an operator inside a delegate, as the delegate names it; what a delegate
    takes beyond its operators is `delegate, the rest`. The first call is left out where there are more.

    Raises ConfigError for a file that is not such a dump or has no call in it; MissingLibrary.
    """
    devtools = import_or_explain("executorch.devtools", needed_by="reading an ETDump")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            blocks = devtools.Inspector(etdump_path=str(file)).event_blocks
        events = [event for block in blocks if block.name == "Execute" for event in block.events if event.perf_data]
    except Exception as error:  # what the reader raises depends on where the bytes are wrong
        raise ConfigError(
            "is not an ETDump, or not one of this version of ExecuTorch", where=str(file), code="trace"
        ) from error
    runs = [taken for event in events if event.name == "Method::execute" for taken in event.perf_data.raw]
    if not runs:
        raise ConfigError("holds no 'Method::execute': the method was never run", where=str(file), code="trace")
    kept = runs[1:] or runs
    shares: dict[str, float] = {}
    placed: dict[str, str] = {}
    delegates = 0.0
    for event in events:
        took = sum(event.perf_data.raw[-len(kept) :]) / len(kept)
        if event.is_delegated_op:
            kind, unit, delegates = re.sub(r" #\d+$", "", event.name), "delegate", delegates - took
        elif event.name.startswith("native_call_"):
            kind, unit = event.name.removeprefix("native_call_").strip("_"), "cpu"
        else:
            delegates += took if event.name == "DELEGATE_CALL" else 0.0
            continue
        shares[kind], placed[kind] = shares.get(kind, 0.0) + took, unit
    if delegates > 0:
        shares["delegate, the rest"] = delegates
    times = tuple(round(value, 4) for value in kept)
    return LatencyTable(
        source="measured",
        device=DeviceFacts(name="where the dump was made", backend="executorch"),
        graphs={graph: graph_times(times)},
        end_to_end_ms=image_times(times),
        first_run_ms=round(runs[0], 4),
        samples=Samples(end_to_end_ms=times, graphs={graph: times}),
        placement=placed or None,
        operators_ms={kind: round(value, 5) for kind, value in sorted(shares.items(), key=lambda item: -item[1])},
    )


def join_operators(tables: Mapping[str, LatencyTable]) -> dict[str, dict[str, Any]]:
    """`operators_ms` and `placement` of several graphs' tables, the graph's name before each operator's."""
    return {
        "operators_ms": {
            f"{graph}/{kind}": took for graph, one in tables.items() for kind, took in (one.operators_ms or {}).items()
        },
        "placement": {
            f"{graph}/{node}": unit for graph, one in tables.items() for node, unit in (one.placement or {}).items()
        },
    }


def import_ai_hub(file: Path, *, device: str, runtime: str, precision: str = "float") -> dict[str, LatencyTable]:
    """One table per component of a Qualcomm AI Hub `perf.yaml`, for one of its devices, runtimes and precisions.
    Each is one figure (the median of the job's runs) measured on a hosted device. Its memory range is left out:
    context binaries are mapped, so that it misleads. Raises ConfigError naming what the file has."""
    yaml = import_or_explain("yaml", needed_by="reading perf.yaml")
    try:
        data = yaml.safe_load(read_text(file))
        tables = data["precisions"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError("is not an AI Hub perf.yaml: no 'precisions' in it", where=str(file), code="perf") from error
    parts = _chosen(tables, precision, "precision", file)["components"]
    found: dict[str, LatencyTable] = {}
    for name, part in parts.items():
        metrics = _chosen(part["performance_metrics"], device, "device", file)
        row = _chosen(metrics, runtime, "runtime", file)
        if row.get("inference_time_milliseconds") is None:
            raise ConfigError(f"component '{name}' has no time on '{device}'", where=str(file), code="perf")
        taken = (float(row["inference_time_milliseconds"]),)
        layers = {
            unit: f"{row['layer_counts'][unit]} layers"
            for unit in ("npu", "gpu", "cpu")
            if row.get("layer_counts", {}).get(unit)
        }
        versions = ", ".join(f"{tool} {version}" for tool, version in row.get("tool_versions", {}).items())
        found[name] = LatencyTable(
            source="measured",
            device=DeviceFacts(name=device, backend=runtime, runtime=versions or None),
            graphs={name: graph_times(taken)},
            end_to_end_ms=image_times(taken),
            placement=layers or None,
            samples=Samples(end_to_end_ms=taken, graphs={name: taken}),
            weights_in_memory=False,
        )
    return found


def _chosen(table: dict[str, Any], key: str, what: str, file: Path) -> Any:
    if key not in table:
        raise ConfigError(unknown(what, key, table), where=str(file), code=f"unknown_{what}")
    return table[key]


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file, limits=TRACE))
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(file), code="syntax") from error
