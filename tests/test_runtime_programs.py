"""Programs of a manifest: what they take, what a caller may ask for, and what a step shows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.errors import ConfigError
from edgediff.runtime import (
    Session,
    choose_program,
)
from edgediff.runtime.manifest import Held
from edgediff.runtime.pictures import PictureReader
from edgediff.runtime.rng import Rng
from tests.hostile import LATENT, make_manifest
from tests.program_cases import Letters, ProgramCase, StandIn, make_cases
from tests.test_runtime import GUIDED, Once, Tokenizer, make_runners, run, zeros


def test_each_program_is_that_of_a_bundle_of_its_own() -> None:
    """Programs share graphs and weights, and nothing else."""
    both = make_manifest("batched", GUIDED)
    for name in both.programs:
        alone = both.model_copy(update={"programs": {name: both.programs[name]}, "default": name})
        alone.check()
        ours = run(Session(both, {"clip": Tokenizer()}, make_runners(), program=name), "red panda", seed=4)
        theirs = run(Session(alone, {"clip": Tokenizer()}, make_runners()), "red panda", seed=4)
        assert [step.latent.tobytes() for step in ours] == [step.latent.tobytes() for step in theirs]


def test_unknown_programs_and_strengths_name_those_there_are() -> None:
    manifest = make_manifest()
    with pytest.raises(ConfigError, match=r"no program 'fst'; did you mean 'fast'.*allowed: fast, main") as caught:
        choose_program(manifest, "fst", None)
    assert caught.value.code == "program"
    strong = manifest.programs["fast"].model_copy(update={"strength": 0.6})
    manifest = manifest.model_copy(update={"programs": {**manifest.programs, "edit60": strong}})
    assert choose_program(manifest, None, 0.6) == "edit60"
    assert choose_program(manifest, None, None) == "main"
    for program, strength, text in ((None, 0.5, r"this bundle has 0\.6 \('edit60'\)"), ("fast", 0.6, "not both")):
        with pytest.raises(ConfigError, match=text) as caught:
            choose_program(manifest, program, strength)
        assert caught.value.code == "strength"


def _case(name: str, **changes: Any) -> tuple[Session, ProgramCase]:
    case = next(case for case in make_cases() if case.name == name)
    case = dataclasses.replace(case, **changes)
    tokenizers = {name: Letters() for name in case.manifest.tokenizers}
    runners = {name: StandIn(name) for name in case.manifest.graphs}
    return Session(case.manifest, tokenizers, runners, program=case.program), case


@pytest.mark.parametrize(
    ("name", "arguments", "code", "text"),
    [
        ("guidance_asked", {"guidance": 9.5}, "guidance", "takes 1 to 9"),
        ("guidance_asked", {"guidance": float("nan")}, "guidance", "takes 1 to 9"),
        ("guidance_asked", {"guidance": True}, "guidance", "takes 1 to 9"),
        ("batched", {"guidance": 4.0}, "guidance", "was fitted for 3 alone; build it with a range"),
        ("second_program", {"guidance": 4.0}, "guidance", "has no guidance"),
        ("picture_mean", {}, "picture", "this program needs picture"),
        ("batched", {"picture": np.zeros((16, 16, 3), np.uint8)}, "picture", "takes no picture"),
        ("batched", {"mask": np.zeros((16, 16), np.uint8)}, "mask", "takes no mask"),
        (
            "picture_mean",
            {"picture": np.zeros((16, 16, 4), np.uint8)},
            "picture",
            "16x16x4 uint8; this bundle takes 16x16x3",
        ),
        ("picture_mean", {"picture": np.zeros((16, 16, 3), np.float32)}, "picture", "float32; this bundle"),
        ("picture_mean", {"picture": np.zeros((8, 16, 3), np.uint8)}, "picture", "resize"),
        (
            "blended",
            {"picture": np.zeros((16, 16, 3), np.uint8), "mask": np.full((16, 16), 127, np.uint8)},
            "mask",
            "is below 128 all over",
        ),
        ("classes_by_name", {"prompt": "number 12"}, "prompt", "is no class: give a number from 0 to 9, or a name"),
        ("classes_by_number", {"prompt": "10"}, "prompt", "is no class"),
        ("classes_by_number", {"prompt": "1", "negative_prompt": "2"}, "negative_prompt", "its guidance reads no text"),
        ("batched", {"noise": zeros(batch=2)}, "noise", "this program needs (1, 4, 8, 8)"),
    ],
)
def test_what_a_program_does_not_take(name: str, arguments: dict[str, Any], code: str, text: str) -> None:
    session, _ = _case(name)
    with pytest.raises(ConfigError) as caught:
        session.steps(**{"prompt": "" if "class" in name else "a", **arguments})
    assert (caught.value.code, text in str(caught.value)) == (code, True), str(caught.value)


def test_a_picture_starts_and_a_mask_keeps() -> None:
    """x_0 = 0.6 z + 0.8 y; where the mask is below 128 a blended row leaves the picture and its noise."""
    session, case = _case("picture_mean")
    given = case.arguments()
    first = run(session, "a", seed=3, **given)[0]
    start = 0.6 * Rng(3).normal((1, *LATENT)) + 0.8 * _latent_of(given["picture"])
    expected = run(session, "a", seed=3, latent=start.astype(np.float32), **given)[0]
    np.testing.assert_allclose(first.latent, expected.latent, atol=1e-6)

    session, case = _case("blended_sequential")
    given = case.arguments()
    last = run(session, "a", seed=3, **given)[-1].latent
    blend = session.program.rows[-1].blend
    assert blend is not None
    outside = blend.picture * _latent_of(given["picture"]) + blend.noise * Rng(3).normal((1, *LATENT))
    kept = (given["mask"][::2, ::2] < 128)[None, None]
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(
        last[np.broadcast_to(kept, last.shape)], outside[np.broadcast_to(kept, last.shape)], atol=1e-6
    )


def _latent_of(picture: np.ndarray) -> np.ndarray:
    """((the stand-in's mean) - shift) scale."""
    pixels = picture.transpose(2, 0, 1)[None].astype(np.float64) / 127.5 - 1
    mean = pixels[:, [0, 1, 2, 0], ::2, ::2] / 2 + np.arange(4)[None, :, None, None] / 10
    return (mean - 0.1) * 0.7


def test_the_asked_scale_reaches_guided_and_held_rows() -> None:
    session, _ = _case("held_scale_minus_one_asked")
    ours = run(session, "a", seed=1, guidance=6.0)
    fixed = session.program.model_copy(
        update={
            "rows": (
                *(row.model_copy(update={"guidance": 6.0}) for row in session.program.rows[:2]),
                session.program.rows[2].model_copy(update={"held": Held(weights=(0.75 * 5.0, 0.25 * 5.0))}),
            )
        }
    )
    manifest = session.manifest.model_copy(update={"programs": {"main": fixed}})
    theirs = run(Session(manifest, session.tokenizers, session.runners), "a", seed=1)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.latent, other.latent, atol=1e-6)


def test_a_text_that_no_row_reads_is_not_encoded() -> None:
    runners = make_runners()
    session = Session(make_manifest(), {"clip": Tokenizer()}, runners, program="fast")
    run(session, "b")
    assert len(runners["text_encoder"].inputs) == 1
    zero, _ = _case("zeros_for_no_negative_prompt")
    counted = Once("text_encoder")
    zero.runners["text_encoder"] = counted
    run(zero, "a")
    assert len(counted.inputs) == 1, "zeros need no encoder"


def test_what_a_step_says_and_shows(tmp_path: Path) -> None:
    session, case = _case("preview_by_weights")
    step = next(session.steps("a"))
    assert re.fullmatch(r"step 1 of 4, full at time 750, \d+ ms", str(step))
    pixels = np.asarray(step.preview())
    assert pixels.shape == (*LATENT[1:], 3)
    assert case.manifest.preview is not None and case.manifest.preview.weights is not None
    value = sum(np.array(w)[:, None, None] * step.latent[0, c] for c, w in enumerate(case.manifest.preview.weights))
    value = value + np.array(case.manifest.preview.bias)[:, None, None]
    expected = np.rint(np.clip(value / 2 + 0.5, 0, 1) * 255)
    np.testing.assert_allclose(pixels.transpose(2, 0, 1), expected, atol=1)
    plain, _ = _case("batched")
    assert next(plain.steps("a")).preview().size == (16, 16), "without a preview of its own the decoder draws it"


def test_safety_runs_on_the_one_decoding() -> None:
    session, _ = _case("flagged")
    decoder = Once("vae_decoder")
    session.runners["vae_decoder"] = decoder
    pixels, flagged = session.decode_judged(zeros(fill=4.0))
    assert flagged
    assert not session.decode_judged(zeros(fill=-4.0))[1]
    assert len(decoder.inputs) == 2
    np.testing.assert_array_equal(pixels, session.decode(zeros(fill=4.0)))


def test_a_posterior_is_drawn_in_the_means_shape() -> None:
    """A condition's picture may have other channels than the latent; Kotlin and C++ draw as many numbers."""
    made = {"mean": np.zeros((1, 5, 8, 8), np.float32), "deviation": np.ones((1, 5, 8, 8), np.float32)}
    manifest = next(case.manifest for case in make_cases() if case.name == "picture_drawn")
    encoder = PictureReader(manifest, manifest.program(), lambda graph, inputs, names: [made[name] for name in names])
    latent = encoder.encode(np.zeros((3, 16, 16), np.float32), lambda shape: Rng(4).normal(shape))
    assert manifest.picture is not None
    np.testing.assert_allclose(
        latent, (Rng(4).normal((1, 5, 8, 8)) - manifest.picture.shift) * manifest.picture.scale, rtol=1e-5
    )
