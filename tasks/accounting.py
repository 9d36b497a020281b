"""What a run of a task may cost and has cost: reserved before it, settled after it."""

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

from primarch_fleet import estimates, protocol, redis_support
from primarch_fleet.budgets import AsyncLedger, ReservationRequest
from primarch_fleet.catalogue import Catalogue, Model
from primarch_fleet.contract import Lane, Request
from primarch_fleet.errors import (
    BudgetExceeded,
    CostCapExceeded,
    DeadlineExceeded,
    FleetError,
    FleetUnavailable,
)

logger = logging.getLogger(__name__)

#: To the ledgers, of all tasks of a process together.
MAX_CONNECTIONS = 20
#: Seconds that one round trip may take before it is tried again.
TIMEOUT_SECONDS = 10.0


@dataclass
class UsageMeter:
    """What was used for the request of the current asyncio task, known before it has its answer."""

    #: True once a provider or an engine was asked.
    called: bool = False
    #: Chunks of an answer that came: about a token each.
    chunks: int = 0

    @classmethod
    def current(cls) -> UsageMeter:
        """The meter of the request at hand; of no request, one that nobody reads."""
        return _meter.get() or cls()


_meter: ContextVar[UsageMeter | None] = ContextVar("meter", default=None)


@dataclass
class RunCost:
    """What a run has cost, in micro-dollars."""

    cost: int = 0


class AbortedRun(NamedTuple):
    """A run that was cut short, and the micro-dollars that it has cost, by estimate."""

    tenant_id: str
    lane: Lane
    model: str
    cost: int


class DroppedAnswer(NamedTuple):
    """A provider's answer to a request that was cancelled before it came."""

    tenant_id: str
    lane: Lane
    provider: str
    model: str
    #: Micro-dollars.
    cost: int
    #: The same at each repetition, so that the answer counts once.
    answer_id: str


