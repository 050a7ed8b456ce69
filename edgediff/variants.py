"""The only code that changes a network: a copy is cut, and split into graphs that share its weights.

Reuse is wiring: a cached feature is an explicit output of one graph and an explicit input of another.
No `forward` is replaced and no state hides in a module.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgediff.config import dump_json
from edgediff.documents.plan import Plan
from edgediff.errors import ModelError, PlanError, unknown
from edgediff.graph.schedule import OWN, UNTOUCHED, Wiring, carry_name, wire_schedule
from edgediff.graph.units import UnitGraph
from edgediff.networks import Family, Sizes, evaluate, families, family_of, find_class, unit_graph
from edgediff.networks._operators import copy_without_operators
from edgediff.pipeline.distilled import NETWORK, PHASES, WEIGHTS, DistilledFolder
from edgediff.runtime.manifest import BATCH, TensorSpec

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline

CACHE_IN, CACHE_OUT = "cache_in_", "cache_out_"


class DenoiserGraph(nn.Module):
    """One graph of the denoiser. Inputs: the network's own by name, then the carries read; outputs: the
    noise prediction `[batch, channels, height, width]`, then the carries written."""

    def __init__(self, network: nn.Module, graph: UnitGraph, wiring: Wiring) -> None:
        super().__init__()
        self.network = network
        self.graph = graph
        self.wiring = wiring

    @property
    def input_names(self) -> tuple[str, ...]:
        return (*self.graph.inputs, *(CACHE_IN + carry_name(c) for c in self.wiring.reads))

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("noise_pred", *(CACHE_OUT + carry_name(c) for c in self.wiring.writes))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.graph.inputs)
        inputs = dict(zip(self.graph.inputs, tensors[:count], strict=True))
        carries = dict(zip(self.wiring.reads, tensors[count:], strict=True))
        value, written = evaluate(self.network, self.graph, self.wiring.live, inputs, carries, self.wiring.writes)
        return (value, *(written[carry] for carry in self.wiring.writes))


class TextEncoderGraph(nn.Module):
    """Token ids `[1, tokens]` -> embeddings `[1, tokens, width]`."""

    input_names, output_names = ("input_ids",), ("last_hidden_state",)

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.text_encoder(input_ids).last_hidden_state,)


class DecoderGraph(nn.Module):
    """Scaled latent `[1, channels, height, width]` -> image `[1, 3, height, width]` in [-1, 1]."""

    input_names, output_names = ("z",), ("image",)

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, z: Tensor) -> tuple[Tensor]:
        result: Tensor = self.vae.decode(z, return_dict=False)[0]
        return (result,)


@dataclass(frozen=True)
class Variant:
    """One graph ready to be lowered: its module, one example of each input (batch 1), typed inputs and
    outputs (a symbolic batch where the graph has one), the carries it wires, its cost, and which of the plan's
    networks it is of."""

    name: str
    component: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    carries_in: dict[str, str]
    carries_out: dict[str, str]
    macs: int = 0
    parameters: int = 0
    network: str = OWN


class GraphCall(Protocol):
    """One call of a graph on a calibration trajectory: its inputs by name, numpy."""

    @property
    def graph(self) -> str: ...
    @property
    def inputs(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Variants:
    """All graphs of a plan. The denoiser's share the network that their rows run: of `networks`, `own` is the cut
    copy (whose units are `graph`), which until it is distilled shares its tensors with the `untouched` one.
    `calibration` makes pictures of calibration prompts and gives calls of every graph, for backends that need the
    range of activations."""

    plan: Plan
    networks: dict[str, tuple[nn.Module, UnitGraph]]
    graphs: dict[str, Variant]
    calibration: Callable[[], Sequence[GraphCall]] | None = None

    @property
    def network(self) -> nn.Module:
        return self.networks[OWN][0]

    @property
    def graph(self) -> UnitGraph:
        return self.networks[OWN][1]

    def denoisers(self) -> dict[str, Variant]:
        return {name: self.graphs[name] for name in self.plan.graphs}


def build_variants(pipeline: Pipeline, plan: Plan) -> Variants:
    """Cuts a copy of the denoiser and makes every graph of the plan. Raises PlanError when the plan
    belongs to other weights or contradicts itself."""
    if plan.model.weights != pipeline.weights:
        raise PlanError(
            f"was made for weights {plan.model.weights[:12]}, but '{pipeline.id}' has {pipeline.weights[:12]}; "
            "plan again for this model",
            where="plan.json",
            code="other_model",
        )
    plan.check(pipeline.graph)
    own = _planned_network(pipeline, plan)
    networks = {OWN: own, UNTOUCHED: (pipeline.denoiser, pipeline.graph), **_phase_networks(pipeline, *own)}
    wirings = {
        row: wiring for one in plan.programs().values() for row, wiring in wire_schedule(one.schedule, own[1]).items()
    }
    graphs = {
        name: _denoiser_variant(pipeline, *networks[wirings[spec.row].network], name, wirings[spec.row])
        for name, spec in plan.graphs.items()
    }
    networks = {name: found for name, found in networks.items() if name == OWN or name in _run_by(graphs.values())}
    if pipeline.text_encoder is not None:
        ids = torch.zeros(1, pipeline.tokens, dtype=torch.int64)
        graphs["text_encoder"] = _plain_variant("text_encoder", TextEncoderGraph(pipeline.text_encoder), ids)
    if pipeline.vae is not None:
        latent = torch.zeros(1, *pipeline.latent)
        graphs["vae_decoder"] = _plain_variant("vae_decoder", DecoderGraph(pipeline.vae), latent)
    return Variants(plan, networks, graphs)


def _phase_networks(pipeline: Pipeline, network: nn.Module, graph: UnitGraph) -> dict[str, tuple[nn.Module, UnitGraph]]:
    if pipeline.distilled is None:
        return {}
    return {name: (one, graph) for name, one in load_phases(pipeline.distilled, network).items()}


def load_phases(folder: DistilledFolder, network: nn.Module) -> dict[str, nn.Module]:
    """`phase1` and so on: copies of the distilled network that share all its tensors but those of their phase. Raises
    ModelError for tensors that are missing or do not fit."""
    from safetensors.torch import load_file

    found: dict[str, nn.Module] = {}
    phases = folder.record.phases
    if phases is None:
        return found
    tensors = load_file(folder.path / PHASES)
    for phase in range(1, phases.count):
        shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
        one: nn.Module = copy.deepcopy(network, memo=dict(shared))
        for name in phases.names:
            parent, _, last = name.rpartition(".")
            value, own = tensors.get(f"phase{phase}/{name}"), network.get_parameter(name)
            if value is None or value.shape != own.shape:
                message = f"has no '{phase}/{name}' of shape {tuple(own.shape)}; distil again"
                raise ModelError(message, where=str(folder.path / PHASES), code="missing_part")
            one.get_submodule(parent)._parameters[last] = nn.Parameter(value.float(), requires_grad=False)
        found[f"phase{phase}"] = one
    return found


def _run_by(variants: Iterable[Variant]) -> set[str]:
    return {variant.network for variant in variants}


def _planned_network(pipeline: Pipeline, plan: Plan) -> tuple[nn.Module, UnitGraph]:
    cuts = [cut.unit for cut in plan.cuts]
    found = pipeline.distilled
    ours = found.record.fingerprint if found else None
    if plan.model.distilled != ours:
        raise PlanError(
            f"was made for {_denoiser_words(plan.model.distilled)}, but '{pipeline.id}' comes with "
            f"{_denoiser_words(ours)}; plan again for this model",
            where="plan.json",
            code="other_model",
        )
    if found is None:
        return cut_network(pipeline.denoiser, pipeline.graph, cuts)
    network, graph = load_network(found.path / NETWORK, pipeline.graph)
    if graph.cuts != pipeline.graph.expand(cuts):
        raise PlanError("does not cut what the distilled network lacks", where="plan.json", code="other_cuts")
    return network, graph


def _denoiser_words(distilled: str | None) -> str:
    return f"the distilled denoiser {distilled[:12]}" if distilled else "the model's own denoiser"


def cut_network(model: nn.Module, graph: UnitGraph, units: Iterable[str]) -> tuple[nn.Module, UnitGraph]:
    """A copy without the cut units, and its graph. The copy shares the tensors of `model`; modules that
    nothing reads any more are gone, not masked, so its parameters are exactly those of the cut graph.

    Raises PlanError for unknown or protected units and for cuts that leave a wrong shape.
    """
    cut = graph.with_cuts(units)
    network = copy_without_operators(model, cut)
    family = family_of(model)
    live = set(cut.live().run)
    kept = {p for name in live for p in _kept_parameters(family, network, cut, name)}
    _drop_modules(network, kept)
    expected = cut.parameters()
    found = sum(p.numel() for p in network.parameters())
    if found != expected:
        raise PlanError(f"cutting left {found} parameters where the unit graph counts {expected}")
    return network, cut


def kept_modules(model: nn.Module, graph: UnitGraph, units: Iterable[str]) -> frozenset[str]:
    """Names of the modules that are left when `units` are cut. Raises what `cut_network` raises."""
    return frozenset(name for name, _ in cut_network(model, graph, units)[0].named_modules())


def save_network(network: nn.Module, graph: UnitGraph, folder: Path) -> None:
    """Config, cuts and safetensors: all that `load_network` needs, nothing pickled. The folder appears whole, in
    place of one that was there."""
    from safetensors.torch import save_file

    whole, folder = folder, folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config: Any = network.config
    plain = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
    plain["_class_name"] = type(network).__name__
    (folder / "config.json").write_text(dump_json(plain), encoding="utf-8")
    (folder / "cuts.json").write_text(dump_json({"cuts": sorted(graph.cuts)}), encoding="utf-8")
    tensors = {**_hidden_buffers(network), **network.state_dict()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    shutil.rmtree(whole, ignore_errors=True)
    folder.rename(whole)


def load_network(folder: Path, graph: UnitGraph | None = None) -> tuple[nn.Module, UnitGraph]:
    """Reads what `save_network` wrote, in fp32. Raises ModelError for a missing part, a class that no family
    describes, and tensors that do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cuts = json.loads((folder / "cuts.json").read_text(encoding="utf-8"))["cuts"]
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        class_name = str(config["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"is not a saved network: {error}", where=str(folder)) from error
    known = [name for family in families() for name in family.CLASSES]
    if class_name not in known:
        raise ModelError(f"config.json has an {unknown('network class', class_name, known)}", where=str(folder))
    family = find_class(class_name)[0]
    with torch.device("meta"):
        whole = family.make(class_name, config)
    graph = graph or unit_graph(whole, Sizes.of(family.latent_shape(config)))
    network, cut = cut_network(whole, graph, cuts)
    for name in _hidden_buffers(network):
        parent, _, last = name.rpartition(".")
        if name in weights:
            network.get_submodule(parent)._buffers[last] = weights.pop(name)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"weights do not fit the config and cuts: {error}", where=str(folder)) from error
    return network.eval().requires_grad_(False), cut


def _hidden_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict leaves out, such as a DiT's table of places: a network built without memory lacks
    their values."""
    known = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name not in known}


def _kept_parameters(family: Family, network: nn.Module, cut: UnitGraph, name: str) -> list[nn.Parameter]:
    unit = cut.by_name[name]
    parameters = family.stream_parameters if name in cut.cuts else family.unit_parameters
    return list(parameters(network, unit))


def _drop_modules(network: nn.Module, kept: set[nn.Parameter]) -> None:
    """Removes every module none of whose parameters is kept (and that has any)."""
    for parent in list(network.modules()):
        for child_name, child in list(parent.named_children()):
            parameters = list(child.parameters())
            if parameters and not any(p in kept for p in parameters):
                _remove_child(parent, child_name)


def _remove_child(parent: nn.Module, name: str) -> None:
    """`None` in place of the module, also inside a ModuleList, so that its neighbours keep their names."""
    parent._modules[name] = None


def _denoiser_variant(pipeline: Pipeline, network: nn.Module, graph: UnitGraph, name: str, wiring: Wiring) -> Variant:
    module = DenoiserGraph(network, graph, wiring).eval()
    family = family_of(network)
    own = list(family.example_inputs(network, pipeline.sizes, batch=1).values())
    shapes = [graph.by_name[carry.rstrip("+")].shape for carry in (*wiring.reads, *wiring.writes)]
    reads, writes = shapes[: len(wiring.reads)], shapes[len(wiring.reads) :]
    generator = torch.Generator().manual_seed(2)
    example = (*own, *(torch.randn(1, *shape, generator=generator) for shape in reads))
    inputs = [_spec(n, t, batch=n != "timestep") for n, t in zip(module.input_names, example, strict=True)]
    outputs = [
        TensorSpec(name=n, dtype="float32", shape=(BATCH, *shape))
        for n, shape in zip(module.output_names, [graph.by_name[graph.output].shape, *writes], strict=True)
    ]
    return Variant(
        name,
        pipeline.denoiser_name,
        module,
        example,
        tuple(inputs),
        tuple(outputs),
        {carry_name(c): CACHE_IN + carry_name(c) for c in wiring.reads},
        {carry_name(c): CACHE_OUT + carry_name(c) for c in wiring.writes},
        graph.macs(wiring.live),
        graph.parameters(wiring.live),
        wiring.network,
    )


def _plain_variant(name: str, module: Any, example: Tensor) -> Variant:
    """A graph without a batch. Its outputs are traced, not computed: decoding one picture of Stable Diffusion
    takes 34 s of CPU time and 1.1 GB."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        outputs = module.eval()(mode.from_tensor(example))
    return Variant(
        name,
        name,
        module,
        (example,),
        tuple(_spec(n, t, batch=False) for n, t in zip(module.input_names, (example,), strict=True)),
        tuple(_spec(n, t, batch=False) for n, t in zip(module.output_names, outputs, strict=True)),
        {},
        {},
        parameters=_decoder_parameters(module),
    )


def _decoder_parameters(module: nn.Module) -> int:
    """Parameters that the graph reads: a VAE's encoder is not part of its decoder."""
    return sum(p.numel() for n, p in module.named_parameters() if not n.startswith(("vae.encoder", "vae.quant_conv")))


def _spec(name: str, tensor: Tensor, *, batch: bool) -> TensorSpec:
    dtype = {torch.float32: "float32", torch.int64: "int64", torch.float16: "float16"}[tensor.dtype]
    shape = (BATCH, *tensor.shape[1:]) if batch else tuple(tensor.shape)
    return TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]
