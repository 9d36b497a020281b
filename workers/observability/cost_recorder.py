"""The daily cost report in Redis, which `fleet costs` shows.

It is a report, not a ledger: a worker writes what it counted about once a second and when it stops,
so a killed worker loses the costs since its last write. Nothing is added twice. The exact account
of a tenant's money is its budget (primarch_fleet/budgets.py).

Calls without an answer, and answers without a usage, are in the report with their estimated cost,
under the provider ESTIMATED; answers whose generation failed are under their provider, if it
reports their usage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple, Self

import redis
from redis.asyncio import Redis

from primarch_fleet import redis_support
from primarch_fleet.catalogue import Catalogue
from primarch_fleet.contract import Lane, Receipt
from primarch_fleet.money import NANOS_PER_MICRO
from primarch_fleet.prices import cost_nanousd
from primarch_fleet.redis_support import LuaScript
from primarch_fleet.server_clock import CLOCK
from tasks.accounting import DroppedAnswer, UnansweredCall

logger = logging.getLogger(__name__)

#: The provider of costs that no provider reported: they are estimates.
ESTIMATED = "(estimated)"
#: Time between two writes.
FLUSH_INTERVAL_SECONDS = 1.0
#: Time for one write.
TIMEOUT_SECONDS = 2.0
#: A day is kept for a year and a month after its last write.
KEPT_DAYS = 400
#: A write is remembered for longer than a batch is retried, so that its repetitions are ignored:
#: the last one of each worker, and each dropped answer of a batch.
ADDITION_TTL_SECONDS = 7 * 86_400

#: Figures that versions before nano-dollars stored, in micro-dollars -> the figure and its factor.
_MICRO_DOLLARS = {
    name: (f"{name}_nanousd", NANOS_PER_MICRO) for name in ("cost", "list_cost", "realtime_cost")
}

_ADD_COSTS = LuaScript.load(Path(__file__).with_name("lua") / "add_costs.lua")


class CostKey(NamedTuple):
    """What costs are counted by. `model` is the provider's name of the model that answered."""

    tenant: str
    lane: Lane
    provider: str
    model: str


class CostTotals(NamedTuple):
    """Sums over answers; money in nano-dollars."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    #: At the list price of the requested models.
    list_cost_nanousd: int = 0
    #: At the price of the same models on the realtime lane.
    realtime_cost_nanousd: int = 0

    def plus(self, other: CostTotals) -> CostTotals:
        """Return the sum of both."""
        return CostTotals(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def cost_key(receipt: Receipt) -> CostKey:
    """Return the key by which an answer is counted; ESTIMATED if its provider sent no usage."""
    provider = ESTIMATED if receipt.estimated else receipt.provider
    return CostKey(receipt.tenant_id, receipt.lane, provider, receipt.model)


def cost_totals(receipt: Receipt, catalogue: Catalogue) -> CostTotals:
    """Return what an answer adds to the report.

    Where the realtime lane does not serve the model, its realtime cost is the list cost.
    """
    tokens = receipt.input_tokens, receipt.output_tokens
    model = catalogue.models.get(receipt.requested_model)
    offer = model and model.lanes.get("realtime")
    realtime_cost = cost_nanousd(offer.price, receipt.usage) if offer else receipt.list_cost_nanousd
    costs = receipt.cost_nanousd, receipt.list_cost_nanousd, realtime_cost
    return CostTotals(1, *tokens, *costs)


def day_key(day: date) -> str:
    """Return the Redis key of a day's costs; lua/add_costs.lua says what it holds."""
    return f"fleet:costs:{day.isoformat()}"


def parse_day(stored: Mapping[str, str]) -> dict[CostKey, CostTotals]:
    """Parse a day's costs as they are stored, also by versions that counted in micro-dollars."""
    costs: dict[CostKey, CostTotals] = {}
    for field, amount in stored.items():
        *names, figure = json.loads(field)
        key = CostKey(*names)
        figure, unit = _MICRO_DOLLARS.get(figure, (figure, 1))
        added = CostTotals(**{figure: int(amount) * unit})
        costs[key] = costs.get(key, CostTotals()).plus(added)
    return costs


