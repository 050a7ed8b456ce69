"""`edgediff import`: the kind of file is found out, and what a table says of its source is kept."""

from __future__ import annotations

import json

import pytest

from edgediff.cli.main import main
from edgediff.errors import ConfigError
from edgediff.links._reading import read_measurements
from edgediff.runtime.latency import DeviceFacts, LatencyTable, Samples, graph_times, image_times
from tests.test_links_imports import PERF

TRACE = [
    {"name": "session_initialization", "dur": 5000, "ts": 0, "cat": "Session"},
    *({"name": "model_run", "dur": 2000 + k, "ts": 10_000 * (k + 1), "cat": "Session"} for k in range(3)),
]


def table(source):
    return LatencyTable(
        source=source,
        device=DeviceFacts(name="Pixel 9", backend="onnxruntime"),
        graphs={"full": graph_times([4.0])},
        end_to_end_ms=image_times([9.0]),
        samples=Samples(end_to_end_ms=(9.0,), graphs={"full": (4.0,)}),
    )


def test_a_trace_takes_the_name_and_the_device_that_are_given(tmp_path):
    (tmp_path / "unet.json").write_text(json.dumps(TRACE))
    assert read_measurements(tmp_path / "unet.json")["unet"].device.name == "where the trace was made"
    found = read_measurements(tmp_path / "unet.json", graph="full", device="Pixel 9")["full"]
    assert (found.device.name, found.source, found.graphs["full"].n) == ("Pixel 9", "measured", 2)


@pytest.mark.parametrize("source", ["measured", "emulated", "vendor-estimate", "estimated"])
def test_a_table_keeps_its_source(tmp_path, capsys, source):
    (tmp_path / "t.json").write_text(table(source).to_json())
    assert main(["import", str(tmp_path / "t.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"]["t"]["source"] == source
    assert main(["import", str(tmp_path / "t.json")]) == 0
    assert f"{source} on Pixel 9" in capsys.readouterr().out


def test_a_perf_file_is_asked_for_a_device_and_a_runtime(tmp_path):
    (tmp_path / "perf.yaml").write_text(PERF)
    assert read_measurements(tmp_path / "perf.yaml", device="Phone", runtime="qnn_dlc")["Net"].end_to_end_ms.p50 == 2.5
    with pytest.raises(ConfigError, match="choose with --device and --runtime"):
        read_measurements(tmp_path / "perf.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.mlperf", "{}", "Apple documents no format for Xcode's performance reports"),
        ("r.txt", "", "'.txt' is no kind of measurement that is read"),
        ("r.json", "{", "is not JSON"),
        ("r.json", '{"source": "guessed"}', "r.json: "),
        ("r.json", "{}", "is not an ONNX Runtime trace"),
        ("r.etdp", "x", "is not an ETDump"),
    ],
)
def test_files_that_are_nothing_of_the_kind(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_measurements(tmp_path / name)
    with pytest.raises(ConfigError, match="there is no such file"):
        read_measurements(tmp_path / "none.json")
