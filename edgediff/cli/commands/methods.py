"""`edgediff methods`: every key that a method's table in a recipe takes."""

from __future__ import annotations

import inspect
import textwrap
from argparse import Namespace
from typing import Any, Literal, get_args, get_origin

from edgediff.cli.commands import Answer, Command
from edgediff.cli.text import format_table

FOLDERS = ("prune", "reuse")


def execute(args: Namespace) -> Answer:
    """Every `[[prune]]` and `[[reuse]]` kind with the keys of its table, and those of `[distill]`."""
    from edgediff.documents.recipe import DistillTable
    from edgediff.plugins import load_plugin, plugin_names

    data: dict[str, dict[str, Any]] = {}
    blocks: list[str] = []
    for folder in FOLDERS:
        data[folder] = {}
        for kind in plugin_names(folder):
            module = load_plugin(folder, kind)
            about, keys = _first_paragraph(module), " ".join((module.Spec.__doc__ or "").split())
            data[folder][kind] = {"about": about, "settings": module.Spec.model_json_schema()}
            blocks.append(_table_text(f'[[{folder}]] kind = "{kind}"', about, module.Spec))
            blocks[-1] += f"\n{_indented(keys)}" if keys else ""
    about = _first_paragraph(DistillTable)
    data["distill"] = {"[distill]": {"about": about, "settings": DistillTable.model_json_schema()}}
    blocks.append(_table_text("[distill]", about, DistillTable))
    return Answer(data, "\n\n".join(blocks))


def _first_paragraph(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")


def _table_text(title: str, about: str, model: Any) -> str:
    rows = [(f"  {key}", _setting_text(field)) for key, field in model.model_fields.items()]
    return f"{title}\n{_indented(about)}\n{format_table(('  key', 'what it takes'), rows)}"


def _indented(text: str) -> str:
    return textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  ")


def _setting_text(field: Any) -> str:
    """Type and default of one key of a method's table."""
    kind = _type_text(field.annotation)
    if field.is_required():
        return f"{kind}, needed"
    return f"{kind}, default {field.get_default(call_default_factory=True)!r}"


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if get_origin(annotation) is tuple and get_args(annotation)[-1] is ...:
        return f"list of {_type_text(get_args(annotation)[0])}"
    if keys := getattr(annotation, "model_fields", None):
        return f"{{ {', '.join(f'{key} = ...' for key in keys)} }}"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


COMMAND = Command(execute, "the pruning and reuse methods, with their settings", place=170)
