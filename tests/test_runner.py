"""The C++ runner of `links/runner`, built as a user builds it, for this machine and for aarch64, where qemu stands in
for the processor: the same outputs as the Python bindings, the same programs as Kotlin, and adb from end to end.

`make test-aarch64` runs these; they need a cross compiler, qemu and adb (`make help` says how to install them).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgediff.bundle import Bundle, BundleWriter, open_bundle
from edgediff.cli.main import main
from edgediff.config import dump_json, read_outside
from edgediff.documents.plan import BackendPlan
from edgediff.errors import LinkError
from edgediff.links import adb
from edgediff.links._build_runner import build_reader, build_runner
from edgediff.links._imports import import_etdump
from edgediff.links._runners import read_runner
from edgediff.metrics import psnr
from edgediff.runtime import Session, open_session
from edgediff.runtime.latency import LatencyTable
from edgediff.runtime.manifest import Manifest
from tests import program_cases, standin_pte
from tests.hostile import CASES as HOSTILE
from tests.hostile import make_manifest, valid_parts
from tests.standin_adbd import EMULATOR, StandIn, own_server
from tests.tiny import tiny_bundle, tiny_pipeline

pytestmark = pytest.mark.aarch64
CASES = {case.name: case for case in program_cases.make_cases()}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "programs.json").read_text(encoding="utf-8"))["cases"]
QUICK = ("--runs", "1", "--warmup", "0", "--threads", "1")


@dataclass(frozen=True)
class Built:
    """A runner's folder, and how this machine starts what is in it."""

    folder: Path
    start: tuple[str, ...]

    def __call__(self, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [*self.start, *read_runner(self.folder).facts.command, str(bundle), *options]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, errors="replace", timeout=300, check=False
        )


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    """The runner for aarch64, where `edgediff profile` finds it when $EDGEDIFF_CACHE is this folder's grandparent."""
    return build_runner("aarch64", out=tmp_path_factory.mktemp("cache") / "runners" / "aarch64")


