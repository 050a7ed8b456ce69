"""How good a bundle's pictures are: beside the untouched model, and beside the untouched model at equal cost.

Three sets of pictures of the same prompts and noise: `compressed` by the bundle's own runtime (the real
artifact), `reference` by the untouched network with the plan's sampler, and `equal_compute` by the untouched
network with so few steps that it costs what the bundle costs. The last is the baseline to beat: of the plan's own
sampler and DPM++ 2M, whichever comes closer to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.config import cache_folder, read_lines
from edgediff.errors import EvaluationError, SamplerError
from edgediff.evaluation.layers import map_layers
from edgediff.evaluation.pictures import (
    Picture,
    PictureCache,
    Sampling,
    compressed_pictures,
    picture_keys,
    program_digest,
    reference_pictures,
)
from edgediff.evaluation.scoring import Figures, Judge, Scorer, compare_figures
from edgediff.plugins import Progress
from edgediff.runtime import choose_backend

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.documents.plan import Plan
    from edgediff.pipeline import Pipeline

__all__ = ["evaluate_bundle", "read_prompts"]

SHOWN_FIRST, SHOWN_WORST = 6, 2


def evaluate_bundle(
    bundle: Bundle,
    *,
    prompts: int | str | Path = 256,
    seeds: Sequence[int] = (0,),
    backend: str | None = None,
    pipeline: Pipeline | str | Path | None = None,
    judge: Judge | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The figures as plain data, in the form that `edgediff evaluate --json` promises.

    `prompts`: how many captions of the embedded model to choose (seeded: the same ones every time), or a file
    with one prompt a line. Prompt i starts from the noise of seed s + i, for every s in `seeds`. `pipeline`: the
    untouched model, loaded or by name; None loads what the manifest names. `judge` names pictures for models
    other than the embedded one.

    PSNR and SSIM compare with the reference's pictures (8 bit), the mean over pictures and the worst of them.
    A figure that cannot be had is null, with a sentence in `reasons`. Pictures of the untouched model are kept
    in `cache` (default: the cache folder), so that the next evaluation makes only the bundle's own.

    Raises ConfigError for a prompts file that is missing or not UTF-8, EvaluationError for one that is empty,
    for bad seeds, and for another model than the plan's; and whatever loading and running raise.
    """
    _need_text_to_image(bundle)
    texts, source = choose_prompts(bundle, prompts)
    streams = _picture_seeds(texts, seeds)
    name = choose_backend(bundle.manifest, backend)
    model = _load_model(bundle, pipeline)
    store = PictureCache(cache or cache_folder())
    plan, scorer = bundle.plan, Scorer(_judge_for(bundle, judge), [text for text, _ in streams])

    reference = Sampling.of_plan(plan)
    whole = reference_pictures(model, reference, streams, store, progress, "untouched model")
    rivals = _rival_figures(model, plan, scorer, streams, store, whole, progress)
    made = compressed_pictures(bundle, name, streams, store, progress)
    if made.shape != whole.shape:
        raise EvaluationError(
            f"the bundle makes pictures {list(made.shape[1:])}, the model '{model.id}' {list(whole.shape[1:])}",
            code="shape",
        )
    ours, (equal, theirs) = scorer.figures(made, whole), rivals[0]
    return {
        **_describe_subject(bundle, name, model, store),
        "prompts": len(texts),
        "prompt_source": source,
        "seeds": list(seeds),
        "n": len(streams),
        **ours.data,
        "reference": {"sampler": reference.sampler, "steps": reference.steps, **scorer.figures(whole).data},
        **_describe_rivals(plan, rivals),
        "against_equal_compute": compare_figures(ours, theirs, len(texts)),
        "reasons": scorer.reasons,
        "pictures": _list_pictures(bundle, name, model, (reference, equal), streams, ours.ssim),
        "layers": map_layers(plan, model.graph),
    }


def _need_text_to_image(bundle: Bundle) -> None:
    if bundle.manifest.kind != "text-to-image":
        raise EvaluationError(
            f"bundle '{bundle.manifest.name}' is {bundle.manifest.kind}; evaluation compares text-to-image bundles",
            code="kind",
        )


def _describe_subject(bundle: Bundle, backend: str, model: Pipeline, store: PictureCache) -> dict[str, Any]:
    """Which bundle, run on what, beside which model."""
    return {
        "bundle": bundle.manifest.name,
        "backend": backend,
        "program": program_digest(bundle.manifest),
        "program_name": bundle.manifest.default,
        "model": model.id,
        "weights": model.weights,
        "plan": bundle.plan.digest(),
        "cache": str(store.folder),
        "guidance": _describe_guidance(bundle.plan),
    }


def _describe_rivals(plan: Plan, rivals: list[tuple[Sampling, Figures]]) -> dict[str, Any]:
    """The best of them as what is to be beaten, and the others."""
    plain = [{"sampler": sampling.sampler, "steps": sampling.steps, **figures.data} for sampling, figures in rivals]
    equal = {**plain[0], "macs": plan.cost.equal_compute.macs}
    return {"equal_compute": equal, "weaker_equal_compute": plain[1:]}


