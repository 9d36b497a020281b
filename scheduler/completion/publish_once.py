"""Publishes the messages of a completion once, even when the completion is repeated.

A scheduler may die between publishing a task's links and storing that the task is completed; the
next scheduler completes the task again. Celery publishes links, chains, errbacks and chord bodies
through the app's producer pool. `publish_through` replaces that pool. Within `publish_once` its
channels number the messages of a task and push each with a script that remembers what was pushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.pools import producers
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from primarch_fleet import redis_support
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.redis_url import normalized
from scheduler.store.keys import OUTCOME_TTL_SECONDS, PREFIX
from workers.runtime.results.publishing import PublishingChannel, ends_chord, placed

SENT = PREFIX + "sent:"
PUSH_ONCE = LuaScript.load(Path(__file__).parent.parent / "store" / "lua" / "push_once.lua")

#: Redis keys that mark the next messages of the current task as published; None outside of a block.
_marks: ContextVar[Iterator[str] | None] = ContextVar("marks", default=None)


@contextmanager
def publish_once(task_id: str) -> Iterator[None]:
    """Skip, within the block, messages that an earlier block for the same task has published.

    Messages are identified by their order in the block. Where two tasks may send the same message,
    the body of a chord, its task id identifies it too. Applies to messages of this thread.
    """
    token = _marks.set(f"{SENT}{task_id}:{number}" for number in count())
    try:
        yield
    finally:
        _marks.reset(token)


class Channel(PublishingChannel):
    """kombu's Redis channel, which publishes each message of a `publish_once` block once."""

    pool: Any  # an attribute of kombu's that it does not document

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        marks = _marks.get()
        if marks is None or ends_chord():  # by which lane the chord ends is not known
            super()._put(queue, message, **kwargs)
            return
        priority = self._get_message_priority(message, reverse=False)
        by_order, sent = placed(message, queue, marks.__next__)
        by_task_id = SENT + str(message["headers"].get("id"))
        keys = [self._q_for_pri(queue, priority), by_order, by_task_id]
        client = redis_support.on_pool(self.pool)
        PUSH_ONCE.run(client, keys, [dumps(sent), OUTCOME_TTL_SECONDS])


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel


def publish_through(app: Celery) -> None:
    """Replace the app's producer pool; the new pool supports `publish_once`."""
    # Normalized: kombu uses TLS for a scheme of our own only if the URL has options of TLS.
    url = normalized(app.conf.broker_write_url or app.conf.broker_url)
    connection = app.connection_for_write(url=f"once{url}")
    app.amqp._producer_pool = producers[connection]  # type: ignore[attr-defined]


TRANSPORT_ALIASES["onceredis"] = TRANSPORT_ALIASES["oncerediss"] = (
    "scheduler.completion.publish_once:Transport"
)
