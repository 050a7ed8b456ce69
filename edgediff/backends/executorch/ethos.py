"""Arm Ethos-U through TOSA and Vela: a compile spec, the quantizer that its compiler wants, and what Vela says.

Everything between a graph's inputs and outputs is in integers, norms and softmax included: weights of 8 bits with a
scale per output channel, activations of 8 (`w8a8`) or 16 (`w8a16`). What that would ruin stays fp32 on the
CPU that feeds the NPU: whatever is made of the timestep or of integer inputs alone, up to the first layer (the sinusoid
of the time embedding, the look-up of tokens).

Vela estimates cycles and memory of every piece that it compiles. It is a model of the vendor's, run on no chip, and
bears that name wherever it is shown.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.backends._capture import operator_name, place_of
from edgediff.backends._output import ERR, OUT, Said, hear_output
from edgediff.backends.executorch.retrace import sizes_in_place, weights_by_name
from edgediff.backends.executorch.rewrite import MASKED
from edgediff.backends.executorch.settings import Settings
from edgediff.backends.executorch.standin import tosa_file
from edgediff.errors import BackendError, unknown
from edgediff.runtime.latency import DeviceFacts, LatencyTable, NpuEstimate, graph_times, image_times

if TYPE_CHECKING:
    import torch

    from edgediff.documents.plan import Plan
    from edgediff.documents.target import Target

HEADROOM = 4.0
HIDDEN = 12.0  # e^-12 beside a place's own logit is less than 16 bits of a softmax can tell from 0
MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")
Call = tuple["torch.Tensor", ...]


def compile_spec(table: Settings) -> Any:
    """ExecuTorch's `EthosUCompileSpec` of a target's `chip`, `system` and `memory`.

    Raises BackendError (code `delegate`) for a chip that Vela does not know; MissingLibrary.
    """
    from ethosu.vela.architecture_features import Accelerator
    from executorch.backends.arm.ethosu import EthosUCompileSpec

    chips = Accelerator.member_list()
    if table.chip not in chips:
        message = unknown("chip of delegate 'ethos-u'", table.chip, chips)
        raise BackendError(message, where="[executorch]", code="delegate")
    return EthosUCompileSpec(table.chip, system_config=table.system or None, memory_mode=table.memory or None)


# Quantizing


def quantize_for_npu(
    program: Any, calls: Sequence[Call], table: Settings, name: str, *, activation_bits: int = 8
) -> Any:
    """The exported program in integers for the NPU, weights in 8 bits; `calls` are inputs along calibration
    trajectories.

    Raises BackendError (code `calibration`) without calls: there are no scales without them.
    """
    from executorch.backends.arm.quantizer import EthosUQuantizer
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class OutsideTheHost(EthosUQuantizer):  # type: ignore[misc]
        """Arm's quantizer, whose input and shared specs reach what stays on the CPU as well: a timestep in 8 bits is
        another step."""

        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            for node in (*host_inputs(model.graph), *host_nodes(model.graph)):
                node.meta.pop(Q_ANNOTATION_KEY, None)
            return model

    if not calls:
        raise BackendError(
            f"graph '{name}' for Ethos-U needs calibration data and has none: build from a pipeline (`edgediff build` "
            "makes it from the recipe's calibration prompts)",
            code="calibration",
        )
    module = _decomposable(program.module(check_guards=False), calls)
    quantizer = OutsideTheHost(compile_spec(table))
    quantizer.set_global(npu_config(activation_bits))
    for node in host_nodes(module.graph):
        quantizer.set_node_name(node.name, None)
    return _run_pt2e(module, quantizer, calls, program.example_inputs[0])


def _run_pt2e(module: Any, quantizer: Any, calls: Sequence[Call], example: Call) -> Any:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
        for call in calls:
            prepared(*call)
        return torch.export.export(convert_pt2e(prepared), example, strict=False)


def npu_config(activation_bits: int = 8) -> Any:
    """Arm's own configuration for 8 bits. For 16 its ranges are those that calibration saw, times `HEADROOM`: what
    another picture has beyond a range is cut off, which costs far more than two of 16 bits do. Weights have 8 bits."""
    from executorch.backends.arm.quantizer import (
        get_symmetric_a16w8_quantization_config,
        get_symmetric_quantization_config,
    )
    from executorch.backends.arm.quantizer.quantization_config import TOSAQuantizationConfig
    from torchao.quantization.pt2e import MinMaxObserver

    class Roomy(MinMaxObserver):  # type: ignore[misc]
        def calculate_qparams(self) -> Any:
            return self._calculate_qparams(HEADROOM * self.min_val, HEADROOM * self.max_val)

    if activation_bits == 8:
        return get_symmetric_quantization_config()
    found = get_symmetric_a16w8_quantization_config()
    ranges = Roomy.with_args(eps=2**-24)
    act = dataclasses.replace(found.input_activation, observer_or_fake_quant_ctr=ranges)
    return TOSAQuantizationConfig(act, act, found.weight, found.bias, "16 bits with headroom")


def _decomposable(module: Any, calls: Sequence[Call]) -> Any:
    """Softmax by the name under which Arm's passes take it apart; masks no deeper than what hides a place, as 8 bits
    between 0 and -10000 would leave nothing of the logits."""
    import torch

    for node in module.graph.nodes:
        if node.target is torch.ops.aten._softmax.default:
            node.target, node.args = torch.ops.aten.softmax.int, node.args[:2]
    masks = {
        name: value
        for name, value in module.named_buffers()
        if value.is_floating_point() and value.numel() and float(value.min()) <= MASKED
    }
    for name, depth in mask_depths(module, set(masks), calls).items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, masks[name].clamp(min=-depth))
    module.recompile()
    return module


def mask_depths(module: Any, masks: set[str], calls: Sequence[Call]) -> dict[str, float]:
    """How far below 0 each mask has to be: half again the widest row of logits that calibration adds it to, and
    `HIDDEN` more."""
    import torch

    class Rows(torch.fx.Interpreter):
        def run_node(self, node: Any) -> Any:
            found = [one.target for one in node.all_input_nodes if one.op == "get_attr" and one.target in masks]
            for logits in (self.env[one] for one in node.all_input_nodes if found and one.op != "get_attr"):
                width = float((logits.amax(-1) - logits.amin(-1)).max())
                widths.update({name: max(width, widths[name]) for name in found})
            return super().run_node(node)

    widths = dict.fromkeys(masks, 0.0)
    if masks:
        with torch.no_grad():
            for call in calls:
                Rows(module).run(*call)
    return {name: 1.5 * width + HIDDEN for name, width in widths.items()}


def host_inputs(graph: Any) -> list[Any]:
    """The timestep (fp32, one axis) and integers."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [node for node in inputs if node.meta["val"].dim() < 2 or not node.meta["val"].is_floating_point()]


