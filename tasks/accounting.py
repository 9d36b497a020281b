"""Accounting: reserves what the run of a task may cost before it, and settles its cost after it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import redis

from primarch_fleet import estimates, redis_support
from primarch_fleet.budgets import AsyncLedger, ReservationRequest
from primarch_fleet.catalogue import Catalogue, Model
from primarch_fleet.contract import Lane
from primarch_fleet.errors import (
    BudgetExceeded,
    CostCapExceeded,
    DeadlineExceeded,
    FleetError,
    FleetUnavailable,
)
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.prompt_size import measure
from primarch_fleet.requests import Request
from primarch_fleet.usage import Usage

logger = logging.getLogger(__name__)

#: Connections to the ledgers, of all tasks of a process together.
MAX_CONNECTIONS = 20


@dataclass
class UsageMeter:
    """What the run of the current asyncio task has used, before its answer is complete."""

    #: True once a provider or an engine was called.
    called: bool = False
    #: Chunks of the answer that arrived: about one token each.
    chunks: int = 0

    @classmethod
    def current(cls) -> UsageMeter:
        """Return the meter of the current run; outside a run, an unused meter."""
        return _meter.get() or cls()


_meter: ContextVar[UsageMeter | None] = ContextVar("meter", default=None)


@dataclass
class RunCost:
    """The cost of a run in nano-dollars. The run sets it."""

    cost: int = 0


class AbortedRun(NamedTuple):
    """A run that ended without an answer, and its estimated cost in nano-dollars."""

    tenant_id: str
    lane: Lane
    model: str
    cost: int


class DroppedAnswer(NamedTuple):
    """A provider's answer to a request that was cancelled before it arrived."""

    tenant_id: str
    lane: Lane
    provider: str
    model: str
    #: Nano-dollars.
    cost: int
    #: The same at each repetition, so that the answer counts once.
    answer_id: str


