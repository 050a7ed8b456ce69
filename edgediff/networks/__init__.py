"""Denoiser families. Each file describes one family (`Family`) as a unit graph and runs single units of it;
`evaluate` here runs any live set of any family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgediff.errors import ModelError
from edgediff.graph.units import Live, Role, Unit, UnitGraph
from edgediff.plugins import load_plugin, plugin_names
from edgediff.runtime.manifest import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Input sizes that costs are counted for: latent height and width (of sound 1 and its samples), text tokens."""

    height: int
    width: int
    tokens: int = 77

    @classmethod
    def of(cls, latent: tuple[int, ...], tokens: int = 77) -> Sizes:
        """The sizes of a latent's shape."""
        *height, width = latent[1:]
        return cls(height[0] if height else 1, width, tokens)


@dataclass(frozen=True)
class NetworkClass:
    """What a model of one class of denoisers is. `part` is the denoiser's folder in it; `needs` and `may` are the
    parts that it must and can have beside it. `conditions`: where each input beside sample and timestep comes from, the
    text encoder's hidden states or the number of a class, of which the configuration's key `classes` says how many
    there are. `saved_as` are other names under which models of this class were published."""

    kind: Kind
    part: str = "unet"
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ("vae", "vqvae")
    conditions: Mapping[str, Literal["text", "class"]] = field(default_factory=dict)
    classes: str = ""
    saved_as: tuple[str, ...] = ()


