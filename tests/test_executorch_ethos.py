"""Arm Ethos-U: what stays on the CPU, what 8 bits cost, what Vela says, and the words for what cannot be."""

import contextlib
import dataclasses
import math
import os
import shutil

import pytest
import torch
from torch import nn

from edgediff.documents.plan import BackendPlan
from edgediff.documents.target import load_target
from edgediff.errors import BackendError, MissingLibrary
from edgediff.graph.schedule import HOLD
from edgediff.metrics import psnr
from edgediff.runtime.latency import LatencyTable
from edgediff.runtime.manifest import BATCH, Graph, TensorSpec
from edgediff.variants import Variant, Variants
from edgediff.verify import Recording
from tests.tiny import tiny_pipeline, tiny_plan

pytest.importorskip("executorch")
pytest.importorskip("ethosu.vela")

from edgediff.backends import executorch
from edgediff.backends._output import ERR, OUT, hear_output
from edgediff.backends.executorch import ethos as _executorch_ethos
from edgediff.backends.executorch import retrace as _executorch_retrace
from edgediff.backends.executorch.delegates import find_delegate
from edgediff.backends.executorch.ethos import (
    VelaReport,
    _complaint,
    calls_per_image,
    compile_spec,
    host_nodes,
    read_summary,
    vendor_table,
    watch_vela,
)
from edgediff.backends.executorch.lowering import Method, write_program
from edgediff.backends.executorch.rewrite import rewrite_program

TARGETS = ("ethos_u55_256", "ethos_u65_512", "ethos_u85_2048")


class Block(nn.Module):
    """A denoiser's parts, once each: the timestep's sinusoid, a convolution, a norm, attention over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.time = nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Linear(8, 16)
        self.out = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        angle = timestep[:, None] * torch.exp(torch.arange(4) * (-math.log(10_000.0) / 4))[None]
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        hidden = nn.functional.silu(self.norm(self.conv(sample) + time[:, :, None, None]))
        places = hidden.flatten(2).transpose(1, 2)[:, None]
        mixed = nn.functional.scaled_dot_product_attention(places, places, places)
        return (self.out(hidden + mixed[:, 0].transpose(1, 2).reshape(hidden.shape)),)


def block_of_seed():
    torch.manual_seed(0)
    return Block().eval()


def make_calls(count=6):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([900.0 - 150 * i])) for i in range(count)]


@pytest.fixture(scope="module")
def program():
    return rewrite_program(torch.export.export(block_of_seed(), make_calls(1)[0]).run_decompositions({}))


def table_of(name="ethos_u85_2048", **changes):
    return load_target(name).backend("executorch").model_copy(update=changes)


@pytest.fixture(scope="module")
def quantized(program):
    return find_delegate(table_of(), "w8a8").quantize(program, make_calls(), "block")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pipeline = tiny_pipeline(tmp_path_factory.mktemp("tiny"))
    return tiny_plan(pipeline, {"executorch": BackendPlan(precision="w8a8")}, calls=("full",), mode="sequential")


@pytest.fixture(scope="module")
def lowered(plan, tmp_path_factory):
    """A bundle's graphs by the backend itself, the block in place of the denoiser."""
    names = (("sample", (BATCH, 4, 8, 8)), ("timestep", (1,)))
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in names)
    output = TensorSpec(name="noise_pred", dtype="float32", shape=(BATCH, 4, 8, 8))
    variant = Variant("full", "unet", block_of_seed(), make_calls(1)[0], inputs, (output,), {}, {})
    calls = [
        Recording("full", i, {"sample": a.numpy(), "timestep": b.numpy()}, {}) for i, (a, b) in enumerate(make_calls())
    ]
    variants = Variants(plan, {}, graphs={"full": variant}, calibration=lambda: calls)
    out = tmp_path_factory.mktemp("ethos")
    graph = Graph(component="unet", inputs=inputs, outputs=(output,))
    return executorch.lower(variants, load_target("ethos_u85_2048"), out), graph, out


