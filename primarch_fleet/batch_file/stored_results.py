"""Stored results of many tasks, read in few round trips and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import redis
from celery import Celery
from celery.states import READY_STATES

from primarch_fleet.outgoing import idempotency_record
from primarch_fleet.progress import STATUS_PREFIX_BYTES, state_of
from primarch_fleet.results import reachable
from primarch_fleet.streaming import decode_result

#: Most results that are read together, and their bytes, unless one alone is larger.
CHUNK_RESULTS, CHUNK_BYTES = 200, 4 * 2**20


class StoredResults:
    """Reads the outcomes of tasks.

    Args:
        app: Its result backend knows the key and the form of a result.
        client: Redis, with replies in bytes.
    """

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._backend = cast(Any, app.backend)
        self._redis = client
        #: Results that are read together next: it adapts to their size.
        self._chunk_results = 1

    def read(self, task_ids: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Return each task that has ended, with its value or exception.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        remaining = self._ended(task_ids)
        while remaining:
            chunk, remaining = remaining[: self._chunk_results], remaining[self._chunk_results :]
            with reachable():
                texts = cast(list[Any], self._redis.mget([self._key(one) for one in chunk]))
            self._adapt(sum(len(text) for text in texts if text))
            for task_id, text in zip(chunk, texts, strict=True):
                if (outcome := decode_result(self._backend, text)) is not None:
                    yield task_id, outcome

    def asked(self, task_ids: Sequence[str]) -> list[str]:
        """Return the tasks of requests that were submitted, with an idempotency key, before.

        Raises:
            FleetUnavailable: The broker did not answer.
        """
        pipe = self._redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.exists(idempotency_record(task_id))
        with reachable():
            found = pipe.execute() if task_ids else []
        return [one for one, is_known in zip(task_ids, found, strict=True) if is_known]

    def _ended(self, task_ids: Sequence[str]) -> list[str]:
        pipe = self._redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.getrange(self._key(task_id), 0, STATUS_PREFIX_BYTES - 1)
        with reachable():
            starts: list[bytes] = pipe.execute() if task_ids else []
        return [
            task_id
            for task_id, start in zip(task_ids, starts, strict=True)
            if state_of(start.decode(errors="replace")) in READY_STATES
        ]

    def _adapt(self, size_bytes: int) -> None:
        is_small = 2 * size_bytes <= CHUNK_BYTES
        self._chunk_results = min(CHUNK_RESULTS, 2 * self._chunk_results) if is_small else 1

    def _key(self, task_id: str) -> bytes:
        key: bytes = self._backend.get_key_for_task(task_id)
        return key
