"""Gates: a table of 0 and 1 over network calls and blocks, its MACs, and the schedule that it is.

1 runs a block at a call, 0 lets what it last gave stand in. A block none of whose values is read at a call is off
whatever its gate says (dead-block propagation, DiP-GO arXiv 2410.16942). No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from edgediff.config import Model
from edgediff.errors import MethodError, did_you_mean
from edgediff.graph.schedule import HOLD, Row, Schedule
from edgediff.graph.units import UnitGraph

Pattern = tuple[int, ...]
Table = tuple[Pattern, ...]


class GateTable(Model):
    """A table as a file. `blocks` are names of the unit graph (blocks, layers or units), `gates` has one row per
    network call; `source` says where it comes from."""

    blocks: tuple[str, ...] = Field(min_length=1)
    gates: Table = Field(min_length=1)
    source: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> GateTable:
        for call, row in enumerate(self.gates):
            if len(row) != len(self.blocks) or not set(row) <= {0, 1}:
                raise ValueError(f"row {call} of 'gates' needs a 0 or 1 for each of the {len(self.blocks)} blocks")
        if not all(self.gates[0]):
            raise ValueError("row 0 of 'gates' must be all 1: nothing is cached yet")
        return self


class Gating:
    """The gated blocks of a (cut) network: what a pattern of gates computes, and its price.

    `blocks` None gates every block that holds something that may be cut; convolutions at the ends and embeddings
    have no gate, they run where something live reads them.
    """

    def __init__(self, graph: UnitGraph, blocks: Sequence[str] | None = None) -> None:
        self.graph = graph
        found = dict.fromkeys(u.block for u in graph.units if u.cutting != "protected" and u.block)
        self.blocks = tuple(blocks) if blocks is not None else tuple(found)
        if not self.blocks:
            raise MethodError(f"a network of family '{graph.family}' has no block to gate", code="role")
        self.units = tuple(frozenset(u.name for u in graph.select(self._known(block))) for block in self.blocks)
        self.full: Pattern = (1,) * len(self.blocks)
        self.off: Pattern = (0,) * len(self.blocks)
        self._patterns: dict[Pattern, Pattern] = {}
        self._macs: dict[Pattern, int] = {}

    def _known(self, block: str) -> str:
        names = self.graph.names()
        if block not in names:
            raise MethodError(f"the network has no block '{block}'{did_you_mean(block, names)}", code="unknown_unit")
        return block

    def row(self, pattern: Pattern) -> Row:
        """The row that holds what is off."""
        return Row(hold=tuple(block for block, gate in zip(self.blocks, pattern, strict=True) if not gate))

    def propagate(self, pattern: Pattern) -> Pattern:
        """The pattern with blocks off whose values nothing reads at that call."""
        if pattern not in self._patterns:
            live = set(self.graph.live(self.row(pattern).actions(self.graph)).run) - self.graph.cuts
            self._patterns[pattern] = tuple(
                int(bool(gate) and not units.isdisjoint(live)) for gate, units in zip(pattern, self.units, strict=True)
            )
        return self._patterns[pattern]

    def macs(self, pattern: Pattern) -> int:
        """Multiply-accumulates of one sample. All off costs nothing: the output is held, see `schedule_of`."""
        if pattern not in self._macs:
            live = self.graph.live(self.row(pattern).actions(self.graph))
            self._macs[pattern] = self.graph.macs(live) if any(pattern) else 0
        return self._macs[pattern]

    def kept(self, table: Table, passes: Sequence[int]) -> float:
        """The share of the full run's MACs; `passes` are 2 where a call is guided."""
        whole = self.macs(self.full) * sum(passes)
        return sum(self.macs(row) * n for row, n in zip(table, passes, strict=True)) / whole

    def weights(self) -> tuple[float, ...]:
        """gamma of DiP-GO: the share of a full call's MACs that is saved when a block, and all that dies with it, is
        off. For the nine blocks of SD-1.5 they sum to 2.47."""
        whole = self.macs(self.full)
        found = []
        for index in range(len(self.blocks)):
            alone = tuple(int(other != index) for other in range(len(self.blocks)))
            found.append(1.0 - self.macs(self.propagate(alone)) / whole)
        return tuple(found)

    def shares(self) -> tuple[float, ...]:
        """Every block's own share of the gated MACs."""
        macs = [sum(self.graph.by_name[name].macs for name in units) for units in self.units]
        return tuple(value / max(sum(macs), 1) for value in macs)

    def schedule_of(self, table: Table) -> Schedule:
        """One row per distinct pattern: `full`, then `part`, `part2`, ... in the order of their first call.

        All off is a held output. That is the same number where the last unit reads blocks alone (U-Nets); a DiT's
        last norm also reads the time, which a held output leaves at the last computed call's.
        """
        names: dict[Pattern, str] = {self.off: HOLD, self.full: "full"}
        for row in table:
            if row not in names:
                count = len(names) - 1
                names[row] = "part" if count == 1 else f"part{count}"
        calls = tuple(names[row] for row in table)
        rows = {name: self.row(row) for row, name in names.items() if name in calls and name != HOLD}
        return Schedule(rows=rows, calls=calls)


