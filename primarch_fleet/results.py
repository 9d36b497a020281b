"""Waiting for results: of requests, and of the scheduler's own tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError

from primarch_fleet.contract import EXPLICIT_HIGH_PRIORITY, SCHEDULER_QUEUE
from primarch_fleet.errors import FleetUnavailable, ResultExpired, ResultTimeout
from primarch_fleet.outgoing import OPEN_KEY, is_expired

#: Seconds between two reads of a result that is awaited.
CHECK_SECONDS = 5.0


def call_scheduler(app: Celery, task: str, argument: Any, timeout: float) -> Any:
    """Call one of the scheduler's tasks on any batch worker.

    Args:
        task: The name of the task, such as "scheduler.cancel".
        timeout: Seconds to wait for the answer.

    Returns:
        The value of the task.

    Raises:
        ResultTimeout: No batch worker answered in time. The next worker that starts runs the task.
        FleetUnavailable: The broker did not answer, or the task failed.
    """
    message = f"no batch worker answered within {timeout:.0f} s"
    with reachable():
        # Without a declaration, which writes to keys that a producer may not change.
        result = app.send_task(
            task, [argument], queue=SCHEDULER_QUEUE, priority=EXPLICIT_HIGH_PRIORITY, declare=[]
        )
        try:
            answer = wait_for(result, timeout, message)
        finally:
            with suppress(NoPermissionError):  # it expires
                result.forget()
    if isinstance(answer, BaseException):
        raise FleetUnavailable(f"{task} failed: {answer}")
    return answer


def wait_for(
    result: AsyncResult[Any],
    timeout: float | None,
    message: str,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """Return a task's value or exception. Raises ResultTimeout with the message.

    Celery waits for the message that announces the result. It may miss that message when it
    connects again, or listen to a server that is no primary any more: so the stored result is read
    every CHECK_SECONDS.

    Args:
        check: Called after each wait without a result; raises an error if there will be none.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        try:  # 0 is no limit for Celery
            seconds = max(min(end - time.monotonic(), CHECK_SECONDS), 0.001)
            # Within a task too, whose slot no request needs: requests run on the fleet's workers.
            return result.get(timeout=seconds, propagate=False, disable_sync_subtasks=False)
        except CeleryTimeout:
            check()
            if time.monotonic() < end:
                continue
            cast(Any, result.backend).remove_pending_result(result)  # else Celery keeps it forever
            raise ResultTimeout(message) from None


def no_result(timeout: float | None) -> str:
    """Return the message of the ResultTimeout of one request."""
    return f"no result within {timeout} s; the request continues"


def check_stored(client: redis.Redis, result: AsyncResult[Any]) -> None:
    """Raise ResultExpired if a task has had its outcome, and that is not stored any more."""
    task_id = str(result.id)
    pipe = client.pipeline(transaction=False)
    pipe.zscore(OPEN_KEY, task_id)
    pipe.getrange(cast(Any, result.backend).get_key_for_task(task_id), 0, 0)
    if is_expired(task_id, *pipe.execute()):
        raise ResultExpired


@contextmanager
def reachable() -> Iterator[None]:
    """Convert the errors of an unreachable broker to FleetUnavailable."""
    try:
        yield
    except (redis.RedisError, OperationalError) as error:
        raise FleetUnavailable(f"the broker did not answer: {error}") from error
    except RuntimeError as error:  # Celery's, after its last attempt to connect again
        if not isinstance(error.__cause__, redis.RedisError):
            raise
        raise FleetUnavailable(f"the broker did not answer: {error.__cause__}") from error
