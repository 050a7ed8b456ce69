"""A real bundle with two programs, on ONNX Runtime: what they share, and that each is that of a bundle of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgediff.bundle import Bundle, BundleWriter, open_bundle
from edgediff.errors import ConfigError
from edgediff.runtime import GenerationStep
from tests.small_bundle import running_parts, write_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    write_bundle(tmp_path_factory.mktemp("bundles") / "two", 1)
    return open_bundle(next(tmp_path_factory.getbasetemp().glob("bundles*/two")))


def latents(bundle: Bundle, **options: object) -> list[np.ndarray]:
    *steps, picture = bundle.generate_steps("a", seed=3, **options)
    assert isinstance(picture, Image.Image)
    assert all(isinstance(step, GenerationStep) for step in steps)
    return [step.latent for step in steps]


def test_the_default_program_runs_when_none_is_asked_for(bundle: Bundle) -> None:
    default, named, fast = latents(bundle), latents(bundle, program="main"), latents(bundle, program="fast")
    assert [one.tobytes() for one in default] == [one.tobytes() for one in named]
    assert (len(default), len(fast)) == (4, 2)
    with pytest.raises(ConfigError, match="allowed: fast, main"):
        bundle.generate("a", program="quality")


def test_a_program_is_bit_for_bit_that_of_a_bundle_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    for name, program in bundle.manifest.programs.items():
        with BundleWriter(tmp_path / name) as writer:
            for path, data in running_parts(1).items():
                writer.path(path).write_bytes(data)
            writer.path("plan.json").write_bytes((bundle.folder / "plan.json").read_bytes())
            alone = writer.commit(bundle.manifest.model_copy(update={"programs": {name: program}, "default": name}))
        ours, theirs = latents(bundle, program=name), latents(alone)
        assert [one.tobytes() for one in ours] == [one.tobytes() for one in theirs]
        assert ours[-1].std() > 0.1


def test_a_second_program_costs_its_rows_alone(bundle: Bundle) -> None:
    """Graphs and weights are there once: what a program adds is a part of the manifest."""
    whole = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    text = (bundle.folder / "manifest.json").read_text()
    alone = bundle.manifest.model_copy(update={"programs": {"main": bundle.manifest.programs["main"]}})
    assert 0 < len(text) - len(alone.to_json()) < 0.01 * whole


def test_given_noise_is_the_draw_before_scaling(bundle: Bundle) -> None:
    noise = np.full((1, *bundle.manifest.program().latent), 0.5, np.float32)
    ours, other = latents(bundle, noise=noise), latents(bundle, noise=noise)
    assert [one.tobytes() for one in ours] == [one.tobytes() for one in other]
    assert len(np.unique(ours[0][0, 0])) < len(np.unique(latents(bundle)[0][0, 0]))


def test_a_step_shows_and_says_itself(bundle: Bundle) -> None:
    step = next(bundle.generate_steps("a"))
    assert isinstance(step, GenerationStep)
    assert (step.index, step.total, step.latent.shape) == (0, 4, (1, 4, 8, 8))
    assert step.preview().size == (16, 16)
    assert str(step).startswith("step 1 of 4, full at time 750")
    assert "\n" not in str(step)
