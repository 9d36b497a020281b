"""What a completion sends is sent once, however often the completion is begun.

A scheduler may die after it has sent a task's links and before the task is known to be completed:
the next one completes the task again. Links, chains, errbacks and the bodies of chords are messages
that Celery publishes on the app's pool. Here that is a pool of channels which, in `once`, number
the messages, and put each on its queue by a script that remembers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

from celery import Celery
from kombu.pools import producers
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from scheduler.store.keys import OUTCOME_TTL_SECONDS, PREFIX
from scheduler.store.scripts import texts

SENT = PREFIX + "sent:"

_places: ContextVar[Iterator[str] | None] = ContextVar("places", default=None)


@contextmanager
def publish_once(task_id: str) -> Iterator[None]:
    """Within the block, what this thread publishes is sent if no block for the task sent it.

    The messages are told apart by their order, and by their ids where two tasks may send the same
    one: the body of a chord.
    """
    token = _places.set(f"{SENT}{task_id}:{number}" for number in count())
    try:
        yield
    finally:
        _places.reset(token)


class Channel(kombu_redis.Channel):
    """kombu's, but for messages that are published within `once`."""

    # What this relies on and kombu does not publish.
    _q_for_pri: Any
    _get_message_priority: Any
    conn_or_acquire: Any

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        places = _places.get()
        if places is None:
            super()._put(queue, message, **kwargs)
            return
        prefix = self.global_keyprefix
        priority = self._get_message_priority(message, reverse=False)
        marks = (next(places), SENT + str(message["headers"].get("id")))
        names = [prefix + name for name in (self._q_for_pri(queue, priority), *marks)]
        with self.conn_or_acquire() as client:
            client.execute_command(
                "EVAL", texts()["push_once"], 3, *names, dumps(message), OUTCOME_TTL_SECONDS
            )


class Transport(kombu_redis.Transport):
    """Redis, with `once`."""

    Channel = Channel


def publish_through(app: Celery) -> None:
    """Make this process publish on channels that know `once`. Not for brokers other than Redis."""
    url = app.conf.broker_write_url or app.conf.broker_url
    if url.startswith(("redis://", "rediss://")):
        connection = app.connection_for_write(url=f"once{url}")
        app.amqp._producer_pool = producers[connection]  # type: ignore[attr-defined]


TRANSPORT_ALIASES["onceredis"] = TRANSPORT_ALIASES["oncerediss"] = (
    "scheduler.completion.publish_once:Transport"
)
