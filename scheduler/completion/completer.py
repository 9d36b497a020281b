"""Completes the tasks of requests, each exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import redis

from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import BatchError, RequestFailed
from scheduler.completion import accounting
from scheduler.completion.celery_replay import CeleryReplay
from scheduler.completion.receipt import completion
from scheduler.model.job import AttemptCounts, Job, ParkedRequest, RequestGroup
from scheduler.model.outcomes import CompletionOwner, RequestOutcome
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Location, Store

logger = logging.getLogger(__name__)

#: Completions under way at once: what Celery does for each is mostly waiting for Redis.
MAX_THREADS = 4

Outcome = Completion | RequestFailed
Make = Callable[[ParkedRequest, AttemptCounts, float], Outcome]


class Completer:
    """Gives requests their outcomes.

    A request is completed once, however often it is asked for and by how many schedulers; only one
    that dies while it completes requests leaves them to be completed again, and what that sends was
    sent before (outbox.py). One that cannot be completed stays where it is, logged, and keeps none
    of the others; Redis being away is raised.

    Args:
        observe: Told of the receipt of each answered request.
    """

    def __init__(
        self,
        store: Store,
        bodies: BlobStore,
        tracer: CeleryReplay,
        observe: Callable[[Receipt], None],
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._tracer = tracer
        self._observe = observe
        # Plain threads, not asyncio.to_thread: that would carry the running task's context along.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="deliver")

    async def answer(self, job: Job, answers: Mapping[str, dict[str, Any]]) -> set[str]:
        """Complete requests with the provider's answers; the tenants of those that were not done
        before.
        """
        makes: dict[str, Make] = {
            request: partial(completion, job, body) for request, body in answers.items()
        }
        outcomes = await self._complete(makes, (job.group, job.intent))
        receipts = [one.receipt for one in outcomes if isinstance(one, Completion)]
        for receipt in receipts:
            self._observe(receipt)
        if receipts:
            cost = sum(receipt.cost for receipt in receipts)
            await self._store.costs.paid(job, cost, sum(receipt.saving for receipt in receipts))
        return {receipt.tenant_id for receipt in receipts}

    async def fail(
        self, errors: Mapping[str, RequestFailed], group: RequestGroup, intent: str = ""
    ) -> None:
        """Complete requests with errors: those of a job, or some that wait."""
        makes: dict[str, Make] = {
            request: partial(_same, error) for request, error in errors.items()
        }
        await self._complete(makes, (group, intent))

    async def close(self) -> None:
        """Return when no completion is under way."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _complete(self, makes: Mapping[str, Make], place: Location) -> list[Outcome]:
        """The outcomes of the requests that this call has completed."""
        if not makes:
            return []
        turns = await self._store.begin_completions(list(makes))
        ours = [request for request, turn in turns.items() if turn is CompletionOwner.OURS]
        if not ours:
            return []
        made = await self._made(makes, ours)
        failed = await self._trace(made)
        done = [request for request in ours if request not in failed]
        costs = [(made[one][0], _cost(made[one][1])) for one in done if one in made]
        await accounting.settle(place[1] or accounting.UNSENT, costs)
        await self._store.finish(done, RequestOutcome.DONE, place)
        return [made[request][1] for request in done if request in made]

    async def _made(self, makes: Mapping[str, Make], ours: list[str]) -> dict[str, Made]:
        made: dict[str, Made] = {}
        now = await self._store.now()
        for request, (parked, tries) in (await self._store.load(ours)).items():
            if parked is None:
                logger.error("%s has no record", request, extra={"action": "batch_record_missing"})
                continue
            outcome = _outcome(request, makes[request], parked, tries, now)
            if isinstance(outcome, Completion):
                outcome = await self._bodies.offload_result(request, outcome)
            made[request] = parked, outcome, now - parked.parked_at
        return made

    async def _trace(self, made: Mapping[str, Made]) -> set[str]:
        """Have Celery complete tasks; the requests for which that failed."""
        loop, requests = asyncio.get_running_loop(), list(made)
        parts = [
            {one: made[one] for one in requests[nth::MAX_THREADS]} for nth in range(MAX_THREADS)
        ]
        traced = [loop.run_in_executor(self._threads, self._trace_some, part) for part in parts]
        failed = dict(chain.from_iterable(await asyncio.gather(*traced)))
        for request, error in failed.items():
            if isinstance(error, redis.RedisError):
                raise error
            logger.error(
                "%s could not be completed",
                request,
                exc_info=error,
                extra={"action": "batch_delivery_failed"},
            )
        return set(failed)

    def _trace_some(self, made: Mapping[str, Made]) -> list[tuple[str, Exception]]:
        failed, events = [], []
        for request, (parked, outcome, runtime) in made.items():
            try:
                value = parked.value(outcome)
                events.append(self._tracer.complete(parked.context, value, runtime))
            except Exception as error:
                failed.append((request, error))
        self._tracer.publish_events(events)
        return failed


#: A record, what becomes of its request, and seconds since it was parked.
Made = tuple[ParkedRequest, Outcome, float]


def _cost(outcome: Outcome) -> int:
    return outcome.receipt.cost if isinstance(outcome, Completion) else 0


def _same(error: RequestFailed, *_: object) -> Outcome:
    return error


def _outcome(
    request: str, make: Make, parked: ParkedRequest, tries: AttemptCounts, now: float
) -> Outcome:
    """The outcome, or an error when the provider's answer makes no sense."""
    try:
        return make(parked, tries, now)
    except Exception:
        logger.exception("%s has a bad answer", request, extra={"action": "batch_answer_bad"})
        return BatchError("the provider's answer could not be understood")
