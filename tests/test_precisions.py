"""A precision says what is stored and what is computed: the same words everywhere, and no backend takes another's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgediff import flow
from edgediff.backends import check_precision
from edgediff.documents.plan import BackendPlan, WeightPlan
from edgediff.documents.recipe import ParityTable, Recipe, load_recipe
from edgediff.documents.target import list_targets, load_target, parse_target
from edgediff.errors import BackendError, ConfigError
from edgediff.estimate import estimate_graph
from edgediff.estimate.device import PRICED_AS, open_device
from edgediff.estimate.memory import BYTES
from edgediff.estimate.roofline import SPEED, VALUE_BYTES, WEIGHT_BYTES
from edgediff.estimate.rows import load_graphs
from edgediff.planning.weight_bits import plan_weights
from edgediff.plugins import load_plugin, plugin_names
from edgediff.runtime.precision import PRECISIONS, weight_bits

ROOT = Path(__file__).parents[1]
INTEGERS = r"integers|inputs in 8 bits"
# Backend and delegate -> word -> what must be said of it.
COMPUTED = {
    ("eager", None): {"fp32": "fp32"},
    ("onnxruntime", None): {
        "fp32": "fp32",
        "fp16": "fp16",
        "w8a8": r"matrix products of 8-bit integers, .*; convolutions .* from 8-bit weights in fp32",
    },
    ("coreml", None): {
        "fp32": "fp32",
        "fp16": "fp16",
        "w8": "as fp16, from 8-bit weights",
        "w4": "as fp16, from 4-bit weights",
    },
    ("executorch", None): {
        "fp32": "fp32",
        "fp16": "denoiser in fp16",
        "w8a8": "convolutions and linear layers .* in 8-bit integers, .*; the rest in fp32",
        "w4a8": "linear layers .* from 4-bit weights .*, their inputs in 8 bits, .*; the rest in fp32",
    },
    ("executorch", "coreml"): {"fp32": "fp32", "fp16": "fp16"},
    ("executorch", "vulkan"): {"fp32": "fp32", "fp16": "fp16"},
    ("executorch", "qnn"): {"fp16": "fp16"},
    ("executorch", "ethos-u"): {"w8a8": "all in 8-bit integers", "w8a16": "activations in 16-bit integers"},
}


def target_of(backend, delegate=None, **table):
    given = {"delegate": delegate, **table} if delegate else table
    return parse_target({"name": "t", "backends": [backend], backend: given}, where="t")


def served(backend, delegate):
    return load_plugin("backends", backend).precisions(target_of(backend, delegate).backend(backend))


def test_every_backend_is_in_the_table():
    from edgediff.backends.executorch.served import SERVED

    assert {name for name, _ in COMPUTED} == set(plugin_names("backends"))
    assert {delegate or "xnnpack" for name, delegate in COMPUTED if name == "executorch"} == set(SERVED)


@pytest.mark.parametrize("word", PRECISIONS)
@pytest.mark.parametrize(("backend", "delegate"), COMPUTED)
def test_a_backend_says_what_it_computes_and_refuses_the_other_words(backend, delegate, word):
    found, wanted = served(backend, delegate), COMPUTED[backend, delegate]
    if word in wanted:
        check_precision(backend, word, found)
        assert re.search(wanted[word], found[word])
        integers = "a" in word
        assert bool(re.search(INTEGERS, found[word])) == integers, "a word with activations is integers, another is not"
        return
    with pytest.raises(BackendError) as caught:
        check_precision(backend, word, found, where="target 't'")
    message = str(caught.value)
    assert caught.value.code == "precision"
    assert message.startswith(f"target 't': '{word}' is no precision of {backend}; it serves {next(iter(found))} (")
    assert all(f"{one} (" in message for one in found) and f"[{backend}]" in message


@pytest.mark.parametrize(
    ("file", "list_of_words"),
    [
        ("android_demo/edgediff/src/main/kotlin/dev/edgediff/ManifestReader.kt", r"val precision = word\((.*?)\)"),
        ("edgediff/links/runner/reader/tables.cpp", r"bool read_precision\(.*?\{(.*?)\n\}"),
    ],
)
def test_the_other_readers_know_the_same_words(file, list_of_words):
    listed = re.search(list_of_words, (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    assert listed is not None, f"{file} lists no precisions"
    assert tuple(re.findall(r'"(\w+)"', listed[1])) == PRECISIONS


def test_every_word_has_a_floor_a_price_and_a_size():
    assert set(BYTES) == set(PRICED_AS) == set(PRECISIONS)
    assert set(PRICED_AS.values()) <= set(SPEED) == set(VALUE_BYTES) == set(WEIGHT_BYTES)
    table = ParityTable()
    floors = {word: table.graph_floor(word, coded=False) for word in PRECISIONS}
    assert floors["fp32"] == 60 and floors["fp16"] == 40 and {floors[w] for w in ("w8", "w8a8", "w8a16")} == {20}
    assert table.graph_floor("fp16", coded=True) == 15


def test_weights_have_the_bits_that_the_word_says():
    assert [weight_bits(word) for word in PRECISIONS] == [None, None, None, None, 8, 8, 8, 4, 4]


# Who asks for what is not served


def test_a_recipe_that_a_backend_does_not_serve_is_refused_before_the_model_is_loaded(tmp_path):
    text = r"recipe 'balanced-w8a8', precision: 'w8a8' is no precision of coreml; it serves fp32 .* w8 \(as fp16, from"
    with pytest.raises(BackendError, match=text):
        flow.plan_build(tmp_path / "no model", recipe="balanced-w8a8", target="iphone_15_pro")
    with pytest.raises(BackendError, match=text):
        flow.build(tmp_path / "none", recipe="balanced-w8a8", target="iphone_15_pro", out=tmp_path / "out.edgediff")
    assert not (tmp_path / "out.edgediff").exists()


def test_a_target_that_asks_its_backend_for_another_s_word_is_refused():
    target = target_of("onnxruntime", precision="w8a16")
    text = r"target 't', \[onnxruntime\] precision: 'w8a16' is no precision of onnxruntime; it serves fp32 .*w8a8 \("
    with pytest.raises(BackendError, match=text):
        flow.check_precisions(load_recipe("balanced"), target)


def test_what_ships_asks_for_what_is_served():
    known = set(plugin_names("backends"))
    for name in list_targets():
        target = load_target(name)
        if own := tuple(backend for backend in target.backends if backend in known):
            flow.check_precisions(load_recipe("balanced"), target, own)
    for recipe, backend in (
        ("balanced-w8", "coreml"),
        ("balanced-w8a8", "onnxruntime"),
        ("balanced-w8a8", "executorch"),
    ):
        flow.check_precisions(load_recipe(recipe), target_of(backend))
    flow.check_precisions(load_recipe("balanced-w8a8"), load_target("ethos_u55_256"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"onnxruntime": {"weights": "int8"}},
            "key 'onnxruntime.weights' = 'int8' is no longer known: write precision, one of fp32, tf32, fp16, bf16, ",
        ),
        (
            {"onnxruntime": {"precision": "int8"}},
            "'onnxruntime.precision' = 'int8': there is no such precision any more",
        ),
        ({"executorch": {"precision": "int4"}}, "'w4' (weights in 4 bits, floating arithmetic) or 'w4a8'"),
        (
            {"executorch": {"precision": "w8a8", "activation_bits": 16}},
            'key \'executorch.activation_bits\' = 16 is no longer known: write precision = "w8a8" for 8, "w8a16"',
        ),
        (
            {"coreml": {"precisions": ["fp16", "int8"]}},
            "'coreml.precisions.1' = 'int8': there is no such precision any",
        ),
    ],
)
def test_old_words_and_keys_of_a_target_name_the_new_ones(table, message):
    with pytest.raises(ConfigError) as caught:
        parse_target({"name": "x", "backends": ["onnxruntime"], **table}, where="x.toml")
    assert str(caught.value).startswith("x.toml: ") and message in str(caught.value)


# Coded weights beside a precision


@pytest.mark.parametrize(
    ("precision", "weights", "refused"),
    [
        ("fp16", {"format": "palette4"}, ""),
        ("w4a8", {"format": "w4/32"}, ""),
        ("w8", {"format": "w8/64"}, ""),
        ("w8", {"format": "palette4"}, "'palette4', and precision 'w8' of backend 'coreml' stores them as w8;"),
        ("w8a8", {"format": "w4/32"}, "'w4/32', and precision 'w8a8' of backend 'coreml' stores them as w8;"),
        ("w4", {"format": "sparse50+w4"}, r"'sparse50\+w4', and precision 'w4'"),
        ("w8", {"bits": 4.0}, "'palette2', and precision 'w8'"),
    ],
)
def test_a_format_of_other_bits_than_the_precision_is_refused(precision, weights, refused):
    recipe = Recipe.model_validate({"name": "r", "precision": precision, "weights": weights})
    plan = SimpleNamespace(
        backends={"coreml": BackendPlan(precision=precision)}, model_copy=lambda update: update["weights"]
    )
    if refused:
        with pytest.raises(ConfigError, match=f"recipe 'r': .weights. codes weights as {refused}"):
            plan_weights(None, recipe, plan)
    else:
        assert plan_weights(None, recipe, plan) == WeightPlan(format=weights["format"])


# What the estimator makes of a word


def test_core_ml_s_eight_bit_weights_are_priced_as_halves_and_not_as_integers():
    graph, target = load_graphs()["stable_diffusion_v1_5/unet"], load_target("iphone_12")
    halves, weights, integers = (
        estimate_graph(graph, target, "coreml", word, batch=2).p50 for word in ("fp16", "w8", "w8a8")
    )
    assert weights == estimate_graph(graph, target, "coreml", "w8a16", batch=2).p50
    assert 0.8 * halves < weights < 1.2 * halves and integers < 0.7 * halves


def test_a_target_is_priced_at_its_own_word():
    assert [open_device(load_target(f"ethos_{name}")).precision for name in ("u85_2048", "u55_256")] == [
        "w8a16",
        "w8a8",
    ]


def test_where_convolutions_stay_fp32_the_price_does_too():
    for backend, word in (("onnxruntime", "w8a8"), ("executorch", "w4a8")):
        assert open_device(load_target("pixel_9"), backend, word).priced_as == "fp32"
    assert open_device(load_target("pixel_9"), "executorch", "w8a8").priced_as == "w8a8"
    assert open_device(load_target("galaxy_s24"), "onnxruntime", "w8a8").priced_as == "w8a8"  # on the HTP
