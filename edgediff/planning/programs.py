"""Plans of several programs over one network, made into one plan: rows and graphs that are the same stand once."""

from __future__ import annotations

from collections.abc import Mapping

from edgediff.documents.plan import GraphPlan, Plan, ProgramPlan
from edgediff.documents.recipe import Recipe
from edgediff.graph.schedule import HOLD, Row, Schedule


def merge_plans(plans: Mapping[str, Plan], recipe: Recipe) -> Plan:
    """One plan of the programs, by name; the first is the default one.

    Two rows are the same when they hold the same and their graphs read and write the same carries: then each program's
    latents are those of a bundle of its own, bit for bit. A row that another program's has taken the name of is
    numbered (`shallow_2`).
    """
    rows: dict[str, tuple[Row, GraphPlan]] = {}
    made = {name: _renamed(plan, rows) for name, plan in plans.items()}
    first, *others = made
    graphs = {name: spec for name, (_, spec) in rows.items()}
    further = {name: ProgramPlan(**{f: getattr(made[name], f) for f in ProgramPlan.model_fields}) for name in others}
    return made[first].model_copy(
        update={
            "recipe_name": recipe.name,
            "recipe": recipe.digest(),
            "program": first,
            "graphs": graphs,
            "further": further,
        }
    )


def _renamed(plan: Plan, rows: dict[str, tuple[Row, GraphPlan]]) -> Plan:
    """The plan with its rows under the names that `rows` has for them; new ones are entered."""
    names = {row: _enter(row, plan.schedule.rows[row], spec, rows) for row, spec in plan.graphs.items()}
    schedule = plan.schedule
    calls = tuple(HOLD if call == HOLD else names[call] for call in schedule.calls)
    kept = {names[row]: what for row, what in schedule.rows.items() if row in names}
    renamed: Schedule = schedule.model_copy(update={"calls": calls, "rows": kept})
    return plan.model_copy(update={"schedule": renamed, "graphs": {new: rows[new][1] for new in names.values()}})


def _enter(name: str, row: Row, spec: GraphPlan, rows: dict[str, tuple[Row, GraphPlan]]) -> str:
    own = spec.model_copy(update={"row": ""})
    for known, (other, graph) in rows.items():
        if other == row and graph.model_copy(update={"row": ""}) == own:
            return known
    number, free = 1, name
    while free in rows:
        number += 1
        free = f"{name}_{number}"
    rows[free] = row, spec.model_copy(update={"row": free})
    return free
