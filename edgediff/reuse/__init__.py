"""Methods that say which features are computed at which step. One file, one method (`ReuseMethod`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.graph.units import Role, UnitGraph
from edgediff.plugins import Progress, load_plugin, plugin_names
from edgediff.runtime.steps import StepTable

if TYPE_CHECKING:
    from edgediff.sampling.rollout import Rollout


BRANCHES: tuple[Role, ...] = ("self-attention", "cross-attention", "feed-forward")


@dataclass(frozen=True)
class Setting:
    """What a method plans for: the (cut) network's units, the sampler's table, the guidance scale that the recipe
    asks for at each network call (None: the prompt alone), how many graphs a bundle may have, and what the method
    measured."""

    graph: UnitGraph
    table: StepTable
    guidance: tuple[float | None, ...]
    max_graphs: int = 3
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Network calls of one picture."""
        return len(self.table.rows)

    def need(self, *roles: Role, method: str) -> None:
        """Raises MethodError unless the network has units of one of the roles that the method works on."""
        need_role(self.graph, *roles, method=method)

    def branches(self, *roles: Role) -> tuple[str, ...]:
        """The carries by which attentions and feed-forwards of these roles are reused before they are added to the
        stream: the value of a unit that is a branch alone, else the change that it made (`<unit>+`)."""
        return tuple(f"{unit.name}+" if unit.stream else unit.name for unit in self.graph.of_role(*roles))


def need_role(graph: UnitGraph, *roles: Role, method: str) -> None:
    """Raises MethodError for a network without units of one of these roles, saying which families have some."""
    if graph.of_role(*roles):
        return
    have = [name for name in plugin_names("networks") if {*roles} & {*load_plugin("networks", name).ROLES.values()}]
    raise MethodError(
        f"{method} works on units of role {' or '.join(roles)}, and this {graph.family} network has none; network "
        f"families that can have some: {', '.join(have) or 'none'}",
        code="role",
    )


def reuse_row(carries: Iterable[str]) -> Row:
    """A row that takes these carries over: values are held, changes (`<unit>+`) are added."""
    names = tuple(carries)
    return Row(
        hold=tuple(name for name in names if not name.endswith("+")),
        delta=tuple(name.removesuffix("+") for name in names if name.endswith("+")),
    )


class ReuseMethod(Protocol):
    """A file in this folder, or an entry point of `edgediff.reuse`. `Spec` is its table in a recipe."""

    NAME: str
    Spec: type[Model]
    measure: Callable[[Any, Rollout, Setting, Progress | None], dict[str, Any]] | None = None
    """`measure(spec, rollout, setting, progress)` of a calibrated method: what it finds on the calibration prompts, as
    plain data that JSON can hold; kept in the cache and given to `propose` as `setting.measured`."""
    refine: Callable[[Any, Rollout, Setting, Schedule, Progress | None], Schedule] | None = None
    """`refine(spec, rollout, setting, schedule, progress)`: the schedule after a look at how it does there."""

    @abstractmethod
    def propose(self, spec: Any, setting: Setting) -> Schedule:
        """What is computed at which call. Raises MethodError."""

    def basis(self, spec: Any) -> dict[str, Any]:
        """What of the spec `measure` depends on: all of it."""
        found: dict[str, Any] = spec.model_dump(mode="json")
        return found


DOOR = ReuseMethod
