"""Tests of summaries.py: `pytest examples/test_summaries.py`."""

import pytest
from summaries import summarize

from primarch_fleet.errors import RateLimited, ResultTimeout
from primarch_fleet.testing import FakeFleet


def test_texts_are_summarized_in_a_batch() -> None:
    fleet = FakeFleet(answer=["Ships sail.", "Trains run."])
    assert summarize(fleet, ["About ships.", "About trains."]) == ["Ships sail.", "Trains run."]
    assert [ticket.lane for ticket in fleet.tickets] == ["batch", "batch"]


def test_a_batch_that_is_too_slow_is_asked_again_in_real_time() -> None:
    fleet = FakeFleet(lambda request: ResultTimeout() if request.lane == "batch" else "Ships sail.")
    assert summarize(fleet, ["About ships."]) == ["Ships sail."]
    assert [fleet.status(ticket) for ticket in fleet.tickets] == ["REVOKED", "SUCCESS"]


def test_an_error_of_the_provider_is_the_callers() -> None:
    with pytest.raises(RateLimited):
        summarize(FakeFleet(answer=RateLimited()), ["About ships."])
