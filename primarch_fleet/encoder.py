"""A message as it is pushed to Redis: written by Celery and kombu, sent by our own scripts."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery import Celery
from kombu import Connection, Producer
from kombu.transport import virtual
from kombu.utils.json import dumps

from primarch_fleet.errors import LaneFull
from primarch_fleet.queues import PRIORITY_STEPS, priority_lists

#: Of Redis's memory, if that is limited, the share above which nothing more is sent: the rest is
#: for the results of what waits, which cannot be stored once it is full.
MAX_MEMORY_FRACTION = 0.95
#: Seconds that a producer is told to wait for room in it.
REDIS_FULL_RETRY_SECONDS = 5.0


class EncodedMessage(NamedTuple):
    """A message and the list of its queue that it is for."""

    list_key: str
    text: str


class MessageEncoder:
    """Writes an app's messages, and does not send them. Safe to use from any thread.

    Celery's signals are sent as if it did: `after_task_publish` comes before the message is sent.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = Connection(transport=_CapturingTransport)

    def encode(self, messages: Iterable[dict[str, Any]]) -> list[EncodedMessage]:
        """The letters of messages, each the arguments of Celery's `send_task`."""
        sheet: Any = self._connection.channel()
        with sheet:
            producer = Producer(sheet, auto_declare=False)
            for options in messages:
                self._app.send_task(**options, producer=producer)
            written: list[EncodedMessage] = sheet.letters
            return written


class _CapturingChannel(virtual.Channel):
    """A channel that keeps what kombu's Redis channel would push."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.letters: list[EncodedMessage] = []

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        step = bisect(PRIORITY_STEPS, message["properties"]["priority"]) - 1
        self.letters.append(EncodedMessage(priority_lists(queue)[step], dumps(message)))

    def _size(self, queue: str) -> int:
        return 0  # kombu asks when it declares a queue


class _CapturingTransport(virtual.Transport):
    Channel = _CapturingChannel


def redis_full(percent: int) -> LaneFull:
    """What a producer is told by a Redis that is almost full."""
    return LaneFull.until(f"redis: {percent}% of its memory is used", REDIS_FULL_RETRY_SECONDS)
