"""The two judges of scenes, and how findings are held against captions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgediff.embedded.scenes.captions import Caption, Mention, caption_scene
from edgediff.embedded.scenes.detector import CELLS, Detector, Maps, detect, load_detector, read_maps, save_detector
from edgediff.embedded.scenes.detector_training import IGNORED, NOTHING, detector_loss, make_targets
from edgediff.embedded.scenes.findings import Finding, Findings, judge_caption, matches_scene, sum_up
from edgediff.embedded.scenes.hard_negatives import KINDS, draw_example
from edgediff.embedded.scenes.render import render_scene, render_scenes
from edgediff.embedded.scenes.scene import Scene, Thing, draw_scene
from edgediff.embedded.scenes.template_judge import find_things
from edgediff.embedded.scenes.vocabulary import HUES, NOUNS
from edgediff.errors import EdgeDiffError

CAR = Finding("car", "red", 24.0, (16.0, 30.0), 0.9)
TREE = Finding("tree", "green", 33.0, (44.0, 34.0), 0.8)
CAPTION = Caption((Mention("car", "red"), Mention("tree", None, "large")), "left of", "white")


def test_a_right_picture_is_right_in_every_way():
    verdict = judge_caption(CAPTION, Findings((TREE, CAR), "white"))
    assert verdict.objects and verdict.relation and verdict.right


@pytest.mark.parametrize(
    ("things", "background", "wanted"),
    [
        ((CAR,), "white", (False, False, False)),  # one is missing
        ((CAR, TREE, replace(CAR, centre=(50, 50))), "white", (False, False, False)),  # a duplicate
        ((CAR, TREE, replace(CAR, noun="sun")), "white", (False, False, False)),  # a stranger
        ((CAR, replace(TREE, centre=(5, 30))), "white", (True, False, False)),  # the other way round
        ((replace(CAR, hue="blue"), TREE), "white", (True, True, False)),
        ((CAR, replace(TREE, size=22)), "white", (True, True, False)),
        ((CAR, TREE), "blue", (True, True, False)),
    ],
)
def test_what_is_wrong_counts_where_it_is_wrong(things, background, wanted):
    verdict = judge_caption(CAPTION, Findings(things, background))
    assert (verdict.objects, verdict.relation, verdict.right) == wanted


def test_a_caption_without_a_relation_has_none_to_score():
    verdict = judge_caption(replace(CAPTION, relation=None), Findings((TREE, CAR), "white"))
    assert verdict.right and verdict.relation is None
    shares = sum_up([verdict, judge_caption(CAPTION, Findings((CAR,), "white"))])
    assert (shares.objects, shares.relation, shares.right) == (0.5, 0.0, 0.5)


def test_template_matching_reads_real_renders_right():
    scenes = [draw_scene(50, i, pairs=0.85, held_out=i % 3 == 0) for i in range(24)]
    read = [find_things(picture) for picture in render_scenes(scenes)]
    assert all(matches_scene(scene, findings) for scene, findings in zip(scenes, read, strict=True))
    rng = np.random.default_rng(0)
    verdicts = [judge_caption(caption_scene(s, rng), f) for s, f in zip(scenes, read, strict=True)]
    assert sum_up(verdicts).right == 1.0


def test_template_matching_fails_on_another_scenes_caption():
    scenes = [draw_scene(51, i) for i in range(12)]
    read = [find_things(picture) for picture in render_scenes(scenes)]
    rng = np.random.default_rng(0)
    swapped = [judge_caption(caption_scene(s, rng), f) for s, f in zip(scenes, read[1:] + read[:1], strict=True)]
    assert sum_up(swapped).objects < 0.1


def test_template_matching_finds_nothing_in_means_blur_and_ghosts_and_counts_duplicates():
    for kind in ("mean", "blur"):
        pictures = [draw_example(52, i, kind).picture for i in range(10)]
        assert sum(len(find_things(picture).things) for picture in pictures) <= 2, kind
    for kind in ("ghost", "duplicate"):
        examples = [draw_example(53, i, kind) for i in range(10)]
        exact = [len(find_things(e.picture).things) == len(e.things) for e in examples]
        assert sum(exact) >= 9, kind


def test_template_matching_sees_through_a_little_noise_but_not_an_empty_picture():
    scene = draw_scene(54, 0)
    noise = np.random.default_rng(0).normal(0, 6, (64, 64, 3))
    noisy = (render_scene(scene) + noise).clip(0, 255).astype(np.uint8)
    assert matches_scene(scene, find_things(noisy))
    assert find_things(render_scene(Scene((), "green"))) == Findings((), "green")


@pytest.mark.parametrize("kind", KINDS)
def test_examples_repeat_and_are_of_their_kind(kind):
    first, again = (draw_example(55, 1, kind) for _ in range(2))
    assert (first.picture == again.picture).all() and first.picture.shape == (64, 64, 3)
    scene_things = len(draw_example(55, 1, "plain").things)
    counts = {"plain": 0, "mean": -scene_things, "blur": -scene_things, "ghost": -1, "chimera": -1}
    if kind != "duplicate":
        assert len(first.things) == scene_things + counts[kind]
    plain = draw_example(55, 1, "plain").picture
    assert (kind == "plain") == bool((first.picture == plain).all())


def test_the_kinds_shares_sum_to_one():
    assert sum(share for share, _ in KINDS.values()) == pytest.approx(1)


def make_maps(things, strength=9.0):
    """Maps that say exactly what the targets of these things say."""
    nouns, hues, geometry, _ = make_targets([replace(draw_example(1, 0, "plain"), things=things)])
    logits = torch.zeros(1, NOTHING + 1, CELLS, CELLS)
    logits.scatter_(1, nouns.where(nouns != IGNORED, NOTHING)[:, None], strength)
    tints = torch.zeros(1, len(HUES), CELLS, CELLS).scatter_(1, hues.clamp_min(0)[:, None], strength)
    return Maps(logits, tints, geometry, torch.tensor([[0.0, 5.0, 0.0, 0.0, 0.0]]))


def test_the_detectors_targets_are_read_back_as_the_things_they_came_from():
    scene = Scene((Thing("car", "red", 25, 3, 30), Thing("tree", "green", 33, 31, 7)), "black")
    findings = read_maps(make_maps(scene.things), 0)
    assert matches_scene(scene, findings, slack=0.01)


def test_two_of_the_same_noun_are_two_but_neighbouring_cells_are_one():
    far = (Thing("sun", "red", 20, 2, 2), Thing("sun", "red", 20, 40, 40))
    assert len(read_maps(make_maps(far), 0).things) == 2
    near = (Thing("sun", "red", 20, 2, 2), Thing("sun", "red", 20, 8, 2))
    maps = make_maps(near)
    assert len(read_maps(maps, 0).things) == 1


def test_the_detectors_loss_is_least_for_the_right_answer():
    example = draw_example(1, 0, "plain")
    targets = make_targets([replace(example, background="black")])
    right = make_maps(example.things)
    wrong = replace(right, nouns=right.nouns.roll(1, dims=1))
    moved = replace(right, nouns=right.nouns.roll(4, dims=3))
    assert detector_loss(right, targets) < 0.1
    assert detector_loss(right, targets) < min(detector_loss(wrong, targets), detector_loss(moved, targets))


def test_a_detector_learns_a_few_examples_and_is_read_back_from_its_file(tmp_path):
    torch.manual_seed(0)
    network, examples = Detector(), [draw_example(2, i, "plain") for i in range(2)]
    pictures = np.stack([example.picture for example in examples])
    signal = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer, targets = torch.optim.Adam(network.parameters(), 3e-3), make_targets(examples)
    for _ in range(60):
        loss = detector_loss(network(signal), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_detector(network, tmp_path / "detector.safetensors")
    read = detect(load_detector(tmp_path / "detector.safetensors"), pictures)
    for example, findings in zip(examples, read, strict=True):
        assert sorted(t.noun for t in example.things) == sorted(t.noun for t in findings.things)


def test_a_missing_detector_says_how_to_train_one(tmp_path):
    with pytest.raises(EdgeDiffError, match=r"is missing; train it with `python -m edgediff.embedded.scenes.train"):
        load_detector(tmp_path / "none.safetensors")


def test_nothing_is_a_class_of_its_own():
    assert len(NOUNS) == NOTHING
