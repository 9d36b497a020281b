"""Rate limits of tasks: a worker takes only messages that it may start at once.

Celery keeps a rate-limited message in memory until its turn, where it takes a place that other
tasks could use and where no other worker can run it. Here a fetch passes over the messages of a
task for which this worker has no token (lua/take.lua): they stay in the queue.
"""

import math
from collections.abc import Mapping, Sized
from typing import Protocol

#: A worker takes messages that it may start within so many seconds: several fetches lie in them.
AHEAD_SECONDS = 0.1


class TokenBucket(Protocol):
    """kombu's, which holds the tokens of one task and the requests that wait for them."""

    fill_rate: float
    contents: Sized

    def expected_time(self, tokens: float = 1) -> float:
        """Return the seconds until there are so many tokens."""


class RateLimits:
    """The rate limits of this process, as its consumer has them now."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def replace(self, buckets: Mapping[str, TokenBucket | None]) -> None:
        """Set the limits.

        Args:
            buckets: By the name of the task; None for a task without a limit.
        """
        self._buckets = {name: bucket for name, bucket in buckets.items() if bucket}

    def allowances(self) -> dict[str, int]:
        """Return how many more messages of each limited task this worker may take now."""
        return {name: allowance(bucket) for name, bucket in self._buckets.items()}


def allowance(bucket: TokenBucket) -> int:
    """Return how many more messages may wait for the bucket's tokens."""
    spare_seconds = AHEAD_SECONDS - bucket.expected_time(1)
    if spare_seconds < 0:
        return 0
    return max(0, math.floor(spare_seconds * bucket.fill_rate) + 1 - len(bucket.contents))


#: The rate limits of this process, for its transport.
RATE_LIMITS = RateLimits()