def host_nodes(graph: Any) -> list[Any]:
    """What is made of `host_inputs` alone, before the first layer."""
    import torch

    host, found = set(host_inputs(graph)), []
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not torch.ops.aten.linear.default:
            used = [one for one in node.all_input_nodes if one.op != "get_attr"]
            if used and all(one in host for one in used):
                host.add(node)
                found.append(node)
    return found


# Compiling


@dataclass(frozen=True)
class VelaReport:
    """What Vela says of one piece: total cycles, its clock in MHz, multiply-accumulates, passes after fusing, KiB used
    in each memory, and the names of the system and of the memory mode."""

    cycles: int
    clock_mhz: float
    macs: int
    passes: int
    memory_kib: Mapping[str, float]
    system: str
    memory_mode: str


@dataclass
class Watch:
    """What was seen while programs were lowered: reports and TOSA programs by the bytes that Vela made of them, those
    of each method's pieces, and why operators stay out, by their name and place."""

    reports: dict[bytes, VelaReport] = field(default_factory=dict)
    tosa: dict[bytes, bytes] = field(default_factory=dict)
    pieces: dict[str, list[VelaReport]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def keep(self, method: str, module: Any) -> None:
        """Notes the reports of a lowered method's pieces."""
        calls = [node.args[0].target for node in module.graph.nodes if "call_delegate" in str(node.target)]
        found = [self.reports.get(getattr(module, name).processed_bytes) for name in calls]
        self.pieces[method] = [one for one in found if one is not None]

    def write_tosa(self, folder: Path) -> None:
        """Writes what Vela was given: the chip's programs can be checked by it where there is no chip."""
        folder.mkdir(parents=True, exist_ok=True)
        for compiled, program in self.tosa.items():
            tosa_file(folder, compiled).write_bytes(program)

    def table(self, pieces: Mapping[str, Sequence[VelaReport]], plan: Plan, target: Target) -> LatencyTable | None:
        """Vela's estimates as our latency table, from the pieces of each graph: see `vendor_table`."""
        return vendor_table(pieces, plan, target)


@contextlib.contextmanager
def watch_vela() -> Iterator[Watch]:
    """Within it Vela is silent, its failures are BackendErrors, and its reports and the partitioner's reasons are
    kept: ExecuTorch drops them, and where it can be told to dump them, one piece writes over the other."""
    from executorch.backends.arm.ethosu import backend
    from executorch.backends.arm.tosa import partitioner

    seen = Watch()
    compile_piece, reporter = backend.vela_compile, partitioner.WhyNoPartitionReporter

    class Reasons(reporter):  # type: ignore[misc, valid-type]
        def report_reject(self, node: Any, reason: str) -> None:
            super().report_reject(node, reason)
            if node.op == "call_function":
                seen.reasons.setdefault(operator_name(node) + place_of(node), " ".join(reason.split()))

    def watched(flatbuffer: bytes, flags: list[str], **options: Any) -> Any:
        options.pop("intermediate_path", None)
        with tempfile.TemporaryDirectory() as folder:
            with hear_output(OUT, ERR) as said:
                try:
                    made = compile_piece(flatbuffer, flags, **options, intermediate_path=folder)
                except (Exception, SystemExit) as error:  # Vela raises many kinds, and ends the process
                    message = f"Vela cannot compile a piece of the graph: {_complaint(said, error)}"
                    raise BackendError(message, code="export") from error
            seen.reports[made.processed_bytes] = read_summary(next(Path(folder, "output").glob("*_summary_*.csv")))
            seen.tosa[made.processed_bytes] = flatbuffer
        return made

    backend.vela_compile, partitioner.WhyNoPartitionReporter = watched, Reasons
    try:
        with sizes_in_place(), weights_by_name():
            yield seen
    finally:
        backend.vela_compile, partitioner.WhyNoPartitionReporter = compile_piece, reporter


def read_summary(path: Path) -> VelaReport:
    """Vela's summary CSV: a line of names, a line of values. Raises BackendError for a file of another form."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            row = next(iter(csv.DictReader(file)))
        return VelaReport(
            cycles=round(float(row["cycles_total"])),
            clock_mhz=float(row["core_clock"]) / 1e6,
            macs=round(float(row["nn_macs"])),
            passes=round(float(row["passes_after_fusing"])),
            memory_kib={name: kib for name in MEMORIES if (kib := float(row[f"{name}_memory_used"])) > 0},
            system=row["system_config"],
            memory_mode=row["memory_mode"],
        )
    except (KeyError, ValueError, StopIteration) as error:
        known = importlib.metadata.version("ethos-u-vela")
        message = f"is no summary of Vela that edgediff can read ({type(error).__name__}: {error}); Vela {known}"
        raise BackendError(message, where=path.name, code="vela") from error


def _complaint(said: Said, error: BaseException) -> str:
    """Vela's last one; the exception's own words where there is none."""
    found = [line.strip() for line in said.lines() if "error" in line.lower()]
    return found[-1] if found else f"{type(error).__name__}: {error}"


# What Vela says of a bundle


def vendor_table(reports: Mapping[str, Sequence[VelaReport]], plan: Plan, target: Target) -> LatencyTable | None:
    """Vela's estimates as our latency table: a call of each graph, and the NPU's share of an image.

    `reports` are the pieces of each graph. What the CPU does before, between and after them is in nobody's estimate.
    None when nothing runs on the NPU.
    """
    npu = {graph: _sum(pieces) for graph, pieces in reports.items() if pieces}
    if not npu:
        return None
    first = next(pieces[0] for pieces in reports.values() if pieces)
    times = {graph: one.cycles / one.clock_mhz / 1e3 for graph, one in npu.items()}
    image = sum(count * times.get(graph, 0.0) for graph, count in calls_per_image(plan, tuple(reports)).items())
    tool = f"Vela {importlib.metadata.version('ethos-u-vela')}"
    chip = target.settings("executorch", Settings).chip
    return LatencyTable(
        source="vendor-estimate",
        npu=npu,
        device=DeviceFacts(
            name=target.name,
            backend="executorch",
            runtime=f"{tool}, {chip} at {first.clock_mhz:g} MHz, {first.system}, {first.memory_mode}",
        ),
        graphs={graph: graph_times([ms]) for graph, ms in times.items()},
        end_to_end_ms=image_times([image]),
    )


def _sum(pieces: Sequence[VelaReport]) -> NpuEstimate:
    """One graph's pieces: they run one after the other, in the same memory."""
    return NpuEstimate(
        cycles=sum(one.cycles for one in pieces),
        clock_mhz=pieces[0].clock_mhz,
        macs=sum(one.macs for one in pieces),
        pieces=len(pieces),
        memory_kib={
            name: max(one.memory_kib.get(name, 0.0) for one in pieces)
            for name in MEMORIES
            if any(name in one.memory_kib for one in pieces)
        },
    )


def calls_per_image(plan: Plan, graphs: Sequence[str]) -> dict[str, int]:
    """How often each graph runs for one image: twice where a step is guided and takes one prompt at a time."""
    found = dict.fromkeys(graphs, 0)
    guided = any(scale is not None for scale in plan.guidance.calls)
    for name, scale in zip(plan.schedule.calls, plan.guidance.calls, strict=True):
        if name in found:
            found[name] += 2 if scale is not None and plan.guidance.mode == "sequential" else 1
    for name in found:
        if name not in plan.graphs:
            found[name] = 2 if name == "text_encoder" and guided else 1
    return found
