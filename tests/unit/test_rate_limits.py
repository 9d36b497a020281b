"""How many messages of a rate-limited task a worker takes."""

import pytest
from kombu.utils.limits import TokenBucket

from workers.runtime.fetching.rate_limits import RateLimits, allowance


@pytest.mark.parametrize(
    ("per_second", "used", "waiting", "expected"),
    [
        (0.1, 0, 0, 1),  # the token is there
        (0.1, 1, 0, 0),  # the next one comes in ten seconds
        (0.1, 0, 1, 0),
        (100, 0, 0, 11),  # as many as come until the next fetches
        (100, 0, 4, 7),
        (100, 0, 20, 0),
        (100, 1, 0, 10),
    ],
)
def test_a_worker_takes_what_it_may_start_at_once(
    per_second: float, used: int, waiting: int, expected: int
) -> None:
    bucket = TokenBucket(per_second)
    for _ in range(waiting):
        bucket.add("request")
    assert bucket.can_consume(used)
    assert allowance(bucket) == pytest.approx(expected, abs=1 if per_second > 1 else 0)  # type: ignore[arg-type]


def test_only_tasks_with_a_limit_have_an_allowance() -> None:
    limits = RateLimits()
    assert limits.allowances() == {}
    limits.replace({"limited": TokenBucket(1), "free": None})  # type: ignore[dict-item]
    assert limits.allowances() == {"limited": 1}
    limits.replace({"limited": None})
    assert limits.allowances() == {}