def test_the_sinusoid_of_the_timestep_stays_outside_and_nothing_else_does(program):
    names = [str(node.target) for node in host_nodes(program.module(check_guards=False).graph)]
    assert names == [
        "aten.reshape.default",
        "aten.mul.Tensor",
        "aten.sin.default",
        "aten.cos.default",
        "aten.cat.default",
    ]


class Causal(nn.Module):
    def forward(self, places: torch.Tensor) -> tuple[torch.Tensor]:
        keys = places.roll(1, -2)
        return (nn.functional.scaled_dot_product_attention(places, keys, places, is_causal=True),)


@pytest.mark.parametrize(("bits", "floor"), [(8, 30), (16, 60)])
def test_a_mask_hides_what_comes_later_and_leaves_bits_to_the_logits(bits, floor):
    """Rows of logits are up to 100 wide here. The mask of the other delegates, 0 to -10000, leaves 9 dB at 8 bits; one
    of -16, which hides nothing that wide, 6 dB at any."""
    generator = torch.Generator().manual_seed(2)
    calls = [(3 * torch.randn(1, 1, 8, 16, generator=generator),) for _ in range(6)]
    program = rewrite_program(torch.export.export(Causal(), calls[0]).run_decompositions({}))
    quantized = find_delegate(table_of(), f"w8a{bits}").quantize(program, calls[:4], "causal")
    for call in calls[4:]:
        wanted, found = Causal()(*call)[0].numpy(), quantized.module(check_guards=False)(*call)[0].numpy()
        assert psnr(wanted, found, abs(wanted).max()) > floor


def test_eight_bits_are_near_the_network(program, quantized):
    exact, coarse = program.module(check_guards=False), quantized.module(check_guards=False)
    for call in make_calls():
        wanted, found = exact(*call)[0].detach().numpy(), coarse(*call)[0].detach().numpy()
        assert 25 < psnr(wanted, found, abs(wanted).max()) < 90


def test_one_piece_goes_to_the_npu_and_the_rest_is_named(lowered):
    artifacts, _, out = lowered
    artifact = artifacts.graphs["full"]
    assert artifact.delegates == {"EthosUBackend": 1} and artifact.precision == "w8a8"
    assert {word.partition(" ")[0] for word in artifact.outside} <= {
        "view_copy",
        "mul",
        "sin",
        "cos",
        "cat",
        "quantize_per_tensor",
        "dequantize_per_tensor",
    }
    assert any(word.startswith("sin") for word in artifact.outside)
    assert (out / artifact.file).stat().st_size > 5_000
    assert set(artifacts.tools) == {"executorch", "torchao", "tosa-tools", "ethos-u-vela"}


def test_what_vela_says_becomes_a_table_that_is_no_measurement(lowered):
    found = lowered[0].profile
    said = found.npu["full"]
    assert said.macs > 2 * 4 * 16 * 9 * 64 and said.cycles > 1_000 and said.memory_kib["sram"] > 1
    assert said.clock_mhz == 1000 and "Ethos_U85_SYS_DRAM_Mid" in found.device.runtime
    assert found.source == "vendor-estimate"
    assert found.graphs["full"].p50_ms == pytest.approx(said.cycles / 1e6, abs=1e-4)
    assert found.end_to_end_ms.p50 == pytest.approx(2 * said.cycles / 1e6, abs=1e-3)


def run_block(lowered, call):
    artifacts, graph, out = lowered
    runner = executorch.open_runner(out, graph, artifacts.graphs["full"], batch=1)
    return runner.run({"sample": call[0].numpy(), "timestep": call[1].numpy()})["noise_pred"]


def test_the_program_is_computed_by_arms_reference_model(lowered, quantized):
    """The `.pte` itself, with what Vela was given in the place of what it made: the integers that PyTorch simulates."""
    assert executorch.stand_in(lowered[0].graphs["full"]) == "Arm's reference model of TOSA"
    simulated = quantized.module(check_guards=False)
    for call in make_calls(2):
        found, wanted = run_block(lowered, call), block_of_seed()(*call)[0].detach().numpy()
        assert psnr(wanted, found, abs(wanted).max()) > 25
        assert psnr(simulated(*call)[0].detach().numpy(), found, abs(wanted).max()) > 45


