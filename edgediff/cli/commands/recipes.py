"""`edgediff recipes`: the recipes that come with edgediff."""

from __future__ import annotations

from argparse import Namespace

from edgediff.cli.commands import Answer, Command
from edgediff.cli.text import format_table


def execute(args: Namespace) -> Answer:
    """`recipe.list_recipes`, read."""
    from edgediff.documents.recipe import list_recipes, load_recipe

    found = {name: load_recipe(name) for name in list_recipes()}
    rows = [(name, f"{r.sampler.kind} {r.sampler.steps}", r.description) for name, r in found.items()]
    data = {name: r.model_dump(mode="json", exclude_none=True) for name, r in found.items()}
    return Answer(data, format_table(("recipe", "sampler", "what it does"), rows))


COMMAND = Command(execute, "the recipes that come with edgediff", place=160)
