"""Operators cut by themselves: what stands in their place, what it costs, and that it survives a file."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgediff.errors import PlanError
from edgediff.networks import evaluate, family_of
from edgediff.variants import cut_network, load_network, save_network
from tests.tiny import tiny_pipeline

RESNET, UP = "down_blocks.0.resnets.0", "up_blocks.1.resnets.1"
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
SOME = (
    f"{RESNET}.conv2",
    f"{RESNET}.norm1",
    f"{UP}.conv1",
    f"{UP}.time_emb_proj",
    f"{ATTENTION}.to_k",
    "up_blocks.0.upsamplers.0.conv",
    "mid_block.resnets.1.nonlinearity",
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def inputs(pipeline):
    return family_of(pipeline.denoiser).example_inputs(pipeline.denoiser, pipeline.sizes, batch=2)


def run(network, graph, inputs):
    with torch.inference_mode():
        return evaluate(network, graph, graph.live(), inputs)[0]


def test_every_kind_of_operator_is_found_and_the_first_and_last_convolution_are_not(pipeline):
    operators = pipeline.graph.operators
    assert {operator.kind for operator in operators.values()} == {"conv", "linear", "norm", "activation"}
    assert not any(name.startswith(("conv_", "time_embedding")) for name in operators)
    assert f"{UP}.conv_shortcut" not in operators  # there is nothing cheaper that changes the channels
    assert not set(operators) & set(pipeline.graph.by_name)


def test_a_network_without_operators_is_that_with_modules_put_in_their_place_by_hand(pipeline, inputs):
    byhand = copy.deepcopy(pipeline.denoiser)
    first, up = byhand.get_submodule(RESNET), byhand.get_submodule(UP)
    first.conv2, first.norm1 = nn.Identity(), nn.Identity()
    up.conv1 = nn.Conv2d(up.conv1.in_channels, up.conv1.out_channels, 1)
    original = pipeline.denoiser.get_submodule(UP).conv1
    up.conv1.weight.data, up.conv1.bias.data = original.weight.data[:, :, 1:2, 1:2], original.bias.data
    nn.init.zeros_(up.time_emb_proj.weight)
    nn.init.zeros_(up.time_emb_proj.bias)
    byhand.get_submodule(ATTENTION).to_k = nn.Identity()
    byhand.up_blocks[0].upsamplers[0].conv = nn.Identity()
    byhand.mid_block.resnets[1].nonlinearity = nn.Identity()
    network, cut = cut_network(pipeline.denoiser, pipeline.graph, SOME)
    expected = byhand(inputs["sample"], inputs["timestep"].expand(2), inputs["encoder_hidden_states"]).sample
    torch.testing.assert_close(run(network, cut, inputs), expected, rtol=0, atol=1e-6)


def test_the_model_itself_is_not_touched(pipeline, inputs):
    before = run(pipeline.denoiser, pipeline.graph, inputs)
    cut_network(pipeline.denoiser, pipeline.graph, SOME)
    assert torch.equal(run(pipeline.denoiser, pipeline.graph, inputs), before)


def test_parameters_and_macs_are_those_of_the_network_that_is_left(pipeline, inputs):
    network, cut = cut_network(pipeline.denoiser, pipeline.graph, SOME)
    assert sum(p.numel() for p in network.parameters()) == cut.parameters() < pipeline.graph.parameters()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run(network, cut, inputs)
    assert cut.macs() == counter.get_total_flops() // 2 // 2  # two FLOPs a MAC, two samples
    assert cut.macs() < pipeline.graph.macs()


def test_a_unit_that_is_cut_takes_its_operators_along(pipeline):
    both = pipeline.graph.with_cuts([RESNET, f"{RESNET}.conv2"])
    alone = pipeline.graph.with_cuts([RESNET])
    assert (both.parameters(), both.macs()) == (alone.parameters(), alone.macs())


def test_cut_operators_survive_a_file(pipeline, inputs, tmp_path):
    network, cut = cut_network(pipeline.denoiser, pipeline.graph, [*SOME, "mid_block.resnets.0"])
    save_network(network, cut, tmp_path / "small")
    again, graph = load_network(tmp_path / "small")
    assert graph.cuts == cut.cuts
    assert torch.equal(run(again, graph, inputs), run(network, cut, inputs))


def test_an_unknown_operator_asks_did_you_mean(pipeline):
    with pytest.raises(PlanError, match=r"unknown unit '.*\.conv3'; did you mean '.*\.conv"):
        pipeline.graph.with_cuts([f"{RESNET}.conv3"])


def test_a_name_that_is_a_unit_means_the_unit(pipeline):
    graph = pipeline.graph
    name = "down_blocks.0.attentions.0.proj_in"
    assert any(o.name == name for o in graph.by_name[name].operators) and name not in graph.operators
    cut = replace(graph, cuts=frozenset({name}))
    assert cut.removed(graph.by_name[name]) == ()
