"""The measurements behind the coefficients: published latencies, each with the graph that it is of."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgediff.estimate.operators import OperatorTable, read_tables

FOLDER = Path(__file__).parent / "calibration"
PRECISIONS = {"float": "fp16", "w8a8": "w8a8", "w8a16": "w8a16"}
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
    """Operator tables of the architectures behind the rows (by `benchmarks/calibration/estimator_graphs.py`)."""
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
    """Qualcomm AI Hub's rows that ran on the NPU and whose architecture we can build, every job once: two names of
    one chip may show the same."""
    found = []
    for row, why in _judged_hub():
        if not why:
            found.append(
                Measurement(
                    _hub_graph(row),
                    row["family"],
                    row["silicon_group"],
                    RUNTIMES[row["runtime"]],
                    PRECISIONS[row["precision"]],
                    float(row["latency_us"]) / 1e3,
                )
            )
    return found


def left_out() -> dict[str, int]:
    """How many rows of the two large tables are not fitted, by reason."""
    found = Counter(f"of AI Hub: {why}" for _, why in _judged_hub() if why)
    kept, chips = _board_rows()
    disturbed = len(kept) - len(_scaling(kept, chips))
    total = sum(row["compute_unit"].startswith("CPU") for row in _read("ncnn.csv.gz"))
    found["of ncnn's CPUs: processor, network or thread setting not described"] = total - len(kept)
    found["of ncnn's CPUs: slower with more threads"] = disturbed
    return dict(found)


def _judged_hub() -> Iterator[tuple[dict[str, str], str]]:
    """Every row of AI Hub, and why it is not fitted ('': it is)."""
    graphs, jobs = load_graphs(), set()
    for row in _read("ai_hub.csv.gz"):
        graph, total, job = _hub_graph(row), int(row["layers_total"] or 0), (row["job_id"], row["component"])
        why = ""
        if graph not in graphs:
            why = "architecture not built"
        elif row["precision"] not in PRECISIONS:
            why = "mixed precision"
        elif row["primary_compute_unit"] != "NPU":
            why = "ran on CPU or GPU"
        elif total and int(row["layers_npu"] or 0) < MOSTLY * total:
            why = "a tenth of the layers or more not on the NPU"
        elif job in jobs:
            why = "the same job under another name"
        jobs.add(job)
        yield row, why


def _hub_graph(row: dict[str, str]) -> str:
    return row["model"] if row["model"] in load_graphs() else f"{row['model']}/{row['component']}"


@dataclass(frozen=True)
class Board:
    """An Arm processor of ncnn's benchmark: its cores (kind, GHz), the fastest first, and its memory."""

    silicon: str
    cores: tuple[tuple[str, float], ...]
    bandwidth: float

    def chip(self, threads: int) -> Chip:
        """What so many of the fastest cores promise."""
        rate = sum(CORES[kind][0] * clock for kind, clock in self.cores[:threads])
        return Chip(self.silicon, "arm", {"fp32": rate, "fp16": 2 * rate}, self.bandwidth)

    @property
    def halves(self) -> bool:
        """Whether every core computes in fp16."""
        return all(CORES[kind][1] for kind, _ in self.cores)


# fp32 operations per cycle of one core (two per lane of its multiply-add units), whether it computes in fp16. Cores
# that issue in order get half: every multiplication shares its slot with the load that feeds it.
CORES = {
    "A53": (4, False),
    "A55": (4, True),
    "A57": (8, False),
    "A72": (8, False),
    "A73": (8, False),
    "A76": (16, True),
    "A77": (16, True),
    "A78": (16, True),
    "A78AE": (16, True),
    "X1": (32, True),
    "A710": (16, True),
    "A720": (16, True),
    "A520": (4, True),
}


def cpu_rows() -> tuple[list[Measurement], dict[str, Chip]]:
    """ncnn's benchmark on the Arm processors of `arm.csv`, and what is known of each number of their threads. ncnn
    computes in fp16 where the cores can."""
    found, chips = _board_rows()
    return _scaling(found, chips), chips


