"""The loop around any backend's runners: guidance, held rows, carries, seeds, and what it costs."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediff import plugins
from edgediff.bundle import Bundle, open_bundle
from edgediff.errors import BackendError, BundleError, ConfigError
from edgediff.runtime import (
    GenerationStep,
    Session,
    choose_backend,
    generate,
    generate_steps,
    open_session,
    used_graphs,
)
from edgediff.runtime.manifest import Graph, Init, Manifest
from edgediff.runtime.rng import Rng
from edgediff.runtime.steps import Update
from tests.hostile import CARRY, LATENT, LENGTH, WIDTH, make_manifest, valid_tree
from tests.program_cases import make_cases

Calls = tuple[tuple[str | None, float | None], ...]
GUIDED: Calls = (("full", 3.0), ("shallow", 5.0), (None, None), ("shallow", 2.0), ("full", 1.5))
CUT_OFF: Calls = (("full", 3.0), ("shallow", 3.0), ("shallow", None), (None, None), ("full", None), ("shallow", None))


class Tokenizer:
    """Ids are the letters."""

    end = 0

    def encode(self, text: str, max_length: int) -> list[int]:
        return [ord(letter) for letter in text.ljust(max_length)[:max_length]]


class Network:
    """A network that is linear in all it reads and treats every sample of the batch by itself."""

    def __init__(self, graph: str) -> None:
        self.graph, self.calls, self.inputs = graph, 0, []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        self.inputs.append({name: value.copy() for name, value in inputs.items()})
        sample, text = inputs["sample"], inputs["encoder_hidden_states"]
        value = 0.5 * sample + 0.001 * inputs["timestep"][0] + 0.01 * text[:, :1, :1, None]
        if self.graph == "full":
            return {"noise_pred": value, "cache_out_mid": value[:, :2, ::2, ::2] * np.float32(2.0)}
        return {"noise_pred": value + 0.1 * inputs["cache_in_mid"].repeat(2, axis=1).repeat(2, 2).repeat(2, 3)}


class Once:
    """A text encoder or a decoder."""

    def __init__(self, name: str) -> None:
        self.name, self.inputs = name, []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.inputs.append(inputs)
        if self.name == "text_encoder":
            ids = inputs["input_ids"].astype(np.float32)
            return {"last_hidden_state": np.repeat(ids[..., None], WIDTH, axis=2)}
        return {"image": inputs["z"][:, :3].repeat(2, axis=2).repeat(2, axis=3)}


class Fixed:
    """Returns what it was made with."""

    def __init__(self, **outputs: np.ndarray) -> None:
        self.outputs = outputs

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.outputs


def make_runners() -> dict[str, Any]:
    once = {name: Once(name) for name in ("text_encoder", "vae_decoder")}
    return {**{name: Network(name) for name in ("full", "shallow")}, **once}


def make_session(mode: str = "batched", calls: Calls = GUIDED, **others: Any) -> Session:
    return Session(make_manifest(mode, calls), {"clip": Tokenizer()}, {**make_runners(), **others})


def run(session: Session, *args: Any, **options: Any) -> list[GenerationStep]:
    return list(session.steps(*args, **options))


def zeros(*, batch: int = 1, fill: float = 0.0) -> np.ndarray:
    return np.full((batch, *LATENT), fill, np.float32)


# What the rows compute


@pytest.mark.parametrize("calls", [GUIDED, CUT_OFF], ids=["guided", "cut_off"])
def test_batched_equals_sequential_equals_the_formulas(calls: Calls) -> None:
    batched = run(make_session("batched", calls), "red panda", "blurry", seed=3)
    sequential = run(make_session("sequential", calls), "red panda", "blurry", seed=3)
    expected = _by_the_formulas(make_manifest("batched", calls), ("blurry", "red panda"), 3)
    for one, other, latent in zip(batched, sequential, expected, strict=True):
        np.testing.assert_array_equal(one.latent, other.latent)
        np.testing.assert_allclose(one.latent, latent, rtol=1e-4, atol=1e-4)
        assert one.latent.dtype == one.output.dtype == np.float32
        assert one.latent.shape == one.output.shape == (1, *LATENT)


def _by_the_formulas(manifest: Manifest, texts: tuple[str, str], seed: int) -> Iterator[np.ndarray]:
    """The program in float64, both prompts always run: one prompt alone must not see the other."""
    latent = Rng(seed).normal((1, *LATENT)).astype(np.float64)
    networks, once, carries = {"full": Network("full"), "shallow": Network("shallow")}, Once("text_encoder"), [{}, {}]
    words = [
        once.run({"input_ids": np.array([Tokenizer().encode(text, LENGTH)])})["last_hidden_state"] for text in texts
    ]
    output = latent
    for row in manifest.program().rows:
        if row.graph is not None:
            found = []
            for side in (0, 1):
                outputs = networks[row.graph].run(
                    {
                        "sample": latent,
                        "timestep": np.array([row.timestep]),
                        "encoder_hidden_states": words[side],
                        "cache_in_mid": carries[side].get("mid"),
                    }
                    if row.graph == "shallow"
                    else {"sample": latent, "timestep": np.array([row.timestep]), "encoder_hidden_states": words[side]}
                )
                if "cache_out_mid" in outputs:
                    carries[side]["mid"] = outputs["cache_out_mid"]
                found.append(outputs["noise_pred"])
            negative, prompt = found
            output = prompt if row.guidance is None else negative + row.guidance * (prompt - negative)
        latent = row.update.x[0] * latent + row.update.e[0] * output
        yield latent


def test_what_graphs_are_fed() -> None:
    session = make_session("batched", CUT_OFF)
    steps = run(session, "b", "a", seed=0)
    full, shallow = session.runners["full"], session.runners["shallow"]
    assert [each["sample"].shape[0] for each in full.inputs] == [2, 1]
    assert [each["sample"].shape[0] for each in shallow.inputs] == [2, 1, 1]
    assert [each["cache_in_mid"].shape for each in shallow.inputs] == [(2, *CARRY), (1, *CARRY), (1, *CARRY)]
    np.testing.assert_array_equal(full.inputs[0]["encoder_hidden_states"][:, 0, 0], [ord("a"), ord("b")])
    np.testing.assert_array_equal(full.inputs[1]["encoder_hidden_states"][:, 0, 0], [ord("b")])
    assert [float(each["timestep"][0]) for each in full.inputs] == [750.0, -250.0]
    assert full.inputs[0]["timestep"].dtype == np.float32
    assert full.inputs[0]["timestep"].shape == (1,)
    assert [step.graph for step in steps] == [graph for graph, _ in CUT_OFF]
    assert [(step.index, step.total) for step in steps] == [(i, 6) for i in range(6)]


def test_a_row_of_the_prompt_alone_keeps_the_prompts_half_of_a_carry() -> None:
    session = make_session("batched", CUT_OFF)
    run(session, "b", "a")
    whole, half = (session.runners["shallow"].inputs[i]["cache_in_mid"] for i in (0, 1))
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(half[0], whole[1])


def test_sequential_carries_stay_apart() -> None:
    session = make_session("sequential")
    run(session, "b", "a")
    negative, prompt = (session.runners["shallow"].inputs[i]["cache_in_mid"] for i in (0, 1))
    assert negative.shape == prompt.shape == (1, *CARRY)
    assert not np.array_equal(negative, prompt)


def test_a_held_row_runs_nothing_and_keeps_the_output() -> None:
    session = make_session()
    steps = run(session, "b")
    assert (session.runners["full"].calls, session.runners["shallow"].calls) == (2, 2)
    np.testing.assert_array_equal(steps[2].output, steps[1].output)
    assert steps[2].graph is None
    assert steps[2].seconds_graph == 0.0
    assert all(step.seconds_graph > 0.0 for step in steps if step.graph)
    assert all(step.seconds_total >= step.seconds_graph for step in steps)


def test_guidance_off_runs_the_prompt_alone() -> None:
    session = make_session(calls=(("full", None), ("shallow", None)))
    run(session, "b")
    assert session.runners["full"].inputs[0]["sample"].shape[0] == 1
    assert len(session.runners["text_encoder"].inputs) == 1, "the negative prompt is not encoded"
    with pytest.raises(
        ConfigError, match=r"a negative prompt has no effect on this program \(it has no guidance\)"
    ) as caught:
        session.steps("b", "a")
    assert caught.value.code == "negative_prompt"


def test_inputs_have_the_manifests_types() -> None:
    manifest = _retyped(make_manifest("batched", CUT_OFF), "float16")
    runners = make_runners()
    list(Session(manifest, {"clip": Tokenizer()}, runners).steps("b"))
    for inputs in runners["full"].inputs:
        assert {name: str(value.dtype) for name, value in inputs.items()} == {
            "sample": "float16",
            "timestep": "float16",
            "encoder_hidden_states": "float16",
        }
    assert runners["shallow"].inputs[0]["cache_in_mid"].dtype == np.float32


def _retyped(manifest: Manifest, dtype: str) -> Manifest:
    def retype(graph: Graph) -> Graph:
        inputs = tuple(
            spec.model_copy(update={"dtype": dtype})
            if spec.name in ("sample", "timestep", "encoder_hidden_states")
            else spec
            for spec in graph.inputs
        )
        return graph.model_copy(update={"inputs": inputs})

    changed = manifest.model_copy(update={"graphs": {name: retype(graph) for name, graph in manifest.graphs.items()}})
    changed.check()
    return changed


def test_a_runner_that_hands_its_sample_back_is_safe() -> None:
    class Identity:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"noise_pred": inputs["sample"], "cache_out_mid": inputs["sample"][:, :2, :4, :4]}

    seen = []

    class Reader(Identity):
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(inputs["cache_in_mid"].copy())
            return {"noise_pred": inputs["sample"]}

    session = make_session(calls=(("full", 2.0), ("shallow", 2.0)), full=Identity(), shallow=Reader())
    steps = run(session, "b", latent=zeros(fill=1.0))
    np.testing.assert_array_equal(steps[0].output, zeros(fill=1.0))
    np.testing.assert_array_equal(seen[0], np.ones((2, *CARRY), np.float32))


def test_float16_outputs_are_guided_in_float32() -> None:
    both = np.stack([np.full(LATENT, 0.1, np.float16), np.full(LATENT, 0.3, np.float16)])
    full = Fixed(noise_pred=both, cache_out_mid=np.zeros((2, *CARRY), np.float32))
    step = run(make_session(calls=(("full", 7.5),), full=full), "b")[0]
    low, high = np.float32(np.float16(0.1)), np.float32(np.float16(0.3))
    np.testing.assert_array_equal(step.output, zeros(fill=low + np.float32(7.5) * (high - low)))


# Seeds and starting points


def test_the_same_seed_the_same_picture_and_seed_0_is_a_seed() -> None:
    session = make_session()
    last = {seed: run(session, "b", seed=seed)[-1].latent for seed in (0, 0, 1)}
    again = run(session, "b", seed=0)[-1].latent
    np.testing.assert_array_equal(last[0], again)
    assert not np.array_equal(last[0], last[1])
    first = run(make_session(calls=(("full", None),)), "b", seed=0)
    start = make_session(calls=(("full", None),))
    run(start, "b", seed=0)
    np.testing.assert_array_equal(start.runners["full"].inputs[0]["sample"], Rng(0).normal((1, *LATENT)))
    assert len(first) == 1


def _noisy(manifest: Manifest) -> Manifest:
    program = manifest.program()
    rows = tuple(row.model_copy(update={"update": Update(x=(1.0,), e=(0.0,), noise=0.5)}) for row in program.rows)
    program = program.model_copy(update={"rows": rows, "init": Init(noise=3.0)})
    return manifest.model_copy(update={"programs": {"main": program}})


def test_one_stream_of_noise_first_latent_first() -> None:
    manifest = _noisy(make_manifest(calls=(("full", 2.0), (None, None))))
    session = Session(manifest, {"clip": Tokenizer()}, make_runners())
    rng = Rng(5)
    draws = [rng.normal((1, *LATENT)) for _ in range(3)]
    steps = run(session, "b", seed=5)
    np.testing.assert_allclose(steps[0].latent, 3.0 * draws[0] + 0.5 * draws[1], rtol=1e-6)
    np.testing.assert_allclose(steps[1].latent, steps[0].latent + 0.5 * draws[2], rtol=1e-6)
    given = run(session, "b", seed=5, latent=draws[0] * np.float32(3.0))
    np.testing.assert_array_equal(given[1].latent, steps[1].latent)
    asked = run(session, "b", seed=5, noise=draws[1])  # in the place of x_0's draw, which the stream then leaves out
    np.testing.assert_allclose(asked[0].latent, 3.0 * draws[1] + 0.5 * draws[0], rtol=1e-6)


def test_given_conditions_stand_in_for_prompts() -> None:
    session = make_session()
    expected = run(session, "red", "blue", seed=1)[-1].latent
    given = session.embed("red", "blue")
    assert {name: value.shape for name, value in given.items()} == {"encoder_hidden_states": (2, LENGTH, WIDTH)}
    without = Session(session.manifest, {}, make_runners())
    np.testing.assert_array_equal(run(without, seed=1, given=given)[-1].latent, expected)
    half = {"encoder_hidden_states": given["encoder_hidden_states"][:1]}
    with pytest.raises(ConfigError, match=r"shape \(1, 6, 4\), this program needs \(2, 6, 4\) \(empty side first"):
        without.steps(given=half)
    with pytest.raises(ConfigError, match="'sample' is no condition of this program"):
        without.steps(given={"sample": zeros()})
    with pytest.raises(ConfigError, match="no tokenizer 'clip'; pass the conditions"):
        without.steps("red")


def test_unconditional_bundles_need_no_text() -> None:
    manifest = next(case.manifest for case in make_cases() if case.name == "no_prompt")

    class Denoiser:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert set(inputs) - {"cache_in_mid"} == {"sample", "timestep"}
            return {"noise_pred": inputs["sample"] * 0.5, "cache_out_mid": np.zeros((1, *CARRY), np.float32)}

    runners = {"full": Denoiser(), "shallow": Denoiser(), "vae_decoder": Once("vae_decoder")}
    session = Session(manifest, {}, runners)
    assert session.decode(run(session, seed=2)[-1].latent).shape == (16, 16, 3)
    with pytest.raises(ConfigError, match="this program takes no prompt; leave it empty"):
        session.steps("red")
    with pytest.raises(ConfigError, match="a negative prompt has no effect"):
        session.steps("", "blue")


# Pictures


def test_decode_scales_shifts_and_rounds() -> None:
    session = make_session()
    latent = zeros()
    latent[0, :3, 0, 0] = [-9.0, 0.125, 9.0]
    pixels = session.decode(latent)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    # 2 x + 0.25, then round((v / 2 + 1/2) 255): 0.5 -> 191.25, 0.25 -> 159.375
    assert pixels[0, 0].tolist() == [0, 191, 255]
    assert pixels[9, 9].tolist() == [159, 159, 159]
    sound = session.manifest.model_copy(update={"makes": "audio"})
    with pytest.raises(BundleError, match="makes sound"):
        Session(sound, {"clip": Tokenizer()}, session.runners).decode(latent)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(valid_tree().write(tmp_path / "bundle"))


@pytest.fixture
def opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """A backend of fake runners behind `open_session`; what it opened."""
    found: list[tuple[str, int, int | None]] = []
    names = {graph.artifacts["onnxruntime"].file: name for name, graph in bundle.manifest.graphs.items()}

    def open_runner(folder: Path, graph: Graph, artifact: Any, *, batch: int, threads: int | None = None) -> Any:
        assert (folder / artifact.file).is_file()
        found.append((names[artifact.file], batch, threads))
        return make_runners()[names[artifact.file]]

    plugin = SimpleNamespace(open_runner=open_runner)
    monkeypatch.setattr("edgediff.runtime.runners.load_plugin", lambda folder, kind: plugin)
    monkeypatch.setattr(Bundle, "tokenizers", lambda self: {"clip": Tokenizer()})
    return found


def test_open_session_opens_each_graph_at_its_batches(bundle: Bundle, opened: list[Any]) -> None:
    session = open_session(bundle, threads=3)
    assert sorted(opened) == [
        ("full", 2, 3),
        ("shallow", 1, 3),
        ("shallow", 2, 3),
        ("text_encoder", 1, 3),
        ("vae_decoder", 1, 3),
    ]
    assert sorted(opened) == sorted((name, batch, 3) for name, batch in used_graphs(bundle.manifest))
    assert sorted(session.load_seconds) == ["full", "shallow@1", "shallow@2", "text_encoder", "vae_decoder"]
    assert len(run(session, "b")) == 4


def test_generate_ends_with_a_picture(bundle: Bundle, opened: list[Any]) -> None:
    items = list(generate_steps(bundle, "red panda", seed=7))
    assert [type(item) for item in items[:-1]] == [GenerationStep] * 4
    picture = items[-1]
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.mode) == ((16, 16), "RGB")
    seen: list[int] = []
    again = generate(bundle, "red panda", seed=7, progress=lambda step: seen.append(step.index))
    assert seen == [0, 1, 2, 3]
    assert again.tobytes() == picture.tobytes() == bundle.generate("red panda", seed=7).tobytes()
    assert len(list(bundle.generate_steps("red panda"))) == 5
    fast = list(bundle.generate_steps("red panda", program="fast", seed=7))
    assert [(step.index, step.total, step.graph) for step in fast[:-1]] == [(0, 2, "full"), (1, 2, "shallow")]


def test_closing_the_generator_cancels(bundle: Bundle, opened: list[Any]) -> None:
    session = open_session(bundle)
    steps = session.steps("b")
    next(steps)
    assert inspect.isgenerator(steps)
    steps.close()
    assert list(steps) == []


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ({"prompt": 3}, "prompt", "a prompt is one text, not int (3)"),
        ({"prompt": ["a", "b"]}, "prompt", "not list (['a', 'b'])"),
        ({"prompt": "a", "negative_prompt": None}, "negative_prompt", "not NoneType"),
        (
            {"prompt": "a", "seed": -1},
            "seed",
            "the seed is -1; it must be a whole number from 0 to 18446744073709551615",
        ),
        ({"prompt": "a", "seed": 2**64}, "seed", "whole number"),
        ({"prompt": "a", "seed": 1.5}, "seed", "the seed is 1.5"),
        ({"prompt": "a", "seed": True}, "seed", "the seed is True"),
        ({"prompt": "a", "latent": zeros(batch=2)}, "latent", "(2, 4, 8, 8), this program needs (1, 4, 8, 8)"),
    ],
)
def test_bad_arguments_at_the_call(arguments: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_session().steps(**arguments)
    assert (caught.value.code, text in str(caught.value)) == (code, True), str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_names_row_and_graph(bad: float) -> None:
    value = zeros(batch=2)
    value[1, 0, 0, 0] = bad
    with np.errstate(invalid="ignore"), pytest.raises(BackendError) as caught:
        run(make_session(shallow=Fixed(noise_pred=value)), "b")
    assert caught.value.code == "non_finite"
    assert "row 1 (graph 'shallow', timestep 500) put out 1 of 256 values that are NaN" in str(caught.value)
    assert "try fp32 for this graph" in str(caught.value)


def test_an_encoder_or_decoder_that_is_not_finite() -> None:
    text = np.full((1, LENGTH, WIDTH), np.nan, np.float32)
    with pytest.raises(BackendError, match="graph 'text_encoder' put out 24 of 24 values"):
        make_session(text_encoder=Fixed(last_hidden_state=text)).steps("b")
    image = np.full((1, 3, 16, 16), np.inf, np.float32)
    with pytest.raises(BackendError, match="graph 'vae_decoder' put out 768 of 768 values"):
        make_session(vae_decoder=Fixed(image=image)).decode(zeros())


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (
            {"noise_pred": zeros(batch=1)},
            r"row 1 \(graph 'shallow', .*put out the shape \(1, 4, 8, 8\), not \(2, 4, 8, 8",
        ),
        ({"noise_prd": zeros(batch=2)}, "did not return 'noise_pred'; did you mean 'noise_prd'"),
    ],
)
def test_outputs_that_are_wrong(outputs: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(BackendError, match=text) as caught:
        run(make_session(shallow=Fixed(**outputs)), "b")
    assert caught.value.code == "output"


@pytest.mark.parametrize(
    ("calls", "code", "text"),
    [
        ((("shallow", 3.0),), "carry_before_write", "row 0 .*reads carry 'mid' before any row writes it"),
        (
            (("full", None), ("shallow", 3.0)),
            "carry",
            "row 1 .*is guided, but carry 'mid' was written without guidance",
        ),
    ],
)
def test_carries_that_are_not_there(calls: Calls, code: str, text: str) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        run(make_session(calls=calls), "b")
    assert caught.value.code == code


def test_graphs_that_nothing_can_feed() -> None:
    runners = make_runners()
    del runners["shallow"]
    with pytest.raises(BundleError, match="graph 'shallow', which has no runner"):
        Session(make_manifest(), {"clip": Tokenizer()}, runners)


def test_backends_of_the_bundle(bundle: Bundle) -> None:
    assert choose_backend(bundle.manifest) == "onnxruntime"
    with pytest.raises(BackendError) as caught:
        open_session(bundle, "coreml")
    assert caught.value.code == "backend"
    assert "'red-panda' was not built for it: unknown backend 'coreml' (allowed: onnxruntime)" in str(caught.value)
    graphs = {name: graph.model_copy(update={"artifacts": {}}) for name, graph in bundle.manifest.graphs.items()}
    with pytest.raises(BackendError, match="no backend with all of its graphs"):
        choose_backend(bundle.manifest.model_copy(update={"graphs": graphs}))


def test_backends_are_plugins() -> None:
    with pytest.raises(ConfigError, match="unknown backends kind 'teapot'"):
        plugins.load_plugin("backends", "teapot")


def test_rows_cost_little() -> None:
    """The bound is wide, for machines that do other things: without load a row takes 0.02 ms."""
    full = Fixed(noise_pred=zeros(batch=2), cache_out_mid=np.zeros((2, *CARRY), np.float32))
    shallow = Fixed(noise_pred=zeros(batch=2))
    session = make_session(calls=(("full", 3.0), ("shallow", 3.0)) * 25, full=full, shallow=shallow)
    overhead = [step.seconds_total - step.seconds_graph for _ in range(3) for step in run(session, "b")]
    assert statistics.median(overhead) < 1e-3
