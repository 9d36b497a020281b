"""Encoded messages: Celery and kombu write them, our own scripts push them to Redis."""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from celery import Celery, signals
from kombu import Connection, Producer
from kombu.transport import virtual
from kombu.utils import uuid
from kombu.utils.json import dumps

from primarch_fleet.outgoing import OutgoingMessage
from primarch_fleet.queues import PRIORITY_STEPS, priority_lists
from primarch_fleet.random_ids import random_uuids


class EncodedMessage(NamedTuple):
    """A message as Redis stores it."""

    #: The list to push to: one of the lists of the message's queue.
    list_key: str
    text: str


class MessageEncoder:
    """Encodes an app's messages without sending them. Safe to use from any thread.

    Celery encodes one message of each form; others of the form are its text with their own id,
    arguments and delivery tag, because Celery and kombu take ten times as long for a message. They
    encode each message where that makes a difference: in a task, which counts what it sends among
    its children, and for receivers of Celery's signals, which fire as if the messages were sent:
    `after_task_publish` fires before the push.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = Connection(transport=_CapturingTransport)

    def encode(self, messages: Sequence[OutgoingMessage]) -> list[EncodedMessage]:
        """Encode messages, in their order."""
        if len(messages) < 2 or self._is_each_seen():
            complete = (
                {"task_id": one.ticket.id, "args": [json.loads(one.argument)]}
                | one.options.arguments()
                for one in messages
            )
            return [captured.encoded() for captured in self._by_celery(complete)]
        options = dict.fromkeys(one.options for one in messages)
        captured = self._by_celery(
            {"task_id": _ID, "args": [_ARGUMENT]} | one.arguments() for one in options
        )
        forms = {key: _Form.of(one) for key, one in zip(options, captured, strict=True)}
        return [
            forms[one.options].filled(one.ticket.id, one.argument, tag)
            for one, tag in zip(messages, random_uuids(), strict=False)
        ]

    def _is_each_seen(self) -> bool:
        """Whether something sees each message on its way."""
        return bool(
            self._app.current_worker_task
            or any(signal.receivers for signal in _SIGNALS)
            or self._app.conf.task_send_sent_event
        )

    def _by_celery(self, messages: Iterable[dict[str, Any]]) -> list[_Captured]:
        channel: Any = self._connection.channel()
        with channel:
            producer = Producer(channel, auto_declare=False)
            for options in messages:
                self._app.send_task(**options, producer=producer)
            captured: list[_Captured] = channel.captured
            return captured


#: Celery's signals of a message that is sent.
_SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
#: What a form has in the places of what each message has of its own. None occurs elsewhere.
_ID, _ARGUMENT, _BODY, _TAG = (uuid() for _ in range(4))


class _Form(NamedTuple):
    """The text of messages that differ in id, arguments and delivery tag only."""

    list_key: str
    #: The text around _ID, _TAG and _BODY, and these.
    parts: list[str]
    #: The decoded body before and after the argument.
    body_start: str
    body_end: str

    @classmethod
    def of(cls, sample: _Captured) -> _Form:
        """Take the form from a message with _ID and _ARGUMENT."""
        message = dict(sample.message)
        body = base64.b64decode(message["body"]).decode()
        body_start, body_end = body.split(dumps(_ARGUMENT))
        message["body"] = _BODY
        message["properties"] = {**message["properties"], "delivery_tag": _TAG}
        parts = re.split(f"({_ID}|{_TAG}|{_BODY})", dumps(message))
        return cls(sample.list_key, parts, body_start, body_end)

    def filled(self, task_id: str, argument: str, tag: str) -> EncodedMessage:
        """Return the message of the form with an id, an argument and a delivery tag."""
        body = f"{self.body_start}{argument}{self.body_end}"
        own = {_ID: task_id, _TAG: tag, _BODY: base64.b64encode(body.encode()).decode()}
        return EncodedMessage(self.list_key, "".join([own.get(part, part) for part in self.parts]))


class _Captured(NamedTuple):
    """A message as kombu would push it."""

    list_key: str
    message: dict[str, Any]

    def encoded(self) -> EncodedMessage:
        return EncodedMessage(self.list_key, dumps(self.message))


class _CapturingChannel(virtual.Channel):
    """A channel that keeps what kombu's Redis channel would push."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.captured: list[_Captured] = []

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        step = bisect(PRIORITY_STEPS, message["properties"]["priority"]) - 1
        self.captured.append(_Captured(priority_lists(queue)[step], message))

    def _size(self, queue: str) -> int:
        return 0  # kombu calls this when it declares a queue


class _CapturingTransport(virtual.Transport):
    Channel = _CapturingChannel
