"""Progress of many requests, read from the first bytes of their results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from primarch_fleet.ticket import Ticket, task_id

#: Bytes of a stored result that contain its status, the first field of the JSON.
STATUS_PREFIX_BYTES = 32
#: Celery states of finished tasks.
SUCCEEDED, FAILED = "SUCCESS", ("FAILURE", "REVOKED")

_STATUS = re.compile(r'^\{"status":\s*"(\w+)"')


@dataclass(frozen=True)
class Progress:
    """How many requests are finished."""

    #: Requests that have a result or an error.
    done: int
    total: int
    #: Requests that have an error; `done` includes them.
    failed: int


def read_progress(client: redis.Redis, backend: Any, tickets: Iterable[Ticket | str]) -> Progress:
    """Count the finished requests, in one round trip.

    Args:
        backend: Celery's result backend, which knows the key of a result.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    pipe = client.pipeline(transaction=False)
    for ticket in tickets:
        pipe.getrange(backend.get_key_for_task(task_id(ticket)), 0, STATUS_PREFIX_BYTES - 1)
    states = [state_of(prefix) for prefix in pipe.execute()]
    failed = sum(state in FAILED for state in states)
    return Progress(failed + states.count(SUCCEEDED), len(states), failed)


def state_of(prefix: str) -> str | None:
    """Return the Celery state in the first STATUS_PREFIX_BYTES of a result; None without one."""
    match = _STATUS.match(prefix)
    return match and match[1]
