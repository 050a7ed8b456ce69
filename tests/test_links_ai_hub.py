"""The AI Hub link against a client of the documented interface that keeps no network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgediff.errors import LinkError
from edgediff.links import ai_hub

PROFILE = {
    "execution_summary": {
        "estimated_inference_time": 2500,
        "first_load_time": 90_000,
        "warm_load_time": 40_000,
        "compile_time": 700_000,
        "estimated_inference_peak_memory": 120_000_000,
        "all_inference_times": [2600, 2500, 2400],
    },
    "execution_detail": [
        {"name": "conv_1", "type": "Conv2D", "compute_unit": "NPU", "execution_time": 1500},
        {"name": "resize", "type": "Resize", "compute_unit": "CPU", "execution_time": 900},
    ],
}


class Client:
    """`qai_hub` as far as the link uses it."""

    def __init__(self, success: bool = True) -> None:
        self.success, self.uploaded, self.submitted = success, [], []

    def get_devices(self):
        return [SimpleNamespace(name="Samsung Galaxy S24 (Family)"), SimpleNamespace(name="Google Pixel 9")]

    def Device(self, name):
        return name

    def upload_model(self, path):
        """As the client does: a folder holds one graph, and weights."""
        files = sorted(one.name for one in Path(path).iterdir()) if Path(path).is_dir() else [Path(path).name]
        assert sum(name.endswith(".onnx") for name in files) == 1, files
        self.uploaded.append(files)
        return f"model of {Path(path).name}"

    def submit_inference_job(
        self, model, device, inputs=None, name=None, options="", retry=True, profile=True, project=None
    ):
        assert profile
        self.submitted.append((model, device, options))
        status = SimpleNamespace(success=self.success, message="out of memory on the device")
        return SimpleNamespace(job_id="j123", wait=lambda: status, download_profile=lambda: PROFILE)


def bundle_of(tmp_path, backend="onnxruntime"):
    (tmp_path / "unet").mkdir(exist_ok=True)
    (tmp_path / "unet" / "weights.bin").write_bytes(b"w")
    graphs = {}
    for name in ("full", "shallow"):
        (tmp_path / "unet" / f"{name}.onnx").write_bytes(b"g")
        graphs[name] = SimpleNamespace(artifacts={backend: SimpleNamespace(file=f"unet/{name}.onnx")})
    return SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(graphs=graphs))


def test_a_graph_is_profiled(tmp_path):
    client = Client()
    device = ai_hub.find_device("Google Pixel 9", client=client)
    models = ai_hub.push(bundle_of(tmp_path), device, client=client)
    assert client.uploaded == [["full.onnx", "weights.bin"], ["shallow.onnx", "weights.bin"]]
    table = ai_hub.profile_graphs(models, device, client=client)["full"]
    assert client.submitted == [(f"model of {name}", "Google Pixel 9", "") for name in ("full", "shallow")]
    assert (table.source, table.device.serial, table.graphs["full"].p50_ms) == ("measured", "j123", 2.5)
    assert (table.load_ms.cold, table.load_ms.warm, table.compile_ms) == (90.0, 40.0, 700.0)
    assert table.placement == {"conv_1": "npu", "resize": "cpu"}
    assert table.operators_ms == {"Conv2D": 1.5, "Resize": 0.9}
    assert table.peak_rss_mb == 120.0
    assert table.weights_in_memory is False


def test_an_unknown_device_a_failed_job_and_a_bundle_without_onnx(tmp_path):
    with pytest.raises(LinkError, match="unknown AI Hub device 'Google Pixel 8'; did you mean 'Google Pixel 9'"):
        ai_hub.find_device("Google Pixel 8", client=Client())
    device = ai_hub.HubDevice("Google Pixel 9")
    with pytest.raises(LinkError, match="job j123 of graph 'full' failed: out of memory on the device"):
        ai_hub.profile_graphs({"full": "m"}, device, client=Client(success=False))
    with pytest.raises(LinkError, match="has no onnxruntime part"):
        ai_hub.push(bundle_of(tmp_path, backend="coreml"), device, client=Client())


def test_a_client_from_before_inference_jobs_could_profile():
    class Older(Client):
        def submit_inference_job(self, model, device, inputs, name=None, options=""):
            raise AssertionError("it runs inputs and tells no times")

        def submit_profile_job(self, model, device, name=None, options=""):
            return super().submit_inference_job(model, device, options=options)

    table = ai_hub.profile_graphs({"full": "m"}, ai_hub.HubDevice("Google Pixel 9"), client=Older())["full"]
    assert table.graphs["full"].p50_ms == 2.5


def test_whole_pictures_are_not_what_the_farm_profiles(tmp_path):
    with pytest.raises(LinkError, match="AI Hub profiles graphs one by one .* call edgediff.links.ai_hub.push and"):
        ai_hub.run(bundle_of(tmp_path), ai_hub.HubDevice("Google Pixel 9"))
