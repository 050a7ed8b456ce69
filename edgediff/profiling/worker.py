"""Inside the measuring process: load, run, time, count memory. Its standard output is for results only."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgediff.bundle import Bundle, open_bundle
from edgediff.errors import EdgeDiffError
from edgediff.links._imports import import_etdump, import_onnxruntime_trace, join_operators
from edgediff.plugins import load_plugin
from edgediff.profiling.device import drop_from_cache, peak_rss_mb, pss_mb, read_device, rss_mb
from edgediff.runtime import Runner, Session, latent_input, open_session, used_graphs
from edgediff.runtime.engine import StatefulRunner, held_states
from edgediff.runtime.latency import (
    DeviceFacts,
    GraphTimes,
    LatencyTable,
    LoadTimes,
    Samples,
    compare_samples,
    graph_times,
    image_times,
)

if TYPE_CHECKING:
    from edgediff.backends import Backend

Tell = Callable[[str, int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]

PROMPT = "red heart"  # a picture takes as long for any prompt
# What a backend imports at its first load; imported before the clock starts, since an app has it linked in.
LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "executorch": "executorch.runtime",
    "eager": "torch",
    "cuda": "torch",
    "coreml": "coremltools",
}


@dataclass
class Clock:
    """Seconds of every call of every runner, by graph (`<graph>@<batch>` where it runs at two batch sizes)."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def wrap(self, session: Session) -> None:
        """Puts a stopwatch around each runner of the session."""
        sizes: dict[str, set[int]] = {}
        for name, batch in used_graphs(session.manifest, session.name):
            sizes.setdefault(name, set()).add(batch)
        for name, runner in session.runners.items():
            session.runners[name] = Timed(name, runner, self, by_batch=len(sizes.get(name, ())) > 1)

    def total(self) -> float:
        return sum(map(sum, self.seconds.values()))


@dataclass
class Timed:
    """A runner with a stopwatch."""

    name: str
    runner: Runner
    clock: Clock
    by_batch: bool

    @property
    def states(self) -> Mapping[str, str]:
        return held_states(self.runner)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._timed(inputs, self.runner.run)

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]:
        return self._timed(inputs, partial(cast(StatefulRunner, self.runner).run_held, memory=memory))

    def _timed(self, inputs: dict[str, Array], run: Callable[..., dict[str, Array]]) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = run(inputs)
        seconds = time.perf_counter() - start
        name = f"{self.name}@{inputs['sample'].shape[0]}" if self.by_batch else self.name
        self.clock.seconds.setdefault(name, []).append(seconds)
        return outputs


def main(text: str) -> int:
    """Does the job and writes JSON lines: `progress`, then `result` or `error`."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    def tell(what: str, done: int, total: int) -> None:
        say({"progress": [what, done, total]})

    job = json.loads(text)
    try:
        say({"result": {"profile": profile, "compare": compare}[job["what"]](job, tell)})
    except EdgeDiffError as error:
        found = {"class": type(error).__name__, "message": error.message, "code": error.code}
        say({"error": {**found, "where": error.where}})
    return 0


def profile(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The latency table of one bundle, as plain data."""
    folder, runs, warmup, backend = job["bundles"][0], job["runs"], job["warmup"], job["backend"]
    facts = read_device(backend, job["threads"])
    tell("loading", 0, warmup + runs)
    imports = _import_library(backend)
    base = rss_mb()
    dropped = drop_from_cache(path for path in Path(folder).rglob("*") if path.is_file())
    session, cold, hashing = _load(folder, backend, job["threads"], job.get("program"))
    graphs = dict(session.load_seconds)
    clock = Clock()
    clock.wrap(session)
    first = _warm_up(session, warmup, clock, lambda done: tell("warming up", done, warmup + runs))
    images = _measure(session, job, tell)
    first = _ms(images[0]) if first is None else first
    peak, pss = peak_rss_mb(), pss_mb()
    traced = trace_operators(session, folder, backend, job["threads"]) if job.get("per_op") else {}
    del session
    gc.collect()
    _, warm, _ = _load(folder, backend, job["threads"], job.get("program"))
    loads = LoadTimes(
        cold=_ms(cold),
        warm=_ms(warm),
        hashing=_ms(hashing),
        imports=_ms(imports),
        cache_dropped=dropped,
        graphs={name: _ms(seconds) for name, seconds in graphs.items()},
    )
    table = make_table(facts, loads, clock, images, warmup)
    memory = {"first_run_ms": first, "peak_rss_mb": peak, "base_rss_mb": base, "pss_mb": pss}
    return {**table.model_dump(mode="json"), **memory, **traced}


