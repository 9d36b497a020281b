"""Errors of the fleet as answers of the HTTP API."""

import inspect

import pytest

from api.errors import ApiError, not_found
from primarch_fleet import errors
from primarch_fleet.errors import FleetError

CLASSES = [
    one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, FleetError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_envelope_that_says_whether_to_retry(kind: type[FleetError]) -> None:
    answer = ApiError.of(kind("model: gone"))
    envelope = answer.envelope()["error"]
    assert set(envelope) == {"message", "type", "param", "code"}
    assert 400 <= answer.status < 600
    assert envelope["code"]
    assert answer.headers["x-should-retry"] == ("true" if kind.retryable else "false")
    # The account of the fleet is refused, not that of the caller.
    assert answer.status not in (401, 403)


def test_an_error_of_a_field_names_its_parameter() -> None:
    wrong = ApiError.of(errors.InvalidRequest("messages[0].role: must be a text"))
    assert (wrong.status, wrong.param) == (400, "messages[0].role")
    assert ApiError.of(errors.InvalidRequest("nothing named")).param is None


def test_callers_do_not_learn_where_redis_is(caplog: pytest.LogCaptureFixture) -> None:
    detail = "the broker did not answer: Error 111 connecting to redis.internal:6379"
    shown = ApiError.of(errors.FleetUnavailable(detail))
    assert "redis.internal" not in str(shown)
    assert [one.getMessage() for one in caplog.records] == [detail]
    stored = ApiError.of(errors.BodyUnavailable("7 bytes at s3://secret/x: timeout"))
    assert (stored.status, "s3://" in str(stored)) == (503, False)
    assert "start a worker" in str(ApiError.of(errors.NoCatalogue()))  # it says what to do


def test_a_busy_fleet_says_when_to_come_back() -> None:
    full = ApiError.of(errors.LaneFull.until("full", 0.2))
    assert (full.status, full.headers["retry-after"]) == (429, "1")
    limited = ApiError.of(errors.TenantLimited.until("too fast", 12.5))
    assert (limited.status, limited.headers["retry-after"]) == (429, "13")
    assert limited.envelope()["error"]["type"] == "rate_limit_error"
    spent = ApiError.of(errors.BudgetExceeded())
    assert (spent.status, spent.code) == (429, "insufficient_quota")


def test_a_long_id_is_cut_in_a_message() -> None:
    assert len(str(not_found("response", "x" * 10_000))) < 200
