"""What tenants have spent and reserved, kept in Redis: no budget is ever overspent.

Before a request is sent, the most that it can cost is reserved; when its outcome is known, what it
did cost takes the reservation's place. A request counts on the day, and in the month, in which it
was reserved. Each change is one script, so that of any number of clients none sees half of it:

-   Spent and reserved together never exceed a cap, as long as no request costs more than was
    reserved for it; one that does is counted with all it cost, and nothing new is reserved until
    there is room again.
-   A tenant's requests under way are never more than its concurrency, and the tokens submitted in
    a minute never more than its rate: refused at the producer, so what Celery itself sends does
    not count.
-   A reservation is refused only when it does not fit.
-   Reserving is repeatable by task, settling by run of a task: a task that ran twice was paid twice
    and counts twice, a call that is repeated because its answer was lost counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import redis
import redis.asyncio

from primarch_fleet.catalogue import Limits
from primarch_fleet.encoder import MAX_MEMORY_FRACTION, EncodedMessage, redis_full
from primarch_fleet.errors import BudgetExceeded, FleetError, TenantLimited
from primarch_fleet.money import format_dollars
from primarch_fleet.redis_support import LuaScript, ScriptPipeline

#: Seconds after which a reservation that nobody settled is given back: longer than a request lives.
#: On the batch lane that is three windows of a day at most, and two days for what waits between.
RESERVATION_TTL_SECONDS = 5 * 86_400
#: Seconds after which a request no longer counts for its tenant's concurrency, whatever became of
#: it: its submit may have broken off before it was sent. Longer than a queue of people who wait.
MAX_CONCURRENCY_SECONDS = 3_600
#: Seconds that a producer is told to wait for one of its tenant's requests to end.
CONCURRENCY_RETRY_SECONDS = 1.0
#: Seconds for which the cost of a run is known: longer than anyone repeats himself.
SETTLED_TTL_SECONDS = 3 * 86_400
#: Days after which a period is dropped from the ledger.
KEPT_DAYS = 62

_CAPS = {1: "monthly", 2: "daily"}
_CONCURRENCY, _RATE, _MEMORY = 3, 4, 5

_LUA = Path(__file__).with_name("lua")
_RESERVE = LuaScript.load(_LUA / "ledger.lua", _LUA / "push.lua", _LUA / "reserve.lua")
_SETTLE = LuaScript.load(_LUA / "ledger.lua", _LUA / "settle.lua")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Spending:
    """One period of a tenant's budget, in micro-dollars; `cap` is None without one."""

    spent: int
    reserved: int
    cap: int | None
    #: When the next period starts.
    resets_at: datetime

    @property
    def left(self) -> int | None:
        """What can still be reserved; negative when requests cost more than was reserved."""
        return None if self.cap is None else self.cap - self.spent - self.reserved


@dataclass(frozen=True)
class Budget:
    """A tenant's budget today and in this month, by UTC and the clock of Redis."""

    day: Spending
    month: Spending


class ReservationRequest(NamedTuple):
    """A task, and the micro-dollars to reserve for it; `instead` if the amount does not fit."""

    task_id: str
    amount: int
    fallback: int | None = None
    #: Tokens with which it counts for the tenant's concurrency and rate if it is new, for the one
    #: amount and the other; None does not count.
    tokens: tuple[int | None, int | None] = (None, None)

    @property
    def args(self) -> list[Any]:
        """The same as lua/reserve.lua reads it."""
        return [self.task_id, self.amount, *map(_given, (self.fallback, *self.tokens))]


class Reservation(NamedTuple):
    """A task that has its reservation."""

    task_id: str
    #: True when it is for `instead`.
    is_fallback: bool
    #: False when the task held a reservation before.
    is_new: bool


class _LedgerScripts:
    """What both ledgers share: how the scripts are asked, and what their answers mean."""

    def __init__(self, client: Any, clock: Clock | None) -> None:
        self._redis = client
        self._clock = clock

    def _now(self) -> float | str:
        return "" if self._clock is None else self._clock()

    def _ask(
        self,
        tenant_id: str,
        limits: Limits,
        orders: Sequence[ReservationRequest],
        letters: Sequence[EncodedMessage],
    ) -> Any:
        caps = [_given(limits.monthly_budget), _given(limits.daily_budget)]
        load = [
            _given(limits.max_concurrency),
            _given(limits.tokens_per_minute),
            MAX_CONCURRENCY_SECONDS,
        ]
        tasks = [arg for one in orders for arg in one.args]
        args = [
            self._now(),
            *caps,
            RESERVATION_TTL_SECONDS,
            KEPT_DAYS,
            *load,
            MAX_MEMORY_FRACTION,
            *tasks,
        ]
        lists, texts = [one.list_key for one in letters], [one.text for one in letters]
        return _RESERVE.run(self._redis, [*_keys(tenant_id), *lists], [*args, *texts])

    def _tell(self, tenant_id: str, task_id: str, run: str, cost: int, client: Any = None) -> Any:
        settled = f"fleet:budget:settled:{task_id}:{run}"
        args = [self._now(), task_id, cost, SETTLED_TTL_SECONDS]
        return _SETTLE.run(client or self._redis, [*_keys(tenant_id), settled], args)

    def _look(self, tenant_id: str) -> Any:
        pipe = self._redis.pipeline(transaction=False)
        return pipe.time().hgetall(_keys(tenant_id)[0])

    def _budget(self, limits: Limits, answer: Any) -> Budget:
        (seconds, _), ledger = answer
        now = datetime.fromtimestamp(seconds if self._clock is None else self._clock(), UTC)
        day, month = now.date().isoformat(), f"{now:%Y-%m}"
        return Budget(
            day=_spending(ledger, day, limits.daily_budget, _resets(now, "daily")),
            month=_spending(ledger, month, limits.monthly_budget, _resets(now, "monthly")),
        )


