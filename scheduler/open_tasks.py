"""Lets Flower show tasks that it has had no event of: those that wait, and those before its start.

Flower knows tasks by the events of workers. Producers of the fleet send none: each would be another
message. But Redis knows which of their tasks have no outcome yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import redis
from celery import states
from celery.events.state import Task
from flower.utils import tasks as flower_tasks
from flower.views import tasks as flower_pages

from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.outgoing import OPEN_KEY

logger = logging.getLogger(__name__)


class OpenTasks:
    """Finds tasks without an outcome in Redis, for Flower's page of a task and its API.

    Args:
        client: With a timeout: Flower waits for its answers.
        find: Finds a task among Flower's events, by the events and its id; None for an unknown one.
    """

    def __init__(self, client: redis.Redis, find: Callable[[Any, str], Any]) -> None:
        self._redis, self._find = client, find

    def find(self, events: Any, task_id: str) -> Any:
        """Return a task as Flower knows it, or as Redis does; None if neither does.

        Flower has a button to revoke a task for the state RECEIVED, and one to terminate it for
        STARTED.
        """
        return self._find(events, task_id) or self._open_task(task_id)

    def _open_task(self, task_id: str) -> Any:
        pipe = self._redis.pipeline(transaction=False)
        pipe.zscore(OPEN_KEY, task_id)
        pipe.zrangebylex(LEASED_TASKS, f"[{task_id}\0", f"({task_id}\1", 0, 1)
        try:
            submitted_at, leases = pipe.execute()
        except redis.RedisError as error:  # Flower then says that the task is unknown
            logger.warning("task not read: %s", error, extra={"action": "open_task_not_read"})
            return None
        if submitted_at is None:
            return None
        state = states.STARTED if leases else states.RECEIVED
        where = "a worker has the request" if leases else "the request waits"
        return Task(task_id, state=state, sent=submitted_at, timestamp=submitted_at, args=where)


def show_open_tasks(client: redis.Redis) -> None:
    """Let Flower in this process show tasks that only Redis knows. Call it once."""
    find = OpenTasks(client, flower_tasks.get_task_by_id).find
    flower_tasks.get_task_by_id = flower_pages.get_task_by_id = find