def test_without_its_tosa_program_a_piece_runs_on_the_device_alone(lowered, tmp_path):
    artifacts, graph, out = lowered
    shutil.copytree(out, tmp_path / "bundle")
    (kept,) = (tmp_path / "bundle/executorch/tosa").iterdir()
    kept.unlink()
    with pytest.raises(BackendError, match=rf"TOSA program 'tosa/{kept.name}' is not in the bundle: it runs"):
        executorch.open_runner(tmp_path / "bundle", graph, artifacts.graphs["full"], batch=1)


def test_without_arms_reference_model_the_extra_is_named(lowered, monkeypatch):
    artifacts, graph, out = lowered
    monkeypatch.setitem(__import__("sys").modules, "tosa_reference_model", None)
    with pytest.raises(MissingLibrary, match=r'library \'tosa_reference_model\': pip install "edgediff\[ethosu\]"'):
        executorch.open_runner(out, graph, artifacts.graphs["full"], batch=1)


def test_sixteen_bits_are_nearer(program):
    exact, calls = program.module(check_guards=False), make_calls()
    coarse = find_delegate(table_of(), "w8a16").quantize(program, calls, "block")
    for call in calls:
        wanted, found = exact(*call)[0].detach().numpy(), coarse.module(check_guards=False)(*call)[0].detach().numpy()
        assert psnr(wanted, found, abs(wanted).max()) > 40


def test_keeping_the_graph_between_rounds_changes_no_byte(quantized, tmp_path, monkeypatch):
    rounds = []
    refresh = _executorch_retrace.refresh_sizes
    monkeypatch.setattr(_executorch_retrace, "refresh_sizes", lambda *a: rounds.append(0) or refresh(*a))
    written = []
    for name in ("kept", "plain"):
        if name == "plain":
            monkeypatch.setattr(_executorch_ethos, "sizes_in_place", contextlib.nullcontext)
            monkeypatch.setattr(_executorch_ethos, "weights_by_name", contextlib.nullcontext)
        delegate = find_delegate(table_of(), "w8a8")
        with delegate.watch() as seen:
            write_program([Method("block", quantized)], delegate, tmp_path / name, seen=seen)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and len(rounds) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS[:2])
def test_the_smaller_chips_take_it_in_one_piece_too(program, tmp_path, name):
    """With activations of 8 bits, as their targets say: of 16 they would leave attention to the CPU."""
    delegate = find_delegate(table_of(name), "w8a8")
    quantized = delegate.quantize(program, make_calls(), "block")
    with delegate.watch() as seen:
        found = write_program([Method("block", quantized)], delegate, tmp_path / "block.pte", seen=seen)
    assert found["block"].delegates == {"EthosUBackend": 1} and len(seen.pieces["block"]) == 1


def test_without_fallback_what_stays_outside_is_an_error_with_operator_module_and_reason(quantized, tmp_path, capfd):
    delegate = find_delegate(table_of(fallback=False), "w8a8")
    with pytest.raises(BackendError) as caught, delegate.watch() as seen:
        write_program([Method("block", quantized)], delegate, tmp_path / "block.pte", seen=seen)
    message = str(caught.value)
    assert caught.value.code == "delegate" and "graph 'block': delegate 'ethos-u' leaves" in message
    assert "in module" in message and "(Node was not marked as quantized in the Arm backend.)" in message
    assert "fallback = true" in message and not (tmp_path / "block.pte").exists()
    assert seen.reports and capfd.readouterr().out == ""  # Vela has run, and printed nothing


def test_integers_need_calibration(program):
    with pytest.raises(BackendError, match="graph 'block' for Ethos-U needs calibration data and has none"):
        find_delegate(table_of(), "w8a8").quantize(program, [], "block")


