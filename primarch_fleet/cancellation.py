"""Cancelling: a mark in Redis, by which no worker starts a request, and the request's outcome.

The mark is written before anything is promised. Each worker looks for it in the script that takes a
message, so it holds through restarts and for as long as the message waits. The outcome is stored by
the side that knows that the request does not run: this script for a request that waits, the worker
that has its message, or the scheduler for a parked request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE
from primarch_fleet.errors import (
    Cancelled,
    FleetError,
    NoCatalogue,
    ResultTimeout,
    UnknownRequest,
)
from primarch_fleet.outgoing import OPEN_KEY, is_registered
from primarch_fleet.parts import in_parts
from primarch_fleet.queues import find_message
from primarch_fleet.redis_support import LuaScript, ScriptPipeline, decoded, is_not_permitted
from primarch_fleet.results import call_scheduler, wait_for

#: Sorted set of the messages that workers hold: `<task id>\0<lease tag>`.
LEASED_TASKS = "fleet:leased_tasks"
#: The values of a mark: a message of the task may wait, or its links, errbacks and chord were told.
WAITING, COMPLETED = "waiting", "completed"
#: What the task "scheduler.revoke" returns for an id that nothing is known of.
UNKNOWN = "unknown"
#: Seconds for which a message may wait and is still dropped.
WAITING_MARK_TTL_SECONDS = 90 * 86_400
#: The same after a message of the task was dropped or has run: only repetitions can follow.
COMPLETED_MARK_TTL_SECONDS = 3 * 86_400
#: Seconds for which the outcome is stored: the default of FLEET_RESULT_TTL, which a producer does
#: not know.
OUTCOME_TTL_SECONDS = 3 * 86_400
#: Tasks that are cancelled in one round trip, and threads that wait for workers.
CANCELLED_TASKS, MAX_THREADS = 200, 16
#: Seconds between two attempts to cancel a request that a worker has: the first and the longest.
FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.5, 4.0

_LUA = Path(__file__).with_name("lua")
#: Scripts that ask how a task has ended start with it.
OUTCOME_LUA = _LUA / "result" / "outcome.lua"
_CANCEL = LuaScript.load(OUTCOME_LUA, _LUA / "cancel" / "cancel.lua")


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


def lease_range(task_id: str) -> tuple[str, str, str]:
    """Return the key and the bounds of a task's members of LEASED_TASKS, for ZRANGEBYLEX."""
    return LEASED_TASKS, f"[{task_id}\0", f"({task_id}\1"


def try_to_cancel(
    client: redis.Redis, backend: Any, task_id: str, *, parked: bool = True
) -> CancelReply:
    """Make the mark of a task without an outcome, and store its outcome if it only waits.

    Takes one round trip, and as long for large messages as for small ones.

    Args:
        backend: Celery's Redis result backend, which encodes the outcome.
        parked: False for a task that has left the batch lane; its state is still PARKED.
    """
    return _read_reply(_CANCEL.run(client, *_arguments(backend, task_id, parked=parked)))


def _arguments(backend: Any, task_id: str, *, parked: bool = True) -> tuple[list[Any], list[Any]]:
    """KEYS and ARGV of lua/cancel/cancel.lua."""
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
    return keys, [task_id, backend.encode(outcome), *ttls, int(parked)]


def _read_reply(reply: Any) -> CancelReply:
    status, is_new, payer = reply
    return CancelReply(CancelStatus(decoded(status)), bool(is_new), decoded(payer))


def is_known(client: redis.Redis, backend: Any, task_id: str) -> bool:
    """Return whether a task waits, runs, is parked or has a stored outcome.

    Takes one round trip for the ids of this package. Other ids are in no index while their message
    waits, so the fleet's queues are searched for them.

    Args:
        backend: Celery's result backend, which knows the key of a result.
    """
    if _is_indexed(client, backend, task_id):
        return True
    if is_registered(task_id) or find_message(client, queues(client), task_id) is None:
        # Once more, after the search: a worker may have taken the message meanwhile.
        return _is_indexed(client, backend, task_id)
    return True


def _is_indexed(client: redis.Redis, backend: Any, task_id: str) -> bool:
    return task_id in _indexed(client, backend, [task_id])


def _indexed(client: redis.Redis, backend: Any, task_ids: Sequence[str]) -> list[str]:
    """The tasks that are known without a search, in one round trip."""
    pipe = client.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.zscore(OPEN_KEY, task_id)
        pipe.zrangebylex(*lease_range(task_id), 0, 1)
        # After the reads above: the outcome is stored in one step with the end of both.
        pipe.getrange(backend.get_key_for_task(task_id), 0, 0)
    replies = pipe.execute()
    found = zip(task_ids, replies[::3], replies[1::3], replies[2::3], strict=True)
    return [one for one, at, leased, result in found if at is not None or leased or result]


