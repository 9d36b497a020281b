"""Test doubles of the clients, for the unit tests of services: no Redis, no worker, no waiting.

from primarch_fleet.testing import FakeFleet

def test_the_summary_is_the_answer() -> None:
    fleet = FakeFleet(answer="A summary.")
    assert summarize(fleet, "A long text.") == "A summary."
    assert fleet.requests[0].model == "gpt-4o-mini"
"""

from primarch_fleet.testing.async_fake_fleet import AsyncFakeFleet
from primarch_fleet.testing.fake_answers import Answer, Answers, fake_completion
from primarch_fleet.testing.fake_fleet import FakeFleet

__all__ = ["Answer", "Answers", "AsyncFakeFleet", "FakeFleet", "fake_completion"]
