"""What answers add to the report of costs, and what it makes of them."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from config.targets import Targets
from primarch_fleet.catalogue import Catalogue, Model, Offer
from primarch_fleet.contract import Receipt
from primarch_fleet.money import Price
from scheduler.admin.cost_targets import CostTarget, cost_targets
from scheduler.admin.cost_view import Report, saving
from workers.observability.cost_report import Figures, Row, figures, parse, row

LIST = Price(input="2", output="8")
CATALOGUE = Catalogue(
    models={
        "both": Model(
            kind="chat",
            list_price=LIST,
            lanes={
                "realtime": Offer(queue="realtime", price=Price(input="3", output="9")),
                "batch": Offer(queue="batch", price=Price(input="1", output="4")),
            },
        ),
        "hosted": Model(
            kind="chat", list_price=LIST, lanes={"local": Offer(queue="local.hosted", price=LIST)}
        ),
    },
    completion_window=86_400,
    max_request_bytes=1_000_000,
)
DAY = date(2026, 11, 25)


def receipt(**fields: Any) -> Receipt:
    base: dict[str, Any] = {
        "lane": "batch",
        "reason": "asked for",
        "requested_model": "both",
        "model": "both-2026",
        "provider": "openai",
        "deployment": "openai-both",
        "strategy": "batch",
        "latency": 1.0,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost": 30,
        "list_cost": 60,
        "trace_id": "trace",
        "tenant_id": "acme",
    }
    return Receipt(**base | fields)


def test_an_answer_belongs_to_its_tenant_lane_provider_and_the_model_that_gave_it() -> None:
    assert row(receipt()) == Row("acme", "batch", "openai", "both-2026")


def test_an_answer_is_compared_with_the_price_of_its_model_on_the_realtime_lane() -> None:
    assert figures(receipt(), CATALOGUE) == Figures(1, 10, 5, 30, 60, 10 * 3 + 5 * 9)


def test_a_model_that_the_realtime_lane_lacks_is_compared_with_its_list_price() -> None:
    for model in ("hosted", "gone"):
        assert figures(receipt(requested_model=model), CATALOGUE).realtime_cost == 60


def test_what_is_stored_is_read_as_the_rows_that_it_was() -> None:
    stored = {
        '["a", "batch", "openai", "m", "requests"]': "2",
        '["a", "batch", "openai", "m", "cost"]': "9007199254740993",
        '["b, \\"x\\"", "local", "p", "m", "cost"]': "-3",
    }
    assert parse(stored) == {
        Row("a", "batch", "openai", "m"): Figures(requests=2, cost=9_007_199_254_740_993),
        Row('b, "x"', "local", "p", "m"): Figures(cost=-3),
    }


def report(by: list[str]) -> Report:
    costs = {
        Row("a", "batch", "openai", "m"): Figures(1, 10, 5, 30, 60, 75),
        Row("b", "batch", "openai", "m"): Figures(2, 20, 10, 60, 120, 150),
        Row("a", "realtime", "azure", "m"): Figures(1, 10, 5, 75, 60, 75),
    }
    return Report.of(DAY, DAY + timedelta(1), by, costs)


def test_a_report_by_some_names_adds_up_the_others_and_has_the_dearest_first() -> None:
    assert report(["tenant"]).rows == {
        ("a",): Figures(2, 20, 10, 105, 120, 150),
        ("b",): Figures(2, 20, 10, 60, 120, 150),
    }
    assert list(report(["lane"]).rows) == [("batch",), ("realtime",)]


def test_a_report_has_the_same_sum_whatever_it_is_by() -> None:
    total = Figures(4, 40, 20, 165, 240, 300)
    assert [report(by).total for by in (["tenant"], ["model"], ["provider", "lane"])] == [total] * 3


def test_a_saving_is_an_amount_and_its_share_and_none_of_nothing() -> None:
    assert saving(Figures(cost=30), 60) == (30, 0.5)
    assert saving(Figures(cost=75), 60) == (-15, -0.25)
    assert saving(Figures(cost=5), 0) == (-5, None)


def test_a_report_for_machines_says_all_of_it() -> None:
    told = report(["model"]).as_json(Targets())
    (one,) = told["rows"]
    assert {"model": "m", **told["total"]} == one
    assert (told["from"], told["to"]) == ("2026-11-25", "2026-11-26")
    assert (one["saving"], one["saving_rate"]) == (75, 75 / 240)
    assert (one["realtime_saving"], one["realtime_saving_rate"]) == (135, 0.45)


#: What 30 days came to, at list price and in all.
MONTH = Figures(requests=4, cost=60, list_cost=100)


def measured(total: Figures = MONTH, days: int = 30, **targets: Any) -> dict[str, CostTarget]:
    return {one.name: one for one in cost_targets(Targets(**targets), total, days)}


@pytest.mark.parametrize(
    ("name", "meets", "misses"),
    [
        ("cost_reduction", 0.4, 0.41),
        ("monthly_cost_usd", Decimal("0.00006"), Decimal("0.000059")),
        ("cost_per_request_usd", Decimal("0.000015"), Decimal("0.000014")),
    ],
)
def test_a_target_is_met_up_to_the_target_itself(name: str, meets: Any, misses: Any) -> None:
    exact, missed = measured(**{name: meets})[name], measured(**{name: misses})[name]
    assert (exact.target, exact.actual) == (float(meets), float(meets))
    assert (missed.target, missed.actual) == (float(misses), float(meets))
    assert (exact.met, missed.met) == (True, False)


def test_a_month_costs_what_thirty_days_would_at_the_rate_of_the_days_reported() -> None:
    total = Figures(requests=1, cost=1_000_000)
    told = [measured(total, days)["monthly_cost_usd"].actual for days in (1, 30, 60)]
    assert told == [30.0, 1.0, 0.5]


def test_the_first_and_the_last_day_of_a_report_count_for_its_month() -> None:
    day = {Row("a", "batch", "openai", "m"): Figures(requests=1, cost=3_000_000)}
    measured = Report.of(DAY, DAY + timedelta(2), [], day).measures(Targets())
    assert [one.actual for one in measured if one.name == "monthly_cost_usd"] == [30.0]


def test_where_nothing_was_spent_a_target_is_neither_met_nor_missed() -> None:
    told = Report.of(DAY, DAY, [], {}).as_json(Targets())["targets"]
    assert {one["name"]: (one["actual"], one["met"]) for one in told} == {
        "cost_reduction": (None, None),
        "cost_per_request_usd": (None, None),
        "monthly_cost_usd": (0.0, True),
    }


def shown(costs: dict[Row, Figures]) -> str:
    out = StringIO()
    Console(file=out, width=140).print(Report.of(DAY, DAY, [], costs).as_tables(Targets()))
    return out.getvalue()


def test_people_are_told_which_targets_are_met() -> None:
    told = shown({Row("a", "batch", "openai", "m"): MONTH._replace(cost=70_000_000_000)})
    lines = [line.split() for line in told.splitlines() if "_" in line]
    assert [line[-1] for line in lines] == ["no", "no", "no"]
    assert "at most $10000.000000" in told
    assert "yes" in shown({Row("a", "batch", "openai", "m"): MONTH})
    assert shown({}).count("nothing was spent yet") == 2
