"""Pruning methods: each file is one `kind` and proposes cuts.

A method exposes `Spec` (its table in a recipe), `score(spec, pipeline, trace, progress) -> StageScores` and
`propose(spec, scores, graph) -> tuple[Cut, ...]`. No method changes a network.
"""