def gate_schedule(table: GateTable, graph: UnitGraph, calls: int) -> Schedule:
    """The schedule of a table. Raises MethodError for another number of calls, and for unknown blocks."""
    if len(table.gates) != calls:
        message = f"the gate table has {len(table.gates)} calls, the sampler makes {calls}: train for this step count"
        raise MethodError(message, code="step_count")
    gating = Gating(graph, table.blocks)
    return gating.schedule_of(tuple(gating.propagate(row) for row in table.gates))


def choose_gates(
    gating: Gating, scores: Sequence[Sequence[float]], passes: Sequence[int], budget: float, max_graphs: int
) -> Table:
    """The table of a budget, from keep scores in [0, 1] per call and block (DiP-GO, algorithm 1, and a repair).

    Bisection on a threshold c: gates are score >= c, the first call runs whole, dead blocks go off, and patterns are
    united until at most `max_graphs` are left (ours: each is a graph on the phone), two at a time at the least added
    MACs. The kept share of MACs then never exceeds `budget`; the repair raises calls to larger patterns of the same
    set, best score per MAC first, until none fits any more. Raises MethodError for a budget below the cheapest table.
    """
    least = gating.kept((gating.full, *(gating.off,) * (len(scores) - 1)), passes)
    if budget < least - 1e-12:
        raise MethodError(
            f"a budget of {budget:.3f} of the MACs is below the cheapest table, one whole call: {least:.3f}",
            code="budget",
        )
    low, high = 0.0, 1.0 + 1e-9  # kept(low) may exceed the budget, kept(high) never does
    best = _threshold(gating, scores, high, passes, max_graphs)
    everything = _threshold(gating, scores, low, passes, max_graphs)
    if gating.kept(everything, passes) <= budget:
        return everything
    for _ in range(40):
        middle = (low + high) / 2
        table = _threshold(gating, scores, middle, passes, max_graphs)
        if gating.kept(table, passes) <= budget:
            high, best = middle, table
        else:
            low = middle
    return _repair(gating, best, scores, passes, budget)


def _threshold(
    gating: Gating, scores: Sequence[Sequence[float]], limit: float, passes: Sequence[int], max_graphs: int
) -> Table:
    rows = [gating.propagate(tuple(int(score >= limit) for score in call)) for call in scores]
    rows[0] = gating.full
    while len(patterns := sorted({row for row in rows if any(row)})) > max_graphs:
        best: tuple[int, Pattern, Pattern, Pattern] | None = None
        for index, one in enumerate(patterns):
            for other in patterns[index + 1 :]:
                union = gating.propagate(tuple(max(pair) for pair in zip(one, other, strict=True)))
                calls = ((row, n) for row, n in zip(rows, passes, strict=True) if row in (one, other))
                added = sum((gating.macs(union) - gating.macs(row)) * n for row, n in calls)
                if best is None or added < best[0]:
                    best = (added, one, other, union)
        assert best is not None
        rows = [best[3] if row in best[1:3] else row for row in rows]
    return tuple(rows)


def _repair(
    gating: Gating, table: Table, scores: Sequence[Sequence[float]], passes: Sequence[int], budget: float
) -> Table:
    rows, shares = list(table), gating.shares()
    whole = gating.macs(gating.full) * sum(passes)
    patterns = {row for row in rows if any(row)}
    room = budget - gating.kept(table, passes) + 1e-12

    def worth(call: int, new: Pattern) -> float:
        pairs = zip(new, rows[call], shares, scores[call], strict=True)
        return sum((after - before) * share * score for after, before, share, score in pairs)

    while True:
        best: tuple[float, int, Pattern, float] | None = None
        for call in range(1, len(rows)):
            for new in patterns:
                cost = (gating.macs(new) - gating.macs(rows[call])) * passes[call] / whole
                if 0 < cost <= room and (gain := worth(call, new) / cost) > (best[0] if best else float("-inf")):
                    best = (gain, call, new, cost)
        if best is None:
            return tuple(rows)
        rows[best[1]] = best[2]
        room -= best[3]
