"""Profiling in a fresh process: what is measured, what is claimed about it, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediff.bundle import Bundle
from edgediff.errors import BackendError, BundleError, ConfigError, EdgeDiffError, LinkError
from edgediff.profiling import compare_bundles, profile_bundle, profile_devices
from edgediff.profiling.device import drop_from_cache, peak_rss_mb, pss_mb, read_device, rss_mb
from edgediff.profiling.worker import Clock, Timed, trace_operators
from edgediff.runtime import open_session
from edgediff.runtime.engine import held_states
from edgediff.runtime.latency import LatencyTable, throttling_curve
from tests.small_bundle import write_bundle

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("profiling") / "a.edgediff", 8)


def test_the_table_counts_every_call_of_every_graph(bundle: Bundle) -> None:
    seen: list[tuple[str, int, int]] = []
    table = profile_bundle(bundle, runs=3, warmup=2, threads=1, progress=lambda *what: seen.append(what))
    assert table.source == "measured"
    assert {name: times.n for name, times in table.graphs.items()} == {
        "text_encoder": 6,
        "full": 3,
        "shallow@2": 3,
        "shallow@1": 3,
        "vae_decoder": 3,
    }
    assert (table.end_to_end_ms.n, table.warmup, table.device.threads) == (3, 2, 1)
    assert table.graphs["full"].p50_ms > table.graphs["shallow@2"].p50_ms > 0
    assert seen[0] == ("loading", 0, 5)
    assert seen[-1] == ("measuring", 5, 5)


def test_the_parts_add_up(bundle: Bundle) -> None:
    """Inside the graphs, plus the overhead, is the whole; loads contain their parts."""
    table = profile_bundle(bundle, runs=4, warmup=1, threads=1)
    inside = sum(map(sum, table.samples.graphs.values()))
    whole = sum(table.samples.end_to_end_ms)
    assert table.overhead_fraction == pytest.approx(1 - inside / whole, abs=1e-3)
    assert 0 < table.overhead_fraction < 1
    loads = table.load_ms
    assert loads.cold is not None
    assert loads.hashing is not None
    assert loads.cold > loads.hashing + sum(loads.graphs.values()) * 0.99 > 0
    assert set(loads.graphs) == {"text_encoder", "full", "shallow@2", "shallow@1", "vae_decoder"}
    assert loads.warm is not None
    assert loads.warm > 0
    assert table.first_run_ms is not None


@linux_only
def test_memory_is_the_measuring_processs_own(bundle: Bundle) -> None:
    """A caller that holds 400 MB more does not make the bundle heavier."""
    ballast = np.ones(50_000_000)
    table = profile_bundle(bundle, runs=1, warmup=0)
    assert rss_mb() > 400  # this process
    assert table.base_rss_mb < table.peak_rss_mb < 300 < ballast.nbytes / 1e6
    assert 0 < table.pss_mb <= table.peak_rss_mb
    assert table.first_run_ms == table.samples.end_to_end_ms[0]


def test_the_measuring_process_has_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    """With a torch that cannot be imported first on its path, it still measures."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    job = {
        "what": "profile",
        "bundles": [str(bundle.folder)],
        "backend": "onnxruntime",
        "runs": 1,
        "warmup": 0,
        "threads": 1,
    }
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "edgediff.profiling", json.dumps(job)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "result" in json.loads(done.stdout.splitlines()[-1])


def test_a_sustained_run_counts_seconds(bundle: Bundle) -> None:
    table = profile_bundle(bundle, sustained=1.0, warmup=1, threads=1)
    images = table.samples.end_to_end_ms
    assert sum(images[:-1]) <= 1000, "the last picture begins within the time"
    assert table.end_to_end_ms.n == len(images) > 15
    assert "sustained   the last fifth takes" in str(table)
    curve = throttling_curve(images)
    assert len(curve) == 10
    assert curve[-1][0] == pytest.approx(sum(images) / 1e3, rel=1e-3)


