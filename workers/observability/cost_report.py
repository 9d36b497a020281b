"""What answers have cost, kept in Redis day by day: what `python -m scheduler costs` reports.

It is a report and no ledger: what a worker has seen is written about once a second and when the
worker stops, so that one which is killed takes with it what it saw since then. Nothing is added
twice. The exact account of a tenant's money is its budget (primarch_fleet/budget.py).

Runs that were cut short are in it with what they have cost by estimate, under ESTIMATED: no
provider tells.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
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
from primarch_fleet.redis_support import LuaScript
from tasks.accounting import AbortedRun, DroppedAnswer

logger = logging.getLogger(__name__)

#: In the place of a provider, of what no provider has said: an estimate.
ESTIMATED = "(estimated)"
#: Seconds between two writes.
INTERVAL = 1.0
#: Seconds that a write may take.
TIMEOUT = 2.0
#: Seconds for which a day is kept, after it was last added to: a year and a month.
KEPT = 400 * 86_400
#: Seconds for which it is known what was added: longer than a batch lives, and so repeats itself.
REMEMBERED = 7 * 86_400

_ADD_COSTS = LuaScript.load(Path(__file__).with_name("lua") / "add_costs.lua")


class Row(NamedTuple):
    """Who asked for an answer, and who gave it: the model that did, by the provider's own word."""

    tenant: str
    lane: Lane
    provider: str
    model: str


class Figures(NamedTuple):
    """What answers come to together; money in micro-dollars."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    #: At the list price of the models that were asked for.
    list_cost: int = 0
    #: At the price of the same models on the realtime lane.
    realtime_cost: int = 0

    def plus(self, other: Figures) -> Figures:
        """Both together."""
        return Figures(*(one + two for one, two in zip(self, other, strict=True)))


def row(receipt: Receipt) -> Row:
    """The row of the report to which an answer belongs."""
    return Row(receipt.tenant_id, receipt.lane, receipt.provider, receipt.model)


def figures(receipt: Receipt, catalogue: Catalogue) -> Figures:
    """What an answer adds to the report.

    Its realtime cost is the list price's where the realtime lane does not offer the model.
    """
    tokens = receipt.input_tokens, receipt.output_tokens
    model = catalogue.models.get(receipt.requested_model)
    offer = model and model.lanes.get("realtime")
    realtime = offer.price.cost(*tokens) if offer else receipt.list_cost
    return Figures(1, *tokens, receipt.cost, receipt.list_cost, realtime)


def key(day: date) -> str:
    """Redis key of a day's costs, by lua/add_costs.lua."""
    return f"fleet:costs:{day.isoformat()}"


def parse(stored: Mapping[str, str]) -> dict[Row, Figures]:
    """A day's costs as they are stored."""
    rows: dict[Row, Figures] = {}
    for field, amount in stored.items():
        *names, figure = json.loads(field)
        one = Row(*names)
        rows[one] = rows.get(one, Figures()).plus(Figures(**{figure: int(amount)}))
    return rows


@dataclass(frozen=True)
class _Addition:
    """What is written at once, and again under the same name if nobody knows whether it was."""

    name: str
    day: date
    rows: Mapping[Row, Figures]

    def fields(self) -> list[str | int]:
        amounts = (
            (json.dumps([*row, figure]), amount)
            for row, figures in self.rows.items()
            for figure, amount in figures._asdict().items()
            if amount
        )
        return [part for pair in amounts for part in pair]


class CostReport:
    """A worker's side of the report. Use it on one loop.

    An answer counts on the UTC day on which its worker saw it, by the worker's clock: one that
    Redis is too busy to take before midnight is still on its day.

    Args:
        client: With `decode_responses`.
        catalogue: For the prices of the realtime lane.
        clock: Unix seconds.
    """

    def __init__(
        self, client: Redis, catalogue: Catalogue, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = client
        self._catalogue = catalogue
        self._clock = clock
        self._seen: dict[date, dict[Row, Figures]] = {}
        self._writing: _Addition | None = None
        self._running: asyncio.Task[None] | None = None

    @classmethod
    def at(cls, url: str, catalogue: Catalogue) -> Self:
        """Costs kept at a Redis URL."""
        return cls(redis_support.once_async(url, TIMEOUT), catalogue)

    async def start(self) -> None:
        """Write what is seen from now on every INTERVAL seconds, until `close`."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what was seen, and give the connections back."""
        if self._running:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        await self._try_flush()
        await self._redis.aclose()

    def add(self, receipt: Receipt) -> None:
        """Count an answered request, in memory until the next flush."""
        self._add(row(receipt), figures(receipt, self._catalogue))

    def add_aborted(self, run: AbortedRun) -> None:
        """Count the cost of a run without an answer, in memory until the next flush.

        It adds a cost and no request.
        """
        self._add(Row(run.tenant_id, run.lane, ESTIMATED, run.model), Figures(cost=run.cost))

    def _add(self, row: Row, more: Figures) -> None:
        day = self._seen.setdefault(self._today(), {})
        day[row] = day.get(row, Figures()).plus(more)

    async def add_dropped(self, answer: DroppedAnswer) -> None:
        """Store the cost of an answer to a cancelled request: a cost and no request.

        A repeated `answer_id` counts once.

        Raises:
            redis.RedisError: The call may be repeated.
        """
        row = Row(answer.tenant_id, answer.lane, answer.provider, answer.model)
        figures = {row: Figures(cost=answer.cost)}
        await self._write(_Addition(answer.answer_id, self._today(), figures))

    async def flush(self) -> None:
        """Write what was seen. Raises redis.RedisError; what is not written is kept then."""
        while addition := self._writing or self._next():
            self._writing = addition
            await self._write(addition)
            self._writing = None

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _next(self) -> _Addition | None:
        return _Addition(uuid.uuid4().hex, *self._seen.popitem()) if self._seen else None

    async def _write(self, addition: _Addition) -> None:
        keys = [key(addition.day), f"fleet:costs:added:{addition.name}"]
        await _ADD_COSTS.run(self._redis, keys, [KEPT, REMEMBERED, *addition.fields()])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except redis.RedisError as error:
            logger.warning(
                "costs are not written: %s",
                type(error).__name__,
                extra={"action": "costs_not_written"},
            )
