"""A graph that is loaded: what every backend hands to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Runner(Protocol):
    """One graph, loaded."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. The caller owns them; the inputs may be overwritten once `run` has returned."""
        ...


@runtime_checkable
class StatefulRunner(Runner, Protocol):
    """A runner that keeps carries itself, between its calls and those of the other graphs of its file.

    `states` are the inputs and outputs that need not cross, by name. `run` takes and gives them all the same, and
    remembers nothing; `run_held` leaves them out of both and keeps them in `memory`, an empty dictionary at the
    first call of a picture, which all runners of a program are handed.
    """

    states: Mapping[str, str]

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]: ...


def held_states(runner: Runner) -> Mapping[str, str]:
    """The states of a runner; none of one that keeps nothing."""
    return runner.states if isinstance(runner, StatefulRunner) else {}
