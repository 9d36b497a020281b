"""Completes the tasks of requests, each exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import BatchError, RequestFailed
from scheduler.job import Group, Job, Parked
from scheduler.receipt import completion
from scheduler.store import Store, Tries
from scheduler.tracer import Tracer

logger = logging.getLogger(__name__)

#: Completions under way at once: what Celery does for each is mostly waiting for Redis.
THREADS = 4

Outcome = Completion | RequestFailed
Make = Callable[[Parked, Tries, float], Outcome]


class Deliverer:
    """Gives requests their outcomes.

    A request is completed once, however often it is asked for and by how many schedulers; only one
    that dies while it completes a request leaves it to be completed again.

    Args:
        observe: Told of the receipt of each answered request.
    """

    def __init__(self, store: Store, tracer: Tracer, observe: Callable[[Receipt], None]) -> None:
        self._store = store
        self._tracer = tracer
        self._observe = observe
        # Plain threads, not asyncio.to_thread: that would carry the running task's context along.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="deliver")

    async def answer(self, job: Job, request: str, body: dict[str, Any]) -> str | None:
        """Complete a request with the provider's answer; its tenant, None if it was done before."""

        def make(parked: Parked, tries: Tries, now: float) -> Outcome:
            return completion(job, parked, tries, body, now)

        outcome = await self._complete(request, job.group, job.intent, make)
        if not isinstance(outcome, Completion):
            return None
        self._observe(outcome.receipt)
        await self._store.paid(job, outcome.receipt.cost, outcome.receipt.saving)
        return outcome.receipt.tenant_id

    async def fail(
        self, request: str, error: RequestFailed, group: Group, intent: str = ""
    ) -> None:
        """Complete a request with an error: one of a job, or one that waits."""
        await self._complete(request, group, intent, lambda *_: error)

    async def close(self) -> None:
        """Return when no completion is under way."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _complete(
        self, request: str, group: Group, intent: str, make: Make
    ) -> Outcome | None:
        turn = await self._store.begin(request)
        if turn == "theirs":
            return None
        outcome = None if turn == "done" else await self._trace(request, make)
        await self._store.finish(request, group, intent)
        return outcome

    async def _trace(self, request: str, make: Make) -> Outcome | None:
        parked, tries = (await self._store.load([request]))[request]
        if parked is None:
            logger.error("%s has no record", request, extra={"action": "batch_record_missing"})
            return None
        now = await self._store.now()
        outcome = _made(request, make, parked, tries, now)
        value = outcome.model_dump(mode="json") if isinstance(outcome, Completion) else outcome
        args = (parked.context, value, now - parked.parked_at)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._tracer.complete, *args)
        return outcome


def _made(request: str, make: Make, parked: Parked, tries: Tries, now: float) -> Outcome:
    """The outcome, or an error when the provider's answer makes no sense."""
    try:
        return make(parked, tries, now)
    except Exception:
        logger.exception("%s has a bad answer", request, extra={"action": "batch_answer_bad"})
        return BatchError("the provider's answer could not be understood")
