"""The planner under a budget: the best of all plans that fit, priced on the target, measured on the final latents."""

from __future__ import annotations

import itertools

import pytest

from edgediff.documents.plan import Plan
from edgediff.documents.recipe import BudgetTable, Recipe, with_budget
from edgediff.documents.target import load_target
from edgediff.errors import ConfigError, PlanError
from edgediff.flow import plan_pipeline
from edgediff.planning.search import Candidate, choose
from edgediff.report.frontier import front_section
from tests.tiny import tiny_pipeline

TARGET = load_target("pixel_9")
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "sampler": {"kind": "ddim", "steps": 8},
        "guidance": {"scale": 3.0},
        "calibration": {"prompts": 2},
    }
)


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> dict[float, Plan]:
    """The tiny model's plans at a few budgets, in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        pipeline = tiny_pipeline(tmp_path_factory.mktemp("tiny"))
        most = plan_of(pipeline, 1e6)
        whole = next(p.latency_ms for p in most.front.points if p.what == "ddim 8")
        with pytest.raises(PlanError, match=r"no plan fits 0 ms on Pixel 9: the cheapest, .* is estimated at \d+ ms"):
            plan_of(pipeline, whole / 1e4)
        return {budget: plan_of(pipeline, budget) for budget in (whole * 0.4, whole * 0.7)} | {1e6: most}


def plan_of(pipeline, budget: float) -> Plan:
    return plan_pipeline(pipeline, with_budget(RECIPE, f"{budget:f}ms"), TARGET, backends=("onnxruntime",))


def test_the_choice_is_the_best_of_all_plans_that_fit(plans: dict[float, Plan]) -> None:
    for budget, plan in plans.items():
        front = plan.front
        fitting = [p for p in front.points if p.snr_db is not None and p.latency_ms <= budget]
        assert front.points[front.chosen].snr_db == max(p.snr_db for p in fitting)
        assert front.points[front.chosen].latency_ms <= budget


def test_baselines_are_weighed_and_more_time_is_never_worse(plans: dict[float, Plan]) -> None:
    ratios = [plan.front.points[plan.front.chosen].snr_db for _, plan in sorted(plans.items())]
    assert ratios == sorted(ratios)
    names = {p.what for p in plans[1e6].front.points if p.baseline}
    assert {"ddim 4", "ddim 6", "dpmpp_2m 5"} <= names
    assert plans[1e6].front.points[plans[1e6].front.chosen].what == "ddim 8"
    assert plans[1e6].front.binding == ()


def test_the_front_is_written_shown_and_what_binds_is_said(plans: dict[float, Plan]) -> None:
    tight = plans[min(plans)]
    assert tight.front.binding == ("latency",)
    assert "better ones are over: latency" in str(tight)
    assert all(len(line) <= 80 for line in str(tight).splitlines())
    assert Plan.model_validate_json(tight.to_json()) == tight
    best = tight.front.best()
    assert all(a.latency_ms < b.latency_ms and a.snr_db < b.snr_db for a, b in itertools.pairwise(best))
    assert "<svg" in front_section(tight.front)


def test_a_tie_goes_to_the_cheaper_plan(plans: dict[float, Plan]) -> None:
    plan = plans[1e6]
    price = _Price(10.0)
    dear = Candidate("a", plan, _Price(20.0), False, 1.0)
    cheap = Candidate("b", plan, price, False, 1.0)
    assert choose([dear, cheap], BudgetTable(latency_ms=30)).what == "b"
    assert choose([dear, cheap], BudgetTable(latency_ms=30, memory_mb=100)).what == "b"


class _Price:
    """What `choose` looks at."""

    memory_mb, ceiling_mb = 1.0, None

    def __init__(self, milliseconds: float) -> None:
        self.latency_ms = type("Interval", (), {"p50": milliseconds})()


@pytest.mark.parametrize(("text", "milliseconds"), [("2.0s", 2000.0), ("800ms", 800.0), ("1.5", 1500.0), (2, 2000.0)])
def test_budgets_in_words(text, milliseconds: float) -> None:
    assert with_budget(RECIPE, text).budget.latency_ms == milliseconds


@pytest.mark.parametrize("text", ["fast", "0s", "-1s", "2 min", ""])
def test_budgets_that_are_no_times(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no time above 0; write 2\.0s or 800ms"):
        with_budget(RECIPE, text)


def test_a_budget_and_programs_exclude_each_other() -> None:
    recipe = Recipe.model_validate({"name": "two", "program": [{"name": "fast"}, {"name": "best"}]})
    with pytest.raises(
        ConfigError, match=r"recipe 'two' has \[\[program\]\] tables, which say sampler and steps"
    ) as caught:
        with_budget(recipe, "2.0s")
    assert (caught.value.code, caught.value.where) == ("budget", "--budget")
    assert with_budget(recipe, None) is recipe
