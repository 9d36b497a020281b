"""A broker in memory, with workers that answer by script."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from celery import Celery, states

from primarch_fleet import protocol
from primarch_fleet.broker import Broker
from primarch_fleet.budgets import Budget, read_budget
from primarch_fleet.catalogue import Catalogue, Limits, Model, Offer
from primarch_fleet.completions import Finished, finished, timed_out
from primarch_fleet.contract import LANES, Completion
from primarch_fleet.errors import (
    BudgetExceeded,
    Cancelled,
    ClientClosed,
    FleetBusy,
    FleetError,
    FleetUnavailable,
    InvalidRequest,
    ResultTimeout,
    UnknownRequest,
)
from primarch_fleet.outgoing import REFUSALS, OutgoingMessage, at_place, conflict_at
from primarch_fleet.prices import Rates
from primarch_fleet.progress import FAILED, SUCCEEDED, Progress
from primarch_fleet.requests import Request
from primarch_fleet.results import no_result
from primarch_fleet.streaming import StreamCursor
from primarch_fleet.testing.fake_answers import (
    BATCH_PRICE,
    LIST_PRICE,
    Answers,
    Chosen,
    choose,
    completion_at,
)
from primarch_fleet.testing.fake_task import FakeTask
from primarch_fleet.ticket import Ticket, task_id
from primarch_fleet.tracing import TracedRequest

#: Errors that the fleet raises at the submit; all others are results.
SUBMIT_ERRORS = (BudgetExceeded, FleetBusy, FleetUnavailable, InvalidRequest)
#: As in config/fleet.yaml by default.
_MAX_REQUEST_BYTES = 8_000_000


class _ResultBackend:
    """What a StreamCursor needs of Celery's result backend."""

    def get_key_for_task(self, task_id: str) -> str:
        """Return the id itself."""
        return task_id

    def exception_to_python(self, value: object) -> FleetError | None:
        """Decode an error that is stored as the value of a task."""
        try:
            protocol.completion_or_raise(value)
        except FleetError as error:
            return error
        return None


