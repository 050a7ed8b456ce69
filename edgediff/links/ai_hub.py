"""Qualcomm AI Hub as a farm of real devices, through its own client (`pip install qai-hub`, `qai-hub configure`).

One job per graph of the ONNX Runtime part of a bundle: AI Hub compiles and profiles components, not whole images, so
the answer is a table per graph. Interface: https://app.aihub.qualcomm.com/docs and the client's source, 0.56.0
(submit_inference_job, download_profile).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.errors import LinkError, unknown
from edgediff.plugins import import_or_explain
from edgediff.runtime.latency import DeviceFacts, LatencyTable, LoadTimes, Samples, graph_times, image_times

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.plugins import Progress

MILLISECONDS = 1e-3  # AI Hub tells microseconds
MEGABYTES = 1e-6


@dataclass(frozen=True)
class HubDevice:
    """A kind of device of the farm; its name stands for a serial."""

    serial: str


def find_device(name: str | None = None, *, client: Any = None) -> HubDevice:
    """The device of this name. Raises LinkError for none and for an unknown one."""
    hub = client or import_or_explain("qai_hub", needed_by="AI Hub")
    names = [one.name for one in hub.get_devices()]
    if name not in names:
        raise LinkError(unknown("AI Hub device", name or "", names), code="unknown_device")
    return HubDevice(str(name))


def push(bundle: Bundle, device: HubDevice, *, client: Any = None) -> dict[str, Any]:
    """Uploads every graph of the bundle's ONNX Runtime part; returns the uploaded models by graph. Raises LinkError for
    a bundle without that part."""
    hub = client or import_or_explain("qai_hub", needed_by="AI Hub")
    files = {
        name: Path(bundle.folder) / graph.artifacts["onnxruntime"].file
        for name, graph in bundle.manifest.graphs.items()
        if "onnxruntime" in graph.artifacts
    }
    if not files:
        raise LinkError("AI Hub takes ONNX files, and this bundle has no onnxruntime part; build one", code="no_onnx")
    return {name: _upload(hub, name, file) for name, file in files.items()}


def _upload(hub: Any, name: str, file: Path) -> Any:
    """A graph alone, or with the weights beside it in a folder of their own: the client refuses a folder with a
    second graph in it, and a bundle's graphs share one file of weights."""
    weights = [other for other in file.parent.iterdir() if other.suffix == ".bin"]
    if not weights:
        return hub.upload_model(str(file))
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / name
        staged.mkdir()
        for one in (file, *weights):
            try:
                (staged / one.name).hardlink_to(one.resolve())
            except OSError:  # another file system
                shutil.copy(one, staged / one.name)
        return hub.upload_model(str(staged))


def profile_graphs(
    models: dict[str, Any], device: HubDevice, *, client: Any = None, options: str = ""
) -> dict[str, LatencyTable]:
    """Submits a profile job per uploaded model and waits for all; a table per graph. A job that fails is a LinkError
    that names the graph, the job and the reason it gives."""
    hub = client or import_or_explain("qai_hub", needed_by="AI Hub")
    jobs = {name: _submit(hub, model, hub.Device(device.serial), options) for name, model in models.items()}
    return {name: _read_job(job, name, device.serial) for name, job in jobs.items()}


def run(
    bundle: Bundle,
    device: HubDevice,
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
    """Raises LinkError: the farm profiles graphs, not whole pictures."""
    raise LinkError(
        "AI Hub profiles graphs one by one and makes no pictures: call edgediff.links.ai_hub.push and profile_graphs, "
        "which give a table per graph",
        code="no_run",
    )


def _submit(hub: Any, model: Any, device: Any, options: str) -> Any:
    """An inference job on random inputs that profiles; before version 0.56 that was a kind of job of its own."""
    submit = hub.submit_inference_job
    if "profile" not in signature(submit).parameters:
        return hub.submit_profile_job(model=model, device=device, options=options)
    return submit(model=model, device=device, options=options, profile=True)


def _read_job(job: Any, graph: str, device: str) -> LatencyTable:
    """Waits for one profile job and reads its result. Raises LinkError when it failed."""
    status = job.wait()
    if not status.success:
        raise LinkError(f"AI Hub job {job.job_id} of graph '{graph}' failed: {status.message}", code="job")
    found = job.download_profile()
    summary, detail = found["execution_summary"], found.get("execution_detail", [])
    every = tuple(value * MILLISECONDS for value in summary.get("all_inference_times", ()))
    times = every or (summary["estimated_inference_time"] * MILLISECONDS,)
    shares: dict[str, float] = {}
    for layer in detail:
        shares[layer["type"]] = shares.get(layer["type"], 0.0) + layer.get("execution_time", 0) * MILLISECONDS
    peak = summary.get("estimated_inference_peak_memory")
    return LatencyTable(
        source="measured",
        device=DeviceFacts(name=device, backend="qai-hub", serial=str(job.job_id)),
        load_ms=LoadTimes(cold=_ms(summary, "first_load_time"), warm=_ms(summary, "warm_load_time")),
        compile_ms=_ms(summary, "compile_time"),
        graphs={graph: graph_times(times)},
        end_to_end_ms=image_times(times),
        samples=Samples(end_to_end_ms=times, graphs={graph: times}),
        peak_rss_mb=round(peak * MEGABYTES, 1) if peak is not None else None,
        weights_in_memory=False,
        placement={layer["name"]: str(layer["compute_unit"]).lower() for layer in detail} or None,
        operators_ms=shares or None,
    )


def _ms(summary: dict[str, Any], key: str) -> float | None:
    value = summary.get(key)
    return None if value is None else float(value) * MILLISECONDS
