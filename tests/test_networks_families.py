"""The unit graphs of DiTTransformer2DModel and UNet2DModel: exact, and counted like everybody counts."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

from edgediff.errors import ModelError, PlanError
from edgediff.networks import Sizes, evaluate, family_of, unit_graph
from edgediff.variants import cut_network, load_network, save_network

SIZES = Sizes(8, 8)
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SAMPLERS = {**UNET, "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
MODELS = {
    "dit": lambda: DiTTransformer2DModel(**DIT),
    "dit-pixel": lambda: DiTTransformer2DModel(**{**DIT, "in_channels": 1, "out_channels": 1, "patch_size": 1}),
    "unet": lambda: UNet2DModel(**UNET),
    "unet-resnet-samplers": lambda: UNet2DModel(
        **{**SAMPLERS, "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
    ),
    "unet-no-attention": lambda: UNet2DModel(**{**UNET, "add_attention": False, "mid_block_scale_factor": 2.0}),
    "unet-no-mid": lambda: UNet2DModel(**{**UNET, "mid_block_type": None}),
}
ARCHITECTURES = Path(__file__).parent.parent / "edgediff" / "pipeline" / "architectures"


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    for parameter in model.parameters():  # what starts at zero (gates, class table) would hide mistakes
        parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    return make(request.param)


@pytest.fixture(scope="module")
def graph(network):
    return unit_graph(network, SIZES)


@pytest.fixture(scope="module")
def inputs(network):
    return family_of(network).example_inputs(network, SIZES, batch=2)


@pytest.fixture(scope="module")
def dit():
    network = make("dit")
    return network, unit_graph(network, SIZES)


def own_forward(network, inputs):
    time = inputs["timestep"].expand(2)
    output = network(inputs["sample"], time, **{k: v for k, v in inputs.items() if k == "class_labels"}).sample
    return output[:, : network.config.in_channels]


def is_dit(network):
    return isinstance(network, DiTTransformer2DModel)


def test_running_every_unit_is_the_networks_own_forward_bit_for_bit(network, graph, inputs):
    output, _ = evaluate(network, graph, graph.live(), inputs)
    assert output.shape[1:] == graph.by_name[graph.output].shape == inputs["sample"].shape[1:]
    assert torch.equal(output, own_forward(network, inputs))


def test_every_parameter_belongs_to_one_unit(network, graph):
    family = family_of(network)
    owned = [id(p) for unit in graph.units for p in family.unit_parameters(network, unit)]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in network.parameters()}
    assert graph.parameters() == sum(p.numel() for p in network.parameters())


def test_macs_agree_with_a_count_by_hooks(network, graph, inputs):
    counted: dict[str, int] = {}

    def count(name):
        def note(module, arguments, output):
            weight = module.weight
            per_value = weight[0].numel() if isinstance(module, torch.nn.Conv2d) else weight.shape[1]
            counted[name] = output.numel() * per_value

        return note

    layers = {n: m for n, m in network.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    own_forward(network, inputs)
    for hook in hooks:
        hook.remove()
    # diffusers' forward of a DiT computes the first block's embedding twice; the dictionary counts it once, as we do
    assert sum(unit.macs - unit.attention_macs for unit in graph.units) * 2 == sum(counted.values())


def test_held_and_changed_features_fed_with_the_same_steps_values_change_nothing(network, graph, inputs):
    reference = own_forward(network, inputs)
    names = ["transformer_blocks.1", "transformer_blocks.0.attention", "transformer_blocks.2.mlp_add"]
    for name in names if is_dit(network) else ["down_blocks.1", "up_blocks.0.layers.1", "up_blocks.1.resnets.2"]:
        for action in ("hold", "delta"):
            units = [u for u in graph.select(name) if action == "hold" or u.cutting != "protected"]
            live = graph.live(dict.fromkeys((u.name for u in units), action))
            _, carries = evaluate(network, graph, graph.live(), inputs, writes=live.reads)
            output, _ = evaluate(network, graph, live, inputs, carries)
            assert torch.allclose(output, reference, atol=0 if action == "hold" else 1e-4), (name, action)


def test_a_cut_network_is_smaller_and_computes_what_the_graph_says(network, graph, inputs, tmp_path):
    cuts = ["transformer_blocks.1", "transformer_blocks.0.mlp_add"] if is_dit(network) else ["up_blocks.1.layers.0"]
    small, cut = cut_network(network, graph, cuts)
    expected, _ = evaluate(network, cut, cut.live(), inputs)
    assert torch.equal(evaluate(small, cut, cut.live(), inputs)[0], expected)
    assert not torch.equal(expected, own_forward(network, inputs))
    assert sum(p.numel() for p in small.parameters()) == cut.parameters() < graph.parameters()
    save_network(small, cut, tmp_path)
    again, graph_again = load_network(tmp_path)
    assert torch.equal(evaluate(again, graph_again, graph_again.live(), inputs)[0], expected)


def test_a_dit_without_one_block_is_that_network(dit):
    network, graph = dit
    inputs = family_of(network).example_inputs(network, SIZES, batch=2)
    cut = graph.with_cuts(["transformer_blocks.1"])
    output = evaluate(network, cut, cut.live(), inputs)[0]
    shorter = copy.deepcopy(network)
    shorter.transformer_blocks.pop(1)
    assert torch.equal(output, own_forward(shorter, inputs))


def test_held_branches_of_a_dit_take_the_gates_of_the_current_step(dit):
    """FORA: x + gate(now) * attention(then)."""
    network, graph = dit
    branches = [unit.name for unit in graph.units if unit.kind in ("attention_branch", "mlp_branch")]
    live = graph.live(dict.fromkeys(branches, "hold"))
    assert live.reads == tuple(branches)
    assert sum(name.endswith("modulation") for name in live.run) == 3
    now = family_of(network).example_inputs(network, SIZES, batch=2)
    then = {**now, "sample": now["sample"] + 1.0}
    _, carries = evaluate(network, graph, graph.live(), then, writes=live.reads)
    output = evaluate(network, graph, live, now, carries)[0]
    tokens = network.pos_embed(now["sample"])
    emb = network.transformer_blocks[0].norm1.emb(now["timestep"].expand(2), now["class_labels"], torch.float32)
    for index, block in enumerate(network.transformer_blocks):
        own = block.norm1.emb(now["timestep"].expand(2), now["class_labels"], torch.float32)
        gates = block.norm1.linear(block.norm1.silu(own)).chunk(6, dim=1)
        tokens = tokens + gates[2][:, None] * carries[f"transformer_blocks.{index}.attn"]
        tokens = tokens + gates[5][:, None] * carries[f"transformer_blocks.{index}.mlp"]
    shift, scale = network.proj_out_1(torch.nn.functional.silu(emb)).chunk(2, dim=1)
    values = network.proj_out_2(network.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
    patches = values.reshape(2, 4, 4, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(2, 8, 8, 8)
    assert torch.allclose(output, patches[:, :4], atol=1e-5)


def test_what_a_dit_may_not_lose(dit):
    graph = dit[1]
    for name in ("transformer_blocks.1.attn", "transformer_blocks.0.modulation", "conditioning", "final"):
        with pytest.raises(PlanError, match="is protected and cannot be cut"):
            graph.with_cuts([name])


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (lambda: DiTTransformer2DModel(**{**DIT, "out_channels": 6}), "out 6 channels for 4; 4 or 8 are described"),
        (lambda: UNet2DModel(**{**UNET, "time_embedding_type": "fourier"}), "option time_embedding_type = 'fourier'"),
        (lambda: UNet2DModel(**{**UNET, "num_class_embeds": 3}), "UNet2DModel option num_class_embeds = 3"),
        (
            lambda: UNet2DModel(
                **{**UNET, "down_block_types": ("SkipDownBlock2D", "DownBlock2D"), "block_out_channels": (32, 32)}
            ),
            "block type 'SkipDownBlock2D' is not described",
        ),
    ],
)
def test_what_is_not_described_is_said(network, text):
    with pytest.raises(ModelError, match=text):
        unit_graph(network(), SIZES)


def published(name, part):
    config = json.loads((ARCHITECTURES / f"{name}.json").read_text())[part]
    with torch.device("meta"):
        network = getattr(diffusers, config["_class_name"]).from_config(config)
    return network, unit_graph(network, Sizes(config["sample_size"], config["sample_size"]))


def test_dit_xl_2_agrees_with_the_published_figures():
    """118.64 Gflops (multiply-accumulates) and 675 M parameters in the paper's table of models (arXiv 2212.09748).

    Its 675.13 M hold a table of places (not learned; here a buffer) and one embedding of timestep and class; in
    diffusers' class every block has one.
    """
    network, graph = published("dit-xl-2", "transformer")
    assert graph.macs() / 1e9 == pytest.approx(118.64, rel=5e-4)
    assert graph.parameters() == sum(p.numel() for p in network.parameters()) == 749_826_464
    embedding = graph.by_name["conditioning"].parameters
    places = network.pos_embed.pos_embed.numel()
    assert (graph.parameters() - 27 * embedding + places) / 1e6 == pytest.approx(675.13, abs=0.01)


@pytest.mark.parametrize(("name", "millions", "gmacs"), [("ddpm-cifar10", 35.7, 6.1), ("ldm-uncond", 274.1, None)])
def test_unconditional_networks_agree_with_the_published_figures(name, millions, gmacs):
    """35.7 M (arXiv 2006.11239) at 6.1 GMACs without the products of attention (2305.10924); 274 M (2112.10752)."""
    _, graph = published(name, "unet")
    assert graph.parameters() / 1e6 == pytest.approx(millions, abs=0.06)
    if gmacs is not None:
        assert sum(u.macs - u.attention_macs for u in graph.units) / 1e9 == pytest.approx(gmacs, abs=0.06)
