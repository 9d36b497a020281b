"""Encoded messages: Celery and kombu write them, our own scripts push them to Redis."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery import Celery
from kombu import Connection, Producer
from kombu.transport import virtual
from kombu.utils.json import dumps

from primarch_fleet.queues import PRIORITY_STEPS, priority_lists


class EncodedMessage(NamedTuple):
    """A message as Redis stores it."""

    #: The list to push to: one of the lists of the message's queue.
    list_key: str
    text: str


class MessageEncoder:
    """Encodes an app's messages without sending them. Safe to use from any thread.

    Celery's signals fire as if the messages were sent: `after_task_publish` fires before the push.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = Connection(transport=_CapturingTransport)

    def encode(self, messages: Iterable[dict[str, Any]]) -> list[EncodedMessage]:
        """Encode messages, in their order.

        Args:
            messages: The arguments of Celery's `send_task` for each message.
        """
        channel: Any = self._connection.channel()
        with channel:
            producer = Producer(channel, auto_declare=False)
            for options in messages:
                self._app.send_task(**options, producer=producer)
            captured: list[EncodedMessage] = channel.captured
            return captured


class _CapturingChannel(virtual.Channel):
    """A channel that keeps what kombu's Redis channel would push."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.captured: list[EncodedMessage] = []

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        step = bisect(PRIORITY_STEPS, message["properties"]["priority"]) - 1
        self.captured.append(EncodedMessage(priority_lists(queue)[step], dumps(message)))

    def _size(self, queue: str) -> int:
        return 0  # kombu calls this when it declares a queue


class _CapturingTransport(virtual.Transport):
    Channel = _CapturingChannel
