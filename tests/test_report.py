"""The report: complete, self-contained, impossible to inject into, honest about what was not measured."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle import Bundle, open_bundle
from edgediff.config import dump_json
from edgediff.documents.plan import GuidancePlan, Plan, ProgramPlan, SamplerPlan
from edgediff.errors import BundleError, ConfigError, EvaluationError, OutputError
from edgediff.estimate import Interval, PlanEstimate
from edgediff.evaluation.pictures import PictureCache, program_digest
from edgediff.report import render_report
from edgediff.report.heatmap import _states, brief, draw_schedule
from edgediff.report.markup import figure, macs, milliseconds, percent, size, tag
from edgediff.report.page import STYLE
from tests.hostile import make_plan, valid_tree

WHEN = datetime(2026, 11, 22, 18, 45, tzinfo=UTC)
NASTY = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e"
VOID = {"meta", "img", "br", "hr"}


class Tree(HTMLParser):
    """Checks that tags are balanced, and keeps elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.counts: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, spaces of every kind as one."""
        return " ".join(" ".join(self.words).split())


def two_programs() -> Plan:
    """The plan of the valid bundle with its second program, which guides nothing."""
    plan = make_plan()
    fast = ProgramPlan(
        sampler=SamplerPlan(kind="ddim", steps=2, calls=2),
        guidance=GuidancePlan(mode="batched", calls=(None, None)),
        schedule=plan.schedule.model_copy(update={"calls": ("full", "shallow")}),
        cost=plan.cost.model_copy(update={"macs": 80000}),
    )
    return plan.model_copy(update={"further": {"fast": fast}})


def make_bundle(
    folder: Path, plan: Plan | None = None, programs: tuple[str, ...] = ("main",), **changes: Any
) -> Bundle:
    """The valid bundle with some of its programs, following a plan; `changes` are keys of its manifest."""
    tree = valid_tree()
    data, manifest = (plan or make_plan()).to_json().encode(), tree.manifest
    entry = next(entry for entry in manifest["files"] if entry["path"] == "plan.json")
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    tree.files["plan.json"] = data
    kept = {name: manifest["programs"][name] for name in programs}
    tree.manifest = {**manifest, "programs": kept, **changes}
    return open_bundle(tree.write(folder))


def figures(retrieval: float | None, psnr: float | None = None) -> dict[str, Any]:
    interval = None if retrieval is None else [retrieval - 0.05, retrieval + 0.05]
    return {
        "retrieval_at_1": retrieval,
        "retrieval_interval": interval,
        "frechet": 0.123,
        "psnr_db": psnr,
        "psnr_db_worst": psnr and psnr - 5,
        "ssim": psnr and 0.91,
        "ssim_worst": psnr and 0.52,
    }


LAYERS = [
    {"name": "conv_in", "block": "", "macs": 100, "cut": 0.0, "runs": {"full": 1.0, "shallow": 1.0}, "held": []},
    {
        "name": "down_blocks.0.layers.1",
        "block": "down_blocks.0",
        "macs": 300,
        "cut": 0.5,
        "runs": {"full": 0.6, "shallow": 0.0},
        "held": [],
    },
    {
        "name": "mid_block.layers.0",
        "block": "mid_block",
        "macs": 500,
        "cut": 0.0,
        "runs": {"full": 1.0, "shallow": 0.0},
        "held": ["shallow"],
    },
    {
        "name": "up_blocks.1.upsamplers.0",
        "block": "up_blocks.1",
        "macs": 100,
        "cut": 1.0,
        "runs": {"full": 0.0, "shallow": 0.0},
        "held": [],
    },
]


def make_evaluation(bundle: Bundle, cache: Path, prompt: str = "red heart") -> dict[str, Any]:
    store, keys = PictureCache(cache), {}
    for index, key in enumerate(("reference", "compressed", "equal_compute")):
        keys[key] = f"{index}" * 64
        store.write(keys[key], np.full((20, 20, 3), 60 * index, np.uint8))
    return {
        "bundle": "b",
        "backend": "onnxruntime",
        "program": program_digest(bundle.manifest),
        "cache": str(cache),
        "prompts": 64,
        "prompt_source": "64 primary captions of glyph, chosen by numpy.random.default_rng(0)",
        "seeds": [0],
        "n": 64,
        "guidance": {"scale": 3.0, "guided_calls": 2, "calls": 4, "mode": "batched"},
        **figures(0.875, 24.5),
        "reference": {"sampler": "ddim", "steps": 4, **figures(0.906)},
        "equal_compute": {"sampler": "ddim", "steps": 1, "macs": 128000, **figures(0.703, 17.25)},
        "against_equal_compute": {
            "retrieval_at_1": {"difference": 0.172, "low": 0.08, "high": 0.26, "better": True},
            "ssim": {"difference": -0.01, "low": -0.03, "high": 0.01, "better": None},
        },
        "reasons": {},
        "layers": LAYERS,
        "pictures": [{"prompt": prompt, "seed": 4, "why": why, "ssim": 0.5, **keys} for why in ("first", "worst")],
    }


PROFILE: dict[str, Any] = {
    "source": "measured",
    "device": {"name": "host", "backend": "onnxruntime", "cpu": "Test CPU", "cores": 8, "load_average": 0.1},
    "load_ms": {
        "cold": 421.4,
        "warm": 90.0,
        "hashing": 12.0,
        "imports": 100.0,
        "cache_dropped": True,
        "graphs": {"full": 50.0},
    },
    "graphs": {"full": {"p50_ms": 31.25, "p90_ms": 33.0, "p95_ms": 34.0, "n": 3}},
    "end_to_end_ms": {"p50": 412.0, "p90": 440.0, "p95": 450.0, "n": 2},
    "first_run_ms": 600.0,
    "warmup": 1,
    "overhead_fraction": 0.021,
    "peak_rss_mb": 311.0,
    "base_rss_mb": 95.0,
    "samples": {"end_to_end_ms": [400.0, 424.0], "graphs": {"full": [31.0, 31.25, 34.0]}},
}


def measured(db: float, floor: float) -> dict[str, Any]:
    """A program's parity whose picture keeps its floor, or does not."""
    trajectory = {"worst_step": 2, "psnr_db": 88.8, "finite": True}
    return {"trajectory": trajectory, "image": {"psnr_db": db, "floor_db": floor}}


