"""The unit graph: a denoiser as a flat, ordered dataflow of units; and what a step must compute.

Every method reads this one description. Pruners propose cuts of units, reuse methods say which units
are held at which step, and one liveness analysis turns either into the graph that has to be exported.
No torch here: `networks/` makes the graphs and runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from edgediff.errors import PlanError, unknown

Action = Literal["run", "hold", "delta"]
Cutting = Literal["identity", "shortcut", "protected"]
OperatorKind = Literal["conv", "linear", "norm", "activation"]
Role = Literal[
    "embedding",  # of the time, the class, the size
    "modulation",  # scales, shifts and gates that a block makes of the embedding
    "entry",  # the sample into the stream: first convolution, patches
    "exit",  # the stream into the output
    "projection",  # the stream into a transformer's tokens, and back
    "stream",  # the addition of a branch to the stream, where branches are units of their own
    "resnet",
    "sampler",  # another resolution
    "self-attention",
    "cross-attention",
    "feed-forward",
]


@dataclass(frozen=True)
class Operator:
    """A convolution, linear map, norm or activation inside a unit that may be cut by itself. `left_parameters`
    and `left_macs` are those of what then stands in its place (nothing, for an identity)."""

    name: str
    kind: OperatorKind
    parameters: int
    macs: int
    left_parameters: int = 0
    left_macs: int = 0


@dataclass(frozen=True)
class Unit:
    """One step of the dataflow.

    `reads` are names of earlier units or of network inputs. `stream` are those reads that pass through
    when the unit is cut (identity, or the resnet's 1x1 shortcut) or when only its change is added
    (action `delta`). `shape` is the output for one sample, without the batch dimension; `macs` are
    multiply-accumulates for one sample, convolutions and matrix products (attention included).
    `attention_macs` is the part of `macs` in the two products of scaled dot-product attention, which some
    published counts leave out.
    `stream_parameters` and `stream_macs` are what is left of a cut unit (a resnet's shortcut), else 0.
    `block` and `layer` name the coarser levels it belongs to, `operators` the finer one.
    `kind` is its family's word for it, by which the family runs it. `role` is what it is to methods and the estimator;
    an attention or feed-forward without a `stream` is a branch alone, added elsewhere. `networks.unit_graph` sets it.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    stream: tuple[str, ...] = ()
    cutting: Cutting = "protected"
    block: str = ""
    layer: str = ""
    parameters: int = 0
    macs: int = 0
    attention_macs: int = 0
    stream_parameters: int = 0
    stream_macs: int = 0
    shape: tuple[int, ...] = ()
    operators: tuple[Operator, ...] = ()
    role: Role | Literal[""] = ""

    @property
    def output_values(self) -> int:
        """Numbers in the output for one sample; times the dtype's size this is what a cache costs."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Live:
    """What one step computes: `run` in order, and the values it reads from earlier steps.

    `reads` are carry names: the unit's name for a held output, `<unit>+` for a held change.
    """

    run: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class UnitGraph:
    """Units in execution order, the network's inputs, the unit whose value is the output, and the cuts: names
    of units and of operators. Who runs a graph with operators cut gives it a network without them."""

    family: str
    units: tuple[Unit, ...]
    inputs: tuple[str, ...]
    output: str
    cuts: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def by_name(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """All operators that may be cut, by name. No operator has the name of a unit."""
        return {
            operator.name: operator
            for unit in self.units
            for operator in unit.operators
            if operator.name not in self.by_name
        }

    def of_role(self, *roles: Role) -> tuple[Unit, ...]:
        """The units with one of these roles, in order."""
        return tuple(unit for unit in self.units if unit.role in roles)

    def select(self, name: str) -> tuple[Unit, ...]:
        """The units called `name`, or inside the block, layer or module `name`. Raises PlanError for none."""
        found = tuple(
            u
            for u in self.units
            if u.name == name or u.block == name or u.layer == name or u.name.startswith(f"{name}.")
        )
        if not found:
            raise PlanError(unknown("unit", name, [*self.names(), *self.operators]), code="unknown_unit")
        return found

    def expand(self, names: Iterable[str]) -> frozenset[str]:
        """Unit names for a mixture of units, layers and blocks; names of operators stay what they are."""
        wanted = set(names)
        operators = wanted & self.operators.keys()
        return frozenset(operators | {unit.name for name in wanted - operators for unit in self.select(name)})

    def names(self) -> list[str]:
        """Every name that `select` knows, coarse levels included."""
        found: dict[str, None] = {}
        for unit in self.units:
            parts = unit.name.split(".")
            prefixes = (".".join(parts[:n]) for n in range(2, len(parts) + 1))
            for name in (unit.block, unit.layer, *prefixes, unit.name):
                if name:
                    found[name] = None
        return list(found)

    def with_cuts(self, names: Iterable[str]) -> UnitGraph:
        """The graph after cutting. A protected unit may go only where nothing reads it any more once the others are
        cut (what a DiT block's residual additions read). Raises PlanError for unknown names and protected units."""
        cuts = self.expand(names)
        protected = {name for name in cuts & self.by_name.keys() if self.by_name[name].cutting == "protected"}
        for name in replace(self, cuts=self.cuts | (cuts - protected)).live().run:
            if name in protected:
                raise PlanError(
                    f"unit '{name}' ({self.by_name[name].kind}) is protected and cannot be cut: "
                    "samplers, the first and last convolution and the time embedding stay",
                    code="protected_unit",
                )
        graph = replace(self, cuts=self.cuts | cuts)
        graph._check_shapes()
        return graph

    def without_cuts(self) -> UnitGraph:
        """The graph of the untouched network."""
        return replace(self, cuts=frozenset())

    def _check_shapes(self) -> None:
        for name in self.live().run:
            unit = self.by_name[name]
            if name not in self.cuts or unit.cutting != "identity" or unit.stream[0] not in self.by_name:
                continue
            if unit.shape != self.by_name[unit.stream[0]].shape:
                parent = name.rpartition(".")[0]
                raise PlanError(
                    f"cutting '{name}' alone leaves shape {self.by_name[unit.stream[0]].shape} where {unit.shape} "
                    f"is needed; cut '{parent}' as a whole",
                    code="shape",
                )

    def live(self, actions: Mapping[str, Action] | None = None) -> Live:
        """Walks back from the output; the producers of a held unit are not visited.

        A cut unit passes its stream on. With no actions this is the whole (cut) network without the
        units that nothing reads any more.
        """
        actions = actions or {}
        needed: set[str] = set()
        reads: set[str] = set()
        run: list[str] = []
        seen = {self.output}
        for unit in reversed(self.units):
            if unit.name not in seen:
                continue
            action: Action = "run" if unit.name in self.cuts else actions.get(unit.name, "run")
            if action == "hold":
                reads.add(unit.name)
                continue
            if action == "delta":
                reads.add(f"{unit.name}+")
            needed.add(unit.name)
            run.append(unit.name)
            seen.update(unit.stream if unit.name in self.cuts or action == "delta" else unit.reads)
        order = {unit.name: index for index, unit in enumerate(self.units)}
        return Live(tuple(reversed(run)), tuple(sorted(reads, key=lambda c: (order[c.rstrip("+")], c))))

    def macs(self, live: Live | None = None) -> int:
        """Multiply-accumulates of one sample through what is live (default: the whole cut network)."""
        live = live or self.live()
        whole = set(self.computed(live))
        return sum(
            u.macs - sum(o.macs - o.left_macs for o in self.removed(u)) if u.name in whole else u.stream_macs
            for u in map(self.by_name.__getitem__, live.run)
        )

    def parameters(self, live: Live | None = None) -> int:
        """Parameters of what is live (default: the whole cut network)."""
        live = live or self.live()
        whole = set(self.computed(live))
        return sum(
            u.parameters - sum(o.parameters - o.left_parameters for o in self.removed(u))
            if u.name in whole
            else u.stream_parameters
            for u in map(self.by_name.__getitem__, live.run)
        )

    def removed(self, unit: Unit) -> tuple[Operator, ...]:
        """The unit's operators that are cut by themselves."""
        return tuple(o for o in unit.operators if o.name in self.cuts and o.name in self.operators)

    def computed(self, live: Live) -> tuple[str, ...]:
        """Names of the live units that run in full: neither cut nor replaced by a cached change."""
        deltas = {name.rstrip("+") for name in live.reads if name.endswith("+")}
        return tuple(name for name in live.run if name not in self.cuts and name not in deltas)
