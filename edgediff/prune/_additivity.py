"""How far the loss of removing several layers is the sum of their single losses, measured on random subsets."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from edgediff.config import Model
from edgediff.graph.units import UnitGraph
from edgediff.prune._budget import Budget
from edgediff.scoring.scores import Milliseconds


class Additivity(Model):
    """`summed` and `measured` losses of random subsets, each removing `removed` of what the budget counts.

    `r2` is the coefficient of determination of the sum as it stands: 1 - sum (m - s)^2 / sum (m - mean m)^2, no
    line fitted. `r2_line` allows a line (Pearson's r squared); `spearman` asks for the order only. None where
    fewer than three subsets, or subsets of one loss, leave it undefined.
    """

    removed: tuple[float, ...]
    summed: tuple[float, ...]
    measured: tuple[float, ...]
    r2: float | None
    r2_line: float | None
    spearman: float | None


def draw_subsets(
    names: Sequence[str],
    graph: UnitGraph,
    budget: Budget,
    costs: Mapping[str, Milliseconds],
    most: float,
    count: int,
    seed: int = 0,
) -> list[tuple[str, ...]]:
    """Subsets of two candidates and more, whose removal takes shares drawn evenly from (0, `most`] of what the
    budget counts. Fewer than `count` when `most` leaves no room for two."""
    draw = random.Random(f"edgediff additivity {seed}")
    total = budget.measure(graph, costs)
    savings = {name: total - budget.measure(graph.with_cuts([name]), costs) for name in names}
    found: list[tuple[str, ...]] = []
    for _ in range(8 * count):
        if len(found) == count:
            break
        room = draw.uniform(0, most) * total
        chosen: set[str] = set()
        for name in draw.sample(list(names), len(names)):
            if savings[name] <= room:
                chosen.add(name)
                room -= savings[name]
        if len(chosen) > 1:
            found.append(tuple(name for name in names if name in chosen))
    return found


def compare_sums(
    subsets: Sequence[Sequence[str]],
    singles: Mapping[str, float],
    measured: Sequence[float],
    removed: Sequence[float],
) -> Additivity:
    """The figures over subsets whose removal was measured."""
    summed = [sum(singles[name] for name in names) for names in subsets]
    r2, line, rank = _figures(summed, list(measured))
    return Additivity(
        removed=tuple(removed), summed=tuple(summed), measured=tuple(measured), r2=r2, r2_line=line, spearman=rank
    )


def _figures(summed: list[float], measured: list[float]) -> tuple[float | None, float | None, float | None]:
    import numpy as np
    from scipy.stats import spearmanr

    if len(summed) < 3 or len(set(summed)) == 1 or len(set(measured)) == 1:
        return None, None, None
    x, y = np.array(summed), np.array(measured)
    r2 = 1.0 - float(((y - x) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return r2, float(np.corrcoef(x, y)[0, 1] ** 2), float(spearmanr(x, y).statistic)