def graph(db: float, floor: float, precision: str, finite: bool = True) -> dict[str, Any]:
    largest = 3e-6 if finite else 3e38
    return {"psnr_db": db, "max_abs": largest, "finite": finite, "precision": precision, "floor_db": floor}


PARITY: dict[str, Any] = {
    "ok": False,
    "reading": {"why": "it was not run"},
    "backends": {
        "onnxruntime": {
            "executed_by": "onnxruntime 1.20",
            "stand_in": False,
            "graphs": {"full": graph(131.2, 60.0, "fp32"), "shallow": graph(0.0, 40.0, "fp16", finite=False)},
            "programs": {"main": measured(33.3, 35.0)},
        }
    },
    "prompt": "a",
    "seed": 0,
    "seconds": 1.0,
}
EVIDENCE: dict[str, Any] = {"parity": PARITY, "profile": {"main": PROFILE}}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "red-panda.edgediff", evidence=EVIDENCE)


def render(out: Path, *bundles: Bundle, **options: Any) -> tuple[str, Tree]:
    page = render_report(list(bundles), out / "report.html", when=WHEN, **options).read_text(encoding="utf-8")
    return page, Tree(page)


def test_everything_that_was_measured_is_on_the_page(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = make_evaluation(bundle, tmp_path / "cache")
    _, tree = render(tmp_path, bundle, evaluations=[evaluation])
    for words in (
        "red-panda",
        "22 November 2026, 18:45",
        "87.5 %",
        "82.5 to 92.5",
        "70.3 %",
        "90.6 %",
        "24.5 dB",
        "worst 19.5 dB",
        "is the reference",
        "0.123",
        "Retrieval@1: better (+17.2 points, 95 % interval +8.0 to +26.0)",
        "SSIM: no clear difference (\u22120.010",
        "412 ms",
        "421 ms",
        "31.2 ms",
        "files dropped from the page cache",
        "311 MB",
        "2.1 %",
        "131.2 dB",
        "\u2717 failed",
        "\u2713 passed",
        "NaN or infinite",
        "worst at call 3",
        "33.3 dB",
        "seed 4",
        "Least like the untouched model",
        "onnxruntime/weights.bin",
        "Apache-2.0",
        "edgediff build random:tiny --recipe 'by hand.toml' --target 'This machine.toml' --out red-panda.edgediff",
        "edgediff evaluate red-panda.edgediff --prompts 64 --out red-panda.evaluation.json",
    ):
        assert words in tree.text, words
    assert "not measured: " not in tree.text
    assert tree.counts["img"] == 6


def test_what_is_missing_is_said_with_the_command_that_measures_it(tmp_path: Path) -> None:
    _, tree = render(tmp_path, make_bundle(tmp_path / "a b.edgediff"))
    for words in (
        "Pictures side by side: not measured. Run edgediff evaluate 'a b.edgediff' --out 'a b'.evaluation.json",
        "Quality: not measured. Run edgediff evaluate",
        "Latency and memory: not measured. Run edgediff profile",
        "Conversion error: not measured. Run edgediff verify 'a b.edgediff'",
        "Which layers each call computes is known where the model is",
    ):
        assert words in tree.text, words
    assert tree.counts["img"] == 0
    assert not re.search(r"\bNone\b|\bnan\b", tree.text)


def test_nothing_is_fetched_and_nothing_runs(bundle: Bundle, tmp_path: Path) -> None:
    page, tree = render(tmp_path, bundle, evaluations=[make_evaluation(bundle, tmp_path / "cache")])
    for element, key, value in tree.attributes:
        if key in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#")), (element, value[:40])
        assert not key.startswith("on"), (element, key)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(tree.counts)
    assert "url(" not in page
    assert "@import" not in page
    assert ("meta", "http-equiv", "Content-Security-Policy") in tree.attributes
    assert re.search(r"default-src &#x27;none&#x27;; img-src data:", page)
    assert not re.search(r"https?://", page)


def test_names_and_prompts_cannot_inject(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "x.edgediff", name=NASTY, evidence={"profile": {"main": PROFILE}})
    evaluation = make_evaluation(bundle, tmp_path / "cache", prompt=NASTY)
    evaluation["prompt_source"] = NASTY
    evaluation["layers"] = [{**layer, "name": NASTY} for layer in LAYERS]
    page, tree = render(tmp_path, bundle, evaluations=[evaluation])
    assert "script" not in tree.counts
    assert tree.counts["img"] == 6
    assert NASTY.replace("\u202e", "\ufffd") in tree.words
    assert "<script" not in page
    assert "\u202e" not in page


def test_a_folder_named_like_an_option_is_quoted(tmp_path: Path) -> None:
    _, tree = render(tmp_path, make_bundle(tmp_path / "--out=$(reboot).edgediff"))
    assert "edgediff profile './--out=$(reboot).edgediff'" in tree.text


def test_the_map_has_a_cell_for_every_call_and_layer() -> None:
    plan = make_plan()  # calls: full, shallow, hold, shallow
    states = [_states(plan, layer) for layer in LAYERS]
    assert states == [
        ["run", "run", "output", "run"],
        ["part", "skipped", "output", "skipped"],
        ["run", "held", "output", "held"],
        ["cut"] * 4,
    ]
    drawn = str(draw_schedule(plan, LAYERS))
    assert len(re.findall(r'class="letter held"', drawn)) == 3  # two calls, and the legend
    assert len(re.findall(r'class="letter cut"', drawn)) == 5
    assert re.findall(r'class="call-letter">(.)<', drawn) == list("Fs.s")
    assert [brief(layer["name"]) for layer in LAYERS] == ["conv in", "down 0 \u00b7 1", "mid \u00b7 0", "up 1 \u2191"]


def test_a_baseline_among_the_bundles_lends_its_latency(bundle: Bundle, tmp_path: Path) -> None:
    plan = make_plan()
    whole = plan.model_copy(
        update={"schedule": plan.schedule.model_copy(update={"calls": ("full",) * 4}), "recipe_name": "none"}
    )
    slow = {**PROFILE, "end_to_end_ms": {**PROFILE["end_to_end_ms"], "p50": 987.0}}
    evidence = {"profile": {"main": slow}}
    untouched = make_bundle(tmp_path / "none.edgediff", whole, name="untouched-panda", evidence=evidence)
    _, alone = render(tmp_path, bundle)
    _, both = render(tmp_path, bundle, untouched)
    assert "987" not in alone.text
    assert "Latency p50 per image; lower is better 987 ms 412 ms not measured" in both.text
    assert "2 bundles compared" in both.text
    assert both.counts["article"] == 2


def test_the_programs_of_a_bundle_stand_side_by_side(tmp_path: Path) -> None:
    """Each has its cost, its times and its own verdict; which one runs when none is asked for is said."""
    backend = {
        **PARITY["backends"]["onnxruntime"],
        "graphs": {"full": graph(131.2, 60.0, "fp32"), "shallow": graph(66.6, 60.0, "fp32")},
        "programs": {"main": measured(33.3, 35.0), "fast": measured(55.5, 35.0)},
    }
    evidence = {**EVIDENCE, "parity": {**PARITY, "backends": {"onnxruntime": backend}}}
    bundle = make_bundle(tmp_path / "a.edgediff", two_programs(), ("fast", "main"), evidence=evidence)
    evaluation = make_evaluation(bundle.as_program("fast"), tmp_path / "cache")
    named = {**evaluation, "program_name": "fast"}
    _, tree = render(tmp_path, bundle, evaluations=[named])
    assert tree.text.count("red-panda: 2 programs") == 2, "title and head"
    assert "red-panda, main default program red-panda, fast Side by side" in tree.text, "the default one first"
    rows = re.search(r"Side by side(.*?)Cost and quality", tree.text)
    assert rows is not None
    main, fast = re.split(r"red-panda, fast", rows[1])
    assert "ddim, 4 steps" in main and "ddim, 2 steps" in fast
    assert "34 %" in main and "16 %" in fast, "of the untouched model's arithmetic"
    assert "412 ms" in main and "412 ms" not in fast, "the profile is the default program's"
    assert "failed" in main and "passed" not in main
    assert "passed" in fast and "failed" not in fast and "87.5 %" in fast
    assert "edgediff profile a.edgediff --program fast" in tree.text
    assert "33.3 dB" in tree.text and "55.5 dB" in tree.text
    _, other = render(tmp_path, bundle, evaluations=[None, named])
    assert "87.5 %" in other.text
    with pytest.raises(EvaluationError, match="is about program 'fast', not 'main'; give the evaluations of a bundle"):
        render(tmp_path, bundle, evaluations=[named, None])


def test_a_program_that_the_plan_does_not_know(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a.edgediff", programs=("main", "fast"))
    with pytest.raises(BundleError, match=r"plan.json: has no program 'fast' .allowed: main") as caught:
        render(tmp_path, bundle)
    assert caught.value.code == "program"


def test_our_reading_of_the_model_is_on_the_page(bundle: Bundle, tmp_path: Path) -> None:
    _, tree = render(tmp_path, bundle)
    assert "Not compared with the model's own pipeline: it was not run." in tree.text
    reading = {"against": "StableDiffusionPipeline", "latent_db": 120.0, "picture_db": 99.0}
    fine = {**PARITY["backends"]["onnxruntime"], "graphs": {}, "programs": {"main": measured(44.4, 35.0)}}
    evidence = {"parity": {**PARITY, "reading": reading, "backends": {"onnxruntime": fine}}}
    _, tree = render(tmp_path, make_bundle(tmp_path / "b.edgediff", evidence=evidence))
    assert "against its own StableDiffusionPipeline: latent 120.0 dB, picture 99.0 dB." in tree.text
    assert re.search(r"conversion failed", tree.text), "every floor holds, so the reading is what failed"


def test_an_evaluation_can_be_a_file_and_must_be_of_this_bundle(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = make_evaluation(bundle, tmp_path / "cache")
    file = tmp_path / "e.json"
    file.write_text(dump_json(evaluation), encoding="utf-8")
    _, tree = render(tmp_path, bundle, evaluations=[file])
    assert "87.5 %" in tree.text
    file.write_text(dump_json({**evaluation, "program": "0" * 64}), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"e.json: was made from another build of 'b' than bundle 'red-panda'"):
        render(tmp_path, bundle, evaluations=[file])
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(EvaluationError, match="is no evaluation: 'reference' is missing; write one with edgediff eval"):
        render(tmp_path, bundle, evaluations=[file])
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not JSON"):
        render(tmp_path, bundle, evaluations=[file])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"psnr_db": "high"}, "'psnr_db' = 'high': input should be a valid number"),
        ({"retrieval_at_1": 12}, "'retrieval_at_1' = 12: input should be less than or equal to 1"),
        ({"equal_compute": {"ssim": []}}, r"'equal_compute.ssim' = \[\]: input should be a valid number"),
        ({"layers": [{"name": "x"}]}, "key 'layers.0.macs' is missing"),
        ({"pictures": [{"prompt": 3}]}, "'pictures.0.prompt' = 3: input should be a valid string"),
    ],
)
def test_an_edited_evaluation_is_refused_by_key(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        render(tmp_path, bundle, evaluations=[{**make_evaluation(bundle, tmp_path / "cache"), **change}])
    assert not (tmp_path / "report.html").exists()


def test_an_edited_parity_is_refused_by_key(tmp_path: Path) -> None:
    edited = {**PARITY["backends"]["onnxruntime"], "graphs": {"g": 3}}
    broken = make_bundle(tmp_path / "x.edgediff", evidence={"parity": {**PARITY, "backends": {"a": edited}}})
    with pytest.raises(BundleError, match=r"evidence: 'parity.backends.a.graphs.g' = 3") as caught:
        render(tmp_path, broken)
    assert caught.value.code == "evidence"


def test_pictures_that_left_the_cache_are_asked_for_again(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = {**make_evaluation(bundle, tmp_path / "cache"), "cache": str(tmp_path / "gone")}
    _, tree = render(tmp_path, bundle, evaluations=[evaluation])
    assert "Pictures side by side: not measured" in tree.text
    assert not (tmp_path / "gone").exists()
    evaluation["cache"] = str(tmp_path / "cache")
    evaluation["pictures"] = [{**evaluation["pictures"][0], "reference": "../../secret"}]
    _, tree = render(tmp_path, bundle, evaluations=[evaluation])
    assert tree.counts["img"] == 0


def test_lists_that_do_not_fit_the_bundles(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a report needs at least one bundle"):
        render(tmp_path)
    with pytest.raises(ConfigError, match="2 evaluations for 1 bundles; give one for each bundle, in their order, or"):
        render(tmp_path, bundle, evaluations=[None, None])
    with pytest.raises(ConfigError, match="profile of red-panda: key 'source' is missing"):
        render(tmp_path, bundle, profiles=[{}])


def test_the_page_is_written_whole_or_not_at_all(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        render_report(bundle, tmp_path / "nowhere" / "report.html")
    first, _ = render(tmp_path, bundle)
    second, _ = render(tmp_path, bundle)
    assert first == second
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_busy_machine_and_an_estimate_are_announced(bundle: Bundle, tmp_path: Path) -> None:
    busy = {**PROFILE, "device": {**PROFILE["device"], "load_average": 7.5}}
    _, tree = render(tmp_path, bundle, profiles=[busy])
    assert "load average 7.5 on 8 cores before the run. These times are upper bounds." in tree.text
    _, tree = render(tmp_path, bundle, profiles=[{**PROFILE, "source": "estimated"}])
    assert "Estimated, not measured" in tree.text
    assert "Measured on" not in tree.text and "Times estimated for" in tree.text
    assert "estimated, not measured" in tree.text, "beside the key figure"


def test_what_a_vendors_compiler_says_is_shown_as_such(bundle: Bundle, tmp_path: Path) -> None:
    said = {"cycles": 1_234_567, "clock_mhz": 500, "macs": 8_000_000, "pieces": 2, "memory_kib": {"sram": 2048.0}}
    _, tree = render(tmp_path, bundle, profiles=[{**PROFILE, "source": "vendor-estimate", "npu": {"full": said}}])
    assert "The vendor's estimate, not measured." in tree.text
    assert "Times estimated by the vendor's tools for" in tree.text
    assert "full 1,234,567 8.00 MMAC 2 2,048 KiB sram" in tree.text


def test_a_long_run_on_a_device_shows_how_it_slows_down(bundle: Bundle, tmp_path: Path) -> None:
    images = [100.0 + 2 * index for index in range(50)]
    device = {
        **PROFILE,
        "source": "emulated",
        "samples": {"end_to_end_ms": images},
        "complete": False,
        "end_to_end_ms": {"p50": 149.0, "p90": 188.2, "p95": 193.1, "n": 50},
        "operators_ms": {"full/Conv": 3.5, "full/Softmax": 0.25},
        "thermal_before": {"celsius": {"battery": 31.2, "cpu": 44.0}, "battery_percent": 87.0},
    }
    _, tree = render(tmp_path, bundle, profiles=[device])
    assert "the last fifth takes 1.73 of the first" in tree.text
    assert "until 7 s 194 ms" in tree.text
    assert "full/Conv 3.50 ms full/Softmax 0.250 ms" in tree.text
    assert "battery 87 %, 31.2 C before, not readable after" in tree.text
    assert "These are not the device's times." in tree.text
    assert "The run ended early" in tree.text


def test_devices_are_drawn_by_recipe(bundle: Bundle, tmp_path: Path) -> None:
    one = PlanEstimate(
        target="Pixel 9",
        backend="onnxruntime",
        precision="fp16",
        latency_ms=Interval(low=1, p50=2, high=4),
        graphs={},
        load_ms=Interval(low=1, p50=2, high=4),
        memory_mb=9.0,
        basis="taken from somewhere",
    )
    _, tree = render(tmp_path, bundle, estimates={"fast": [one], "none": [one]})
    assert "On devices that are not here" in tree.text
    assert "estimated, not measured; lines hold 4 of 5" in tree.text
    assert "Pixel 9: taken from somewhere" in tree.text


def test_rendering_imports_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    program = (
        "import sys; from edgediff.bundle import open_bundle; from edgediff.report import render_report; "
        f"render_report(open_bundle({str(bundle.folder)!r}), {str(tmp_path / 'r.html')!r}); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_is_legible_in_light_and_in_dark() -> None:
    """WCAG contrast of every colour that text has, on what it stands on: 4.5 to 1."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[0]))
    dark = {**light, **dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[1]))}
    pairs = [(ink, "paper") for ink in ("ink", "quiet", "bundle", "reference", "equal", "good", "bad")]
    pairs += [("ink", "panel"), ("warn", "warn-bg"), ("held-ink", "held"), ("quiet", "faint")]
    for colours in (light, dark):
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back, colours[front], colours[back])


def contrast(front: str, back: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(front), luminance(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_markup_escapes_what_it_did_not_build() -> None:
    assert tag("b", "<i>", tag("i", "a&b"), None, 3, title='"x"') == (
        '<b title="&quot;x&quot;">&lt;i&gt;<i>a&amp;b</i>3</b>'
    )
    assert tag("rect", x=0.1 + 0.2, y=4, hidden=True, class_=None) == '<rect x="0.3" y="4" hidden/>'


def test_figures_are_written_for_people() -> None:
    times = [milliseconds(value) for value in (0.0421, 4.206, 42.06, 421.0, 4206.0, None)]
    assert times == ["0.042\u00a0ms", "4.21\u00a0ms", "42.1\u00a0ms", "421\u00a0ms", "4.21\u00a0s", "\u2013"]
    assert (percent(0.4567), percent(0.4567, 1), percent(None)) == ("46\u00a0%", "45.7\u00a0%", "\u2013")
    assert (macs(46.3e9), macs(6.78e12), macs(103e6), macs(0)) == (
        "46.3\u00a0GMAC",
        "6.78\u00a0TMAC",
        "103\u00a0MMAC",
        "0\u00a0MAC",
    )
    assert (size(45_700_000), size(3072), size(12)) == ("45.7\u00a0MB", "3.07\u00a0kB", "12\u00a0bytes")
    assert figure(-1.25, 1) == "\u22121.2"


def test_the_json_of_the_table_is_what_the_report_reads() -> None:
    from edgediff.runtime.latency import LatencyTable

    table = LatencyTable.model_validate({**PROFILE, "source": "estimated"})
    assert json.loads(table.to_json())["graphs"] == PROFILE["graphs"]