@pytest.fixture(scope="module", params=["native", "aarch64"])
def runner(request, tmp_path_factory) -> Built:
    if request.param == "aarch64":
        return Built(request.getfixturevalue("arm"), tuple(EMULATOR.split()))
    return Built(build_runner(platform.machine(), out=tmp_path_factory.mktemp("runner") / "made"), ())


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Each case's graphs, lowered once for all cases with the same inputs; the first through XNNPACK."""
    folder = tmp_path_factory.mktemp("pte")
    files: dict[str, Path] = {}
    found: dict[str, Path] = {}
    for name, case in CASES.items():
        graphs = case.manifest.graphs
        ends = {graph: (one.inputs, one.outputs) for graph, one in graphs.items()}
        key = json.dumps({graph: [[s.model_dump() for s in side] for side in both] for graph, both in ends.items()})
        if key not in files:
            files[key] = standin_pte.lower(case.manifest, folder / f"{name}.pte", delegate=not files)
        found[name] = files[key]
    return found


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda one: one["name"])
def test_programs_as_python_runs_them(golden, runner, programs, tmp_path):
    """All that a manifest can say: the last latent within 1e-6 of its largest value, from the runner's own noise."""
    case = CASES[golden["name"]]
    bundle = standin_pte.write_bundle(case, tmp_path / "bundle", programs[case.name])
    inputs, out = standin_pte.write_inputs(case, tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    asked = ["--seed", golden["seed"], "--program", golden["program"]]
    asked += ["--guidance", str(golden["guidance"])] if golden["guidance"] is not None else []
    said = lines_of(runner(bundle, *QUICK, *asked, "--inputs", str(inputs), "--save", str(out)))
    made, wanted = load_file(out), np.array(golden["latents"][-1])
    found = made["latent"].ravel()[:: program_cases.EVERY]
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert np.abs(_pixels(made["image"]) - np.array(golden["pixels"])).max() <= 1  # a half may fall either way
    flags = [line["flagged"] for line in said if "flagged" in line]
    assert flags == ([golden["flagged"]] if case.manifest.safety else [])
    if len(golden["latents"]) == 1:
        assert np.abs(_pixels(made["preview"]) - np.array(golden["preview"])).max() <= 1


def _pixels(values: np.ndarray) -> np.ndarray:
    """Those of a golden file."""
    image = values[0].transpose(1, 2, 0).astype(np.float32)
    return np.rint((image * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).ravel()[:: program_cases.EVERY]


def test_previews(runner, programs, tmp_path):
    """Of the last latent, by weights and by a graph, as Python makes them."""
    for name in ("preview_by_weights", "preview_by_graph"):
        case, out = CASES[name], tmp_path / f"{name}.safetensors"
        bundle = standin_pte.write_bundle(case, tmp_path / name, programs[name])
        lines_of(runner(bundle, *QUICK, "--save", str(out)))
        made = load_file(out)
        session = Session(case.manifest, {}, {graph: program_cases.StandIn(graph) for graph in case.manifest.graphs})
        shown = session.preview(made["latent"]).ravel()[:: program_cases.EVERY].astype(int)
        assert len(set(shown)) > 5
        assert np.abs(_pixels(made["preview"]) - shown).max() <= 1


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    return build_reader(tmp_path_factory.mktemp("reader") / "edgediff-read")


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_hostile_bundles(case, reader, tmp_path):
    """The whole folder: the code that all readers give, and a sentence."""
    done = subprocess.run([reader, case.tree().write(tmp_path / "bundle")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, f"{case.code}\n")
    assert len(done.stderr.splitlines()) == 1


def test_many_manifests(reader, runner, checked):
    """Frame by frame, by the reader alone and by the runner; a broken frame ends it."""
    whole = (checked / "manifest.json").read_bytes()
    frames = [whole, b"{}", whole.replace(b'"2.0"', b'"1.0"'), b"", whole + b"x", whole]
    wire = b"".join(b"%d\n%s" % (len(data), data) for data in frames)
    start = [*runner.start, *read_runner(runner.folder).facts.command]
    for command in ([str(reader)], start):
        call = [*command, "--read-manifests"]
        done = subprocess.run(call, cwd=runner.folder, input=wire, capture_output=True, timeout=60, check=True)
        assert done.stdout.split() == [b"ok", b"version", b"version", b"syntax", b"syntax", b"ok"]
    done = subprocess.run([reader, "--read-manifests"], input=b"12x\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    """A bundle whose golden files hold what the Python bindings of this machine put out."""
    case, folder = CASES["batched"], tmp_path_factory.mktemp("checked")
    decoder = standin_pte.Convolutions()
    file = standin_pte.lower(case.manifest, folder / "graphs.pte", delegate=True, vae_decoder=decoder)
    bundle = standin_pte.write_bundle(case, folder / "bundle", file)
    standin_pte.write_golden(case.manifest, bundle, file)
    return bundle


def test_outputs_are_those_of_the_python_bindings(runner, checked, tmp_path):
    """On this machine the same library: equal. On aarch64 other kernels: at least 120 dB, and said to be so."""
    saved = tmp_path / "out.safetensors"
    _, *found = lines_of(runner(checked, "--check", "--floor", "120", "--save", str(saved)))
    assert {line["graph"] for line in found} == {"full", "shallow", "text_encoder", "vae_decoder"}
    assert [line["call"] for line in found if line["graph"] == "shallow"] == [0, 1], "batch 1 and batch 2"
    assert all(line["finite"] for line in found)
    if not runner.start:
        assert {line["max_abs"] for line in found} == {0.0}
    reference = load_file(checked / "golden" / "vae_decoder.safetensors")["0.out.image"]
    error = np.abs(load_file(saved)["vae_decoder.0.image"] - reference).max()
    told = next(line for line in found if line["graph"] == "vae_decoder")
    assert told["max_abs"] == pytest.approx(error, abs=1e-12)


def test_methods_share_their_packed_weights(runner, tmp_path):
    """`full` at batch 1 and at batch 2 in one process: 67 MB of weights are packed once, not twice."""
    if runner.start:
        pytest.skip("an emulator's memory is its own")
    case = CASES["batched"]
    heavy = standin_pte.Heavy("full", case.manifest.graphs["full"])
    file = standin_pte.lower(case.manifest, tmp_path / "graphs.pte", delegate=True, full=heavy)
    bundle = standin_pte.write_bundle(case, tmp_path / "bundle", file)
    standin_pte.write_golden(case.manifest, bundle, file)
    golden = bundle / "golden" / "full.safetensors"
    both, peaks = load_file(golden), []
    for calls in ("0", "01"):
        save_file({name: value for name, value in both.items() if name[0] in calls}, golden)
        standin_pte.seal(bundle)
        command = [*read_runner(runner.folder).facts.command, str(bundle), "--check", "--floor", "100"]
        with subprocess.Popen(command, cwd=runner.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            _, status, used = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0
        peaks.append(used.ru_maxrss / 1000)
    assert peaks[0] > 67 and peaks[1] - peaks[0] < 30, peaks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Bundle:
    """A whole text-to-image model, lowered by the backend."""
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_bundle(
        folder / "tiny.edgediff", tiny_pipeline(folder / "model"), {"executorch": BackendPlan(precision="fp32")}
    )


def test_a_bundles_golden_files(runner, tiny):
    """PyTorch's answers, on both kinds of processor: the floor that issue and plan ask of fp32."""
    _, *found = lines_of(runner(tiny.folder, "--check", "--floor", "100"))
    assert {line["graph"] for line in found} == {"full", "shallow", "text_encoder", "vae_decoder"}


def test_a_bundles_picture(runner, tiny, tmp_path):
    """The same program, noise and prompt in Python on the same .pte: the same latent and the same picture."""
    session, tokenizers = open_session(tiny, "executorch", 1), tiny.tokenizers()
    tensors = {
        f"input_ids.{name}": np.array(
            [tokenizers[one.tokenizer].encode("red heart", tiny.manifest.tokenizers[one.tokenizer].length)]
        )
        for name, one in tiny.manifest.encoders.items()
    }
    save_file(tensors, tmp_path / "in.safetensors")
    *_, last = (step.latent for step in session.steps("red heart", seed=0))
    out = tmp_path / "out.safetensors"
    lines_of(runner(tiny.folder, *QUICK, "--inputs", str(tmp_path / "in.safetensors"), "--save", str(out)))
    made = load_file(out)
    assert psnr(last, made["latent"], float(np.abs(last).max()), cap=200.0) > 100
    picture = made["image"][0].transpose(1, 2, 0)
    pixels = np.rint((picture * 0.5 + 0.5).clip(0.0, 1.0) * 255.0).astype(int)
    assert np.abs(pixels - session.decode(last)).max() <= 1
    if not runner.start:
        assert np.array_equal(last, made["latent"]), "the same library and the same arithmetic"


def test_a_floor_that_is_missed_fails(runner, checked, tmp_path):
    bundle = shutil.copytree(checked, tmp_path / "bundle")
    file = bundle / "golden" / "vae_decoder.safetensors"
    tensors = load_file(file)
    tensors["0.out.image"] = tensors["0.out.image"] + np.float32(0.01)
    save_file(tensors, file)
    assert "(hash)" in runner(bundle, "--check", "--floor", "120").stderr
    done = runner(bundle, "--check", "--floor", "120", "--no-verify")
    assert done.returncode == 1
    assert next(json.loads(line) for line in done.stdout.splitlines() if "vae_decoder" in line)["psnr_db"] < 120


def test_what_is_timed_adds_up(runner, checked):
    said = lines_of(runner(checked, "--runs", "3", "--warmup", "2", "--threads", "1"))
    images = [line["image_ms"] for line in said if "image_ms" in line]
    calls = [line for line in said if "ms" in line]
    names = [line["graph"] for line in calls]
    assert len(images) == 3
    assert {name: names.count(name) for name in names} == {
        "text_encoder": 6,
        "full": 3,
        "shallow@1": 3,
        "shallow@2": 3,
        "vae_decoder": 3,
    }
    assert 0 < sum(line["ms"] for line in calls) < sum(images)
    facts = {key: value for line in said for key, value in line.items()}
    assert facts["runtime"].startswith("executorch 1.")
    assert facts["threads"] == 1
    assert facts["load_ms"] >= 0.99 * sum(facts["graphs_load_ms"].values())
    assert facts["warm_load_ms"] > 0 < facts["planned_mb"]
    assert facts["peak_rss_mb"] >= facts["pss_mb"] > 0
    assert facts["first_image_ms"] > 0


def test_operators_of_every_graph(runner, checked, tmp_path):
    """The Python reader finds every call of the C++ tracer; what operators take is within what the call takes."""
    lines_of(runner(checked, "--runs", "4", "--warmup", "0", "--threads", "1", "--etdump", str(tmp_path / "traces")))
    files = sorted((tmp_path / "traces").iterdir())
    assert [file.stem for file in files] == ["full", "shallow@1", "shallow@2", "text_encoder", "vae_decoder"]
    table = import_etdump(files[-1], graph="vae_decoder")
    assert table.graphs["vae_decoder"].n == 3, "four pictures, the first left out"
    assert table.placement["Convolution (NHWC, F32) IGEMM"] == "delegate"
    mean = sum(table.samples.graphs["vae_decoder"]) / 3
    assert 0 < table.operators_ms["Convolution (NHWC, F32) IGEMM"] < sum(table.operators_ms.values()) <= 1.01 * mean


def test_a_sustained_run_takes_its_time(runner, checked):
    images = [
        line["image_ms"]
        for line in lines_of(runner(checked, "--sustained", "1", "--warmup", "0"))
        if "image_ms" in line
    ]
    assert len(images) > 15
    assert sum(images) <= 1000 + images[-1]


def edited(bundle: Path, out: Path, change) -> Path:
    folder = shutil.copytree(bundle, out)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(dump_json(manifest), encoding="utf-8")
    return folder


def _file(manifest, **changes) -> None:
    manifest["graphs"]["full"]["artifacts"]["executorch"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: _file(m, function="nothing"),
            "has no method 'nothing' with the inputs and outputs of graph 'full' at batch 2; build the bundle again",
        ),
        (lambda m: m["graphs"]["full"]["inputs"][0].update(dtype="float16"), "inputs and outputs of graph 'full'"),
        (lambda m: m["graphs"]["full"]["inputs"][0].update(dtype="bfloat16"), "'bfloat16' is unknown (allowed"),
        (lambda m: m["graphs"]["full"]["artifacts"].clear(), "graph 'full' was not built for executorch; build"),
        (
            lambda m: _file(m, chunks=["executorch/graphs.pte"]),
            "is in chunks or keeps states, which executorch does not",
        ),
        (lambda m: _file(m, file="../x"), "'../x' must be relative"),
        (lambda m: m.update(schema_version="1.1"), "the first format, which is no longer read: build the bundle again"),
        (lambda m: m.pop("programs"), "'programs': is missing (value)"),
        (lambda m: m["programs"]["main"]["rows"][0].update(graph="deep"), "graph 'deep' does not exist (graph)"),
        (lambda m: m["carries"].clear(), "uses unknown carry 'mid' (carry)"),
    ],
    ids=["method", "dtype", "unknown dtype", "artifact", "chunks", "path", "version", "key", "graph", "carry"],
)
def test_a_bundle_that_does_not_fit(change, message, runner, checked, tmp_path):
    done = runner(edited(checked, tmp_path / "bundle", change), *QUICK)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "terminate called" not in done.stderr


def test_a_program_with_changed_bytes(runner, checked, tmp_path):
    bundle = shutil.copytree(checked, tmp_path / "bundle")
    file = bundle / "executorch" / "graphs.pte"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 3])
    assert "(size)" in runner(bundle, *QUICK).stderr
    cut = runner(standin_pte.seal(bundle), *QUICK)
    assert cut.returncode == 1
    assert "ExecuTorch cannot load it" in cut.stderr
    file.write_bytes(b"\xff" * 64 + data[64:])
    assert runner(standin_pte.seal(bundle), *QUICK).returncode == 1


