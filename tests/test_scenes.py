"""Scenes, captions, the split and the renderer: what a seed gives, and what it must never give."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from transformers import CLIPTokenizer

from edgediff.embedded.package import MODEL as GLYPH
from edgediff.embedded.scenes.atlas import load_atlas, load_stamp
from edgediff.embedded.scenes.captions import Caption, Mention, caption_scene, encode_caption
from edgediff.embedded.scenes.evaluation import draw_prompts
from edgediff.embedded.scenes.render import render_scene, render_scenes
from edgediff.embedded.scenes.scene import Scene, Thing, draw_scene, relate
from edgediff.embedded.scenes.split import held_out_kinds, held_out_pairs, is_held_out_pair
from edgediff.embedded.scenes.vocabulary import (
    BACKGROUNDS,
    HUES,
    LARGEST,
    MARGIN,
    NOUNS,
    OPPOSITE,
    RELATIONS,
    SIDE,
    SMALLEST,
)

SCENES = [draw_scene(3, i, pairs=0.8) for i in range(400)]


def test_a_seed_gives_the_same_scenes_and_pictures_on_every_machine():
    assert draw_scene(0, 0) == draw_scene(0, 0) != draw_scene(0, 1)
    wanted = Scene((Thing("car", "yellow", 32, 30, 10), Thing("hammer", "green", 30, 0, 32)), "yellow")
    assert draw_scene(7, 11) == wanted
    assert hashlib.sha256(str(SCENES).encode()).hexdigest()[:16] == "b2dd2d4267fe9b4a"


def test_things_lie_in_the_picture_and_apart_by_a_clear_relation():
    for scene in SCENES:
        for thing in scene.things:
            assert SMALLEST <= thing.size <= LARGEST
            assert min(thing.x, thing.y) >= 0 and max(thing.x, thing.y) + thing.size <= SIDE
        if scene.relation:
            first, second = scene.things
            lead = [abs(a - b) for a, b in zip(first.centre, second.centre, strict=True)]
            assert abs(lead[0] - lead[1]) >= MARGIN
            assert max(lead) >= (first.size + second.size) / 2
            assert relate(second.centre, first.centre) == OPPOSITE[scene.relation]


def test_relations_nouns_hues_and_backgrounds_are_drawn_about_evenly():
    pairs = [scene for scene in SCENES if scene.relation]
    assert 0.72 < len(pairs) / len(SCENES) < 0.88
    counts = Counter(scene.relation for scene in pairs)
    assert set(counts) == set(RELATIONS) and min(counts.values()) > 0.15 * len(pairs)
    assert {thing.noun for scene in SCENES for thing in scene.things} == set(NOUNS)
    assert {thing.hue for scene in SCENES for thing in scene.things} == set(HUES)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)


def test_a_fifth_is_held_out_and_every_noun_keeps_most_of_its_partners_and_hues():
    assert len(held_out_pairs()) == 55 and len(held_out_kinds()) == 29
    for noun in NOUNS:
        assert sum(noun in pair for pair in held_out_pairs()) <= 6
        assert sum(noun == other for other, _ in held_out_kinds()) <= 2
    assert all(sum(hue == other for _, other in held_out_kinds()) <= 6 for hue in HUES)


def test_training_never_draws_what_is_held_out_and_the_test_draws_nothing_else():
    assert not any(scene.held_out for scene in SCENES)
    test = [draw_scene(4, i, held_out=True) for i in range(200)]
    assert all(scene.held_out for scene in test)
    pairs = {frozenset(t.noun for t in s.things) for s in test}
    assert any(is_held_out_pair(*pair) for pair in pairs) and not all(is_held_out_pair(*pair) for pair in pairs)


def test_the_order_of_a_held_out_pair_does_not_matter():
    first, second = next(iter(held_out_pairs()))
    assert is_held_out_pair(first, second) and is_held_out_pair(second, first)


def test_a_render_is_the_background_where_no_thing_is_and_the_tint_where_one_is():
    scene = Scene((Thing("heart", "blue", 30, 4, 10), Thing("sun", "red", 24, 38, 30)), "black")
    picture = render_scene(scene).astype(int)
    ground = np.array(BACKGROUNDS["black"])
    outside = np.ones((SIDE, SIDE), bool)
    outside[10:40, 4:34] = outside[30:54, 38:62] = False
    assert (picture[outside] == ground).all()
    for thing, channel in zip(scene.things, (2, 0), strict=True):
        x, y = (int(c) for c in thing.centre)
        middle = picture[y - 3 : y + 4, x - 3 : x + 4].mean((0, 1))
        assert middle.argmax() == channel and middle[channel] > 80


def test_a_pixel_is_luminance_times_tint_blended_by_coverage():
    scene = Scene((Thing("car", "orange", 28, 20, 20),), "white")
    stamp, picture = load_stamp("car", 28), render_scene(scene)
    wanted = stamp[..., :1] * np.array(HUES["orange"]) + (1 - stamp[..., 1:]) * np.array(BACKGROUNDS["white"])
    assert np.abs(picture[20:48, 20:48] - wanted).max() <= 0.51


def test_every_glyph_fills_its_cell_in_one_direction():
    atlas = load_atlas()
    assert len(atlas) == len(NOUNS)
    for cell in atlas[..., 1]:
        rows, columns = (np.flatnonzero((cell > 0.1).any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) >= 68


def test_captions_are_true_and_say_an_attribute_half_the_time():
    rng, said = np.random.default_rng(0), Counter[str]()
    pairs = [scene for scene in SCENES if scene.relation]
    for scene in pairs:
        caption = caption_scene(scene, rng)
        things = {thing.noun: thing for thing in scene.things}
        first, second = (things[mention.noun] for mention in caption.mentions)
        assert caption.relation in (None, relate(first.centre, second.centre))
        assert caption.background in (None, scene.background)
        assert caption.mentions[0].hue in (None, first.hue) and caption.mentions[1].size in (None, second.size_word)
        said.update(background=caption.background is not None, relation=caption.relation is not None)
        said.update(hue=caption.mentions[0].hue is not None, turned=caption.mentions[0].noun != scene.things[0].noun)
    for attribute, share in {"background": 0.5, "hue": 0.5, "turned": 0.5, "relation": 0.7}.items():
        assert abs(said[attribute] / len(pairs) - share) < 0.1, attribute


def test_captions_never_say_where_in_the_picture_a_thing_is():
    rng = np.random.default_rng(1)
    words = {word for scene in SCENES for word in str(caption_scene(scene, rng)).split()}
    relations = {word for relation in RELATIONS for word in relation.split()}
    assert words <= {"a", "an", "and", "on", "small", "large", *NOUNS, *HUES, *BACKGROUNDS, *relations}


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (Caption((Mention("car", "red"), Mention("tree")), "left of", "blue"), "a red car left of a tree on blue"),
        (Caption((Mention("umbrella"), Mention("hourglass", None, "large"))), "an umbrella and a large hourglass"),
        (Caption((Mention("key", "orange"),), None, "black"), "an orange key on black"),
        (Caption((Mention("hourglass"),)), "an hourglass"),
    ],
)
def test_the_text_of_a_caption(caption, text):
    assert str(caption) == text


def test_held_out_prompts_name_what_is_held_out_and_the_others_never_do():
    for held_out in (True, False):
        prompts = draw_prompts(60, held_out)
        assert [scene.held_out for scene, _ in prompts] == [held_out] * 60
        for _, caption in prompts:
            first, second = caption.mentions
            kinds = {(m.noun, m.hue) for m in caption.mentions} & held_out_kinds()
            assert bool(kinds or is_held_out_pair(first.noun, second.noun)) == held_out
            assert caption.relation in RELATIONS
    assert not Caption((Mention("car", None),)).held_out


def test_token_ids_are_those_of_the_tokenizer_one_per_word():
    tokenizer, rng = CLIPTokenizer.from_pretrained(GLYPH / "tokenizer"), np.random.default_rng(2)
    captions = ["", *(str(caption_scene(scene, rng, attributes=1.0, relations=1.0)) for scene in SCENES)]
    wanted = tokenizer(captions, padding="max_length").input_ids
    assert [encode_caption(caption) for caption in captions] == wanted
    longest = max(captions, key=lambda caption: len(caption.split()))
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= 24


def test_pictures_stack():
    assert render_scenes(SCENES[:5]).shape == (5, SIDE, SIDE, 3)