class Family(Protocol):
    """A file in this folder, or an entry point of `edgediff.networks`.

    `CLASSES` are the classes that the family handles, by name. `ROLES` says what a unit of each kind is to a method:
    methods and the estimator ask for roles, `run_unit` for kinds. A network's `config` is a mapping with `in_channels`
    and `sample_size` (or `latent_shape` says what takes their place).
    """

    NAME: str
    CLASSES: Mapping[str, NetworkClass]
    ROLES: Mapping[str, Role]

    @abstractmethod
    def describe_units(self, model: nn.Module) -> tuple[tuple[Unit, ...], tuple[str, ...], str]:
        """Units in execution order, input names, and the unit whose value is the output. Raises ModelError for options
        that are not described."""

    @abstractmethod
    def run_unit(self, model: nn.Module, unit: Unit, reads: Sequence[Tensor]) -> Tensor:
        """The unit's output `[batch, *unit.shape]` from the values of `unit.reads`."""

    @abstractmethod
    def example_inputs(self, model: nn.Module, sizes: Sizes, batch: int = 1) -> dict[str, Tensor]:
        """Seeded inputs of the right shapes by name, on the model's device and in its dtype."""

    def forward(self, model: nn.Module, sample: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's own forward, which a run of all units equals: as diffusers' networks are called. `timestep` is
        `[1]`. Of learned variances the noise alone."""
        times = timestep.expand(len(sample))
        result: Tensor = model(sample, timestep=times, **conditions, return_dict=False)[0]
        return result[:, : sample.shape[1]]

    def pass_unit(self, model: nn.Module, unit: Unit, streams: Sequence[Tensor]) -> Tensor:
        """What is left of a cut unit: its input."""
        return streams[0]

    def unit_modules(self, unit: Unit) -> tuple[str, ...]:
        """Names of the modules that belong to the unit alone: the one of its name."""
        return (unit.name,)

    def unit_parameters(self, model: nn.Module, unit: Unit) -> list[nn.Parameter]:
        """All parameters that only this unit reads; over all units they are the network's, each once."""
        return module_parameters(model, self.unit_modules(unit))

    def stream_parameters(self, model: nn.Module, unit: Unit) -> list[nn.Parameter]:
        """The parameters that stay when the unit is cut: none."""
        return []

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Channels, height and width of what is sampled."""
        size = config["sample_size"]
        return (int(config["in_channels"]), *((size, size) if isinstance(size, int) else map(int, size)))

    def make(self, class_name: str, config: Mapping[str, Any]) -> nn.Module:
        """A network of this configuration with random weights, or, on the device `meta`, without: diffusers'."""
        network: nn.Module = _diffusers_class(class_name).from_config(dict(config))
        return network

    def load(self, class_name: str, folder: Path) -> nn.Module:
        """The network saved in `folder` (configuration and safetensors), in fp32 on the CPU: as diffusers saves it."""
        import torch

        network: nn.Module = _diffusers_class(class_name).from_pretrained(
            str(folder), use_safetensors=True, torch_dtype=torch.float32
        )
        return network


DOOR = Family


def _diffusers_class(name: str) -> Any:
    import diffusers

    try:
        return getattr(diffusers, name)
    except AttributeError as error:
        message = f"diffusers has no class '{name}'; its network family needs a `make` and a `load` of its own"
        raise ModelError(message, code="unknown_family") from error


def module_parameters(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """The parameters of modules by name; of one that this network does not have, or that a cut took away, none."""
    found: list[nn.Parameter] = []
    for name in names:
        try:
            found += model.get_submodule(name).parameters()
        except AttributeError:
            continue
    return found


def families() -> list[Family]:
    """Every network family, those of other packages included."""
    return [load_plugin("networks", name) for name in plugin_names("networks")]


def family_of(model: nn.Module) -> Family:
    """The family that handles the class of `model`. Raises ModelError naming all classes that are handled."""
    return find_class(type(model).__name__)[0]


@cache
def find_class(name: str) -> tuple[Family, str, NetworkClass]:
    """The family of a class of networks, the class's name today, and what models of it are. Kept, since every run of
    a network asks. Raises ModelError naming all classes that are handled."""
    handled: list[str] = []
    for family in families():
        for known, about in family.CLASSES.items():
            if name == known or name in about.saved_as:
                return family, known, about
        handled += family.CLASSES
    raise ModelError(
        f"no network family describes '{name}' (known: {', '.join(sorted(handled))}); "
        "add edgediff/networks/<family>.py, or install a package that has one",
        code="unknown_family",
    )


def part_classes() -> dict[str, tuple[str, ...]]:
    """The folders that a denoiser may lie in, and the names of the classes that may lie there."""
    found: dict[str, list[str]] = {}
    for family in families():
        for name, about in family.CLASSES.items():
            found.setdefault(about.part, []).extend((name, *about.saved_as))
    return {part: tuple(names) for part, names in found.items()}


def unit_graph(model: nn.Module, sizes: Sizes) -> UnitGraph:
    """The unit graph of an uncut denoiser with parameters, MACs and output shape of every unit.

    MACs are counted by tracing shapes through every unit (no arithmetic is done, no memory is used):
    convolutions and matrix products, those of attention included, for one sample.
    """
    family = family_of(model)
    units, inputs, output = family.describe_units(model)
    units = tuple(replace(unit, role=_role_of(family, unit)) for unit in units)
    graph = UnitGraph(family.NAME, units, inputs, output)
    return replace(graph, units=_count_costs(family, model, graph, sizes))


def _role_of(family: Family, unit: Unit) -> Role:
    if unit.kind not in family.ROLES:
        message = f"network family '{family.NAME}' gives unit '{unit.name}' the kind '{unit.kind}', for which its ROLES"
        raise ModelError(f"{message} have no role; those are for {', '.join(family.ROLES)}", code="role")
    return family.ROLES[unit.kind]


def evaluate(
    model: nn.Module,
    graph: UnitGraph,
    live: Live,
    inputs: Mapping[str, Tensor],
    carries: Mapping[str, Tensor] | None = None,
    writes: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs the live units of `graph`; returns the output and the carries named in `writes`.

    `inputs` are the network's inputs by name, `carries` the values of `live.reads`. With nothing held
    and nothing cut the output is that of the model's own forward, bit for bit.
    """
    family = family_of(model)
    carries = carries or {}
    values = {**inputs, **{name: carries[name] for name in live.reads if not name.endswith("+")}}
    deltas = {name[:-1] for name in live.reads if name.endswith("+")}
    last = _last_use(graph, live, deltas, writes)
    written: dict[str, Tensor] = {}
    for index, name in enumerate(live.run):
        unit = graph.by_name[name]
        passes = name in graph.cuts or name in deltas
        reads = [values[read] for read in (unit.stream if passes else unit.reads)]
        value = family.pass_unit(model, unit, reads) if passes else family.run_unit(model, unit, reads)
        if name in deltas:
            value = value + carries[f"{name}+"]
        values[name] = value
        if f"{name}+" in writes and not passes:
            streams = [values[read] for read in unit.stream]
            written[f"{name}+"] = value - family.pass_unit(model, unit, streams)
        for done in last.get(index, ()):
            values.pop(done, None)
    written.update({name: values[name] for name in writes if name not in written})
    return values[graph.output], written


def _last_use(graph: UnitGraph, live: Live, deltas: set[str], writes: Sequence[str]) -> dict[int, list[str]]:
    """Index into `live.run` -> values that nothing reads after it, so that memory is freed on the way."""
    last: dict[str, int] = {}
    for index, name in enumerate(live.run):
        unit = graph.by_name[name]
        changed = f"{name}+" in writes
        passes = name in graph.cuts or name in deltas
        for read in {*(unit.stream if passes else unit.reads), *(unit.stream if changed else ())}:
            last[read] = index
    kept = {graph.output, *writes}
    done: dict[int, list[str]] = {}
    for value, index in last.items():
        if value not in kept:
            done.setdefault(index, []).append(value)
    return done


def _count_costs(family: Family, model: nn.Module, graph: UnitGraph, sizes: Sizes) -> tuple[Unit, ...]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from edgediff.networks._operators import count_operators, describe_operators, watch_operators

    units: list[Unit] = []
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        values = family.example_inputs(model, sizes, batch=1)
        for unit in graph.units:
            reads = [values[read] for read in unit.reads]
            operators = describe_operators(family, model, unit)
            with watch_operators(model, operators) as shapes:
                value, macs, attention = _counted(family.run_unit, model, unit, reads)
            values[unit.name] = value
            spare = 0
            if unit.cutting == "shortcut":
                streams = [values[read] for read in unit.stream]
                spare = _counted(family.pass_unit, model, unit, streams)[1]
            units.append(
                replace(
                    unit,
                    parameters=sum(p.numel() for p in family.unit_parameters(model, unit)),
                    stream_parameters=sum(p.numel() for p in family.stream_parameters(model, unit)),
                    macs=macs,
                    attention_macs=attention,
                    stream_macs=spare,
                    shape=tuple(value.shape[1:]),
                    operators=count_operators(model, operators, shapes),
                )
            )
    return tuple(units)


def _counted(function: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, int, int]:
    """The function's value, its MACs, and those of the two products of its attention."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode
    from torch.utils.flop_counter import FlopCounterMode

    attention = 0

    class WatchAttention(TorchFunctionMode):
        def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal attention
            if called is F.scaled_dot_product_attention:
                query, key, value = args[:3]
                rows = query.numel() // query.shape[-1]
                attention += rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return called(*args, **(kwargs or {}))

    with WatchAttention(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return result, counter.get_total_flops() // 2, attention
