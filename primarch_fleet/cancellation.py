"""Cancelling: a mark in Redis, by which no worker starts a request, and the request's outcome.

The mark is written before anything is promised. Each worker looks for it in the script that takes a
message, so it holds through restarts and for as long as the message waits. The outcome is stored by
the side that knows that the request does not run: this script for a request that waits, the worker
that has its message, or the scheduler for a parked request.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from redis.exceptions import NoPermissionError

from primarch_fleet import protocol
from primarch_fleet.budgets import Ledger, payer_key
from primarch_fleet.errors import Cancelled, FleetError, ResultTimeout
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.results import call_scheduler, wait_for

#: Sorted set of the messages that workers hold: `<task id>\0<lease tag>`.
LEASED_TASKS = "fleet:leased_tasks"
#: The value of a mark whose task's links, errbacks and chord have been told.
COMPLETED = "completed"
#: Seconds for which a message may wait and is still dropped.
WAITING_MARK_TTL_SECONDS = 90 * 86_400
#: The same after a message of the task was dropped or has run: only repetitions can follow.
COMPLETED_MARK_TTL_SECONDS = 3 * 86_400
#: Seconds for which the outcome is stored, as long as the workers store any.
OUTCOME_TTL_SECONDS = 3 * 86_400
#: Seconds between two attempts to cancel a request that a worker has: the first and the longest.
FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.5, 4.0

_CANCEL = LuaScript.load(Path(__file__).with_name("lua") / "cancel" / "cancel.lua")


class CancelStatus(StrEnum):
    """What lua/cancel/cancel.lua has found; its legend says what each means."""

    FINISHED = "finished"
    PARKED = "parked"
    LEASED = "leased"
    CANCELLED = "cancelled"


class CancelReply(NamedTuple):
    """The reply of lua/cancel/cancel.lua."""

    status: CancelStatus
    #: Whether this is the first attempt to cancel the task.
    is_new: bool
    #: The tenant whose reservation for the task must be returned; empty for none.
    payer: str


def mark_key(task_id: str) -> str:
    """Return the Redis key that exists while messages of a task are dropped."""
    return f"fleet:cancelled:{task_id}"


def try_to_cancel(
    client: redis.Redis, backend: Any, task_id: str, *, parked: bool = True
) -> CancelReply:
    """Make the mark of a task without an outcome, and store its outcome if it only waits.

    Takes one round trip, and as long for large messages as for small ones.

    Args:
        backend: Celery's Redis result backend, which encodes the outcome.
        parked: False for a task that has left the batch lane; its state is still PARKED.
    """
    key = backend.get_key_for_task(task_id)
    outcome = {
        "status": states.REVOKED,
        "result": backend.encode_result(TaskRevokedError("revoked"), states.REVOKED),
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": task_id,
    }
    keys = [key, key, mark_key(task_id), LEASED_TASKS, payer_key(task_id)]
    ttls = [OUTCOME_TTL_SECONDS, WAITING_MARK_TTL_SECONDS]
    args = [task_id, backend.encode(outcome), *ttls, int(parked)]
    status, is_new, payer = _CANCEL.run(client, keys, args)
    return CancelReply(CancelStatus(_text(status)), bool(is_new), _text(payer))


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


class Canceller:
    """Cancels the requests of one Redis for a producer. Safe to use from any thread."""

    def __init__(self, app: Celery, client: redis.Redis, ledger: Ledger) -> None:
        self._app, self._redis, self._ledger = app, client, ledger

    def cancel(self, task_id: str, timeout: float) -> bool:
        """Cancel a task as `Fleet.cancel` does; its errors of Redis are not converted."""
        deadline, delay = time.monotonic() + timeout, FIRST_POLL_SECONDS
        while True:
            remaining = deadline - time.monotonic()
            if self._try(task_id, remaining):
                return True
            with suppress(ResultTimeout):
                return self._is_cancelled(task_id, max(0.01, min(delay, remaining)))
            if time.monotonic() >= deadline:
                raise ResultTimeout(f"not cancelled within {timeout} s; it is not started again")
            delay = min(2 * delay, MAX_POLL_SECONDS)

    def _try(self, task_id: str, timeout: float) -> bool:
        """Return whether the request is cancelled; if not, its outcome will say so."""
        try:
            return self._try_directly(task_id, timeout)
        except NoPermissionError:
            # A user who may not see which tasks run, nor command workers (config/acl.py).
            call_scheduler(self._app, "scheduler.revoke", task_id, timeout)
            return False

    def _try_directly(self, task_id: str, timeout: float, *, parked: bool = True) -> bool:
        reply = try_to_cancel(self._redis, self._app.backend, task_id, parked=parked)
        if reply.status is CancelStatus.PARKED:
            answers = call_scheduler(self._app, "scheduler.cancel", [task_id], timeout)
            if answers[task_id] == "promoted":
                return self._try_directly(task_id, timeout, parked=False)
            return bool(answers[task_id] == "cancelled")
        if reply.status is CancelStatus.LEASED:
            self._app.control.revoke(task_id, terminate=True)
        elif reply.payer:
            self._ledger.refund(reply.payer, task_id)
        return reply.status is CancelStatus.CANCELLED

    def _is_cancelled(self, task_id: str, timeout: float) -> bool:
        """Wait for the outcome: whether it is `Cancelled`. Raises ResultTimeout."""
        outcome = wait_for(self._app.AsyncResult(task_id), timeout, "no outcome yet")
        try:
            protocol.completion_or_raise(outcome)
        except Cancelled:
            return True
        except (FleetError, ValueError):  # another error, or the value of another app's task
            return False
        return False