class Accountant:
    """The worker's side of budgets. Use it on one loop.

    It waits while Redis is unavailable. A tenant without limits costs no round trip.

    Args:
        on_aborted: Called for each run that ended without an answer and has a cost.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        catalogue: Catalogue,
        on_aborted: Callable[[AbortedRun], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._on_aborted = on_aborted
        self._settling: set[asyncio.Task[None]] = set()

    @classmethod
    def connect(
        cls, url: str, catalogue: Catalogue, on_aborted: Callable[[AbortedRun], None]
    ) -> Self:
        """Return an accountant for the ledgers in the Redis at a URL."""
        client = redis_support.patient_async(url, MAX_CONNECTIONS)
        return cls(AsyncLedger(client), catalogue, on_aborted)

    async def close(self) -> None:
        """Finish the settlements under way and close the connections."""
        await asyncio.gather(*self._settling)
        await self._ledger.close()

    async def reserve(self, lane: Lane, request: Request, task_id: str) -> None:
        """Reserve what a task can cost on a lane. May be repeated.

        For a task that has a reservation, only the difference to a more expensive lane is added.
        A model that the lane does not serve needs no reservation: the backend refuses it.

        Raises:
            CostCapExceeded: The request may cost more than its own or its tenant's cap.
            BudgetExceeded: The tenant's budget has no room.
            FleetUnavailable: Redis refused. In all three cases nothing is added.
        """
        for error in (await self.reserve_many(lane, {task_id: request})).values():
            raise error

    async def reserve_many(
        self, lane: Lane, requests: Mapping[str, Request]
    ) -> dict[str, FleetError]:
        """Reserve what many tasks can cost, in one round trip per tenant, and few per refusal.

        Args:
            requests: By task id.

        Returns:
            The refusals, by task id.

        Raises:
            FleetUnavailable: Redis refused; some tasks have a reservation. May be repeated.
        """
        refusals: dict[str, FleetError] = {}
        by_tenant: defaultdict[str, list[ReservationRequest]] = defaultdict(list)
        for task_id, request in requests.items():
            try:
                by_tenant[request.tenant_id] += self._reservation_requests(lane, request, task_id)
            except CostCapExceeded as error:
                refusals[task_id] = error
        for tenant_id, reservations in by_tenant.items():
            refusals |= await self._reserve_for_tenant(tenant_id, reservations)
        return refusals

    def _reservation_requests(
        self, lane: Lane, request: Request, task_id: str
    ) -> list[ReservationRequest]:
        """What to reserve for a task; empty without limits. Raises CostCapExceeded."""
        limits, model = self._catalogue.limits(request.tenant_id), self._model(lane, request)
        if model is None:
            return []
        estimate = estimates.estimate(request, measure(request.body()), model, lane, limits)
        estimates.check_cost(request, estimate.expected_cost, lane, limits)
        return [] if limits is None else [ReservationRequest(task_id, estimate.max_cost)]

    async def _reserve_for_tenant(
        self, tenant_id: str, reservations: list[ReservationRequest]
    ) -> dict[str, FleetError]:
        """Reserve what fits, in this order; return the refusals of the others, by task id."""
        limits = self._catalogue.limits(tenant_id)
        if limits is None or not reservations:
            return {}
        try:
            await self._ledger.reserve(tenant_id, limits, reservations)
        except BudgetExceeded as error:
            if len(reservations) == 1:
                return {reservations[0].task_id: error}
            half = len(reservations) // 2
            refusals = await self._reserve_for_tenant(tenant_id, reservations[:half])
            return refusals | await self._reserve_for_tenant(tenant_id, reservations[half:])
        except redis.RedisError as error:
            raise FleetUnavailable(
                f"budget not reserved: Redis failed with {type(error).__name__}; retry later"
            ) from None
        return {}

    async def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> None:
        """Count the cost of a run, in nano-dollars, and return the task's reservation.

        Args:
            run: Identifies the run of the task: a repeated call counts once.
        """
        await self.settle_many([(tenant_id, task_id, run, cost)])

    async def settle_many(self, settlements: Iterable[tuple[str, str, str, int]]) -> None:
        """Settle many runs in one round trip, each by the arguments of `settle`.

        An error of Redis is logged: these costs are not counted.
        """
        limited = [
            settlement
            for settlement in settlements
            if self._catalogue.limits(settlement[0]) is not None
        ]
        try:
            await self._ledger.settle_many(limited)
        except redis.RedisError as error:
            for _, task_id, _, cost in limited:
                logger.error(
                    "%s: cost of %s nano-dollars not counted: %s",
                    task_id,
                    cost,
                    type(error).__name__,
                    extra={"action": "budget_settle_failed", "task_id": task_id},
                )

    async def refund(self, message: Any) -> None:
        """Return the reservation of a task that will not run.

        Args:
            message: Celery's request of the task.
        """
        body = next(iter(message.args or ()), None)
        if isinstance(body, dict):
            tenant = body.get("tenant_id") or Request.model_fields["tenant_id"].default
            await self.settle(str(tenant), message.id, "", 0)

    @asynccontextmanager
    async def run(self, lane: Lane, request: Request, task_id: str) -> AsyncIterator[RunCost]:
        """Reserve before the block and settle after it, with the cost that the block sets.

        A run that fails costs nothing, as far as is known. A run that is aborted by its deadline or
        a cancellation, or in the middle of a stream, costs what it used: its prompt, if a provider
        was called, and one token for each chunk, by estimate.
        """
        await self.reserve(lane, request, task_id)
        run_cost, meter = RunCost(), UsageMeter()
        token = _meter.set(meter)
        try:
            yield run_cost
        except (asyncio.CancelledError, DeadlineExceeded):
            run_cost.cost = self._estimate_cost(lane, request, task_id, meter)
            raise
        except Exception:
            streamed = meter.chunks > 0
            run_cost.cost = self._estimate_cost(lane, request, task_id, meter) if streamed else 0
            raise
        finally:
            _meter.reset(token)
            await self._settle_shielded(request.tenant_id, task_id, run_cost.cost)

    async def _settle_shielded(self, tenant_id: str, task_id: str, cost: int) -> None:
        """Settle, even if the task is cancelled in the meantime."""
        settling = asyncio.create_task(self.settle(tenant_id, task_id, uuid.uuid4().hex, cost))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    def _estimate_cost(self, lane: Lane, request: Request, task_id: str, meter: UsageMeter) -> int:
        """The estimated cost of a run without an answer, in nano-dollars; it is reported too."""
        model = self._model(lane, request)
        if model is None or not meter.called:
            return 0
        offer = model.lanes[lane]
        prompt_tokens = measure(request.body()).expected(offer.media).total
        usage = Usage(text_input_tokens=prompt_tokens, text_output_tokens=meter.chunks)
        tier = getattr(request, "service_tier", None)
        cost = cost_nanousd(offer.price, usage, tier=tier)
        logger.info(
            "%s: run aborted after %s chunks; estimated cost %s nano-dollars",
            task_id,
            meter.chunks,
            cost,
            extra={"action": "run_aborted", "task_id": task_id},
        )
        self._on_aborted(AbortedRun(request.tenant_id, lane, request.model, cost))
        return cost

    def _model(self, lane: Lane, request: Request) -> Model | None:
        model = self._catalogue.models.get(request.model)
        return model if model and lane in model.lanes else None
