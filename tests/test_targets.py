"""Targets: every device that comes with the package says where its figures are from."""

from __future__ import annotations

import json

import pytest

from edgediff.cli.main import main
from edgediff.config import parse
from edgediff.documents.target import Target, list_targets, load_target
from edgediff.errors import ConfigError
from edgediff.estimate.rows import load_chips

WANTED = {
    "iphone_12",
    "iphone_13",
    "iphone_14_pro",
    "iphone_15_pro",
    "iphone_16_pro",
    "iphone_17_pro",
    "ipad_pro_m1",
    "galaxy_s23",
    "galaxy_s24",
    "galaxy_s24_exynos",
    "galaxy_s25",
    "pixel_8",
    "pixel_9",
    "pixel_10",
    "snapdragon_7_gen_3",
    "dimensity_9300",
    "snapdragon_x_elite",
    "rk3588",
    "raspberry_pi_5",
    "jetson_orin_nano",
    "ethos_u55_256",
    "ethos_u65_512",
    "ethos_u85_2048",
    "h100",
    "h200",
    "rtx_4090",
    "host",
}


def test_the_devices_are_there():
    assert set(list_targets()) >= WANTED


@pytest.mark.parametrize("name", list_targets())
def test_every_figure_has_a_source_or_says_that_it_has_none(name):
    target = load_target(name)
    for figure in ("memory_gb", "memory_ceiling_gb", "bandwidth_gbps"):
        if getattr(target, figure) is not None:
            assert target.sources.get(figure) or figure in target.unverified, figure
    for where, unit in target.compute_units():
        has = any(getattr(unit, rate) is not None for rate in ("fp32_gflops", "fp16_gflops", "int8_gops"))
        assert unit.architecture, where
        assert not has or unit.source or unit.unverified, where
    for backend in target.backends:
        table = target.backend(backend)
        assert name == "host" or target.unit(table.unit) is not None, f"{backend} runs on {table.unit}"


def test_what_is_unverified_is_named():
    target = Target(
        name="x",
        backends=("onnxruntime",),
        memory_gb=4,
        bandwidth_gbps=30,
        unverified=("memory_gb",),
        sources={"bandwidth_gbps": "a data sheet"},
        npu={"int8_gops": 1000.0, "unverified": True},
    )
    assert target.unverified_figures() == ("memory_gb", "npu.int8_gops")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"unverified": ["memory"]}, "unverified names 'memory'; did you mean 'memory_gb'?"),
        ({"memory_gb": 4, "memory_ceiling_gb": 5}, "an app cannot hold more than there is"),
        ({"npu": {"int8_gop": 3}}, "unknown key 'npu.int8_gop'; did you mean 'int8_gops'?"),
    ],
)
def test_targets_that_are_wrong(data, message):
    with pytest.raises(ConfigError) as caught:
        parse({"name": "x", "backends": ["onnxruntime"], **data}, Target, where="x.toml")
    assert message in str(caught.value)


def test_chips_that_were_measured_have_the_figures_that_the_fit_had():
    chips = load_chips()
    for name in list_targets():
        target = load_target(name)
        if target.silicon in chips and target.npu is not None:
            chip = chips[target.silicon]
            assert target.bandwidth_gbps == chip.bandwidth, name
            peak = target.npu.fp16_gflops or (target.npu.int8_gops or 0) / 2
            assert peak == chip.gflops["fp16"], name
            version = target.npu.architecture.partition("-v")[2]
            assert float(version or 0) == chip.generation, name


def test_devices_are_filtered_and_explained(capsys):
    assert main(["devices", "--backend", "onnxruntime", "--form", "board", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"jetson_orin_nano", "jetson_agx_orin", "raspberry_pi_5"} <= set(found)
    assert "pixel_9" not in found
    assert main(["devices", "--backend", "cuda", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"h100", "h200", "rtx_4090"}
    assert main(["devices", "galaxy_s24"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 GB for one app (unverified) rule of thumb" in said
    assert main(["devices", "--form", "phon"]) == 2
    assert "unknown form 'phon'; did you mean 'phone'?" in capsys.readouterr().err


# -- tables of backends ---------------------------------------------------------------------------


def test_a_backends_table_is_its_own_settings(tmp_path):
    path = tmp_path / "phone.toml"
    path.write_text('name = "p"\nbackends = ["coreml"]\n[coreml]\nchunks = 2\n')
    table = load_target(path).backend("coreml")
    assert (table.chunks, table.format, table.precision) == (2, "mlpackage", "fp16")
    assert Target(name="t", backends=("executorch",)).backend("executorch").format == "pte"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[coreml]\nchunk = 2", r"unknown key 'coreml.chunk'; did you mean 'chunks'\?"),
        ('[onnxruntime]\nformat = "pte"', r"'onnxruntime.format' = 'pte': input should be 'onnx' or 'ort'"),
        ("[executorsch]\nthreads = 1", r"\[executorsch\] is no table of a target and no backend .*mean 'executorch'\?"),
        (
            "[coreai]\nunit = 1",
            r"\[coreai\] is no table .* installed.*\(allowed: .*onnxruntime.*\); a backend of another",
        ),
    ],
)
def test_a_wrong_table_is_an_error_that_says_what_is_there(tmp_path, text, message):
    path = tmp_path / "phone.toml"
    path.write_text(f'name = "p"\nbackends = ["coreml"]\n{text}\n')
    with pytest.raises(ConfigError, match=message):
        load_target(path)