@dataclass(frozen=True)
class _Addition:
    """One write. It is retried under the same id while its outcome is unknown."""

    #: The worker process or batch that it comes from.
    source: str
    #: Unique to its source.
    id: str
    day: date
    costs: Mapping[CostKey, CostTotals]
    #: The id of the source's addition before, whose outcome is known; "" if there is none.
    finished: str = ""

    def fields(self) -> list[str | int]:
        """Pairs of a field and an amount, one after the other."""
        fields: list[str | int] = []
        for key, totals in self.costs.items():
            for figure, amount in totals._asdict().items():
                if amount:
                    fields += [json.dumps([*key, figure]), amount]
        return fields


class RedisCostRecorder:
    """A worker's part of the report. Use it on one loop.

    An answer counts on the UTC day on which its worker counted it, by the server's clock, even if
    Redis takes it after midnight.

    Args:
        client: With `decode_responses`.
        catalogue: For the prices of the realtime lane.
        clock: Returns Unix seconds.
    """

    def __init__(
        self, client: Redis, catalogue: Catalogue, clock: Callable[[], float] = CLOCK.timestamp
    ) -> None:
        self._redis = client
        self._catalogue = catalogue
        self._clock = clock
        self._unwritten: dict[date, dict[CostKey, CostTotals]] = {}
        self._in_flight: _Addition | None = None
        self._id, self._additions = uuid.uuid4().hex, 0
        self._flusher: asyncio.Task[None] | None = None

    @classmethod
    def connect(cls, url: str, catalogue: Catalogue) -> Self:
        """Return a report in the Redis at a URL."""
        return cls(redis_support.once_async(url, TIMEOUT_SECONDS), catalogue)

    async def start(self) -> None:
        """Write every FLUSH_INTERVAL_SECONDS until `close`."""
        self._flusher = asyncio.create_task(self._flush_repeatedly())

    async def close(self) -> None:
        """Write what was counted, and close the connections."""
        if self._flusher:
            self._flusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._flusher
        await self._try_flush()
        await self._redis.aclose()

    def add(self, receipt: Receipt) -> None:
        """Count an answered request, in memory until the next flush."""
        self._add(cost_key(receipt), cost_totals(receipt, self._catalogue))

    def add_unanswered(self, call: UnansweredCall) -> None:
        """Count the cost of a call without an answer, in memory until the next flush.

        It adds a cost and no request.
        """
        provider = ESTIMATED if call.estimated else call.provider
        key = CostKey(call.tenant_id, call.lane, provider, call.model)
        self._add(key, CostTotals(cost_nanousd=call.cost))

    def _add(self, key: CostKey, totals: CostTotals) -> None:
        day = self._unwritten.setdefault(self._today(), {})
        day[key] = day.get(key, CostTotals()).plus(totals)

    async def add_dropped(self, answer: DroppedAnswer) -> None:
        """Store the cost of an answer to a cancelled request: a cost and no request.

        A repeated `answer_id` of a batch counts once.

        Raises:
            redis.RedisError: The call may be repeated.
        """
        key = CostKey(answer.tenant_id, answer.lane, answer.provider, answer.model)
        costs = {key: CostTotals(cost_nanousd=answer.cost)}
        await self._write(_Addition(answer.batch, answer.answer_id, self._today(), costs))

    async def flush(self) -> None:
        """Write what was counted.

        Raises:
            redis.RedisError: The rest is kept for the next flush.
        """
        while addition := self._in_flight or self._next_addition():
            self._in_flight = addition
            await self._write(addition)
            self._in_flight = None

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _next_addition(self) -> _Addition | None:
        if not self._unwritten:
            return None
        finished, self._additions = self._additions, self._additions + 1
        day, costs = self._unwritten.popitem()
        return _Addition(self._id, str(self._additions), day, costs, str(finished))

    async def _write(self, addition: _Addition) -> None:
        keys = [day_key(addition.day), f"fleet:costs:additions:{addition.source}"]
        ids = [addition.id, addition.finished]
        arguments = [KEPT_DAYS * 86_400, ADDITION_TTL_SECONDS, *ids, *addition.fields()]
        await _ADD_COSTS.run(self._redis, keys, arguments)

    async def _flush_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_SECONDS)
            await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except redis.RedisError as error:
            logger.warning(
                "cost report not written: %s",
                type(error).__name__,
                extra={"action": "cost_report_write_failed"},
            )
