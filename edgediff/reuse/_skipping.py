"""Which calls to compute, with both prompts or the prompt alone: exact dynamic programs over a trajectory.

The state of a search is what the next stand-in is made of: the last two computed calls, each with the guided call
whose difference it used. Predicted losses add up: the error that each gap leaves, times how that error grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediff.reuse._trajectory import Trajectory

Floats = NDArray[np.float64]
DIFFERENCES = 2  # guidance differences that make the forecast of one
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Path:
    """Computed calls in order; `guided` are those that run both prompts. `loss` is the predicted mean squared error
    of the last latent."""

    calls: tuple[int, ...]
    guided: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class _State:
    """The newest computed call and its guided call, and the same of the one before (-1: there is none)."""

    call: int
    guided: int
    before: int
    before_guided: int

    def outputs(self, trajectory: Trajectory) -> list[Floats]:
        newest = [trajectory.output(self.call, _one(self.guided))]
        return newest if self.before < 0 else [*newest, trajectory.output(self.before, _one(self.before_guided))]


def _one(guided: int) -> tuple[int, ...]:
    return () if guided < 0 else (guided,)


@dataclass
class _Table:
    """Least loss by (guided calls, calls alone), and where each entry came from."""

    loss: Floats
    origin: NDArray[np.int32]


def find_paths(
    trajectory: Trajectory,
    *,
    most_guided: int,
    most_alone: int,
    longest: int,
    oldest: int,
    fit: bool = True,
    tick: Tick | None = None,
) -> dict[tuple[int, int], Path]:
    """For each number of guided calls and of calls alone, the path of least predicted loss.

    `longest` is the widest gap between computed calls (in calls), `oldest` the age at which a held guidance
    difference is given up. Exact: the loss of a gap depends on the state only.
    """
    count = trajectory.calls
    states: list[_State] = []
    index_of: dict[_State, int] = {}
    tables: list[_Table] = []
    by_call: list[list[int]] = [[] for _ in range(count)]

    def table_of(state: _State) -> _Table:
        if state not in index_of:
            index_of[state] = len(states)
            by_call[state.call].append(len(states))
            states.append(state)
            shape = (most_guided + 1, most_alone + 1)
            tables.append(_Table(np.full(shape, np.inf), np.full(shape, -1, np.int32)))
        return tables[index_of[state]]

    start = _State(0, 0 if trajectory.guidance[0] is not None else -1, -1, -1)
    table_of(start).loss[(1, 0) if start.guided == 0 else (0, 1)] = 0.0
    ends: list[tuple[int, float]] = []
    for call in range(count):
        for number in by_call[call]:
            state, table = states[number], tables[number]
            outputs = state.outputs(trajectory)
            for after in range(call + 1, min(count, call + longest) + 1):
                loss = trajectory.skip(call, outputs, after, fit=fit)[0] * float(trajectory.gain[after])
                if after == count:
                    ends.append((number, loss))
                    continue
                for guided, step in _modes(trajectory, state, after, oldest):
                    target = table_of(_State(after, guided, state.call, state.guided))
                    _relax(target, table.loss, step, loss, number)
        if tick is not None:
            tick(call + 1, count)
    return _collect(states, tables, ends)


def _modes(trajectory: Trajectory, state: _State, call: int, oldest: int) -> list[tuple[int, tuple[int, int]]]:
    """The guided call whose difference `call` may use, and what that counts as (guided, alone)."""
    if trajectory.guidance[call] is None:
        return [(-1, (0, 1))]
    modes = [(call, (1, 0))]
    if state.guided >= 0 and call - state.guided <= oldest:
        modes.append((state.guided, (0, 1)))
    return modes


def _relax(target: _Table, source: Floats, step: tuple[int, int], loss: float, number: int) -> None:
    moved = np.full_like(source, np.inf)
    moved[step[0] :, step[1] :] = source[: source.shape[0] - step[0], : source.shape[1] - step[1]] + loss
    better = moved < target.loss
    target.loss[better] = moved[better]
    target.origin[better] = number


def _collect(states: list[_State], tables: list[_Table], ends: list[tuple[int, float]]) -> dict[tuple[int, int], Path]:
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for number, loss in ends:
        for guided, alone in np.argwhere(np.isfinite(tables[number].loss)):
            key, total = (int(guided), int(alone)), float(tables[number].loss[guided, alone]) + loss
            if key not in best or total < best[key][0]:
                best[key] = (total, number)
    return {key: _trace(states, tables, key, number, loss) for key, (loss, number) in best.items()}


def _trace(states: list[_State], tables: list[_Table], key: tuple[int, int], number: int, loss: float) -> Path:
    calls: list[int] = []
    guided: list[int] = []
    left = key
    while number >= 0:
        state = states[number]
        calls.append(state.call)
        own = state.guided == state.call
        if own:
            guided.append(state.call)
        number = int(tables[number].origin[left])
        left = (left[0] - own, left[1] - (not own))
    return Path(tuple(reversed(calls)), tuple(reversed(guided)), loss)


def cheapest(paths: dict[tuple[int, int], Path], budget: float, price: tuple[float, float]) -> Path | None:
    """The path of least loss whose calls cost at most `budget`; `price` is that of a guided call and of one alone."""
    allowed = [p for (g, a), p in paths.items() if g * price[0] + a * price[1] <= budget + 1e-9]
    return min(allowed, key=lambda path: (path.loss, path.calls), default=None)


@dataclass(frozen=True)
class Gap:
    """What call `call` computes and leaves until the next computed call `after`: weights of the guidance differences
    (newest first; one, its own, where `guided`), and of the outputs in the stand-in."""

    call: int
    after: int
    guided: bool
    differences: tuple[float, ...]
    outputs: tuple[float, ...]
    loss: float


def walk(trajectory: Trajectory, calls: tuple[int, ...], guided: tuple[int, ...], depth: int) -> list[Gap]:
    """The gaps of a path with forecasts from up to `depth` outputs and `DIFFERENCES` guidance differences."""
    gaps: list[Gap] = []
    outputs: list[Floats] = []
    recent: tuple[int, ...] = ()
    for call, after in zip(calls, (*calls[1:], trajectory.calls), strict=True):
        own = call in guided
        used = (call,) if own else recent[:DIFFERENCES]
        outputs.insert(0, trajectory.output(call, used))
        error, weights = trajectory.skip(call, outputs[:depth], after)
        gaps.append(
            Gap(
                call,
                after,
                own,
                trajectory.guidance_weights(call, used),
                tuple(float(w) for w in weights),
                error * float(trajectory.gain[after]),
            )
        )
        recent = (call, *recent) if own else recent
    return gaps


def improve(trajectory: Trajectory, path: Path, depth: int, *, longest: int, rounds: int = 40) -> Path:
    """Moves one call, or swaps the modes of two, as long as that lowers the loss of `walk`, which knows longer
    histories than the state of `find_paths` can hold. The number of calls of each kind stays."""

    def loss_of(calls: tuple[int, ...], guided: tuple[int, ...]) -> float:
        return sum(gap.loss for gap in walk(trajectory, calls, guided, depth))

    best = Path(path.calls, path.guided, loss_of(path.calls, path.guided))
    for _ in range(rounds):
        found = min(
            (Path(calls, guided, loss_of(calls, guided)) for calls, guided in _neighbours(trajectory, best, longest)),
            key=lambda each: (each.loss, each.calls, each.guided),
            default=best,
        )
        if found.loss >= best.loss * (1.0 - 1e-9):
            break
        best = found
    return best


def _neighbours(trajectory: Trajectory, path: Path, longest: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    both = set(path.guided)
    for place, call in enumerate(path.calls[1:], 1):
        before, after = path.calls[place - 1], (*path.calls, trajectory.calls)[place + 1]
        for moved in range(before + 1, after):
            if moved == call or moved - before > longest or after - moved > longest:
                continue
            if trajectory.guidance[moved] is None and call in both:
                continue
            calls = tuple(sorted({*path.calls} - {call} | {moved}))
            found.append((calls, tuple(sorted(both - {call} | {moved} if call in both else both))))
    for one in path.guided[1:]:
        for other in path.calls[1:]:
            if other not in both and trajectory.guidance[other] is not None:
                found.append((path.calls, tuple(sorted(both - {one} | {other}))))
    return found


def minimax_path(weights: Floats, nodes: int) -> tuple[int, ...]:
    """The path 0 -> n over exactly `nodes` nodes before n whose edge weights, sorted from the largest, come first
    in lexicographic order (LeMiCa, arXiv 2511.00090). `weights[i, j]` `[n + 1, n + 1]` is the edge i -> j, inf for
    none."""
    end = len(weights) - 1
    best: list[dict[int, tuple[tuple[float, ...], tuple[int, ...]]]] = [{0: ((), (0,))}]
    for _ in range(nodes):
        layer: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for node, (edges, path) in best[-1].items():
            for after in range(node + 1, end + 1):
                weight = float(weights[node, after])
                if not np.isfinite(weight):
                    continue
                key = tuple(sorted((*edges, weight), reverse=True))
                if after not in layer or key < layer[after][0]:
                    layer[after] = (key, (*path, after))
        best.append(layer)
    found = best[nodes].get(end)
    return found[1][:-1] if found is not None else ()
