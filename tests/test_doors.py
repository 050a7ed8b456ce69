"""Every registry has a typed door: what is inside fits it, what does not fit is one clear error when it is loaded."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import edgediff
from edgediff import plugins
from edgediff.config import Model
from edgediff.errors import ConfigError, MissingLibrary, ModelError
from edgediff.estimate.decompose import unit_operators
from edgediff.graph.units import Unit
from edgediff.networks import DOOR, Sizes, find_class, unit_graph
from edgediff.pipeline import architecture_names
from edgediff.plugins import Plugin, check_plugin, load_plugin, plugin_names
from edgediff.reuse import ReuseMethod

PACKAGE = Path(edgediff.__file__).parent
REGISTRIES = ("networks", "prune", "reuse", "backends", "links", "layouts")
ARCHITECTURES = PACKAGE / "pipeline" / "architectures"


def points(monkeypatch, **values):
    """Entry points of a package that is not there, in every group."""
    found = tuple(EntryPoint(name, value, "edgediff.reuse") for name, value in values.items())
    monkeypatch.setattr(plugins, "_points", lambda folder: found)


@pytest.mark.parametrize("folder", REGISTRIES)
def test_all_that_is_inside_fits_its_door(folder):
    for kind in plugin_names(folder):
        assert kind == load_plugin(folder, kind).NAME


def test_what_a_plug_in_leaves_out_is_the_doors_default():
    fora, magcache, eager = (
        load_plugin(*one) for one in (("reuse", "fora"), ("reuse", "magcache"), ("backends", "eager"))
    )
    assert fora.measure is None and fora.refine is None and fora.basis(fora.Spec(interval=2)) == {"interval": 2}
    assert magcache.measure is not None and magcache.basis(magcache.Spec()) == {}
    assert eager.CODES_WEIGHTS is False and eager.stand_in(None) == ""
    with pytest.raises(AttributeError, match="make_coffee"):
        _ = eager.make_coffee


def test_a_half_written_plug_in_is_an_error_that_names_the_member():
    def propose(spec, setting): ...

    says = r"edgediff\.reuse\.ReuseMethod says what it is"
    with pytest.raises(ConfigError, match=rf"^here: reuse plug-in 'x' is half-written: it has no 'Spec'; {says}"):
        check_plugin(SimpleNamespace(propose=propose), ReuseMethod, "reuse plug-in 'x'", "here")
    with pytest.raises(ConfigError, match="its 'Spec' must be a class derived from Model"):
        check_plugin(SimpleNamespace(Spec=dict, propose=propose), ReuseMethod, "reuse plug-in 'x'", "here")
    with pytest.raises(ConfigError, match="it has no 'propose'") as caught:
        check_plugin(SimpleNamespace(Spec=Model), ReuseMethod, "reuse plug-in 'x'", "here")
    assert caught.value.code == "half_written"
    wrong = SimpleNamespace(Spec=Model, propose=lambda spec: None)
    with pytest.raises(ConfigError, match=r"its 'propose' must be a function that takes \(spec, setting\)"):
        check_plugin(wrong, ReuseMethod, "reuse plug-in 'x'", "here")
    with pytest.raises(ConfigError, match="it has no 'CLASSES'"):
        check_plugin(SimpleNamespace(), DOOR, "networks plug-in 'x'", "here")


def test_an_entry_point_that_cannot_be_used_says_whose_it_is(monkeypatch):
    points(
        monkeypatch,
        d_half="json",
        d_gone="no_such_package_of_doors",
        d_member="json:no_such_member",
    )
    with pytest.raises(
        ConfigError, match=r"^entry point d_half = json of the package .*: reuse plug-in 'd_half' is half"
    ):
        load_plugin("reuse", "d_half")
    for kind in ("d_gone", "d_member"):
        with pytest.raises(
            ConfigError, match=rf"^entry point {kind} = .*: reuse plug-in '{kind}' cannot be loaded: .*no_such"
        ):
            load_plugin("reuse", kind)
    with pytest.raises(ConfigError, match="unknown reuse kind 'd_hall'; did you mean 'd_half'"):
        load_plugin("reuse", "d_hall")


def test_a_plug_ins_missing_library_is_not_a_broken_plug_in(monkeypatch, tmp_path):
    (tmp_path / "d_needs.py").write_text("import library_of_nobody\n")
    monkeypatch.syspath_prepend(tmp_path)
    points(monkeypatch, d_needs="d_needs")
    with pytest.raises(
        MissingLibrary, match="reuse plug-in 'd_needs' needs the library 'library_of_nobody': pip install"
    ):
        load_plugin("reuse", "d_needs")


def test_two_plug_ins_of_one_name_are_an_error(monkeypatch):
    points(monkeypatch, d_one="json")
    monkeypatch.setattr(plugins, "own_names", lambda folder: ["d_one"])
    with pytest.raises(ConfigError, match="reuse plug-in 'd_one' is brought by .*, and edgediff has one of its own"):
        load_plugin("reuse", "d_one")


def test_nothing_is_probed_and_no_family_is_named_outside_of_the_networks():
    """Methods, estimator and pipeline ask for roles and for what a family says of its classes."""
    names = "|".join(plugin_names("networks"))
    forbidden = re.compile(
        rf"""["']({names})["']|\.family\s*(==|!=|in\b|not in\b)|(UNet\dD\w*|DiTTransformer2D)Model"""
    )
    allowed = {"layouts", "embedded"}  # other tools' words; how the embedded model was made
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room != "networks" and room not in allowed:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if forbidden.search(line)]
            assert not found, f"{path.relative_to(PACKAGE)}: {found}"
    probes = re.compile(r"(hasattr|getattr)\((plugin|method|module|backend|family|engine|load_plugin\([^)]*\)), ")
    for room in ("planning", "flow.py", "runtime", "verify.py", "scoring", "profiling"):
        files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
        for path in files:
            text = path.read_text(encoding="utf-8")
            found = [one.group(0) for one in probes.finditer(text)]
            assert not found, f"{path.relative_to(PACKAGE)} probes: {found}"


