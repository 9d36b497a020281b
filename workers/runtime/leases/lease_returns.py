"""Puts the messages of leases back in their queues, or makes them dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

import redis
from celery.app.task import Context

from workers.runtime.dead_letters import LETTER_KEYS, Undeliverable, task_request
from workers.runtime.leases.lease_entry import next_delivery, parts
from workers.runtime.scripts import DEAD_LETTER, RELEASE

logger = logging.getLogger(__name__)

#: A message's new place among those of its tenant.
NEXT, LAST = "next", "last"


class LeaseReturns:
    """Ends leases without an acknowledgement. Its methods raise redis.RedisError.

    Args:
        keys: Of the hash of leases and of the zset of their renewals.
        max_deliveries: Deliveries after which a message becomes a dead letter.
        on_dead_letter: Called with the task's request and its error, for each dead letter that
            names a task.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Sequence[str],
        max_deliveries: int,
        on_dead_letter: Callable[[Context, Exception], None],
    ) -> None:
        self._client, self._keys = client, keys
        self._max_deliveries, self._on_dead_letter = max_deliveries, on_dead_letter

    def give_back(self, tag: str, place: str, *, counts: bool) -> None:
        """Put the message of a lease back in its queue, if there is such a lease."""
        if (entry := self._entry(tag)) is not None:
            self.put_back(tag, entry, place, counts=counts)

    def make_dead_letter(self, tag: str, problem: Undeliverable) -> None:
        """Make the message of a lease a dead letter, if there is such a lease."""
        if (entry := self._entry(tag)) is not None:
            message, queue = parts(entry)
            self._store_dead_letter(tag, queue, message, problem)

    def put_back(
        self, tag: str, entry: bytes, place: str, *, counts: bool, unrenewed_seconds: float = 0
    ) -> bool:
        """Put a message back in its queue, or make it a dead letter if it may not be delivered.

        Args:
            entry: Of the hash of leases: '[message, "", list it came from]'.
            place: NEXT or LAST.
            counts: Whether this was a delivery that counts.
            unrenewed_seconds: Only if the lease was not renewed for so long.

        Returns:
            False if the lease has ended or was renewed; then nothing changes.
        """
        queue, message, problem = next_delivery(entry, counts, self._max_deliveries)
        if problem:
            return self._store_dead_letter(tag, queue, message, problem, unrenewed_seconds)
        args = [tag, message, place, unrenewed_seconds]
        return bool(RELEASE.run(self._client, [*self._keys, queue], args))

    def _entry(self, tag: str) -> bytes | None:
        return cast("bytes | None", self._client.hget(self._keys[0], tag))

    def _store_dead_letter(
        self,
        tag: str,
        queue: str,
        message: str,
        problem: Undeliverable,
        unrenewed_seconds: float = 0,
    ) -> bool:
        letter = problem.dead_letter(queue, message)
        args = [*letter.script_args(), tag, unrenewed_seconds]
        if not DEAD_LETTER.run(self._client, [*LETTER_KEYS, *self._keys], args):
            return False
        logger.error(
            "Dead letter from %s: %s",
            letter.queue,
            letter.kind,
            extra={"action": "message_dead_lettered"},
        )
        if (request := task_request(letter.message)) is not None:
            self._on_dead_letter(request, problem.task_error())
        return True
