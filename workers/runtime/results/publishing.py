"""Publishes what a worker sends once: retries, links, chains, errbacks and the bodies of chords.

kombu repeats a publish whose reply is lost. The server may have executed it, so the message would
wait twice. Here the messages of a thread are numbered, and a script pushes a message only if its
number was not pushed before. The messages by which a chord ends have numbers of their own, which
all workers share: the next worker sends what a killed one has not sent.

kombu gives up a publish that fails again after it has connected again. Celery waits as
`task_publish_retry_policy` says, but only for links, chains and the bodies of chords. Here all that
a worker publishes waits so: a server that refuses writes for a while loses no retry.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from celery import Celery, states
from celery.app import amqp
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from primarch_fleet.celery_redis import PatientChannel
from workers.runtime.scripts import PUBLISH

#: The keys of results, as Celery names them.
RESULT = "celery-task-meta-"
#: The keys of sequences: how many messages of each were pushed.
PUBLISHED = "fleet:published:"
#: Seconds for which the sequence of a thread is remembered: longer than a publish is repeated.
THREAD_TTL_SECONDS = 86_400
#: The header of a message, while it is published, that has its place in a sequence, by queue.
_PLACES = "fleet_places"

T = TypeVar("T")


@dataclass(frozen=True)
class _Place:
    """The place of a message in a sequence."""

    key: str
    number: int
    ttl_seconds: int


class _Places(dict[str, Any]):
    """The places of one message, by queue."""


class _Sequence:
    """Numbers messages."""

    def __init__(self, name: str, ttl_seconds: int) -> None:
        self._last = _Place(PUBLISHED + name, 0, ttl_seconds)

    def next(self) -> _Place:
        self._last = replace(self._last, number=self._last.number + 1)
        return self._last


class _OfThread(threading.local):
    """The sequence of each thread."""

    def __init__(self) -> None:
        self.sequence = _Sequence(uuid.uuid4().hex, THREAD_TTL_SECONDS)


_of_thread = _OfThread()
#: The sequence of the chord that ends in this context.
_of_chord: ContextVar[_Sequence | None] = ContextVar("sequence_of_chord", default=None)


@dataclass
class Followers:
    """The links and errbacks of a running task, and the next task of its chain."""

    task_id: str
    #: The states of a stored outcome after which they are not sent: another run has ended the task.
    #: Empty until the body has ended.
    not_after: tuple[str, ...] = ()

    def are_links(self) -> None:
        """The body has ended: Celery sends links, before it stores the success."""
        self.not_after = tuple(states.READY_STATES)

    def are_errbacks(self) -> None:
        """The task fails: Celery sends errbacks, after it has stored the failure."""
        self.not_after = (states.SUCCESS,)


#: Those of the task that runs in this context.
_followers: ContextVar[Followers | None] = ContextVar("followers", default=None)


@contextmanager
def publishing_followers(followers: Followers) -> Iterator[None]:
    """Skip, within the block, what follows an outcome that is not the stored one.

    A worker may stand still, or wait for Redis, while another worker ends the same task.
    """
    token = _followers.set(followers)
    try:
        yield
    finally:
        _followers.reset(token)


def sending_errbacks() -> None:
    """Let what the running task sends from now on be its errbacks."""
    if (followers := _followers.get()) is not None:
        followers.are_errbacks()


def _guard(message: dict[str, Any]) -> Followers | None:
    """The followers that a message is of; None for others, and for what ends a chord."""
    followers = _followers.get()
    if followers is None or not followers.not_after or ends_chord():
        return None
    return followers if message["headers"].get("parent_id") == followers.task_id else None


@contextmanager
def publishing_of_chord(group: str, ttl_seconds: int) -> Iterator[None]:
    """Skip, within the block, messages that another block for the same chord has published.

    Messages are identified by their order in the block.

    Args:
        group: The id of the chord's header.
        ttl_seconds: How long to remember it.
    """
    token = _of_chord.set(_Sequence(group, ttl_seconds))
    try:
        yield
    finally:
        _of_chord.reset(token)


def ends_chord() -> bool:
    """Return whether the caller is within such a block."""
    return _of_chord.get() is not None


def placed(
    message: dict[str, Any], queue: str, next_place: Callable[[], T]
) -> tuple[T, dict[str, Any]]:
    """Return the place of a message in a sequence, and the message without it.

    The place is the same each time that Celery or kombu repeats the publish: they then make another
    message of the same headers.
    """
    places = message["headers"].get(_PLACES)
    if not isinstance(places, _Places):  # a producer may have set the header of a message
        places = message["headers"][_PLACES] = _Places()
    if queue not in places:
        places[queue] = next_place()
    headers = {name: each for name, each in message["headers"].items() if name != _PLACES}
    return places[queue], {**message, "headers": headers}


class PublishingChannel(PatientChannel):
    """kombu's Redis channel of a worker, which pushes each task message once."""

    # Private attributes of kombu's Channel.
    _q_for_pri: Any
    _get_message_priority: Any

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if "task" not in message["headers"]:  # such as a reply to a control command
            super()._put(queue, message, **kwargs)
            return
        place, sent = placed(message, queue, (_of_chord.get() or _of_thread.sequence).next)
        keys = [self._q_for_pri(queue, self._get_message_priority(message, reverse=False))]
        keys.append(place.key)
        args = [dumps(sent), place.number, place.ttl_seconds]
        if (guard := _guard(message)) is not None:
            keys.append(RESULT + guard.task_id)
            args.append(" ".join(guard.not_after))
        with self.conn_or_acquire() as client:
            PUBLISH.run(client, keys, args)


class AMQP(amqp.AMQP):
    """Celery's AMQP of a worker, which publishes every task as Celery publishes links."""

    # Attributes of Celery's that it does not document.
    _create_task_sender: Callable[[], Callable[..., Any]]
    _retry_publish: Callable[..., Any]

    @functools.cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """What publishes a task: it waits while the server refuses writes, unless `retry=False`."""
        send = self._create_task_sender()

        def send_patiently(*args: Any, **options: Any) -> Any:
            # The main thread also takes messages, which frees the memory of a full server.
            if threading.current_thread() is threading.main_thread():
                return send(*args, **options)
            return self._retry_publish(send, *args, **options)

        return send_patiently


def use_in_this_process(app: Celery[Any]) -> None:
    """Let what the app of a worker publishes be published once, and wait for the server.

    Call this before the app is used.
    """
    app.amqp_cls = f"{__name__}:{AMQP.__name__}"
    kombu_redis.Transport.Channel = PublishingChannel
