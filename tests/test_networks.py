"""The unit graph of UNet2DConditionModel: exact, and counted like everybody counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from edgediff.errors import ModelError, PlanError
from edgediff.networks import Sizes, evaluate, family_of, unit_graph
from edgediff.variants import cut_network, load_network, save_network

SIZES = Sizes(16, 16, 7)
TINY = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "block_out_channels": (16, 32),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {
    **TINY,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}
# GMACs at 64x64 without the products of attention, methods.md 1b (published with DiP-GO's code).
PUBLISHED = {
    "down_blocks.0": 32.939,
    "down_blocks.1": 31.317,
    "down_blocks.2": 31.459,
    "down_blocks.3": 3.779,
    "mid_block": 6.029,
    "up_blocks.0": 12.905,
    "up_blocks.1": 75.137,
    "up_blocks.2": 79.123,
    "up_blocks.3": 66.043,
}
PUBLISHED_MILLIONS = {
    "down_blocks.0": 10.52,
    "down_blocks.1": 36.82,
    "down_blocks.2": 139.99,
    "down_blocks.3": 62.28,
    "mid_block": 97.04,
    "up_blocks.0": 162.24,
    "up_blocks.1": 258.33,
    "up_blocks.2": 71.41,
    "up_blocks.3": 18.81,
}


@pytest.fixture(params=[TINY, XL, {**TINY, "mid_block_type": None}], ids=["sd", "xl", "no-mid"])
def network(request):
    torch.manual_seed(0)
    return UNet2DConditionModel(**request.param).eval().requires_grad_(False)


@pytest.fixture
def inputs(network):
    return family_of(network).example_inputs(network, SIZES, batch=2)


def own_forward(network, inputs):
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    time = inputs["timestep"].expand(2)
    return network(inputs["sample"], time, inputs["encoder_hidden_states"], added_cond_kwargs=added).sample


def test_running_every_unit_is_the_networks_own_forward_bit_for_bit(network, inputs):
    graph = unit_graph(network, SIZES)
    output, _ = evaluate(network, graph, graph.live(), inputs)
    assert torch.equal(output, own_forward(network, inputs))


def test_every_parameter_belongs_to_one_unit(network):
    graph = unit_graph(network, SIZES)
    family = family_of(network)
    owned = [id(p) for unit in graph.units for p in family.unit_parameters(network, unit)]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in network.parameters()}
    assert graph.parameters() == sum(p.numel() for p in network.parameters())


def test_macs_agree_with_a_count_by_hooks(network, inputs):
    graph = unit_graph(network, SIZES)
    counted = [0]

    def count(module, arguments, output):
        weight = module.weight
        per_value = weight[0].numel() if isinstance(module, torch.nn.Conv2d) else weight.shape[1]
        counted[0] += output.numel() * per_value

    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    own_forward(network, inputs)
    for hook in hooks:
        hook.remove()
    assert sum(unit.macs - unit.attention_macs for unit in graph.units) * 2 == counted[0]


def test_attention_macs_are_those_of_its_two_products(network):
    graph = unit_graph(network, SIZES)
    for unit in graph.units:
        if unit.kind in ("self_attention", "cross_attention"):
            queries, width = unit.shape
            keys = queries if unit.kind == "self_attention" else SIZES.tokens
            assert unit.attention_macs == 2 * queries * keys * width


def test_held_and_changed_features_fed_with_the_same_steps_values_change_nothing(network, inputs):
    graph = unit_graph(network, SIZES)
    reference = own_forward(network, inputs)
    for name in ("down_blocks.0", "down_blocks.1.layers.1", "up_blocks.0", "up_blocks.1.resnets.2"):
        for action in ("hold", "delta"):
            units = [u for u in graph.select(name) if action == "hold" or u.cutting != "protected"]
            live = graph.live(dict.fromkeys((u.name for u in units), action))
            _, carries = evaluate(network, graph, graph.live(), inputs, writes=live.reads)
            output, _ = evaluate(network, graph, live, inputs, carries)
            assert torch.allclose(output, reference, atol=0 if action == "hold" else 1e-5), (name, action)


@pytest.mark.parametrize("cuts", [["down_blocks.1.resnets.1"], ["up_blocks.0.layers.1"], ["up_blocks.1.layers.0"]])
def test_a_cut_network_is_smaller_and_computes_what_the_graph_says(network, inputs, cuts, tmp_path):
    graph = unit_graph(network, SIZES)
    whole = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small, cut = cut_network(network, graph, cuts)
    expected, _ = evaluate(network, cut, cut.live(), inputs)
    output, _ = evaluate(small, cut, cut.live(), inputs)
    assert torch.equal(output, expected)
    assert not torch.equal(output, own_forward(network, inputs))
    assert sum(p.numel() for p in small.parameters()) == cut.parameters() < graph.parameters()
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in whole.items())
    save_network(small, cut, tmp_path)
    again, graph_again = load_network(tmp_path, graph)
    assert torch.equal(evaluate(again, graph_again, graph_again.live(), inputs)[0], output)
    assert not list(tmp_path.glob("*.bin"))


def test_cuts_that_cannot_be(network):
    graph = unit_graph(network, SIZES)
    block = "down_blocks.0" if graph.names().count("down_blocks.0.attentions.0.proj_in") else "down_blocks.1"
    with pytest.raises(PlanError, match=rf"cut '{block}.attentions.0' as a whole"):
        cut_network(network, graph, [f"{block}.attentions.0.proj_in"])
    with pytest.raises(PlanError, match="is protected and cannot be cut"):
        cut_network(network, graph, ["conv_in"])


def test_sd15_agrees_with_the_published_table():
    path = Path(__file__).parent.parent / "edgediff" / "pipeline" / "architectures" / "sd15.json"
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(json.loads(path.read_text())["unet"])
    graph = unit_graph(network, Sizes(64, 64, 77))
    for block, gmacs in PUBLISHED.items():
        units = [unit for unit in graph.units if unit.block == block]
        assert sum(u.macs - u.attention_macs for u in units) / 1e9 == pytest.approx(gmacs, rel=3e-3), block
        assert sum(u.parameters for u in units) / 1e6 == pytest.approx(PUBLISHED_MILLIONS[block], abs=0.006), block
    assert graph.parameters() == 859_520_964
    without_attention = sum(u.macs - u.attention_macs for u in graph.units) / 1e9
    assert without_attention == pytest.approx(338.832, rel=1e-3)


def test_what_is_not_described_is_said():
    with pytest.raises(ModelError, match=r"no network family describes 'Linear' \(known: .*UNet2DConditionModel"):
        family_of(torch.nn.Linear(1, 1))
    odd = UNet2DConditionModel(**{**TINY, "resnet_time_scale_shift": "scale_shift"})
    with pytest.raises(ModelError, match="option resnet_time_scale_shift = 'scale_shift' is not described"):
        unit_graph(odd, SIZES)
