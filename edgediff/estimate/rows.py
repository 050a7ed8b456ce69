"""The measurements behind the coefficients: published latencies, each with the graph that it is of."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgediff.estimate.operators import OperatorTable, read_tables

FOLDER = Path(__file__).parent / "calibration"
PRECISIONS = {"float": "fp16", "w8a8": "int8", "w8a16": "w8a16"}
RUNTIMES = {"qnn": "qnn", "onnx": "onnxruntime/qnn", "tflite": "tflite/qnn"}
MOSTLY = 0.9  # a row counts for the NPU when this share of its layers ran there


@dataclass(frozen=True)
class Chip:
    """What the specifications say of a chip's compute unit. `generation` is the architecture's number."""

    name: str
    architecture: str
    gflops: dict[str, float]
    bandwidth: float
    generation: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """One published latency in milliseconds of one graph, on one chip, by one runtime, at one precision."""

    graph: str
    family: str
    chip: str
    runtime: str
    precision: str
    ms: float
    batch: int = 1


@lru_cache(maxsize=1)
def load_graphs() -> dict[str, OperatorTable]:
    """Operator tables of the architectures behind the rows (`tests/bench/estimator_graphs.py` writes them)."""
    return read_tables(FOLDER / "graphs.json.gz")


def load_chips() -> dict[str, Chip]:
    """Chips of the calibration rows with their figures, from `chips.csv`, by name."""
    found: dict[str, Chip] = {}
    with open(FOLDER / "chips.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rates = {name: float(row[name]) for name in ("fp32", "fp16", "int8", "w8a16") if row[name]}
            found[row["chip"]] = Chip(
                row["chip"], row["architecture"], rates, float(row["bandwidth_gbps"]), float(row["generation"] or 0)
            )
    return found


def hexagon_rows() -> list[Measurement]:
    """Qualcomm AI Hub's rows that ran on the NPU and whose architecture we can build."""
    graphs, found = load_graphs(), []
    for row in _read("ai_hub.csv.gz"):
        graph = row["model"] if row["model"] in graphs else f"{row['model']}/{row['component']}"
        precision = PRECISIONS.get(row["precision"])
        total = int(row["layers_total"] or 0)
        if graph not in graphs or precision is None or row["primary_compute_unit"] != "NPU":
            continue
        if total and int(row["layers_npu"] or 0) < MOSTLY * total:
            continue
        runtime = RUNTIMES[row["runtime"]]
        found.append(Measurement(graph, row["family"], row["silicon_group"], runtime, precision,
                                 float(row["latency_us"]) / 1e3))  # fmt: skip
    return found


def cpu_rows() -> tuple[list[Measurement], dict[str, Chip]]:
    """ncnn's benchmark on Arm cores whose kind and clock the heading names, and the chips: one per number of
    threads, the fastest cores first. ncnn computes in fp16 where the cores can."""
    graphs, found = load_graphs(), []
    chips: dict[str, Chip] = {}
    for row in _read("ncnn.csv.gz"):
        name = row["model"].removesuffix("_int8")
        graph, threads = f"ncnn/{name}", re.match(r"CPU (\d+) threads powersave=[02]", row["compute_unit"])
        cores = arm_cores(row["device"])
        if graph not in graphs or threads is None or not cores or int(threads[1]) > len(cores):
            continue
        key, half = f"{row['device']}|{threads[1]}", all(half for _, half in cores)
        rate = sum(rate for rate, _ in cores[:int(threads[1])])
        chips[key] = Chip(row["device"], "arm", {"fp32": rate, "fp16": 2 * rate}, 10.0)
        precision = "int8" if row["precision"] == "int8" else "fp16" if half else "fp32"
        if precision == row["precision"] or precision != "int8":
            found.append(Measurement(graph, CNN_FAMILIES[name], key, "ncnn", precision, float(row["latency_ms"])))
    return found, chips


# fp32 operations per cycle of one core (two per lane of its multiply-add units); whether it computes in fp16.
CORES = {"A53": (8, False), "A55": (8, True), "A57": (8, False), "A72": (8, False), "A73": (8, False),
         "A76": (16, True), "A77": (16, True), "A78": (16, True), "A78AE": (16, True), "X1": (32, True),
         "A710": (16, True), "A720": (16, True), "A520": (8, True)}  # fmt: skip


def arm_cores(heading: str) -> list[tuple[float, bool]]:
    """GFLOP/s at fp32 of every core, fastest first, and whether it does fp16; [] for a heading that names none, or
    a core that is not known: `RK3588 (Cortex-A76 2.4GHz x 4 + Cortex-A55 1.8GHz x 4)`."""
    pattern = r"([AX]\d+(?:AE)?)\s*(?:\(ARMv\d+\)\s*)?\(?([\d.]+)\s*[Gg][Hh][Zz]\)?\s*x\s*(\d+)"
    found: list[tuple[float, bool]] = []
    for kind, clock, count in re.findall(pattern, heading):
        if kind not in CORES:
            return []
        flops, half = CORES[kind]
        found += [(flops * float(clock), half)] * int(count)
    return sorted(found, reverse=True)


def coreml_rows() -> list[Measurement]:
    """Core ML on the neural engine: single calls of models that we can build, from papers and Apple's documents.
    Weights in 1 to 8 bits with fp16 activations count as `w8a16`; sparse weights are left out."""
    graphs, found = load_graphs(), []
    for row in _read("published.csv.gz"):
        if not row["runtime"].startswith("Core ML") or "GPU" in row["compute_unit"]:
            continue
        name = row["model"].lower().replace("-", "_").replace("1.0", "100").replace("x1.4", "_140")
        graph, batch = f"ane/{ANE_NAMES.get(row['model'], name)}", 1
        if row["component"].startswith("unet step"):
            graph, batch = "stable_diffusion_v1_5/unet", 2
        precision = {"W8A8": "int8", "fp16": "fp16"}.get(row["precision"].split(" symm")[0], "w8a16")
        if graph not in graphs or "sparse" in row["precision"] or row["component"] not in ("model", COREML_STEP):
            continue
        family = name.partition("_")[0]
        found.append(Measurement(graph, family, row["chipset"], "coreml", precision, float(row["latency_ms"]), batch))
    return found


COREML_STEP = "unet step (CFG batch 2)"
ANE_NAMES = {
    "ResNet50": "resnet50", "ane_transformers distilbert (optimised)": "distilbert",
    "MobileNetv2-1.0": "mobilenetv2_100", "MobileViTv2-1.0": "mobilevitv2_100", "MobileNetV2x1.4": "mobilenetv2_140",
}
CNN_FAMILIES = {
    "squeezenet": "classic", "alexnet": "classic", "vgg16": "classic", "googlenet": "classic",
    "resnet18": "resnet", "resnet50": "resnet", "regnety_400m": "regnet", "mobilenet": "mobilenet",
    "mobilenet_v2": "mobilenet", "mobilenet_v3": "mobilenet", "mnasnet": "mobilenet", "shufflenet_v2": "shufflenet",
    "efficientnet_b0": "efficientnet", "efficientnetv2_b0": "efficientnet", "vision_transformer": "vit",
}  # fmt: skip


def _read(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(FOLDER / name, "rt", newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
