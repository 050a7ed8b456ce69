"""BK-SDM (arXiv 2305.15798): the handcrafted cut, a baseline for methods that measure.

`base` takes one resnet with its transformer from every stage: the second of two in the down path, the middle
one of three in the up path (the pairs whose weights the released student inherits are the others). `small` takes
the middle of the network too, `tiny` also the innermost stage on both sides. Nothing is measured.

Two differences from the paper's networks, both ours: samplers stay, so `tiny` keeps those of the innermost
stage; and a removed resnet of the up path leaves its 1x1 shortcut, which joins the skip. On Stable Diffusion 1.5
that makes 0.59, 0.49 and 0.37 billion parameters against the paper's 0.58, 0.49 and 0.33.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgediff.config import Model
from edgediff.documents.plan import Cut
from edgediff.errors import MethodError
from edgediff.graph.units import UnitGraph
from edgediff.scoring.scores import StageScores

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.plugins import Progress
    from edgediff.sampling.trace import Trace

Preset = Literal["base", "small", "tiny"]


class Spec(Model):
    """`preset` names how much goes, as the paper names its three networks."""

    preset: Preset = "base"


def score(spec: Spec, pipeline: Pipeline, trace: Trace, progress: Progress | None = None) -> StageScores:
    """Nothing to measure: every unit of the preset scores zero."""
    return StageScores(values=dict.fromkeys(preset_cuts(pipeline.graph, spec.preset), 0.0))


def propose(spec: Spec, scores: StageScores, graph: UnitGraph) -> tuple[Cut, ...]:
    """The preset's layers. Raises MethodError for a network without stages that lose one."""
    return tuple(Cut(unit=name, by="bk_sdm", score=0.0) for name in preset_cuts(graph, spec.preset))


def preset_cuts(graph: UnitGraph, preset: Preset) -> tuple[str, ...]:
    """Layers of the graph, in its order. A stage with a single pair keeps it. Raises MethodError for a network
    that has no down and up stages, or from which this preset takes nothing."""
    stages: dict[str, list[str]] = {}
    for unit in graph.units:
        if unit.role == "resnet":
            layers = stages.setdefault(unit.block, [])
            if unit.layer not in layers:
                layers.append(unit.layer)
    down = [name for name in stages if name.startswith("down_blocks.")]
    up = [name for name in stages if name.startswith("up_blocks.")]
    if not down or not up:
        raise MethodError(f"bk_sdm needs a U-Net; this '{graph.family}' has no down and up blocks", code="role")
    chosen = {layers[1] for name, layers in stages.items() if name in {*down, *up} and len(layers) > 1}
    if preset != "base":
        chosen.update(stages.get("mid_block", ()))
    if preset == "tiny":
        chosen.update(stages[down[-1]] + stages[up[0]])
    if not chosen:
        raise MethodError(f"preset '{preset}' takes nothing from a network with one pair a stage", code="preset")
    return tuple(layer for layers in stages.values() for layer in layers if layer in chosen)