class Accountant:
    """The worker's side of budgets. Use it on one loop.

    A Redis that is away is waited for. A tenant without limits costs no round trip.

    Args:
        observe: Told of each run that was cut short and has cost something.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        catalogue: Catalogue,
        observe: Callable[[AbortedRun], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._observe = observe
        self._settling: set[asyncio.Task[None]] = set()

    @classmethod
    def at(cls, url: str, catalogue: Catalogue, observe: Callable[[AbortedRun], None]) -> Self:
        """Charges to the ledgers at a Redis URL."""
        client = redis_support.patient_async(url, MAX_CONNECTIONS)
        return cls(AsyncLedger(client), catalogue, observe)

    async def close(self) -> None:
        """Return when all that is known was settled."""
        await asyncio.gather(*self._settling)
        await self._ledger.close()

    async def reserve(self, lane: Lane, request: Request, task_id: str) -> None:
        """See to it that a task holds as much as it can cost on a lane; as often as one likes.

        A task that goes to a dearer lane gets what is missing. Raises CostCapExceeded,
        BudgetExceeded, or FleetUnavailable when Redis refuses; nothing more is reserved then than
        before. What the fleet does not serve on the lane is left for those to refuse who know why.
        """
        for error in (await self.reserve_many(lane, {task_id: request})).values():
            raise error

    async def reserve_many(
        self, lane: Lane, requests: Mapping[str, Request]
    ) -> dict[str, FleetError]:
        """`reserve` for many, by their task ids: the refusals of those for which there is no room.

        One round trip a tenant, and a few for each refusal. Raises FleetUnavailable: then some are
        reserved, and the call may be repeated.
        """
        refused: dict[str, FleetError] = {}
        by_tenant: defaultdict[str, list[ReservationRequest]] = defaultdict(list)
        for task_id, request in requests.items():
            try:
                by_tenant[request.tenant_id] += self._orders(lane, request, task_id)
            except CostCapExceeded as error:
                refused[task_id] = error
        for tenant_id, orders in by_tenant.items():
            refused |= await self._grant(tenant_id, orders)
        return refused

    def _orders(self, lane: Lane, request: Request, task_id: str) -> list[ReservationRequest]:
        """What is to be reserved for a task, if anything. Raises CostCapExceeded."""
        limits, model = self._catalogue.limits(request.tenant_id), self._model(lane, request)
        if model is None:
            return []
        size = protocol.wire_size_bytes(request.to_wire())
        estimate = estimates.estimate(request, size, model, lane, limits)
        estimates.check_cost(request, estimate.expected_cost, lane, limits)
        return [] if limits is None else [ReservationRequest(task_id, estimate.max_cost)]

    async def _grant(
        self, tenant_id: str, orders: list[ReservationRequest]
    ) -> dict[str, FleetError]:
        """Reserve for those that fit, in their order; the refusals of the others."""
        limits = self._catalogue.limits(tenant_id)
        if limits is None or not orders:
            return {}
        try:
            await self._ledger.reserve(tenant_id, limits, orders)
        except BudgetExceeded as error:
            if len(orders) == 1:
                return {orders[0].task_id: error}
            half = len(orders) // 2
            first = await self._grant(tenant_id, orders[:half])
            return first | await self._grant(tenant_id, orders[half:])
        except redis.RedisError as error:
            raise FleetUnavailable(f"no budget could be asked: {type(error).__name__}") from None
        return {}

    async def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> None:
        """Count what a run has cost, in micro-dollars, and give the task's reservation back.

        Args:
            run: What tells this run from another of the task: a repeated call counts once.
        """
        await self.settle_many([(tenant_id, task_id, run, cost)])

    async def settle_many(self, bills: Iterable[tuple[str, str, str, int]]) -> None:
        """`settle` with the arguments of each, in one round trip."""
        limited = [bill for bill in bills if self._catalogue.limits(bill[0]) is not None]
        try:
            await self._ledger.settle_many(limited)
        except redis.RedisError as error:
            for _, task_id, _, cost in limited:
                logger.error(
                    "%s: %s micro-dollars are not counted: %s",
                    task_id,
                    cost,
                    type(error).__name__,
                    extra={"action": "budget_settle_failed", "task_id": task_id},
                )

    async def refund(self, message: Any) -> None:
        """Give the reservation back of a task that will not run, by what Celery knows of it."""
        body = next(iter(message.args or ()), None)
        if isinstance(body, dict):
            tenant = body.get("tenant_id") or Request.model_fields["tenant_id"].default
            await self.settle(str(tenant), message.id, "", 0)

    @asynccontextmanager
    async def run(self, lane: Lane, request: Request, task_id: str) -> AsyncIterator[RunCost]:
        """Reserve before a run of a task and settle after it, with the bill that is then written.

        Of a run that fails nothing is paid, as far as anyone knows. One that is cut short, by its
        deadline, by who cancels it, or in the middle of a stream, was paid until then: for its
        prompt, if it had got to a provider, and a token for each chunk, by estimate.
        """
        await self.reserve(lane, request, task_id)
        bill, meter = RunCost(), UsageMeter()
        token = _meter.set(meter)
        try:
            yield bill
        except (asyncio.CancelledError, DeadlineExceeded):
            bill.cost = self._used(lane, request, task_id, meter)
            raise
        except Exception:
            bill.cost = self._used(lane, request, task_id, meter) if meter.chunks else 0
            raise
        finally:
            _meter.reset(token)
            await self._settled(request.tenant_id, task_id, bill.cost)

    async def _settled(self, tenant_id: str, task_id: str, cost: int) -> None:
        """Settle even if the task is cancelled meanwhile."""
        settling = asyncio.create_task(self.settle(tenant_id, task_id, uuid.uuid4().hex, cost))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    def _used(self, lane: Lane, request: Request, task_id: str, meter: UsageMeter) -> int:
        """Micro-dollars that a run without an answer has cost, by estimate."""
        model = self._model(lane, request)
        if model is None or not meter.called:
            return 0
        prompt = protocol.wire_size_bytes(request.body()) // estimates.BYTES_PER_TOKEN + 1
        cost = model.lanes[lane].price.cost(prompt, meter.chunks)
        logger.info(
            "%s: cut short after %s chunks, about %s micro-dollars",
            task_id,
            meter.chunks,
            cost,
            extra={"action": "run_cut_short", "task_id": task_id},
        )
        self._observe(AbortedRun(request.tenant_id, lane, request.model, cost))
        return cost

    def _model(self, lane: Lane, request: Request) -> Model | None:
        model = self._catalogue.models.get(request.model)
        return model if model and lane in model.lanes else None