def compare(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Pairs of pictures by two bundles that take turns."""
    facts = read_device(job["backends"][0], job["threads"])
    bundles = [open_bundle(folder) for folder in job["bundles"]]
    sessions = [
        open_session(bundle, backend, job["threads"], program)
        for bundle, backend, program in zip(bundles, job["backends"], job["programs"], strict=True)
    ]
    for session in sessions:
        _warm_up(session, job["warmup"], Clock(), lambda done: tell("warming up", 0, job["runs"]))
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(job["runs"]):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[side].append(time_image(sessions[side], pair))
        tell("measuring pairs", pair + 1, job["runs"])
    found = compare_samples(*seconds)
    sides = zip(("a", "b"), bundles, job["backends"], seconds, strict=True)
    found.update({key: _side(bundle, backend, times) for key, bundle, backend, times in sides})
    return {**found, "device": facts.model_dump(mode="json", exclude_none=True)}


def time_image(session: Session, seed: int) -> float:
    """Seconds from prompt to picture."""
    start = time.perf_counter()
    latent: Any = None
    for step in session.steps(_prompt(session), seed=seed):
        latent = step.latent
    session.render(latent)
    return time.perf_counter() - start


def _prompt(session: Session) -> str:
    """A text, a class, or nothing, as the program takes it."""
    if "prompt" not in session.program.takes:
        return ""
    return PROMPT if "text" in {one.source for one in session.manifest.conditions.values()} else "0"


def _measure(session: Session, job: dict[str, Any], tell: Tell) -> list[float]:
    """Seconds of each picture: `runs` of them, or as many as begin within `sustained` seconds."""
    runs, warmup, sustained = job["runs"], job["warmup"], job.get("sustained")
    images: list[float] = []
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < sustained if sustained else len(images) < runs:
        images.append(time_image(session, len(images)))
        if sustained:
            tell("measuring, seconds", min(round(passed), round(sustained)), round(sustained))
        else:
            tell("measuring", warmup + len(images), warmup + runs)
    return images


def trace_operators(session: Session, folder: str, backend: str, threads: int | None) -> dict[str, Any]:
    """`operators_ms` and `placement` of every graph, from a picture that is made for it and not timed.

    The graphs are opened once more, with their tracer on, and given what they were given last. Raises BackendError
    for a backend that writes no such trace."""
    module: Backend = load_plugin("backends", backend)
    seen = _last_inputs(session)
    tables: dict[str, LatencyTable] = {}
    for (name, batch), inputs in seen.items():
        graph = session.manifest.graphs[name]
        label = f"{name}@{batch}" if sum(other == name for other, _ in seen) > 1 else name
        with tempfile.TemporaryDirectory() as out:
            file = module.write_trace(
                Path(folder), graph, graph.artifacts[backend], inputs, batch=batch, threads=threads, out=Path(out)
            )
            read = import_etdump if file.suffix == ".etdp" else import_onnxruntime_trace
            tables[label] = read(file, graph=label)
    return join_operators(tables)


def _last_inputs(session: Session) -> dict[tuple[str, int], dict[str, Array]]:
    """What each graph is given in its last call of a picture, by graph and batch."""
    seen: dict[tuple[str, int], dict[str, Array]] = {}
    latents = {name: latent_input(session.manifest, name) for name in session.program.graphs()}

    @dataclass
    class Seen:
        name: str
        runner: Runner

        def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
            batch = inputs[latents[self.name]].shape[0] if self.name in latents else 1
            seen[self.name, batch] = {key: np.array(value) for key, value in inputs.items()}
            return self.runner.run(inputs)

    plain = dict(session.runners)
    session.runners.update({name: Seen(name, runner) for name, runner in plain.items()})
    time_image(session, 0)
    session.runners.update(plain)
    return seen


def make_table(facts: DeviceFacts, loads: LoadTimes, clock: Clock, images: list[float], warmup: int) -> LatencyTable:
    """The table of what the clock saw while `images` (seconds each) were made."""
    graphs: dict[str, GraphTimes] = {}
    kept: dict[str, tuple[float, ...]] = {}
    for name, seconds in clock.seconds.items():
        kept[name] = tuple(round(value * 1e3, 4) for value in seconds)
        graphs[name] = graph_times(kept[name])
    whole = tuple(map(_ms, images))
    return LatencyTable(
        source="measured",
        device=facts,
        load_ms=loads,
        graphs=graphs,
        end_to_end_ms=image_times(whole),
        warmup=warmup,
        overhead_fraction=round(max(0.0, 1.0 - clock.total() / sum(images)), 5),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=Samples(end_to_end_ms=whole, graphs=kept),
    )


def _side(bundle: Bundle, backend: str, seconds: list[float]) -> dict[str, Any]:
    times = [_ms(value) for value in seconds]
    name = bundle.manifest.name
    return {"name": name, "backend": backend, "p50_ms": float(np.median(times)), "samples_ms": times}


def _import_library(backend: str) -> float:
    """Seconds to import what the backend stands on; 0 for a backend from outside, whose library we do not know."""
    start = time.perf_counter()
    library = LIBRARIES.get(backend)
    if library and importlib.util.find_spec(library.partition(".")[0]):
        importlib.import_module(library)
    return time.perf_counter() - start


def _load(folder: str, backend: str, threads: int | None, program: str | None) -> tuple[Session, float, float]:
    """The session, the seconds of the whole load, and those of opening and hashing among them."""
    start = time.perf_counter()
    bundle = open_bundle(folder)
    opened = time.perf_counter()
    session = open_session(bundle, backend, threads, program)
    return session, time.perf_counter() - start, opened - start


def _warm_up(session: Session, count: int, clock: Clock, tell: Callable[[int], None]) -> float | None:
    """Makes `count` pictures and forgets their times; milliseconds of the first, which pays what is done late."""
    first: float | None = None
    for index in range(count):
        seconds = time_image(session, index)
        first = _ms(seconds) if first is None else first
        tell(index + 1)
    clock.seconds.clear()
    return first


def _ms(seconds: float) -> float:
    """Milliseconds to the microsecond."""
    return round(seconds * 1e3, 3)
