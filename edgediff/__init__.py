"""edgediff takes diffusion models to phones: one recipe and one target in, one bundle out.

    import edgediff as ed
    bundle = ed.build("glyph", recipe="balanced", target="host", out="heart.edgediff")
    bundle.generate("red heart", seed=0).save("heart.png")

Nouns and verbs are loaded at first use, so that `import edgediff` costs nothing: no torch, no pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it, in the order of the stages. The imports below say the same to type checkers.
_PUBLIC = {
    "EdgeDiffError": "errors",
    "Recipe": "documents.recipe",
    "Target": "documents.target",
    "Pipeline": "pipeline",
    "Trace": "sampling.trace",
    "Scores": "scoring.scores",
    "Plan": "documents.plan",
    "Variants": "variants",
    "Manifest": "runtime.manifest",
    "Bundle": "bundle",
    "LatencyTable": "runtime.latency",
    "load_recipe": "documents.recipe",
    "load_target": "documents.target",
    "load_pipeline": "pipeline",
    "record_trace": "sampling.trace",
    "score_trace": "scoring.scores",
    "make_plan": "planning.planner",
    "build_variants": "variants",
    "lower_variants": "backends",
    "distill_model": "flow",
    "build": "flow",
    "open_bundle": "bundle",
    "verify_bundle": "verify",
    "profile_bundle": "profiling",
    "evaluate_bundle": "evaluation",
    "render_report": "report",
    "generate": "runtime",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from edgediff.backends import lower_variants as lower_variants
    from edgediff.bundle import Bundle as Bundle
    from edgediff.bundle import open_bundle as open_bundle
    from edgediff.documents.plan import Plan as Plan
    from edgediff.documents.recipe import Recipe as Recipe
    from edgediff.documents.recipe import load_recipe as load_recipe
    from edgediff.documents.target import Target as Target
    from edgediff.documents.target import load_target as load_target
    from edgediff.errors import EdgeDiffError as EdgeDiffError
    from edgediff.evaluation import evaluate_bundle as evaluate_bundle
    from edgediff.flow import build as build
    from edgediff.flow import distill_model as distill_model
    from edgediff.pipeline import Pipeline as Pipeline
    from edgediff.pipeline import load_pipeline as load_pipeline
    from edgediff.planning.planner import make_plan as make_plan
    from edgediff.profiling import profile_bundle as profile_bundle
    from edgediff.report import render_report as render_report
    from edgediff.runtime import generate as generate
    from edgediff.runtime.latency import LatencyTable as LatencyTable
    from edgediff.runtime.manifest import Manifest as Manifest
    from edgediff.sampling.trace import Trace as Trace
    from edgediff.sampling.trace import record_trace as record_trace
    from edgediff.scoring.scores import Scores as Scores
    from edgediff.scoring.scores import score_trace as score_trace
    from edgediff.variants import Variants as Variants
    from edgediff.variants import build_variants as build_variants
    from edgediff.verify import verify_bundle as verify_bundle


def __getattr__(name: str) -> Any:
    """PEP 562: the module behind a public name is imported when the name is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgediff' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"edgediff.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