def _rival_figures(
    model: Pipeline,
    plan: Plan,
    scorer: Scorer,
    streams: list[tuple[str, int]],
    store: PictureCache,
    whole: Picture,
    progress: Progress | None,
) -> list[tuple[Sampling, Figures]]:
    """The untouched model's figures with fewer steps at equal compute, the better sampler first."""
    found: list[tuple[Sampling, Figures]] = []
    for rival in _rivals(model, plan):
        words = f"untouched, {rival.sampler} {rival.steps}"
        found.append((rival, scorer.figures(reference_pictures(model, rival, streams, store, progress, words), whole)))
    return sorted(found, key=lambda each: -float(np.mean(each[1].psnr)))


def _rivals(model: Pipeline, plan: Plan) -> list[Sampling]:
    """The plan's sampler with fewer steps at equal compute, and DPM++ 2M where it samples this model at all."""
    from edgediff.sampling.trace import step_table

    equal = Sampling.of_equal_compute(plan)
    other = Sampling("dpmpp_2m", equal.steps, equal.guidance)
    if equal.sampler == other.sampler:
        return [equal]
    try:
        step_table(model, other.sampler, other.steps)
    except SamplerError:
        return [equal]
    return [equal, other]


def choose_prompts(bundle: Bundle, prompts: int | str | Path) -> tuple[list[str], str]:
    """The prompts, and a phrase that says where they come from."""
    if isinstance(prompts, str) and prompts.isdecimal():
        prompts = int(prompts)
    if not isinstance(prompts, int):
        texts = read_prompts(Path(prompts))
        return texts, f"all {len(texts)} prompts of {Path(prompts).name}"
    if isinstance(prompts, bool) or prompts < 1:
        raise EvaluationError(f"prompts = {prompts!r}: it must be 1 or more, or a file", code="prompts")
    if not _is_embedded(bundle):
        raise EvaluationError(
            f"model '{bundle.manifest.source.model}' brings no captions to choose {prompts} from; "
            "give a file with one prompt a line (--prompts FILE)",
            code="prompts",
        )
    from edgediff.embedded.evaluation import choose_prompts as choose_captions

    texts = choose_captions(prompts)
    return texts, f"{len(texts)} primary captions of glyph, chosen by numpy.random.default_rng(0)"


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, blank lines left out. Raises ConfigError (missing, not UTF-8), EvaluationError (empty)."""
    texts = [line.strip() for line in read_lines(path) if line.strip()]
    if not texts:
        raise EvaluationError("has no prompts; write one a line", where=str(path), code="prompts")
    return texts


def _picture_seeds(texts: list[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """(prompt, seed) of every picture, all prompts of one seed together."""
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise EvaluationError(f"seeds = {tuple(seeds)!r}: one or more whole numbers from 0, each once", code="seeds")
    return [(text, seed + index) for seed in seeds for index, text in enumerate(texts)]


def _load_model(bundle: Bundle, pipeline: Pipeline | str | Path | None) -> Pipeline:
    from edgediff.pipeline import load_pipeline

    source = bundle.manifest.source
    model = load_pipeline(source.model if pipeline is None else pipeline)
    if model.weights != bundle.plan.model.weights:
        raise EvaluationError(
            f"bundle '{bundle.manifest.name}' was made from weights {bundle.plan.model.weights[:12]}, but model "
            f"'{model.id}' has {model.weights[:12]}; give the model it was made from (pipeline=...)",
            code="other_model",
        )
    return model


def _is_embedded(bundle: Bundle) -> bool:
    return bundle.manifest.source.model == "glyph"


def _judge_for(bundle: Bundle, judge: Judge | None) -> tuple[Judge, float | None] | str:
    """The judge, and the cosine above which its names count as one; or why there is none."""
    if judge is not None:
        return judge, None
    if _is_embedded(bundle):
        from edgediff.embedded.judge import SAME, load_judge

        return load_judge(), SAME
    return (
        f"there is no judge for model '{bundle.manifest.source.model}': the one that comes with edgediff knows "
        "the pictures of 'glyph' only; pass judge="
    )


def _describe_guidance(plan: Plan) -> dict[str, Any]:
    scales = [scale for scale in plan.guidance.calls if scale is not None]
    return {
        "scale": max(scales) if scales else None,
        "guided_calls": len(scales),
        "calls": len(plan.guidance.calls),
        "mode": plan.guidance.mode,
    }


def _list_pictures(
    bundle: Bundle,
    backend: str,
    model: Pipeline,
    samplings: tuple[Sampling, Sampling],
    streams: list[tuple[str, int]],
    ssims: Sequence[float],
) -> list[dict[str, Any]]:
    """Cache keys of the pictures a report shows: the first few, which nobody picked, and the least alike."""
    first = list(range(min(SHOWN_FIRST, len(streams))))
    worst = sorted((i for i in range(len(streams)) if i not in first), key=lambda i: ssims[i])[:SHOWN_WORST]
    rows: list[dict[str, Any]] = []
    for index in (*first, *worst):
        keys = picture_keys(bundle.manifest, backend, model.weights, samplings, *streams[index])
        prompt, seed = streams[index]
        rows.append(
            {
                "prompt": prompt,
                "seed": seed,
                "why": "first" if index in first else "worst",
                "ssim": ssims[index],
                **keys,
            }
        )
    return rows