def test_what_a_device_needs(runner, checked, tmp_path):
    """A push leaves out what only other backends need; nothing else may be missing."""

    def two_backends(manifest) -> None:
        own = manifest["graphs"]["full"]["artifacts"]
        own["onnxruntime"] = {"file": "onnxruntime/full", "precision": "fp32", "data": ["executorch/graphs.pte"]}

    bundle = edited(checked, tmp_path / "bundle", two_backends)
    (bundle / "onnxruntime" / "full").mkdir(parents=True)
    (bundle / "onnxruntime" / "full" / "a.bin").write_bytes(b"weights")
    standin_pte.seal(bundle)
    lines_of(runner(bundle, *QUICK))
    shutil.rmtree(bundle / "onnxruntime")
    assert "(missing_file)" in runner(bundle, *QUICK).stderr
    lines_of(runner(bundle, *QUICK, "--pushed"))
    (bundle / "tokenizer" / "merges.txt").unlink()
    assert "'tokenizer/merges.txt' is missing" in runner(bundle, *QUICK, "--pushed").stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runs", "0"), "--runs 0: it must be a number from 1 to 10000"),
        (("--runs", "1.5"), "--runs 1.5: it must be a whole number"),
        (("--threads",), "--threads needs a value; see --help"),
        (("--backend", "coreml"), "unknown backend 'coreml' (allowed: executorch)"),
        (("--fast",), "unknown argument '--fast'; see --help"),
        (("--inputs", "nowhere.safetensors"), "nowhere.safetensors: cannot be read as .safetensors"),
        (("--program", "slow"), "there is no program 'slow'; the bundle has main, fast (program)"),
        (("--strength", "0.5"), "not one program has the strength 0.5; the bundle has main, fast (strength)"),
        (("--program", "main", "--strength", "1"), "give --program or --strength, not both"),
        (("--guidance", "9"), "--guidance must be from 3"),
        (("--guidance", "3", "--program", "fast"), "this program has no guidance (guidance)"),
        (("--seed", "18446744073709551616"), "--seed 18446744073709551616: it must be a whole number from 0 to 2^64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_line_that_does_not_parse(options, message, runner, checked):
    done = runner(checked, *options)
    assert done.returncode == 2
    assert message in done.stderr


PICTURE, MASK = np.zeros((16, 16, 3), np.float32), np.full((16, 16), 255, np.float32)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("blended", {"mask": MASK}, "this program needs a picture; give it with --inputs (picture)"),
        ("blended", {"picture": PICTURE}, "this program needs a mask; give it with --inputs (mask)"),
        ("blended", {"picture": PICTURE[:8], "mask": MASK}, "'picture' has shape [8, 16, 3], this program needs"),
        ("blended", {"picture": PICTURE + 0.5, "mask": MASK}, "must hold bytes, 0 to 255 (picture)"),
        ("blended", {"picture": PICTURE, "mask": MASK - 128}, "nothing would be painted"),
        ("batched", {"picture": PICTURE}, "this program takes no picture (picture)"),
        ("batched", {"noise": MASK}, "'noise' has shape [16, 16], this program needs [1, 4, 8, 8] (noise)"),
        ("batched", {"input_ids.text": np.array([[1, 0, 0, 0, 0, 0]])}, "the ids have no end token, 2 (prompt)"),
        ("batched", {"input_ids.text": np.array([[1, 2]])}, "has shape [1, 2], this program needs [1, 6] or [2, ...]"),
        ("batched", {"class_label": np.array([1])}, "unknown tensor 'class_label' (allowed: input_ids.text, latent,"),
        ("unguided", {"input_ids.text": np.array([[1, 2, 2, 2, 2, 2]] * 2)}, "takes no negative prompt"),
        ("classes_by_number", {"class_label": np.array([10])}, "must be a whole number from 0 to 9 (prompt)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit(name, given, message, runner, programs, tmp_path):
    bundle = standin_pte.write_bundle(CASES[name], tmp_path / "bundle", programs[name])
    save_file({what: np.ascontiguousarray(value) for what, value in given.items()}, tmp_path / "in.safetensors")
    done = runner(bundle, *QUICK, "--inputs", str(tmp_path / "in.safetensors"))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with own_server(port):
        yield


@pytest.fixture(scope="module")
def bundle(checked, tmp_path_factory) -> Bundle:
    """A whole bundle for two backends, of which a device needs one."""
    parts = {
        **valid_parts(),
        **{f"executorch/{path.name}": path.read_bytes() for path in checked.glob("executorch/*")},
        **{f"golden/{path.name}": path.read_bytes() for path in checked.glob("golden/*")},
    }
    ours = read_outside(checked / "manifest.json", Manifest).graphs
    manifest = make_manifest()
    graphs = {
        name: graph.model_copy(update={"artifacts": {**graph.artifacts, **ours[name].artifacts}})
        for name, graph in manifest.graphs.items()
    }
    with BundleWriter(tmp_path_factory.mktemp("adb") / "small.edgediff") as writer:
        for path, data in parts.items():
            writer.path(path).write_bytes(data)
        return writer.commit(manifest.model_copy(update={"graphs": graphs}))


def profile(capsys, *arguments: str) -> tuple[int, dict]:
    """`edgediff profile ... --json`: its status and what it says."""
    capsys.readouterr()
    status = main(["profile", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_adb_from_end_to_end(arm, bundle, tmp_path, capsys, monkeypatch):
    """The command line, the real adb, the runner for Arm: pushed, checked, run, pulled, and called emulated."""
    monkeypatch.setenv("EDGEDIFF_CACHE", str(arm.parent.parent))
    (tmp_path / "battery").write_text("  USB powered: true\n  level: 87\n  temperature: 312\n")
    with StandIn(tmp_path) as device:
        status, table = profile(
            capsys, str(bundle.folder), "--device", "adb", "--runs", "3", "--threads", "1", "--per-op"
        )
        assert status == 0
        remote = tmp_path / "data/local/tmp/edgediff"
        log = (remote / f"{bundle.manifest.name}.jsonl").read_text().splitlines()
    assert (table["source"], table["complete"]) == ("emulated", True)
    assert (table["device"]["name"], table["device"]["serial"]) == ("StandIn", device.serial)
    assert (table["device"]["backend"], table["device"]["threads"]) == ("executorch", 1)
    assert table["device"]["runtime"].startswith("executorch 1.")
    assert table["samples"]["end_to_end_ms"] == [json.loads(line)["image_ms"] for line in log if '"image_ms"' in line]
    assert {name: times["n"] for name, times in table["graphs"].items()}["full"] == 3
    assert table["load_ms"]["cold"] > 0 < table["load_ms"]["warm"]
    assert table["peak_rss_mb"] > 0 < table["first_run_ms"]
    assert table["thermal_before"]["battery_percent"] == table["thermal_after"]["battery_percent"] == 87
    assert table["operators_ms"]["vae_decoder/Convolution (NHWC, F32) IGEMM"] > 0
    assert open_bundle(bundle.folder).manifest.profile == table
    here = remote / bundle.manifest.name
    assert (here / "executorch/graphs.pte").read_bytes() == (bundle.folder / "executorch/graphs.pte").read_bytes()
    assert not list(here.glob("onnxruntime/*")), "what only another backend needs stays here"
    assert "emulated on StandIn" in str(LatencyTable.model_validate(table))


def test_several_devices_of_which_one_breaks(arm, bundle, tmp_path, capsys):
    """Nothing can be written on one; the other's table is kept all the same."""
    with StandIn(tmp_path / "one") as one, StandIn(tmp_path / "two") as two:
        (tmp_path / "one/data/local/tmp").mkdir(parents=True)
        (tmp_path / "one/data/local/tmp/edgediff").write_text("a file where the folder should be")
        devices = [f"--device=adb:{each.serial}" for each in (one, two)]
        status, said = profile(capsys, str(bundle.folder), *devices, "--runs", "1", "--runner", str(arm))
    assert status == 1
    assert list(said["profiles"]) == [two.serial]
    assert list(said["errors"]) == [one.serial]
    assert "adb" in said["errors"][one.serial]["message"]
    assert said["profiles"][two.serial]["source"] == "emulated"
    assert open_bundle(bundle.folder).manifest.profile == said["profiles"][two.serial]


def test_a_device_that_goes_away_and_comes_back(arm, bundle, tmp_path):
    """What was measured is kept; the second push finds everything there."""
    runner = read_runner(arm)
    with StandIn(tmp_path) as device:

        def cut(text: str, done: int, total: int) -> None:
            if text.startswith("measuring") and done == 3:
                device.vanish()

        table = adb.run(bundle, adb.find_device(device.serial), runner, runs=10_000, progress=cut)
    assert table.complete is False
    assert 3 <= table.end_to_end_ms.n < 10_000
    assert (table.thermal_after, table.source) == (None, "emulated")
    with StandIn(tmp_path) as device:
        pushed: list[str] = []
        whole = adb.run(
            bundle,
            adb.find_device(device.serial),
            runner,
            runs=2,
            progress=lambda text, done, total: pushed.append(text),
        )
    assert [text for text in pushed if text.startswith("pushing")] == ["pushing manifest.json"]
    assert (whole.complete, whole.end_to_end_ms.n) == (True, 2)


def test_a_runner_that_fails_says_why(arm, bundle, tmp_path):
    with StandIn(tmp_path) as device, pytest.raises(LinkError, match="ended with status 2: --threads 2000: it must be"):
        adb.run(bundle, adb.find_device(device.serial), read_runner(arm), threads=2000)
