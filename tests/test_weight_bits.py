"""Coded weights: what a code means and costs, and which layer gets which."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgediff.config import parse
from edgediff.documents.recipe import Recipe
from edgediff.documents.weight_format import Format, parse_format
from edgediff.errors import ConfigError
from edgediff.planning.weight_bits import Layer, choose_formats, measure_layers
from edgediff.sampling.trace import record_trace
from edgediff.weight_codes import Linear, Palette, Sparse, decode, encode, fit_table
from tests.tiny import tiny_pipeline

WEIGHT = np.random.default_rng(0).standard_normal((32, 24, 3, 3)).astype(np.float16)


def test_a_word_is_a_format():
    assert parse_format("palette4/16") == Format("palette", 4, 16)
    assert parse_format("sparse50+w8") == Format("w", 8, 0, 50)
    assert parse_format("sparse75") == Format(sparse=75)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "'' is no weight format"),
        ("pallette4", "'pallette4' is no weight format: palette1 to palette8"),
        ("palette5", r"there is no weight format 'palette5': palette has palette1, palette2, palette3"),
        ("w3", r"w has w4, w8"),
        ("int8", "weight format 'int8' is now written 'w8'"),
        ("int4/32", "weight format 'int4/32' is now written 'w4/32'"),
        ("sparse50+int8", r"weight format 'sparse50\+int8' is now written 'sparse50\+w8'"),
        ("int", "'int' is no weight format"),
        ("sparse0", "a share of zeros lies between 1 and 99 percent"),
        ("sparse100", "between 1 and 99"),
    ],
)
def test_other_words_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_format(word)


def test_tables_are_at_a_fixed_point_and_better_than_even_steps():
    for bits in (1, 2, 4, 6):
        coded = encode(WEIGHT, parse_format(f"palette{bits}"))
        assert isinstance(coded, Palette)
        table = coded.table.reshape(-1).astype(np.float64)
        assert len(table) == 2**bits
        nearest = np.abs(WEIGHT.reshape(-1, 1).astype(np.float64) - table).argmin(1)
        assert (nearest == coded.codes.reshape(-1)).mean() > 0.997
        error = ((decode(coded).astype(np.float64) - WEIGHT) ** 2).mean()
        even = np.linspace(WEIGHT.min(), WEIGHT.max(), 2**bits)
        assert error < ((WEIGHT.reshape(-1, 1) - even) ** 2).min(1).mean()


def test_a_normal_distribution_gets_the_known_levels():
    """Max 1960: four levels for a standard normal lie at 0.4528 and 1.510."""
    values = np.random.default_rng(1).standard_normal(400_000)
    np.testing.assert_allclose(np.abs(fit_table(values, 2)), [1.510, 0.4528, 0.4528, 1.510], atol=0.02)


def test_few_values_are_kept_exactly():
    weight = np.random.default_rng(0).choice(np.array([-1.5, 0, 2.25], np.float16), (16, 16))
    np.testing.assert_array_equal(decode(encode(weight, parse_format("palette2"))), weight)


def test_groups_have_tables_of_their_own():
    scaled = (WEIGHT * np.repeat([0.01, 1, 3, 20], 8).reshape(32, 1, 1, 1)).astype(np.float16)
    whole, grouped = (encode(scaled, parse_format(word)) for word in ("palette4", "palette4/8"))
    assert grouped.table.shape == (4, 1, 1, 1, 16, 1)
    small = slice(0, 8)
    errors = [float(((decode(one)[small].astype(np.float64) - scaled[small]) ** 2).mean()) for one in (whole, grouped)]
    assert errors[1] < 0.05 * errors[0]
    assert encode(WEIGHT, parse_format("palette4/5")) is None


@pytest.mark.parametrize(
    ("word", "shape", "top"), [("w8", (32, 1, 1, 1), 127), ("w4", (32, 1, 1, 1), 7), ("w4/8", (32, 3, 1, 1), 7)]
)
def test_scaled_integers_are_within_half_a_step(word, shape, top):
    coded = encode(WEIGHT, parse_format(word))
    assert isinstance(coded, Linear)
    assert coded.scale.shape == shape
    assert np.abs(coded.codes).max() == top
    step = np.repeat(coded.scale.astype(np.float64), WEIGHT.shape[1] // shape[1], 1)
    error = np.abs(coded.codes * step - WEIGHT)
    assert (error <= 0.51 * step + 0.01 * np.abs(WEIGHT)).all()


def test_sparse_weights_are_the_largest_and_exactly_so_many():
    coded = encode(WEIGHT, parse_format("sparse75"))
    assert isinstance(coded, Sparse)
    assert coded.mask.sum() == round(WEIGHT.size * 0.25)
    assert np.abs(WEIGHT[coded.mask]).min() >= np.abs(WEIGHT[~coded.mask]).max()
    np.testing.assert_array_equal(decode(coded), np.where(coded.mask, WEIGHT, 0))
    for word in ("sparse75+palette4", "sparse75+w8"):
        joint = decode(encode(WEIGHT, parse_format(word)))
        assert (joint[~coded.mask] == 0).all()
        assert np.abs(joint - np.where(coded.mask, WEIGHT, 0))[coded.mask].mean() < 0.1


# Which layer gets which

CHOICES = ("palette2", "palette4", "palette8")


def layers(count=5, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        size, base = int(generator.integers(1, 9)) * 1000, float(generator.lognormal(0, 2))
        errors = {word: base * 4.0 ** -parse_format(word).bits for word in CHOICES}
        bits = {word: size * parse_format(word).bits for word in CHOICES}
        found.append(Layer(f"l{index}", size, float(generator.lognormal(0, 3)), errors, bits, "palette4"))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_near_the_best_of_all_and_never_above_the_budget(seed):
    found = layers(seed=seed)
    count = sum(layer.count for layer in found)
    for mean in (2.5, 4.0, 6.0):
        chosen = choose_formats(found, mean)
        cost = sum(layer.bits[chosen[layer.name]] for layer in found)
        loss = sum(layer.loss(chosen[layer.name]) for layer in found)
        assert cost <= mean * count
        best = min(
            sum(layer.loss(word) for layer, word in zip(found, words, strict=True))
            for words in itertools.product(CHOICES, repeat=len(found))
            if sum(layer.bits[word] for layer, word in zip(found, words, strict=True)) <= mean * count
        )
        even = sum(layer.loss("palette4") for layer in found)
        assert loss >= best * (1 - 1e-9)
        assert mean < 4 or loss <= even
        assert loss <= 300 * best  # greedy on so few layers; on hundreds it comes within a percent


def test_measuring_leaves_the_network_as_it_was(tmp_path):
    pipeline = tiny_pipeline(tmp_path)
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "sampler": {"steps": 3},
            "calibration": {"prompts": 1},
            "guidance": {"scale": 2.0},
        }
    )
    before = {name: value.clone() for name, value in pipeline.denoiser.state_dict().items()}
    trace = record_trace(pipeline, recipe)
    skip = {"mid_block.resnets.0"}
    found = measure_layers(pipeline, recipe, trace, ("palette2", "palette4"), skip=skip)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.denoiser.state_dict().items())
    assert all(layer.probe_loss > 0 for layer in found)
    assert all(layer.loss("palette2") > layer.loss("palette4") > 0 for layer in found)
    assert not any(layer.name.startswith("mid_block.resnets.0.") for layer in found)
    again = measure_layers(pipeline, recipe, trace, ("palette2", "palette4"), skip=skip)
    assert [layer.probe_loss for layer in again] == [layer.probe_loss for layer in found]


def test_a_recipe_asks_for_one_or_the_other():
    both = {"name": "x", "weights": {"format": "w8", "bits": 4.0}}
    with pytest.raises(ConfigError, match="format codes all weights alike, bits chooses per layer"):
        parse(both, Recipe, where="r.toml")