class FakeBroker(Broker):
    """A broker and its workers, in memory. Safe to share between threads.

    Args:
        answer: As FakeFleet takes it.
        catalogue: None for the requested models on all lanes.
        receipt: Fields that replace the plausible ones of receipts.
        clock: Returns the current time with a time zone.
    """

    result_backend = _ResultBackend()

    def __init__(
        self,
        answer: Answers,
        catalogue: Catalogue | None,
        receipt: Mapping[str, Any],
        clock: Callable[[], datetime] | None,
    ) -> None:
        self.receipt = receipt
        self._given_catalogue = catalogue
        self._clock = clock or (lambda: datetime.now(UTC))
        self._tasks: dict[str, FakeTask] = {}
        self._changed = threading.Condition()
        self._is_holding = False
        self.script(answer)

    @property
    def requests(self) -> list[Request]:
        """What was enqueued, in this order."""
        return [task.request for task in self._tasks.values()]

    @property
    def messages(self) -> list[OutgoingMessage]:
        """Their messages."""
        return [task.message for task in self._tasks.values()]

    @property
    def app(self) -> Celery:
        """Not supported."""
        raise NotImplementedError("FakeFleet has no Celery app: test canvas on a real Redis")

    def close(self) -> None:
        """End all waits."""
        with self._changed:
            super().close()
            for task in self._tasks.values():
                if not task.future.done():
                    task.future.set_exception(ClientClosed())
            self._changed.notify_all()

    # What tests say.

    def script(self, answer: Answers) -> None:
        """Set the answers from now on."""
        self.answer, self._answers = answer, 0

    def hold(self) -> None:
        """Keep requests without an answer from now on."""
        self._is_holding = True

    def release(self, tickets: Sequence[Ticket | str]) -> None:
        """Answer requests that are held; without tickets all, and later ones at once."""
        with self._changed:
            if not tickets:
                self._is_holding = False
            chosen = [self._task(task_id(one)) for one in tickets] or list(self._tasks.values())
            for task in chosen:
                if task.is_held:
                    self._finish(task, self._choose(task.request))

    # What clients call.

    def catalogue(self) -> Catalogue:
        """Return the given catalogue, or that of the models that were requested."""
        if self._given_catalogue is not None:
            return self._given_catalogue
        return _catalogue(self.requests)

    def submit(self, requests: Iterable[TracedRequest], path: str = "") -> list[Ticket]:
        """Check all requests, then enqueue and answer them."""
        now, sent = self._clock(), list(requests)
        messages = []
        for place, one in enumerate(sent):
            try:
                messages.append(OutgoingMessage.build(one, self._catalogue(one.request), now))
            except REFUSALS as error:
                raise at_place(error, path.format(place)) from None
        with self._changed:
            new = self._new(messages, path)
            by_id = {
                message.ticket.id: one.request
                for message, one in reversed([*zip(messages, sent, strict=True)])
            }
            asked = [by_id[message.ticket.id] for message in new]
            answers = [None if self._is_holding else self._choose(request) for request in asked]
            for answer in answers:
                if isinstance(answer, SUBMIT_ERRORS):
                    raise answer
            for request, message, answer in zip(asked, new, answers, strict=True):
                rates = self._rates(request, message)
                task = FakeTask(request, message, rates, is_held=answer is None)
                self._tasks[message.ticket.id] = task
                if answer is not None:
                    self._finish(task, answer)
        return [message.ticket for message in messages]

    def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """Count what the requests of a tenant with limits have cost and may cost."""
        counted = [
            task
            for task in self._tasks.values()
            if task.message.limits is not None and task.request.tenant_id == tenant_id
        ]
        spent = sum(
            (one.outcome or {}).get("receipt", {}).get("cost_nanousd", 0) for one in counted
        )
        reserved = sum(one.message.reservation.amount for one in counted if one.outcome is None)
        now = self._clock().astimezone(UTC)
        ledger = {
            f"{period} {kind}": str(nanousd)
            for period in (f"{now:%Y-%m-%d}", f"{now:%Y-%m}")
            for kind, nanousd in (("spent", spent), ("reserved", reserved))
        }
        return read_budget(ledger, limits, now)

    def outcome(self, task_id: str, timeout: float | None) -> Any:
        """Wait for the outcome of a request. Raises UnknownRequest at once for other ids."""
        task = self._task(task_id)
        try:
            return task.future.result(0 if task.is_lost else _limited(timeout))
        except concurrent.futures.TimeoutError:
            raise ResultTimeout(no_result(timeout)) from None

    def completed(
        self, tickets: Sequence[Ticket | str], timeout: float | None
    ) -> Iterator[Finished]:
        """Yield requests as they finish; those that have finished come first."""
        waiting: defaultdict[str, list[Ticket | str]] = defaultdict(list)
        for ticket in tickets:
            waiting[task_id(ticket)].append(ticket)
        futures: dict[concurrent.futures.Future[dict[str, Any]], str] = {}
        for one in list(waiting):
            task = self._tasks.get(one)
            if task is None:
                yield from (Finished(ticket, UnknownRequest()) for ticket in waiting.pop(one))
            elif task.future.done():
                value = task.future.result()
                yield from (finished(ticket, value) for ticket in waiting.pop(one))
            elif not task.is_lost:
                futures[task.future] = one
        with suppress(concurrent.futures.TimeoutError):
            for future in concurrent.futures.as_completed(futures, _limited(timeout)):
                value = future.result()
                yield from (finished(ticket, value) for ticket in waiting.pop(futures[future]))
        if waiting:
            raise timed_out(sum(map(len, waiting.values())), len(tickets), timeout)

    async def outcomes(self, ids: Sequence[str]) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield the ids of requests with their outcomes, as soon as they have them.

        Raises:
            TimeoutError: The script says that the others have no result.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Queue[str]()

        def put(one: str) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.put_nowait, one)

        lost = {one for one in ids if one in self._tasks and self._tasks[one].is_lost}
        waiting = [one for one in ids if one not in lost]
        for one in waiting:
            if one in self._tasks:
                self._tasks[one].future.add_done_callback(lambda _, one=one: put(one))  # type: ignore[misc]
            else:
                done.put_nowait(one)
        for _ in waiting:
            one = await done.get()
            task = self._tasks.get(one)
            yield one, UnknownRequest() if task is None else task.future.result()
        if lost:
            raise TimeoutError

    def read_stream(self, cursor: StreamCursor) -> tuple[Any, Any]:
        """Wait for entries of a stream after the cursor, or for the outcome."""
        self.check_open()
        task = self._tasks.get(cursor.result_key)
        read = int(cursor.after.partition("-")[2]) + 1 if "-" in cursor.after else 0

        def has_news() -> bool:
            is_failed = task is not None and "error" in (task.outcome or {})
            return self._is_closed or is_failed or bool(task and task.entries[read:])

        with self._changed:
            self._changed.wait_for(has_news, cursor.block_milliseconds / 1000)
            if task is None or task.outcome is None:
                return None, None
            if task.entries[read:]:
                return [(cursor.key, task.entries[read:])], None
            status = states.FAILURE if "error" in task.outcome else states.SUCCESS
            return None, json.dumps({"status": status, "result": task.outcome})

    def state(self, task_id: str) -> str:
        """Return the state; PENDING for an id that nothing is known of, as Celery does."""
        task = self._tasks.get(task_id)
        return states.PENDING if task is None else task.state

    def progress(self, tickets: Sequence[Ticket | str]) -> Progress:
        """Count the states."""
        found = [self.state(task_id(ticket)) for ticket in tickets]
        failed = sum(state in FAILED for state in found)
        return Progress(failed + found.count(SUCCEEDED), len(found), failed)

    def cancel(self, task_id: str, timeout: float) -> bool:
        """Cancel a request that is held."""
        with self._changed:
            task = self._task(task_id)
            if not task.future.done():
                self._finish(task, Cancelled())
            outcome = task.outcome or {}
            return bool(outcome.get("error", {}).get("code") == Cancelled.code)

    def cancel_many(self, task_ids: Sequence[str], timeout: float) -> list[bool | FleetError]:
        """Cancel requests that are held."""
        return [
            self.cancel(one, timeout) if one in self._tasks else UnknownRequest()
            for one in task_ids
        ]

    def _catalogue(self, request: Request) -> Catalogue:
        return self._given_catalogue or _catalogue([request])

    def _rates(self, request: Request, message: OutgoingMessage) -> tuple[Rates, Rates]:
        model = self._catalogue(request).model(request.model)
        return model.lanes[message.ticket.lane].price, model.list_price

    def _task(self, task_id: str) -> FakeTask:
        if task_id not in self._tasks:
            raise UnknownRequest
        return self._tasks[task_id]

    def _new(self, messages: Sequence[OutgoingMessage], path: str) -> list[OutgoingMessage]:
        """The messages without those whose idempotency key is known. Raises IdempotencyConflict."""
        known = {one: task.message for one, task in self._tasks.items()}
        new = []
        for place, message in enumerate(messages):
            first = known.setdefault(message.ticket.id, message)
            if first.fingerprint != message.fingerprint:
                raise conflict_at(path.format(place))
            if first is message:
                new.append(message)
        return new

    def _choose(self, request: Request) -> Chosen:
        self._answers += 1
        return choose(self.answer, request, self._answers - 1)

    def _finish(self, task: FakeTask, answer: Chosen) -> None:
        task.is_held = False
        request, ticket = task.request, task.message.ticket
        if isinstance(answer, ResultTimeout):
            task.is_lost = True
        elif isinstance(answer, FleetError):
            task.future.set_result(protocol.error_value(answer))
        else:
            if isinstance(answer, Completion):
                completion = answer
            else:
                receipt = {"lane": ticket.lane, "reason": ticket.reason, **self.receipt}
                completion = completion_at(task.rates, answer, request, receipt)
            task.answer(completion)
        self._changed.notify_all()


def _catalogue(requests: Sequence[Request]) -> Catalogue:
    """A catalogue that has the models of requests on all lanes."""
    models = {
        request.model: Model(
            kind=request.kinds[0],
            lanes={
                lane: Offer(
                    queue=f"local.{request.model}" if lane == "local" else lane,
                    price=BATCH_PRICE if lane == "batch" else LIST_PRICE,
                )
                for lane in LANES
            },
            list_price=LIST_PRICE,
        )
        for request in requests
    }
    return Catalogue(models=models, completion_window=86_400, max_request_bytes=_MAX_REQUEST_BYTES)


def _limited(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