@pytest.mark.parametrize(
    ("changes", "precision", "text"),
    [
        ({"chip": "ethos-u85-4096"}, "w8a8", r"unknown chip of delegate 'ethos-u' 'ethos-u85-4096'.*ethos-u85-2048"),
        ({}, "fp16", "'fp16' is no precision of executorch with delegate 'ethos-u'; it serves w8a8 .*; w8a16"),
    ],
)
def test_what_the_npu_has_not_is_said_before_any_work(changes, precision, text):
    with pytest.raises(BackendError, match=text):
        find_delegate(table_of(**changes), precision)


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        ("Nowhere", "Vela cannot compile a piece of the graph: .*Nowhere"),
        ("", "Vela cannot compile a piece of the graph: .+"),
    ],
)
def test_what_vela_refuses_is_one_sentence(memory, text, capfd):
    from executorch.backends.arm.ethosu import backend

    untouched = backend.vela_compile
    with pytest.raises(BackendError, match=text), watch_vela():
        backend.vela_compile(b"no graph", list(compile_spec(table_of(memory=memory)).compiler_flags))
    assert backend.vela_compile is untouched and capfd.readouterr().out == ""


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ethosu.vela", None)
    with pytest.raises(MissingLibrary, match=r'ethos-u needs the library \'ethosu\': pip install "edgediff\[ethosu\]"'):
        find_delegate(table_of(), "w8a8")


@pytest.mark.parametrize("name", TARGETS)
def test_targets_name_a_chip_and_a_system_that_vela_knows(name):
    delegate = find_delegate(table_of(name), "w8a8")
    assert delegate.may_leave and delegate.partitioners()


PIECE = VelaReport(2_000_000, 500.0, 10, 3, {"sram": 100.0}, "System", "Mode")


def test_an_image_is_the_sum_of_its_calls(plan):
    graphs = ("full", "shallow", "text_encoder", "vae_decoder")
    plan = plan.model_copy(update={"schedule": plan.schedule.model_copy(update={"calls": ("full", HOLD, "shallow")})})
    plan = plan.model_copy(
        update={
            "guidance": plan.guidance.model_copy(update={"calls": (4.0, 4.0, None)}),
            "graphs": {**plan.graphs, "shallow": plan.graphs["full"]},
        }
    )
    assert calls_per_image(plan, graphs) == {"full": 2, "shallow": 1, "text_encoder": 2, "vae_decoder": 1}
    small = dataclasses.replace(PIECE, cycles=500_000, memory_kib={"sram": 300.0, "dram": 8.0})
    pieces = {"full": [PIECE, small], "shallow": [small], "text_encoder": [], "vae_decoder": [small]}
    table = vendor_table(pieces, plan, load_target("ethos_u55_256"))
    assert table.source == "vendor-estimate" and table.end_to_end_ms.p50 == 2 * 5 + 1 * 1 + 1
    assert table.graphs["full"].p50_ms == 5 and "text_encoder" not in table.graphs
    assert table.npu["full"].pieces == 2 and table.npu["full"].memory_kib == {"sram": 300.0, "dram": 8.0}
    assert "2500000 cycles at 500 MHz, 2 pieces; sram 300 KiB, dram 8 KiB" in str(table)
    assert LatencyTable.model_validate_json(table.model_dump_json()) == table


def test_without_a_piece_on_the_npu_there_is_no_table(plan):
    assert vendor_table({"full": []}, plan, load_target("ethos_u55_256")) is None


def test_a_summary_of_another_form_is_an_error(tmp_path):
    path = tmp_path / "out_summary_x.csv"
    path.write_text("experiment,cycles\ndefault,3\n")
    with pytest.raises(BackendError, match="is no summary of Vela that edgediff can read .*cycles_total"):
        read_summary(path)


def test_what_was_printed_is_told_in_its_last_complaint(capfd):
    with hear_output(OUT, ERR) as said:
        print("Error: first")
        print("ERROR: the last\nbye")
        os.write(ERR, b"below Python\n")
        assert _complaint(said, ValueError("own words")) == "ERROR: the last"
        assert "below Python" in said.lines()
    assert capfd.readouterr() == ("", "")
