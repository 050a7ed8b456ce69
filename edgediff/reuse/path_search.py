"""Path search (LeMiCa, arXiv 2511.00090): which calls to compute when the output is held in between.

The edge i -> j is the error of holding the output of call i until call j; of all paths with the budget's number of
computed calls the one is taken whose edges, sorted from the largest, are least in lexicographic order: the worst
error first. The paper measures an edge on the final output by running every pair (i, j). Ours is the squared error
of the latent at j, in closed form from the reference's inner products, times its measured growth until the end: the
same to first order, for two trajectories' worth of calls. `criterion = "sum"` minimises the sum instead, which is
the best estimate of the squared error where errors are independent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from edgediff.config import Model
from edgediff.errors import MethodError
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.plugins import Progress
from edgediff.reuse import Setting
from edgediff.reuse._skipping import minimax_path
from edgediff.reuse._trajectory import Floats, Trajectory, read, record

if TYPE_CHECKING:
    from edgediff.sampling.rollout import Rollout


class Spec(Model):
    """`calls` that are computed, of all that the sampler makes; no gap is longer than `longest` calls."""

    calls: int = Field(default=10, ge=1)
    longest: int = Field(default=12, ge=1)
    criterion: Literal["minimax", "sum"] = "minimax"


def basis(spec: Spec) -> dict[str, Any]:
    """`measure` serves every budget."""
    return {}


def measure(spec: Spec, rollout: Rollout, setting: Setting, progress: Progress | None = None) -> dict[str, Any]:
    """The reference's inner products and how errors grow."""
    return record(rollout, setting, "path_search", progress)


def propose(spec: Spec, setting: Setting) -> Schedule:
    """Full calls on the path, the output held elsewhere. Raises MethodError when no path of so many calls exists."""
    if spec.calls > setting.calls:
        raise MethodError(f"calls = {spec.calls}: the sampler makes {setting.calls}", code="budget")
    weights = edge_weights(read(setting), spec.longest)
    search = shortest_path if spec.criterion == "sum" else minimax_path
    path = search(weights, spec.calls)
    if not path:
        least = -(-setting.calls // spec.longest)
        raise MethodError(
            f"calls = {spec.calls} is too few: gaps are at most {spec.longest} calls long, so {least} are needed",
            code="budget",
        )
    return Schedule(rows={"full": Row()}, calls=tuple("full" if c in path else HOLD for c in range(setting.calls)))


def edge_weights(trajectory: Trajectory, longest: int) -> Floats:
    """`[n + 1, n + 1]` squared errors of the last latent; inf where there is no edge."""
    count = trajectory.calls
    weights = np.full((count + 1, count + 1), np.inf)
    for call in range(count):
        output = trajectory.output(call, (call,))
        for after in range(call + 1, min(count, call + longest) + 1):
            error = trajectory.skip(call, [output], after, fit=False)[0]
            weights[call, after] = error * trajectory.gain[after]
    return weights


def shortest_path(weights: Floats, nodes: int) -> tuple[int, ...]:
    """The path over `nodes` nodes with the least summed weight, by dynamic programming; () when there is none."""
    count = len(weights)
    cost = np.full((nodes + 1, count), np.inf)
    origin = np.zeros((nodes + 1, count), np.int64)
    cost[0, 0] = 0.0
    for step in range(1, nodes + 1):
        total = cost[step - 1][:, None] + weights
        origin[step], cost[step] = total.argmin(axis=0), total.min(axis=0)
    if not np.isfinite(cost[nodes, -1]):
        return ()
    path, node = [], count - 1
    for step in range(nodes, 0, -1):
        node = int(origin[step, node])
        path.append(node)
    return tuple(reversed(path))