def test_operators_come_from_a_trace(bundle: Bundle) -> None:
    table = profile_bundle(bundle, runs=2, warmup=0, threads=1, per_op=True)
    assert table.operators_ms is not None and table.placement is not None
    ours = {key: took for key, took in table.operators_ms.items() if key.startswith("full/")}
    assert max(ours, key=lambda key: ours[key]) == "full/MatMul", "eight products of 256 x 256 matrices"
    assert {key.partition("/")[0] for key in table.operators_ms} == {
        "text_encoder",
        "full",
        "shallow@2",
        "shallow@1",
        "vae_decoder",
    }
    assert set(table.placement.values()) == {"cpu"}
    assert "full/MatMul" in str(table)
    assert table.end_to_end_ms.n == 2, "the traced picture is not timed"


def test_a_backend_without_a_trace_says_so(bundle: Bundle) -> None:
    session = open_session(bundle, "onnxruntime")
    graphs = {
        name: graph.model_copy(update={"artifacts": {"eager": graph.artifacts["onnxruntime"]}})
        for name, graph in bundle.manifest.graphs.items()
    }
    session.manifest = session.manifest.model_copy(update={"graphs": graphs})
    with pytest.raises(BackendError, match="eager writes no trace of its operators here; take --per-op with --backend"):
        trace_operators(session, "", "eager", 1)


def test_the_program_that_is_asked_for_is_what_is_measured(bundle: Bundle) -> None:
    """`fast` runs each of its graphs once, unguided."""
    table = profile_bundle(bundle.as_program("fast"), runs=2, warmup=0, threads=1)
    counts = {name: times.n for name, times in table.graphs.items()}
    assert counts == {"text_encoder": 2, "full": 2, "shallow": 2, "vae_decoder": 2}


def test_compare_finds_the_faster_bundle(bundle: Bundle, tmp_path: Path) -> None:
    slow = write_bundle(tmp_path / "b.edgediff", 64, "slow-panda")
    found = compare_bundles(slow, bundle, runs=8, threads=1)
    assert found["verdict"] == "faster"
    assert found["ratio"]["high"] < 1
    assert found["n"] == len(found["a"]["samples_ms"]) == len(found["b"]["samples_ms"]) == 8
    assert (found["a"]["name"], found["b"]["name"]) == ("slow-panda", "red-panda")
    assert compare_bundles(bundle, slow, runs=8, threads=1)["verdict"] == "slower"


def test_errors_name_what_is_allowed(bundle: Bundle) -> None:
    with pytest.raises(LinkError, match="device 'pixel_9' cannot be profiled from here: give host, adb"):
        profile_bundle(bundle, device="pixel_9")
    with pytest.raises(ConfigError, match="runs = 0: it must be a whole number from 1 to 10000"):
        profile_bundle(bundle, runs=0)
    with pytest.raises(ConfigError, match="warmup = -1: it must be a whole number from 0"):
        compare_bundles(bundle, bundle, warmup=-1)
    with pytest.raises(BackendError, match="unknown backend 'coreml'"):
        profile_bundle(bundle, backend="coreml")
    with pytest.raises(ConfigError, match="sustained = 0.5: it must be from 1 to 86400 seconds"):
        profile_bundle(bundle, sustained=0.5)
    with pytest.raises(ConfigError, match="a runner is for a device; give --device adb:SERIAL as well"):
        profile_bundle(bundle, runner=Path("x"))
    with pytest.raises(LinkError, match="device 'adb:' cannot be profiled"):
        profile_bundle(bundle, device="adb:")


def test_an_error_in_the_process_arrives_as_it_was(tmp_path: Path) -> None:
    broken = write_bundle(tmp_path / "c.edgediff", 1)
    file = broken.folder / "onnxruntime" / "unet" / "full.onnx"
    file.write_bytes(bytes(reversed(file.read_bytes())))
    with pytest.raises(BundleError, match=r"full.onnx' has SHA-256 .* copy it again") as caught:
        profile_bundle(broken, runs=1)
    assert caught.value.code == "hash"
    assert caught.value.where == str(broken.folder)


def test_a_process_that_dies_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of cheese >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(EdgeDiffError, match=r"ended by signal 9 \(the system does that when memory runs out\)"):
        profile_bundle(bundle, runs=1)


