"""The cost of answers of a batch whose requests were cancelled before."""

from typing import Any

import pytest

from primarch_fleet.prices import Rates
from scheduler.completion import metrics
from scheduler.model.job import Job, JobPricing, RequestGroup

TEXT = "a word or two " * 100


@pytest.mark.parametrize(
    ("usage", "least", "most"),
    [
        ({"usage": {"prompt_tokens": 10, "completion_tokens": 20}}, 50_000, 50_000),
        ({}, 2 * 350_000, 2 * 400_000),
        ({"usage": None}, 2 * 350_000, 2 * 400_000),
    ],
)
def test_a_dropped_answer_without_a_usage_costs_what_its_text_is_estimated_at(
    usage: dict[str, Any], least: int, most: int
) -> None:
    price = Rates(input="1", output="2")
    job = Job(
        intent="i",
        token="1",
        state="DRAINING",
        group=RequestGroup("p", "/v1/chat/completions", "m", "24h"),
        terms=JobPricing(deployment="d", upstream="m", price=price, list_price=price),
        requests=1,
        reason="age",
        created_at=0,
        since=0,
    )
    body = {"choices": [{"message": {"role": "assistant", "content": TEXT}}], **usage}
    assert least <= metrics.observe_dropped(job, body) <= most
