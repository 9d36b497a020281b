"""Accounting: reserves what the run of a task may cost before it, and settles its cost after it."""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import redis

from primarch_fleet import estimates, redis_support
from primarch_fleet.budgets import AsyncLedger
from primarch_fleet.catalogue import Catalogue, Model
from primarch_fleet.contract import Lane
from primarch_fleet.errors import (
    BudgetExceeded,
    BudgetUnavailable,
    CostCapExceeded,
    FleetError,
    FleetUnavailable,
)
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request
from primarch_fleet.requests.base import UNNAMED_TENANT
from primarch_fleet.reservations import ReservationRequest
from tasks.grouped_calls import GroupedCalls
from tasks.receipts import RequestMetadata
from tasks.usage_meter import UsageMeter

logger = logging.getLogger(__name__)

#: Connections to the ledgers, of all tasks of a process together.
MAX_CONNECTIONS = 20


@dataclass
class RunCost:
    """The cost of a run in nano-dollars. The run sets it."""

    cost: int = 0


class UnansweredCall(NamedTuple):
    """A call to a provider without an answer, and its cost."""

    tenant_id: str
    lane: Lane
    provider: str
    model: str
    #: Nano-dollars.
    cost: int
    #: Whether the cost is an estimate: the provider reported no usage.
    estimated: bool


class DroppedAnswer(NamedTuple):
    """A provider's answer to a request that was cancelled before it arrived."""

    tenant_id: str
    lane: Lane
    provider: str
    model: str
    #: Nano-dollars.
    cost: int
    #: The batch that it is in.
    batch: str
    #: Unique in the batch and the same at each repetition, so that the answer counts once.
    answer_id: str


#: A run's tenant, task, id and cost in nano-dollars.
Settlement = tuple[str, str, str, int]


class Accountant:
    """The worker's side of budgets. Use it on one loop.

    It waits while Redis is unavailable. A tenant without limits costs no round trip.

    Args:
        on_unanswered: Called for each call without an answer that has a cost.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        catalogue: Catalogue,
        on_unanswered: Callable[[UnansweredCall], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._on_unanswered = on_unanswered
        self._settlements = GroupedCalls(self.settle_many)

    @classmethod
    def connect(
        cls, url: str, catalogue: Catalogue, on_unanswered: Callable[[UnansweredCall], None]
    ) -> Self:
        """Return an accountant for the ledgers in the Redis at a URL."""
        client = redis_support.patient_async(url, MAX_CONNECTIONS)
        return cls(AsyncLedger(client), catalogue, on_unanswered)

    async def close(self) -> None:
        """Finish the settlements under way and close the connections."""
        await self._settlements.close()
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
        self,
        lane: Lane,
        requests: Mapping[str, Request],
        prompts: Mapping[str, PromptSize] = MappingProxyType({}),
    ) -> dict[str, FleetError]:
        """Reserve what many tasks can cost, in one round trip per tenant, and few per refusal.

        Args:
            requests: By task id.
            prompts: The sizes of their prompts, as far as the caller has them.

        Returns:
            The refusals, by task id.

        Raises:
            FleetUnavailable: Redis refused; some tasks have a reservation. May be repeated.
        """
        refusals: dict[str, FleetError] = {}
        by_tenant: defaultdict[str, list[ReservationRequest]] = defaultdict(list)
        for task_id, request in requests.items():
            try:
                by_tenant[request.tenant_id] += self._reservation_requests(
                    lane, request, task_id, prompts.get(task_id)
                )
            except CostCapExceeded as error:
                refusals[task_id] = error
        for tenant_id, reservations in by_tenant.items():
            refusals |= await self._reserve_for_tenant(tenant_id, reservations)
        return refusals

    def _reservation_requests(
        self, lane: Lane, request: Request, task_id: str, prompt: PromptSize | None = None
    ) -> list[ReservationRequest]:
        """What to reserve for a task; empty without limits. Raises CostCapExceeded."""
        limits, model = self._catalogue.limits(request.tenant_id), self._model(lane, request)
        if model is None:
            return []
        prompt = request.prompt_size() if prompt is None else prompt
        estimate = estimates.estimate(request, prompt, model, lane, limits)
        estimates.check_cost(estimate, limits)
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

    async def settle_many(self, settlements: Iterable[Settlement]) -> None:
        """Settle many runs in one round trip, each by the arguments of `settle`.

        An error of Redis is logged: these costs are not counted.
        """
        limited = [
            settlement
            for settlement in settlements
            if self._catalogue.limits(settlement[0]) is not None
        ]
        if not limited:
            return
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
            tenant = body.get("tenant_id") or UNNAMED_TENANT
            await self.settle(str(tenant), message.id, "", 0)

    @asynccontextmanager
    async def run(
        self,
        lane: Lane,
        request: Request,
        metadata: RequestMetadata,
        meter: UsageMeter | None = None,
    ) -> AsyncIterator[RunCost]:
        """Reserve before the block and settle after it, with the cost that the block sets.

        Nothing is reserved where the task's own reservation suffices, as that of a producer does.

        The calls that gave no answer count too, however the run ends: see
        `UsageMeter.failed_attempts`.

        Args:
            meter: Counts the calls of the block; by default, a new one.
        """
        try:
            await self._ensure_reserved(lane, request, metadata)
        except FleetUnavailable as error:  # as an outcome it must not look like a reader's error
            raise BudgetUnavailable(str(error)) from None
        task_id, run_cost, meter = metadata.task_id, RunCost(), meter or UsageMeter()
        token = meter.activate()
        try:
            yield run_cost
        finally:
            meter.deactivate(token)
            cost = run_cost.cost + self._count_unanswered(lane, request, task_id, meter)
            run = uuid.uuid4().hex
            # Even if the task is cancelled in the meantime.
            await self._settlements.add((request.tenant_id, task_id, run, cost))

    async def _ensure_reserved(
        self, lane: Lane, request: Request, metadata: RequestMetadata
    ) -> None:
        """Reserve, unless the task had enough in the tenant's budget when it was fetched."""
        had, tenant_id = metadata.reserved, request.tenant_id
        available = had.amount if had is not None and had.tenant_id == tenant_id else -1
        requests = self._reservation_requests(lane, request, metadata.task_id)
        missing = [one for one in requests if one.amount > available]
        for error in (await self._reserve_for_tenant(tenant_id, missing)).values():
            raise error

    def _count_unanswered(
        self, lane: Lane, request: Request, task_id: str, meter: UsageMeter
    ) -> int:
        """The nano-dollars of the calls without an answer; they are reported too."""
        total = 0
        for call, attempt in meter.unanswered(request):
            cost, estimated = attempt.cost_nanousd, attempt.estimated
            if not cost:
                continue
            logger.info(
                "%s: a call gave no answer; %s cost %s nano-dollars",
                task_id,
                "estimated" if estimated else "reported",
                cost,
                extra={"action": "call_unanswered", "task_id": task_id},
            )
            tenant, model = request.tenant_id, request.model
            unanswered = UnansweredCall(tenant, lane, call.provider, model, cost, estimated)
            self._on_unanswered(unanswered)
            total += cost
        return total

    def _model(self, lane: Lane, request: Request) -> Model | None:
        model = self._catalogue.models.get(request.model)
        return model if model and lane in model.lanes else None