def queues(client: redis.Redis) -> list[str]:
    """Return the queues of the catalogue, or those that every fleet has."""
    try:
        return Catalogue.fetch(client).queues
    except NoCatalogue:
        return [REALTIME_QUEUE, BATCH_QUEUE]


class Canceller:
    """Cancels the requests of one Redis for a producer. Safe to use from any thread."""

    def __init__(self, app: Celery, client: redis.Redis, ledger: Ledger) -> None:
        self._app, self._redis, self._ledger = app, client, ledger

    def cancel(self, task_id: str, timeout: float) -> bool:
        """Cancel a task as `Fleet.cancel` does; its errors of Redis are not converted."""
        deadline, delay = time.monotonic() + timeout, FIRST_POLL_SECONDS
        self._check_known(task_id)
        while True:
            remaining = deadline - time.monotonic()
            if self._try(task_id, remaining):
                return True
            with suppress(ResultTimeout):
                return self._is_cancelled(task_id, max(0.01, min(delay, remaining)))
            if time.monotonic() >= deadline:
                raise ResultTimeout(f"not cancelled within {timeout} s; it is not started again")
            delay = min(2 * delay, MAX_POLL_SECONDS)

    def cancel_many(
        self, task_ids: Sequence[str], timeout: float, *, known: bool = False
    ) -> list[bool | FleetError]:
        """Cancel tasks as `Fleet.cancel_many` does: the outcome of each, or its error.

        Those that wait or are parked are cancelled in a few round trips, and need no thread.

        Args:
            known: Whether the caller has just seen the tasks: no queue is searched for their ids.
        """
        deadline = time.monotonic() + timeout
        outcomes: dict[str, bool | FleetError] = {}
        for ids in in_parts(dict.fromkeys(task_ids), CANCELLED_TASKS):
            outcomes |= self._cancel_together(ids, deadline, known)

        def cancel(task_id: str) -> bool | FleetError:
            try:
                return self.cancel(task_id, max(0.0, deadline - time.monotonic()))
            except FleetError as error:
                return error

        rest = [one for one in dict.fromkeys(task_ids) if one not in outcomes]
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            outcomes |= zip(rest, threads.map(cancel, rest), strict=True)
        return [outcomes[one] for one in task_ids]

    def _cancel_together(
        self, ids: list[str], deadline: float, known: bool
    ) -> dict[str, bool | FleetError]:
        """Cancel tasks that wait or are parked; return these only."""
        backend, pipe = self._app.backend, ScriptPipeline(self._redis)
        try:
            tasks = ids if known else _indexed(self._redis, backend, ids)
            for task_id in tasks:
                _CANCEL.run(pipe, *_arguments(backend, task_id))
            found = [_read_reply(reply) for reply in pipe.execute()] if tasks else []
        except NoPermissionError:
            return {}
        replies = dict(zip(tasks, found, strict=True))
        for task_id, reply in replies.items():
            if reply.payer:
                self._ledger.refund(reply.payer, task_id)
        parked = [one for one, reply in replies.items() if reply.status is CancelStatus.PARKED]
        waiting = [one for one, reply in replies.items() if reply.status is CancelStatus.CANCELLED]
        return dict.fromkeys(waiting, True) | self._cancel_parked(parked, deadline)

    def _cancel_parked(self, ids: list[str], deadline: float) -> dict[str, bool | FleetError]:
        if not ids:
            return {}
        seconds = max(0.0, deadline - time.monotonic())
        try:
            answers = call_scheduler(self._app, "scheduler.cancel", ids, seconds)
        except ResultTimeout as error:
            return dict.fromkeys(ids, error)
        return {one: True for one in ids if answers[one] == "cancelled"}

    def _check_known(self, task_id: str) -> None:
        """Raise UnknownRequest; a message of the task that may arrive later is dropped."""
        try:
            if not is_known(self._redis, self._app.backend, task_id):
                self._redis.set(mark_key(task_id), WAITING, ex=WAITING_MARK_TTL_SECONDS, nx=True)
                raise UnknownRequest
        except redis.ResponseError as error:
            # A user who may not see which tasks wait or run is told by the scheduler.
            if not is_not_permitted(error):
                raise

    def _try(self, task_id: str, timeout: float) -> bool:
        """Return whether the request is cancelled; if not, its outcome will say so."""
        try:
            return self._try_directly(task_id, timeout)
        except NoPermissionError:
            # A user who may not see which tasks run, nor command workers (config/acl.py).
            answer = call_scheduler(self._app, "scheduler.revoke", task_id, timeout)
            if answer == UNKNOWN:
                raise UnknownRequest from None
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
