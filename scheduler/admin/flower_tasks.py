"""Lets Flower show tasks that it has had no event of: those that wait, and those before its start.

Flower knows tasks by the events of workers. Producers send none: each would be another message. But
Redis knows which tasks of the fleet's client have no outcome yet, which tasks workers have, which
are parked, and which wait in the queues.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import redis
from celery import states
from celery.app.task import Context
from celery.events.state import Task
from flower.utils import tasks as flower_tasks
from flower.views import tasks as flower_pages
from redis.exceptions import NoPermissionError

from primarch_fleet.cancellation import lease_range, mark_key
from primarch_fleet.outgoing import OPEN_KEY, is_registered
from primarch_fleet.protocol import HIDDEN_ARGUMENTS
from primarch_fleet.queues import find_message
from scheduler.model.jsonl import request_id
from scheduler.store.keys import REQUESTS
from tasks import event_text
from workers.runtime.dead_letters import task_request
from workers.runtime.leases.lease_entry import parts
from workers.runtime.leases.leases import LEASES_KEY

logger = logging.getLogger(__name__)

#: Seconds for which the queues are searched for a task: Flower shows nothing else meanwhile.
SEARCH_SECONDS = 2.0
#: The user of config/acl.py for Flower.
RESTRICTED_USER = "flower"
#: The end of the arguments of a task, by where its request is.
WAITS, RUNS, IS_PARKED = (
    "the request waits",
    "a worker has the request",
    "the request is parked for a batch",
)


class OpenTasks:
    """Finds tasks without an outcome in Redis, for Flower's page of a task and its API.

    Args:
        client: With a timeout: Flower waits for its answers. Must not decode responses.
        queues: Where tasks wait.
        find: Finds a task among Flower's events, by the events and its id; None for an unknown one.
    """

    def __init__(
        self, client: redis.Redis, queues: Iterable[str], find: Callable[[Any, str], Any]
    ) -> None:
        self._redis, self._queues, self._find = client, list(queues), find

    def find(self, events: Any, task_id: str) -> Any:
        """Return a task as Flower knows it, or as Redis does; None if neither does.

        Flower has a button to revoke a task for the state RECEIVED, and one to terminate it for
        STARTED.
        """
        found = self._find(events, task_id)
        if found is None:
            return self._open_task(task_id)
        if not found.args and found.state in states.UNREADY_STATES:  # events of it were missed
            found.args = getattr(self._open_task(task_id), "args", None)
        return found

    def _open_task(self, task_id: str) -> Any:
        pipe = self._redis.pipeline(transaction=False)
        pipe.zscore(OPEN_KEY, task_id)
        pipe.zrangebylex(*lease_range(task_id), 0, 1)
        pipe.exists(mark_key(task_id))
        try:
            submitted_at, leases, is_cancelled = pipe.execute()
            if leases:
                message = self._leased(leases[0].rpartition(b"\0")[2])
                return _shown(task_id, states.STARTED, submitted_at, message, RUNS)
            if submitted_at is None and (is_cancelled or is_registered(task_id)):
                return None  # it has its outcome; its message may still be in a queue
            if parked := self._parked(task_id):
                return _shown(task_id, states.RECEIVED, submitted_at, parked, IS_PARKED)
            message = self._message(task_id)
        except redis.RedisError as error:  # Flower then says that the task is unknown
            logger.warning("task not read: %s", error, extra={"action": "open_task_not_read"})
            return None
        if message is None and submitted_at is None:
            return None
        return _shown(task_id, states.RECEIVED, submitted_at, message, WAITS)

    def _leased(self, tag: bytes) -> Context | None:
        """The message of a lease."""
        entry = self._value(LEASES_KEY, tag)
        return task_request(parts(entry)[0]) if entry else None

    def _parked(self, task_id: str) -> Context | None:
        """The task of a parked request; the user `flower` of config/acl.py reads none."""
        if self._redis.get_connection_kwargs().get("username") == RESTRICTED_USER:
            return None
        record = self._value(REQUESTS, request_id(task_id))
        return Context(json.loads(record)["context"]) if record else None

    def _value(self, key: str, field: str | bytes) -> bytes | None:
        """The field of a hash; None if there is none, or Flower's user may not read it."""
        client: Any = self._redis  # redis-py types each command for its sync and async clients
        try:
            value: bytes | None = client.hget(key, field)
        except NoPermissionError:
            return None
        return value

    def _message(self, task_id: str) -> Context | None:
        """The message of a task that waits; None if there is none, or too many to search."""
        try:
            found = find_message(self._redis, self._queues, task_id, SEARCH_SECONDS)
        except TimeoutError as error:
            action = {"action": "open_task_not_searched", "task_id": task_id}
            logger.warning("task not found in time: %s", error, extra=action)
            return None
        return task_request(found.decode(errors="replace")) if isinstance(found, bytes) else None


def _shown(
    task_id: str, state: str, submitted_at: float | None, message: Context | None, where: str
) -> Task:
    name = str(getattr(message, "task", ""))
    text = event_text.of_arguments(name, message.args, message.kwargs) if message else ""
    args = where if text in ("", HIDDEN_ARGUMENTS) else f"{text}: {where}"
    return Task(task_id, state=state, sent=submitted_at, timestamp=submitted_at, args=args)


def show_open_tasks(client: redis.Redis, queues: Iterable[str]) -> None:
    """Let Flower in this process show tasks that only Redis knows. Call it once."""
    find = OpenTasks(client, queues, flower_tasks.get_task_by_id).find
    flower_tasks.get_task_by_id = flower_pages.get_task_by_id = find