class Ledger(_LedgerScripts):
    """The tenants' ledgers at one Redis.

    Args:
        client: With `decode_responses`.
        clock: Unix seconds, for tests; None takes the server's, which is everybody's.
    """

    def __init__(self, client: redis.Redis, clock: Clock | None = None) -> None:
        super().__init__(client, clock)

    def reserve(
        self,
        tenant_id: str,
        limits: Limits,
        orders: Sequence[ReservationRequest],
        letters: Sequence[EncodedMessage] = (),
    ) -> list[Reservation]:
        """Reserve money for tasks of one tenant, for all or for none, in one round trip.

        Letters are pushed in the same step, once everything is reserved. Have no client that
        repeats what got no answer do that: they would be pushed again.

        Of each order the first of its amounts is reserved that fits behind those before it. A task
        that holds a reservation gets what is missing to the amount, if anything, and is new again
        to the clock by which old reservations are given back. Redis does nothing else meanwhile:
        about 5 microseconds an order.

        Raises BudgetExceeded, which says which cap, what is left and when it starts anew,
        TenantLimited, or LaneFull where Redis has no memory for letters, both with their
        `retry_after`; nothing was reserved or pushed then.
        """
        answer = self._ask(tenant_id, limits, orders, letters)
        return _held(tenant_id, limits, orders, answer)

    def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> bool:
        """Count what a run of a task has cost, and give its reservation back.

        Args:
            run: What tells this run from another of the same task; a repeated call says the same.
            cost: Micro-dollars.

        Returns False for a run that was counted before; nothing has changed then.
        """
        return bool(self._tell(tenant_id, task_id, run, cost))

    def refund(self, tenant_id: str, task_id: str) -> None:
        """Give a reservation back, if there is one: the task will not run."""
        self.settle(tenant_id, task_id, "", 0)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """What a tenant has spent and reserved."""
        return self._budget(limits, self._look(tenant_id).execute())


class AsyncLedger(_LedgerScripts):
    """`Ledger` for asyncio; see there."""

    def __init__(self, client: redis.asyncio.Redis, clock: Clock | None = None) -> None:
        super().__init__(client, clock)

    async def reserve(
        self, tenant_id: str, limits: Limits, orders: Sequence[ReservationRequest]
    ) -> list[Reservation]:
        return _held(tenant_id, limits, orders, await self._ask(tenant_id, limits, orders, ()))

    async def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> bool:
        return bool(await self._tell(tenant_id, task_id, run, cost))

    async def settle_many(self, bills: Iterable[tuple[str, str, str, int]]) -> None:
        """`settle` with the arguments of each, in one round trip."""
        pipe = ScriptPipeline(self._redis)
        for bill in bills:
            self._tell(*bill, client=pipe)
        await pipe.execute()

    async def refund(self, tenant_id: str, task_id: str) -> None:
        await self.settle(tenant_id, task_id, "", 0)

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def budget(self, tenant_id: str, limits: Limits) -> Budget:
        return self._budget(limits, await self._look(tenant_id).execute())


def _keys(tenant_id: str) -> list[str]:
    """Redis keys of a tenant, by lua/ledger.lua."""
    kinds = ("ledger", "open", "ages", "busy", "rate")
    return [f"fleet:budget:{what}:{tenant_id}" for what in kinds]


def _given(amount: int | None) -> str:
    return "" if amount is None else str(amount)


def _held(
    tenant_id: str, limits: Limits, orders: Sequence[ReservationRequest], answer: list[int]
) -> list[Reservation]:
    now, *codes = answer
    if codes[:1] == [0]:
        raise _refused(f"tenant {tenant_id!r}", limits, now, codes[1:])
    return [
        Reservation(order.task_id, is_fallback=code in (2, 4), is_new=code <= 2)
        for order, code in zip(orders, codes, strict=True)
    ]


def _refused(whose: str, limits: Limits, now: int, codes: list[int]) -> FleetError:
    cap, left, missing = codes
    if cap == _MEMORY:
        return redis_full(left)
    if cap == _CONCURRENCY:
        most = f"{limits.max_concurrency} of its requests may be under way at once"
        return TenantLimited.until(f"{whose}: {most}", CONCURRENCY_RETRY_SECONDS)
    if cap == _RATE:
        rate = f"{missing} tokens, {left} are left of its {limits.tokens_per_minute} a minute"
        return TenantLimited.until(f"{whose}: {rate}", 60.0 - now % 60)
    return BudgetExceeded(f"{whose}: {_refusal(limits, now, cap, left, missing)}")


def _refusal(limits: Limits, now: int, cap: int, left: int, missing: int) -> str:
    name = _CAPS[cap]
    anew = _resets(datetime.fromtimestamp(now, UTC), name)
    return (
        f"{format_dollars(missing)} is to be reserved, {format_dollars(left)} is left of the "
        f"{name} budget of {format_dollars(getattr(limits, f'{name}_budget'))}, which starts "
        f"anew at {anew:%Y-%m-%dT%H:%M:%SZ}, in {anew.timestamp() - now:.0f} s"
    )


def _resets(now: datetime, name: str) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "daily":
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def _spending(
    ledger: dict[str, str], period: str, cap: int | None, resets_at: datetime
) -> Spending:
    spent, reserved = (int(ledger.get(f"{period} {what}", 0)) for what in ("spent", "reserved"))
    return Spending(spent, reserved, cap, resets_at)
