"""What cutting does to the network's output, at the price of what follows the cut only.

Up to the first cut unit all activations are those of the network without the cut. They are kept once, and
every cut runs from there on: in the unit graph's words all earlier units are held, and the same liveness
analysis that makes cached graphs says which of their values are read.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgediff.graph.units import Action, Live, UnitGraph

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgediff.plugins import Progress
    from edgediff.prune._memo import Memo
    from edgediff.sampling.trace import Trace

Cuts = tuple[str, ...]
Chunk = tuple[int, int]
BYTES = 4  # of one fp32 activation


def calibration_batch(trace: Trace, timesteps: int) -> dict[str, Tensor]:
    """One batch over all prompts and `timesteps` evenly spaced calls of their trajectories, the prompt alone.

    `sample` `[prompts x timesteps, *latent]`, `timestep` `[prompts x timesteps]`, and the conditions of the prompts
    by input name, `[prompts x timesteps, ...]`.
    """
    import torch

    prompts, calls = trace.inputs.shape[:2]
    chosen = torch.linspace(0, calls - 1, min(timesteps, calls)).round().long().unique()
    return {
        "sample": trace.inputs[:, chosen].flatten(0, 1),
        "timestep": trace.timesteps[chosen].repeat(prompts),
        **{name: value.repeat_interleave(len(chosen), dim=0) for name, value in trace.conditions.items()},
    }


def digest_inputs(inputs: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(inputs.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _is_feature(name: str, tensor: Tensor) -> bool:
    """Whether the network's own precision applies; timesteps and classes keep theirs."""
    return name != "timestep" and tensor.is_floating_point()


@dataclass
class OutputLoss:
    """Mean squared change of the network's output over a batch of inputs when units are cut.

    Runs on the network's own device. `inputs` may lie anywhere: they are moved a chunk at a time, and a chunk
    is as many samples as let the kept activations fit into `memory_gb` (10^9 bytes). `reuse` off computes every
    cut network from its inputs, for comparison. With a `memo`, nothing is measured twice, not even after a kill.
    """

    network: nn.Module
    graph: UnitGraph
    inputs: Mapping[str, Tensor]
    memory_gb: float = 2.0
    reuse: bool = True
    memo: Memo | None = None
    _references: dict[Chunk, Tensor] = field(default_factory=dict, repr=False)
    _kept: tuple[tuple[Cuts, Chunk], dict[str, Tensor]] | None = field(default=None, repr=False)

    def measure(
        self,
        sets: Sequence[Iterable[str]],
        base: Iterable[str] = (),
        progress: Progress | None = None,
        text: str = "scoring layers",
    ) -> list[float]:
        """The loss of each set of cuts made on top of `base`, against the network without any.

        Cuts that come late in the network cost little. Raises PlanError for unknown and protected units.
        """
        import torch

        below = tuple(sorted(set(base)))
        wanted = [tuple(sorted({*names, *below})) for names in sets]
        chunks = self._chunks()
        sums = [0.0] * len(wanted)
        done = 0
        with torch.inference_mode():
            for chunk in chunks:
                for index, names in enumerate(wanted):
                    sums[index] += self._known(names, below, chunk)
                    done += 1
                    if progress is not None:
                        progress(text, done, len(wanted) * len(chunks))
        values = len(next(iter(self.inputs.values()))) * self.graph.by_name[self.graph.output].output_values
        return [total / values for total in sums]

    def _known(self, names: Cuts, base: Cuts, chunk: Chunk) -> float:
        """Summed squared change over one chunk, from the memo if it is there."""
        if self.memo is None:
            return self._sum(names, base, chunk)
        key = f"{chunk[0]}:{chunk[1]} {' '.join(names)}"
        found = self.memo.get(key)
        if found is None:
            found = (self._sum(names, base, chunk),)
            self.memo.put(key, *found)
        return found[0]

    def _sum(self, names: Cuts, base: Cuts, chunk: Chunk) -> float:
        from edgediff.networks import evaluate

        cut = self.graph.with_cuts(names)
        live = self._after(cut, names, base) if self.reuse else cut.live()
        reference = self._reference(chunk)
        carries = self._prefix(base, chunk) if live.reads else {}
        output = evaluate(self.network, cut, live, self._inputs(chunk), carries)[0]
        return float(((output - reference).double() ** 2).sum())

    def _after(self, cut: UnitGraph, names: Cuts, base: Cuts) -> Live:
        """What runs when everything before the first unit that is cut on top of `base` is held."""
        new = self.graph.expand(names) - self.graph.expand(base)
        order = [unit.name for unit in self.graph.units]
        first = min((order.index(name) for name in new), default=0)
        held: dict[str, Action] = dict.fromkeys(order[:first], "hold")
        return cut.live(held)

    def _prefix(self, base: Cuts, chunk: Chunk) -> dict[str, Tensor]:
        """All activations of the network with `base` cut on one chunk; those that were asked for last stay."""
        from edgediff.networks import evaluate

        if self._kept is None or self._kept[0] != (base, chunk):
            self._kept = None  # the old ones go before the new ones come
            graph = self.graph.with_cuts(base)
            live = graph.live()
            values = evaluate(self.network, graph, live, self._inputs(chunk), writes=live.run)[1]
            self._kept = ((base, chunk), values)
        return self._kept[1]

    def _reference(self, chunk: Chunk) -> Tensor:
        """The whole network's output on one chunk; those of all chunks stay."""
        from edgediff.networks import evaluate

        if chunk not in self._references:
            if self.reuse:
                output = self._prefix((), chunk)[self.graph.output]
            else:
                output = evaluate(self.network, self.graph, self.graph.live(), self._inputs(chunk))[0]
            self._references[chunk] = output
        return self._references[chunk]

    def _inputs(self, chunk: Chunk) -> dict[str, Tensor]:
        parameter = next(self.network.parameters())
        return {
            name: tensor[slice(*chunk)].to(parameter.device, parameter.dtype if _is_feature(name, tensor) else None)
            for name, tensor in self.inputs.items()
        }

    def _chunks(self) -> list[Chunk]:
        count = len(next(iter(self.inputs.values())))
        kept = BYTES * sum(unit.output_values for unit in self.graph.units) if self.reuse else 0
        size = max(1, int(self.memory_gb * 1e9 // kept)) if kept else count
        pieces = -(-count // size)
        edges = [count * piece // pieces for piece in range(pieces + 1)]
        return list(itertools.pairwise(edges))
