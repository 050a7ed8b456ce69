"""Reuse methods: each file is one `kind` and proposes a schedule.

A method exposes `Spec` (its table in a recipe) and `propose(spec, graph, calls) -> Schedule`.
"""