def _board_rows() -> tuple[list[Measurement], dict[str, Chip]]:
    graphs, found, boards = load_graphs(), [], _boards()
    chips: dict[str, Chip] = {}
    for row in _read("ncnn.csv.gz"):
        name = row["model"].removesuffix("_int8")
        graph, threads = f"ncnn/{name}", re.match(r"CPU (\d+) threads powersave=[02]", row["compute_unit"])
        board = next((one for heading, one in boards.items() if row["device"].startswith(heading)), None)
        if graph not in graphs or threads is None or board is None or int(threads[1]) > len(board.cores):
            continue
        chip = board.chip(int(threads[1]))
        key = f"{board.silicon}|{chip.gflops['fp32']:g}"
        chips[key] = chip
        precision = "w8a8" if row["precision"] == "int8" else "fp16" if board.halves else "fp32"
        found.append(Measurement(graph, CNN_FAMILIES[name], key, "ncnn", precision, float(row["latency_ms"])))
    return found, chips


def _scaling(rows: list[Measurement], chips: dict[str, Chip]) -> list[Measurement]:
    """Without the numbers of threads that make a processor slower than one thread does, in half of its networks:
    such a run was disturbed (Radxa's Orion O6 with 8 threads takes five times as long as with one)."""
    alone: dict[tuple[str, str, str], float] = {}
    slowest: dict[str, float] = {}
    for row in rows:
        name, rate = chips[row.chip].name, chips[row.chip].gflops["fp32"]
        slowest[name] = min(slowest.get(name, rate), rate)
    for row in rows:
        if chips[row.chip].gflops["fp32"] == slowest[chips[row.chip].name]:
            alone[chips[row.chip].name, row.graph, row.precision] = row.ms
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if (one := alone.get((chips[row.chip].name, row.graph, row.precision))) is not None:
            ratios.setdefault(row.chip, []).append(row.ms / one)
    disturbed = {chip for chip, found in ratios.items() if sorted(found)[len(found) // 2] > 1.0}
    return [row for row in rows if row.chip not in disturbed]


def _boards() -> dict[str, Board]:
    found: dict[str, Board] = {}
    with open(FOLDER / "arm.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cores: list[tuple[str, float]] = []
            for part in row["cores"].split("+"):
                kind, _, rest = part.partition("@")
                clock, _, count = rest.partition("x")
                cores += [(kind, float(clock))] * int(count)
            cores.sort(key=lambda core: -CORES[core[0]][0] * core[1])
            found[row["heading"]] = Board(row["silicon"], tuple(cores), float(row["bandwidth_gbps"]))
    return found


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
        precision = {"W8A8": "w8a8", "fp16": "fp16"}.get(row["precision"].split(" symm")[0], "w8a16")
        if graph not in graphs or "sparse" in row["precision"] or row["component"] not in ("model", COREML_STEP):
            continue
        family = name.partition("_")[0]
        found.append(Measurement(graph, family, row["chipset"], "coreml", precision, float(row["latency_ms"]), batch))
    return found


COREML_STEP = "unet step (CFG batch 2)"
ANE_NAMES = {
    "ResNet50": "resnet50",
    "ane_transformers distilbert (optimised)": "distilbert",
    **{f"RepViT-M{size}": f"repvit_m{size.replace('.', '_')}" for size in ("0.9", "1.0", "1.1", "1.5", "2.3")},
    "MobileNetv2-1.0": "mobilenetv2_100",
    "MobileViTv2-1.0": "mobilevitv2_100",
    "MobileNetV2x1.4": "mobilenetv2_140",
}
CNN_FAMILIES = {
    "squeezenet": "classic",
    "alexnet": "classic",
    "vgg16": "classic",
    "googlenet": "classic",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "regnety_400m": "regnet",
    "mobilenet": "mobilenet",
    "mobilenet_v2": "mobilenet",
    "mobilenet_v3": "mobilenet",
    "mnasnet": "mobilenet",
    "proxylessnasnet": "mobilenet",
    "shufflenet": "shufflenet",
    "shufflenet_v2": "shufflenet",
    "efficientnet_b0": "efficientnet",
    "efficientnetv2_b0": "efficientnet",
    "vision_transformer": "vit",
    "squeezenet_ssd": "ssd",
    "mobilenet_ssd": "ssd",
    "blazeface": "face",
    "mobilenet_yolo": "yolo",
    "mobilenetv2_yolov3": "yolo",
    "yolov4-tiny": "yolo",
    "nanodet_m": "nanodet",
    "yolo-fastest-1.1": "yolo_fastest",
    "yolo-fastestv2": "yolo_fastest",
    "FastestDet": "yolo_fastest",
}


def _read(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(FOLDER / name, "rt", newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
