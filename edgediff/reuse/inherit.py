"""Feature inheritance (A-SDM, arXiv 2406.00210): blocks, layers or units take over what they last gave. For U-Nets
and DiTs.

y_G(t) = y_G(t_key) for t outside the key calls K, with granularity G; or, for units in a residual stream,
y = x + (y_G - x) of t_key. Only the paper's abstract was read: its definitions of the three levels and of the
sampling modes are ours. A block is a down, mid or up block (or a DiT block); a layer is a resnet with the transformer
behind it (DiT: attention or feed-forward with its addition); a unit is a resnet, an attention or a feed-forward. Modes
of K are those of `_keys.spread_keys`.

Without `names` everything at that level inherits but the last block or layer (without which this would be output hold);
at unit level every attention and feed-forward does, and the resnets run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import Row, Schedule
from edgediff.graph.units import UnitGraph
from edgediff.reuse import BRANCHES, Setting
from edgediff.reuse._keys import Mode, spread_keys


class Spec(Model):
    """`share` of the calls is computed in full. `form` "change" adds the last change instead of holding the output,
    at unit level."""

    level: Literal["block", "layer", "unit"] = "block"
    names: tuple[str, ...] = ()
    share: float = Field(default=0.34, gt=0, le=1)
    mode: Mode = "uniform"
    power: float = Field(default=1.4, gt=0)
    prefix: int = Field(default=5, ge=1)
    form: Literal["output", "change"] = "output"


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Full at the keys, `inherit` elsewhere. Raises MethodError for unknown names, names of another level, and a
    change of what has no residual stream."""
    graph, calls = setting.graph, setting.calls
    names = _checked(graph, spec) if spec.names else _inheritable(graph, spec.level)
    if not names:
        raise MethodError(f"inherit finds nothing at level '{spec.level}' in a {graph.family} network", code="role")
    if spec.form == "change":
        _check_change(graph, spec, names)
    row = Row(hold=tuple(names)) if spec.form == "output" else Row(delta=tuple(names))
    keys = spread_keys(spec.mode, calls, max(1, round(spec.share * calls)), spec.power, spec.prefix)
    rows = {"full": Row(), "inherit": row}
    order = tuple("full" if call in keys else "inherit" for call in range(calls))
    return Schedule(rows={name: rows[name] for name in rows if name in order}, calls=order)


def _level_names(graph: UnitGraph, level: str) -> list[str]:
    if level == "unit":
        return [unit.name for unit in graph.units]
    return list(dict.fromkeys(n for u in graph.units if (n := u.block if level == "block" else u.layer)))


def _inheritable(graph: UnitGraph, level: str) -> list[str]:
    if level == "unit":
        return [unit.name for unit in graph.of_role(*BRANCHES)]
    known = set(_level_names(graph, level))
    units = [unit for unit in graph.units if unit.cutting != "protected"]
    found = dict.fromkeys(n for u in units if (n := u.block if level == "block" else u.layer) in known)
    return list(found)[:-1]


def _checked(graph: UnitGraph, spec: Spec) -> Sequence[str]:
    known = _level_names(graph, spec.level)
    for name in spec.names:
        if name not in known:
            graph.select(name)  # a name that does not exist at all has its own error
            raise MethodError(f"'{name}' is no {spec.level} (those are {', '.join(known[:6])}, ...)", code="level")
    return spec.names


def _check_change(graph: UnitGraph, spec: Spec, names: Sequence[str]) -> None:
    if spec.level != "unit":
        raise MethodError('form = "change" is for units: a block\'s change crosses resolutions', code="form")
    for name in names:
        if graph.by_name[name].cutting == "protected":
            raise MethodError(f"unit '{name}' has no residual stream to add a change to", code="form")