def test_a_stopwatch_sees_each_runner(bundle: Bundle) -> None:
    @dataclasses.dataclass
    class Twice:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: value * 2 for name, value in inputs.items()}

    class FakeSession:
        name, manifest = "main", bundle.manifest
        runners = {"full": Twice(), "shallow": Twice()}

    clock, session = Clock(), FakeSession()
    clock.wrap(session)  # type: ignore[arg-type]
    for batch in (2, 1, 1):
        session.runners["shallow"].run({"sample": np.ones((batch, 3))})
    assert session.runners["full"].run({"sample": np.ones(3)})["sample"].tolist() == [2, 2, 2]
    assert {name: len(seconds) for name, seconds in clock.seconds.items()} == {
        "shallow@2": 1,
        "shallow@1": 2,
        "full": 1,
    }


def test_a_stopwatch_leaves_states_inside(bundle: Bundle) -> None:
    """A runner that keeps carries itself keeps them under the stopwatch too, and both ways of running count."""

    class Keeps:
        states = {"cache_in_mid": "mid"}

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self.run_held(inputs, {})

        def run_held(self, inputs: dict[str, np.ndarray], memory: dict[str, Any]) -> dict[str, np.ndarray]:
            memory["calls"] = memory.get("calls", 0) + 1
            return inputs

    clock, memory = Clock(), {}
    timed = Timed("shallow", Keeps(), clock, by_batch=False)
    for _ in range(2):
        timed.run_held({"sample": np.ones((1, 3))}, memory)
    timed.run({"sample": np.ones((1, 3))})
    assert held_states(timed) == {"cache_in_mid": "mid"} and memory == {"calls": 2}
    assert len(clock.seconds["shallow"]) == 3


@linux_only
def test_dropping_files_from_the_cache_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(3_000_000))
    empty = tmp_path / "empty"
    empty.touch()
    dropped = drop_from_cache([file, empty])
    if dropped is False:
        pytest.skip("the temporary folder is in memory (tmpfs), which has no page cache to leave")
    assert dropped is True
    # Read back, and mapped so that it cannot be dropped.
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == 3_000_000
        assert drop_from_cache([file]) is False


@linux_only
def test_facts_about_this_machine() -> None:
    facts = read_device("onnxruntime", 2)
    assert facts.cpu
    assert facts.cores == os.cpu_count()
    assert facts.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert facts.runtime.startswith("onnxruntime 1.")
    assert facts.memory_gb > 0.5
    assert peak_rss_mb() >= rss_mb() > 10
    assert pss_mb() > 5
    assert read_device("no-such-backend", None).runtime is None


def test_a_link_of_another_package_profiles(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device KIND:SERIAL` asks the link of that kind, several at once; one that fails does not stop the others."""
    golden = json.loads((Path(__file__).parent / "golden" / "latency.json").read_text())
    table = LatencyTable.model_validate(golden["table"])
    asked = []

    def run(bundle: Bundle, device: SimpleNamespace, runner: object = None, **options: object) -> LatencyTable:
        asked.append((device.serial, options["backend"], options["runs"]))
        if device.serial == "broken":
            raise LinkError("it is broken")
        return table

    link = SimpleNamespace(NAME="bench", find_device=lambda name: SimpleNamespace(serial=name), run=run)
    monkeypatch.setattr("edgediff.profiling.plugin_names", lambda folder: ["bench", "host"])
    monkeypatch.setattr("edgediff.profiling.load_plugin", lambda folder, kind: link)
    found = profile_devices(bundle, ["bench:one", "bench:broken"], backend="onnxruntime", runs=2)
    assert found["one"] is table and str(found["broken"]) == "it is broken"
    assert sorted(asked) == [("broken", "onnxruntime", 2), ("one", "onnxruntime", 2)]
    with pytest.raises(ConfigError, match="one device is named twice"):
        profile_devices(bundle, ["bench:one", "bench:one"], backend="onnxruntime")
    with pytest.raises(LinkError, match=r"device 'adb' cannot be profiled .*\(links: bench, host\)"):
        profile_devices(bundle, ["adb"])
