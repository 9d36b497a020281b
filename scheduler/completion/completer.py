"""Completes the tasks of requests, each exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import redis

from config.inline_accounts import receipt_provider
from primarch_fleet.contract import Completion, Receipt
from primarch_fleet.errors import BatchError, InvalidRequest, RequestFailed
from scheduler.completion import accounting, batch_trace
from scheduler.completion.batch_receipt import completion
from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.model.job import (
    NO_ATTEMPTS,
    AttemptCounts,
    Job,
    Location,
    ParkedRequest,
    RequestGroup,
)
from scheduler.model.outcomes import CompletionOwner, RequestOutcome
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore
from tasks import tracing
from tasks.failures import count_failure, model_of
from tasks.redaction import redacted, without_secrets
from workers.runtime.results.result_backend import AWAITED_BY

logger = logging.getLogger(__name__)

#: Concurrent completions of tasks that others await: Celery mostly waits for Redis in them.
MAX_THREADS = 4

Outcome = Completion | RequestFailed
#: Builds a request's outcome from its record, its attempts and the current time.
BuildOutcome = Callable[[ParkedRequest, AttemptCounts, float], Outcome]


class PreparedCompletion(NamedTuple):
    """A request that is about to be completed."""

    parked: ParkedRequest
    outcome: Outcome
    #: Seconds since it was parked.
    runtime: float
    #: Its completion, by the store's clock.
    now: float

    @property
    def is_stored_at_once(self) -> bool:
        """Whether its result is not stored together with others; see the result backend."""
        is_awaited = any(self.parked.context.get(name) for name in AWAITED_BY)
        return is_awaited or not isinstance(self.outcome, Completion)

    @property
    def cost(self) -> int:
        """The cost of the answer in nano-dollars; 0 for a failure."""
        return self.outcome.receipt.cost_nanousd if isinstance(self.outcome, Completion) else 0


class Completer:
    """Completes requests with answers or errors.

    Each request is completed once, however many schedulers try. If a scheduler dies during a
    completion, another one repeats it, and messages that were published are not published again
    (`publish_once`). A request that cannot be completed is logged and stays on the lane; the others
    are still completed. Redis errors are raised.

    Args:
        observe: Called with the receipt of each answered request.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        tracer: CeleryTracer,
        observe: Callable[[Receipt], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._tracer = tracer
        self._observe = observe
        # Not `asyncio.to_thread`: it would copy the context of the running task.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="completer")

    async def answer(self, job: Job, answers: Mapping[str, dict[str, Any]]) -> set[str]:
        """Complete requests of a job with the provider's response bodies.

        Returns:
            The tenants of the requests that this call completed.
        """
        outcomes = await self._complete(
            {request: partial(completion, job, body) for request, body in answers.items()},
            Location(job.group, job.intent),
            job,
        )
        receipts = [outcome.receipt for outcome in outcomes if isinstance(outcome, Completion)]
        for receipt in receipts:
            self._observe(receipt)
        tenants = {receipt.tenant_id for receipt in receipts}
        if receipts:
            cost = sum(receipt.cost_nanousd for receipt in receipts)
            saving = sum(receipt.saving_nanousd for receipt in receipts)
            await self._store.costs.add(job, cost, saving, tenants)
        return tenants

    async def fail(
        self, errors: Mapping[str, RequestFailed], group: RequestGroup, intent: str = ""
    ) -> None:
        """Complete requests with errors.

        Args:
            errors: By request.
            group: The group of the requests.
            intent: Their job; empty if they wait in the group.
        """
        await self._complete(
            {request: partial(_constant, error) for request, error in errors.items()},
            Location(group, intent),
        )

    async def close(self) -> None:
        """Wait for the running completions."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _complete(
        self, builders: Mapping[str, BuildOutcome], location: Location, job: Job | None = None
    ) -> list[Outcome]:
        """Complete those requests that no other scheduler completes; their outcomes."""
        if not builders:
            return []
        script = await self._store.begin_finish()
        owners = await self._store.begin_completions(list(builders))
        ours = [request for request, owner in owners.items() if owner is CompletionOwner.OURS]
        if not ours:
            return []
        prepared = await self._prepare(builders, ours)
        failed = await self._complete_all(prepared)
        completed = [prepared[request] for request in prepared if request not in failed]
        _count_failures(completed, location)
        costs = [(request.parked, request.cost) for request in completed]
        await accounting.settle(location.intent or accounting.UNSENT, costs)
        # A request without a record cannot be completed; it leaves the lane with the others.
        done = [request for request in ours if request not in failed]
        await self._store.finish(done, RequestOutcome.DONE, location, script=script)
        if tracing.is_on():
            for one in completed:  # last: a completion that is repeated has one span
                batch_trace.record_request(one.parked, one.outcome, one.now, job)
        return [request.outcome for request in completed]

    async def _prepare(
        self, builders: Mapping[str, BuildOutcome], requests: list[str]
    ) -> dict[str, PreparedCompletion]:
        """Build the outcomes of the requests that have a record; large answers are offloaded."""
        prepared: dict[str, PreparedCompletion] = {}
        now = await self._store.now()
        for request, (parked, attempts) in (await self._store.load(requests)).items():
            if parked is None:
                logger.error("%s has no record", request, extra={"action": "batch_record_missing"})
                continue
            try:
                outcome = builders[request](parked, attempts, now)
            except Exception:
                logger.exception(
                    "%s has an invalid answer", request, extra={"action": "batch_answer_invalid"}
                )
                outcome = BatchError("the provider's answer could not be understood")
            if isinstance(outcome, Completion):
                outcome = await self._blobs.offload_result(request, outcome)
            else:
                outcome = await self._redacted(request, parked, outcome)
            prepared[request] = PreparedCompletion(parked, outcome, now - parked.parked_at, now)
        return prepared

    async def _redacted(
        self, request: str, parked: ParkedRequest, error: RequestFailed
    ) -> RequestFailed:
        """The error without secrets and prompt; without secrets if the request is unreadable."""
        hydrated = await self._blobs.hydrate({request: (parked, NO_ATTEMPTS)})
        record, _ = hydrated[request]
        try:
            sent = (record or parked).parse()
            return await asyncio.to_thread(redacted, error, sent)
        except (InvalidRequest, LookupError):
            return type(error)(without_secrets(str(error)))

    async def _complete_all(self, prepared: Mapping[str, PreparedCompletion]) -> set[str]:
        """Complete tasks with Celery; return the requests whose completion failed.

        Results that are stored together need one thread: threads that only compute take turns.

        Raises:
            redis.RedisError: The error of a completion; the other completions have ended.
        """
        loop = asyncio.get_running_loop()
        together: list[tuple[str, PreparedCompletion]] = []
        at_once: list[tuple[str, PreparedCompletion]] = []
        for item in prepared.items():
            (at_once if item[1].is_stored_at_once else together).append(item)
        shares = [together, *(at_once[thread::MAX_THREADS] for thread in range(MAX_THREADS))]
        results = await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, self._complete_some, share)
                for share in shares
                if share
            )
        )
        errors = {request: error for result in results for request, error in result.items()}
        for request, error in errors.items():
            if isinstance(error, redis.RedisError):
                raise error
            logger.error(
                "%s could not be completed",
                request,
                exc_info=error,
                extra={"action": "batch_completion_failed"},
            )
        return set(errors)

    def _complete_some(
        self, requests: Sequence[tuple[str, PreparedCompletion]]
    ) -> dict[str, Exception]:
        """Complete tasks one after another; the errors by request."""
        errors: dict[str, Exception] = {}
        events = []
        try:
            with self._tracer.stored_together():
                for request, (parked, outcome, runtime, _) in requests:
                    try:
                        value = parked.value(outcome)
                        events.append(self._tracer.complete(parked.context, value, runtime))
                    except Exception as error:
                        errors[request] = error
        except Exception as error:  # some of their results are not stored
            return {request: error for request, _ in requests} | errors
        self._tracer.publish_events(events)
        return errors


def _constant(error: RequestFailed, *_: object) -> Outcome:
    return error


def _count_failures(completed: Iterable[PreparedCompletion], location: Location) -> None:
    provider = receipt_provider(location.group.provider) if location.intent else ""
    for request in completed:
        if isinstance(request.outcome, RequestFailed):
            count_failure("batch", model_of(request.parked.request), request.outcome, provider)