@pytest.mark.parametrize("name", architecture_names())
def test_every_unit_of_every_architecture_has_a_role_and_a_price(name):
    config = json.loads((ARCHITECTURES / f"{name}.json").read_text())
    part = next(part for part in ("unet", "transformer") if part in config)
    family, class_name, _ = find_class(config[part]["_class_name"])
    with torch.device("meta"):
        network = family.make(class_name, config[part])
    graph = unit_graph(network, Sizes.of(family.latent_shape(network.config)))
    assert graph.units and all(unit.role in family.ROLES.values() for unit in graph.units)
    for unit in graph.units:
        assert unit_operators(unit) or unit.role == "embedding"
    if name == "dit-xl-2":
        counts = {role: len(graph.of_role(role)) for role in ("stream", "self-attention", "feed-forward", "modulation")}
        assert len(graph.units) == 143 and counts == {
            "stream": 56,
            "self-attention": 28,
            "feed-forward": 28,
            "modulation": 28,
        }


def test_a_kind_without_a_role_is_an_error(monkeypatch):
    family = find_class("DiTTransformer2DModel")[0]
    odd = Plugin(SimpleNamespace(ROLES={"final": "exit"}, __doc__=""), DOOR, "odd")
    with pytest.raises(
        ModelError, match="network family 'odd' gives unit 'u' the kind 'k', for which its ROLES have no role"
    ):
        edgediff.networks._role_of(odd, Unit("u", "k", ()))
    with pytest.raises(ModelError, match=r"unit 'u' \(k\) has no role, so it has no price"):
        unit_operators(Unit("u", "k", (), macs=1, shape=(1,)))
    assert edgediff.networks._role_of(family, Unit("u", "final", ())) == "exit"
