"""What other tools measured becomes a latency table, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgediff.errors import ConfigError
from edgediff.links._imports import import_ai_hub, import_etdump, import_onnxruntime_trace, join_operators
from edgediff.runtime.latency import DeviceFacts, LatencyTable, Samples, image_times

PERF = """
precisions:
  float:
    components:
      Net:
        performance_metrics:
          Phone:
            qnn_dlc:
              inference_time_milliseconds: 2.5
              primary_compute_unit: NPU
              layer_counts: {total: 10, npu: 9, cpu: 1}
              tool_versions: {qairt: '2.41'}
            onnx: {inference_time_milliseconds: null}
"""


def test_a_real_trace_of_onnxruntime(tmp_path):
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 8)) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]), ir_version=9, opset_imports=[helper.make_opsetid("", 20)]
    )
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(4):
        session.run(None, {"x": np.ones((4, 8), np.float32)})

    table = import_onnxruntime_trace(Path(session.end_profiling()), graph="net")
    assert table.source == "measured"
    assert table.graphs["net"].n == 3
    assert set(table.operators_ms) == {"Sigmoid", "Softmax"}
    assert set(table.placement.values()) == {"cpu"}
    assert sum(table.operators_ms.values()) <= sum(table.samples.graphs["net"]) / 3


def test_what_is_no_etdump(tmp_path):
    pytest.importorskip("executorch")
    (tmp_path / "full.etdp").write_bytes(b"not a dump")
    with pytest.raises(ConfigError, match="full.etdp: is not an ETDump, or not one of this version of ExecuTorch"):
        import_etdump(tmp_path / "full.etdp")


def test_operators_of_several_graphs_bear_their_graph(tmp_path):
    one = LatencyTable(
        source="measured",
        device=DeviceFacts(name="x", backend="y"),
        graphs={},
        operators_ms={"Mul": 2.0},
        end_to_end_ms=image_times([1.0]),
        samples=Samples(end_to_end_ms=(1.0,)),
        placement={"m": "cpu"},
    )
    other = one.model_copy(update={"placement": None})
    assert join_operators({"full": one, "shallow": other}) == {
        "operators_ms": {"full/Mul": 2.0, "shallow/Mul": 2.0},
        "placement": {"full/m": "cpu"},
    }


def test_a_perf_file_of_ai_hub(tmp_path):
    (tmp_path / "perf.yaml").write_text(PERF)
    found = import_ai_hub(tmp_path / "perf.yaml", device="Phone", runtime="qnn_dlc")
    assert found["Net"].end_to_end_ms.p50 == 2.5
    assert found["Net"].placement == {"npu": "9 layers", "cpu": "1 layers"}
    assert found["Net"].device.runtime == "qairt 2.41"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "Phome", "runtime": "qnn_dlc"}, "unknown device 'Phome'; did you mean 'Phone'"),
        ({"device": "Phone", "runtime": "tflite"}, "unknown runtime 'tflite'"),
        ({"device": "Phone", "runtime": "onnx"}, "component 'Net' has no time on 'Phone'"),
        ({"device": "Phone", "runtime": "onnx", "precision": "w8a8"}, "unknown precision 'w8a8'"),
    ],
)
def test_perf_files_without_what_is_asked(tmp_path, options, message):
    (tmp_path / "perf.yaml").write_text(PERF)
    with pytest.raises(ConfigError, match=message):
        import_ai_hub(tmp_path / "perf.yaml", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "a list of events is expected"),
        ("[]", "the session was never run"),
    ],
)
def test_files_that_are_no_trace(tmp_path, text, message):
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_onnxruntime_trace(tmp_path / "trace.json")
    (tmp_path / "perf.yaml").write_text(json.dumps({"models": 1}))
    with pytest.raises(ConfigError, match="no 'precisions' in it"):
        import_ai_hub(tmp_path / "perf.yaml", device="x", runtime="y")
