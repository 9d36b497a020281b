"""The cost report: what an answer adds, and the view of `python -m scheduler costs`."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from config.targets import Targets
from primarch_fleet import Rates
from primarch_fleet.catalogue import Catalogue, Model, Offer
from primarch_fleet.contract import Receipt
from scheduler.admin.cost_report import CostSummary, CostTarget, cost_targets, saving
from workers.observability.cost_recorder import (
    CostKey,
    CostTotals,
    cost_key,
    cost_totals,
    parse_day,
)

LIST = Rates(input="2", output="8")
CATALOGUE = Catalogue(
    models={
        "both": Model(
            kind="chat",
            list_price=LIST,
            lanes={
                "realtime": Offer(queue="realtime", price=Rates(input="3", output="9")),
                "batch": Offer(queue="batch", price=Rates(input="1", output="4")),
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
        "cost_nanousd": 30_000,
        "list_cost_nanousd": 60_000,
        "trace_id": "trace",
        "tenant_id": "acme",
    }
    return Receipt(**base | fields)


def test_an_answer_counts_for_its_tenant_lane_provider_and_the_model_that_answered() -> None:
    assert cost_key(receipt()) == CostKey("acme", "batch", "openai", "both-2026")


def test_the_realtime_cost_is_at_the_realtime_price_of_the_requested_model() -> None:
    assert cost_totals(receipt(), CATALOGUE) == CostTotals(
        1, 10, 5, 30_000, 60_000, 10 * 3_000 + 5 * 9_000
    )


def test_the_realtime_cost_of_a_model_without_a_realtime_offer_is_at_its_list_price() -> None:
    for model in ("hosted", "gone"):
        assert (
            cost_totals(receipt(requested_model=model), CATALOGUE).realtime_cost_nanousd == 60_000
        )


def test_stored_figures_are_parsed_into_their_rows() -> None:
    stored = {
        '["a", "batch", "openai", "m", "requests"]': "2",
        '["a", "batch", "openai", "m", "cost_nanousd"]': "9007199254740993",
        '["b, \\"x\\"", "local", "p", "m", "cost_nanousd"]': "-3",
    }
    assert parse_day(stored) == {
        CostKey("a", "batch", "openai", "m"): CostTotals(
            requests=2, cost_nanousd=9_007_199_254_740_993
        ),
        CostKey('b, "x"', "local", "p", "m"): CostTotals(cost_nanousd=-3),
    }


def test_figures_stored_in_micro_dollars_count_a_thousand_times() -> None:
    """A day on which the fleet was upgraded has both."""
    stored = {
        '["a", "batch", "openai", "m", "cost"]': "7",
        '["a", "batch", "openai", "m", "cost_nanousd"]': "5",
        '["a", "batch", "openai", "m", "list_cost"]': "9",
        '["a", "batch", "openai", "m", "realtime_cost"]': "8",
    }
    expected = CostTotals(cost_nanousd=7_005, list_cost_nanousd=9_000, realtime_cost_nanousd=8_000)
    assert parse_day(stored) == {CostKey("a", "batch", "openai", "m"): expected}


def summary(by: list[str]) -> CostSummary:
    costs = {
        CostKey("a", "batch", "openai", "m"): CostTotals(1, 10, 5, 30, 60, 75),
        CostKey("b", "batch", "openai", "m"): CostTotals(2, 20, 10, 60, 120, 150),
        CostKey("a", "realtime", "azure", "m"): CostTotals(1, 10, 5, 75, 60, 75),
    }
    return CostSummary.of(DAY, DAY + timedelta(1), by, costs)


def test_a_summary_adds_up_the_other_dimensions_and_puts_the_most_expensive_row_first() -> None:
    assert summary(["tenant"]).rows == {
        ("a",): CostTotals(2, 20, 10, 105, 120, 150),
        ("b",): CostTotals(2, 20, 10, 60, 120, 150),
    }
    assert list(summary(["lane"]).rows) == [("batch",), ("realtime",)]


def test_the_total_is_the_same_for_every_grouping() -> None:
    total = CostTotals(4, 40, 20, 165, 240, 300)
    groupings = (["tenant"], ["model"], ["provider", "lane"])
    assert [summary(by).total for by in groupings] == [total] * 3


def test_the_json_report_keeps_the_older_names_in_micro_dollars() -> None:
    costs = {CostKey("a", "batch", "openai", "m"): CostTotals(1, 10, 5, 2_500, 9_499, 3_000)}
    total = CostSummary.of(DAY, DAY, [], costs).as_json(Targets())["total"]
    older = ("cost", "list_cost", "realtime_cost", "saving", "realtime_saving")
    assert [total[name] for name in older] == [3, 9, 3, 7, 1]


def test_a_saving_is_an_amount_and_a_share_and_has_no_share_of_zero() -> None:
    assert saving(CostTotals(cost_nanousd=30), 60) == (30, 0.5)
    assert saving(CostTotals(cost_nanousd=75), 60) == (-15, -0.25)
    assert saving(CostTotals(cost_nanousd=5), 0) == (-5, None)


def test_the_json_report_has_rows_total_days_and_savings() -> None:
    report = summary(["model"]).as_json(Targets())
    (row,) = report["rows"]
    assert {"model": "m", **report["total"]} == row
    assert (report["from"], report["to"]) == ("2026-11-25", "2026-11-26")
    assert (row["saving_nanousd"], row["saving_rate"]) == (75, 75 / 240)
    assert (row["realtime_saving_nanousd"], row["realtime_saving_rate"]) == (135, 0.45)


#: The total of 30 days, at list price and as paid.
MONTH = CostTotals(requests=4, cost_nanousd=60_000, list_cost_nanousd=100_000)


def targets_by_name(
    total: CostTotals = MONTH, days: int = 30, **targets: Any
) -> dict[str, CostTarget]:
    return {target.name: target for target in cost_targets(Targets(**targets), total, days)}


@pytest.mark.parametrize(
    ("name", "meets", "misses"),
    [
        ("cost_reduction", 0.4, 0.41),
        ("monthly_cost_usd", Decimal("0.00006"), Decimal("0.000059")),
        ("cost_per_request_usd", Decimal("0.000015"), Decimal("0.000014")),
    ],
)
def test_a_value_equal_to_its_target_meets_it(name: str, meets: Any, misses: Any) -> None:
    met, missed = targets_by_name(**{name: meets})[name], targets_by_name(**{name: misses})[name]
    assert (met.target, met.actual) == (float(meets), float(meets))
    assert (missed.target, missed.actual) == (float(misses), float(meets))
    assert (met.met, missed.met) == (True, False)


def test_the_monthly_cost_is_extrapolated_from_the_days_of_the_report() -> None:
    total = CostTotals(requests=1, cost_nanousd=1_000_000_000)
    actual = [targets_by_name(total, days)["monthly_cost_usd"].actual for days in (1, 30, 60)]
    assert actual == [30.0, 1.0, 0.5]


def test_the_days_of_a_report_include_the_first_and_the_last() -> None:
    costs = {
        CostKey("a", "batch", "openai", "m"): CostTotals(requests=1, cost_nanousd=3_000_000_000)
    }
    report = CostSummary.of(DAY, DAY + timedelta(2), [], costs).as_json(Targets())
    actual = [
        target["actual"] for target in report["targets"] if target["name"] == "monthly_cost_usd"
    ]
    assert actual == [30.0]


def test_a_target_is_neither_met_nor_missed_while_nothing_was_spent() -> None:
    targets = CostSummary.of(DAY, DAY, [], {}).as_json(Targets(cost_reduction=0.4))["targets"]
    assert {target["name"]: (target["actual"], target["met"]) for target in targets} == {
        "cost_reduction": (None, None),
        "cost_per_request_usd": (None, None),
        "monthly_cost_usd": (0.0, True),
    }


def test_a_target_that_is_not_set_is_not_in_the_report() -> None:
    assert targets_by_name().keys() == {"monthly_cost_usd", "cost_per_request_usd"}


def rendered(costs: dict[CostKey, CostTotals]) -> str:
    out = StringIO()
    summary = CostSummary.of(DAY, DAY, [], costs)
    Console(file=out, width=140).print(summary.as_tables(Targets(cost_reduction=0.4)))
    return out.getvalue()


def test_the_table_shows_which_targets_are_met() -> None:
    text = rendered(
        {CostKey("a", "batch", "openai", "m"): MONTH._replace(cost_nanousd=70_000_000_000_000)}
    )
    lines = [line.split() for line in text.splitlines() if "_" in line]
    assert [line[-1] for line in lines] == ["no", "no", "no"]
    assert "at most $10000.000000" in text
    assert "yes" in rendered({CostKey("a", "batch", "openai", "m"): MONTH})
    assert rendered({}).count("nothing was spent yet") == 2
