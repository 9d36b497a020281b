"""Tenants' budgets: what they have spent and reserved, stored in Redis. No budget is overspent.

Before a request is sent, the most that it can cost is reserved. When its outcome is known, its
actual cost replaces the reservation. A request counts on the day, and in the month, in which it was
reserved. Each change is one atomic script:

-   Spent and reserved amounts together never exceed a budget, as long as no request costs more than
    was reserved for it. A request that does is counted in full, and nothing new is reserved until
    there is room again.
-   A tenant never has more concurrent requests than `max_concurrency`, and never submits more
    tokens in a minute than `tokens_per_minute`. Both are checked when the producer submits, so
    messages that Celery itself sends do not count.
-   A reservation is refused only if it does not fit.
-   Reserving is idempotent by task, settling by run of a task. A task that ran twice was paid twice
    and counts twice; a call that is repeated because its answer was lost counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from primarch_fleet.catalogue import Limits
from primarch_fleet.errors import BudgetExceeded, FleetError, TenantLimited
from primarch_fleet.money import format_dollars, to_micros
from primarch_fleet.redis_support import LuaScript, ScriptPipeline
from primarch_fleet.reservations import Reservation, ReservationRequest

#: Seconds after which a reservation that is never settled is removed: longer than a request can
#: exist. On the batch lane that is three windows of a day at most, and two days of waiting between.
RESERVATION_TTL_SECONDS = 5 * 86_400
#: Seconds after which a request no longer counts for its tenant's concurrency, even if it was never
#: settled: its submit may have failed before it was sent. Longer than an interactive queue.
MAX_CONCURRENCY_SECONDS = 3_600
#: Seconds after which a producer may retry when its tenant has reached its concurrency.
CONCURRENCY_RETRY_SECONDS = 1.0
#: Seconds for which a settled run is remembered: longer than any call is repeated.
SETTLED_TTL_SECONDS = 3 * 86_400
#: Runs that one script settles: Redis does nothing else meanwhile.
SETTLED_AT_ONCE = 50
#: Days for which the ledger keeps a period.
KEPT_DAYS = 62

#: Where the scripts of budgets are.
LUA = Path(__file__).with_name("lua") / "budget"
#: The first part of each script that changes a ledger; the workers' result store has one too.
LEDGER_LUA = LUA / "ledger.lua"
#: The first parts of each script that reserves; the publisher has one too.
RESERVATION_LUA = (LEDGER_LUA, LUA / "reservation.lua")
_RESERVE = LuaScript.load(*RESERVATION_LUA, LUA / "reserve.lua")
_SETTLE = LuaScript.load(LEDGER_LUA, LUA / "settle.lua")

Clock = Callable[[], float]


class ReserveStatus(StrEnum):
    """The first element of the reply of lua/budget/reserve.lua."""

    GRANTED = "granted"
    REFUSED = "refused"


class ReachedLimit(StrEnum):
    """The limit that a refused reservation would exceed."""

    MONTHLY_BUDGET = "monthly"
    DAILY_BUDGET = "daily"
    CONCURRENCY = "concurrency"
    RATE = "rate"


class GrantFlag:
    """Bits of what the script tells of each task that has its reservation.

    An IntFlag would make an object of each bit that is tested.
    """

    IS_FALLBACK = 1
    WAS_HELD = 2


@dataclass(frozen=True)
class Spending:
    """One period of a tenant's budget, in nano-dollars.

    `spent`, `reserved`, `cap` and `left` are the same in whole micro-dollars, as older versions had
    them.
    """

    spent_nanousd: int
    reserved_nanousd: int
    #: The budget of the period; None without a limit.
    cap_nanousd: int | None
    #: When the next period starts.
    resets_at: datetime

    @property
    def left_nanousd(self) -> int | None:
        """What can still be reserved. Negative if requests cost more than was reserved for them."""
        used = self.spent_nanousd + self.reserved_nanousd
        return None if self.cap_nanousd is None else self.cap_nanousd - used

    @property
    def spent(self) -> int:
        """`spent_nanousd` in micro-dollars, rounded half up."""
        return to_micros(self.spent_nanousd)

    @property
    def reserved(self) -> int:
        """`reserved_nanousd` in micro-dollars, rounded half up."""
        return to_micros(self.reserved_nanousd)

    @property
    def cap(self) -> int | None:
        """`cap_nanousd` in micro-dollars, rounded half up."""
        return None if self.cap_nanousd is None else to_micros(self.cap_nanousd)

    @property
    def left(self) -> int | None:
        """`left_nanousd` in micro-dollars, rounded half up."""
        return None if self.left_nanousd is None else to_micros(self.left_nanousd)


@dataclass(frozen=True)
class Budget:
    """A tenant's budget for the current UTC day and month, by the clock of Redis."""

    day: Spending
    month: Spending


class _LedgerScripts:
    """What Ledger and AsyncLedger share: the calls of the scripts and their replies."""

    def __init__(self, client: Any, clock: Clock | None) -> None:
        self._redis = client
        self._clock = clock

    def _now(self) -> float | None:
        return None if self._clock is None else self._clock()

    def _run_reserve(
        self, tenant_id: str, limits: Limits, requests: Sequence[ReservationRequest]
    ) -> Any:
        args = reserve_args(tenant_id, limits, requests, self._now())
        return _RESERVE.run(self._redis, ledger_keys(tenant_id), args)

    def _run_settle(
        self, tenant_id: str, runs: Iterable[tuple[str, str, int]], client: Any = None
    ) -> Any:
        """Settle runs of one tenant: of each the task, the run and the cost."""
        keys, args = ledger_keys(tenant_id), [_optional(self._now()), SETTLED_TTL_SECONDS]
        for task_id, run, cost in runs:
            keys.append(f"fleet:budget:settled:{task_id}:{run}")
            args += [task_id, cost]
        return _SETTLE.run(client or self._redis, keys, args)

    def _read_ledger(self, tenant_id: str) -> Any:
        return self._redis.pipeline(transaction=False).time().hgetall(ledger_keys(tenant_id)[0])

    def _budget(self, limits: Limits, reply: Any) -> Budget:
        (seconds, _), ledger = reply
        now = datetime.fromtimestamp(seconds if self._clock is None else self._clock(), UTC)
        return read_budget(ledger, limits, now)


class Ledger(_LedgerScripts):
    """The ledgers of all tenants at one Redis.

    Args:
        client: With `decode_responses`.
        clock: Unix seconds, for tests; None for the clock of the server.
    """

    def __init__(self, client: redis.Redis, clock: Clock | None = None) -> None:
        super().__init__(client, clock)

    def reserve(
        self, tenant_id: str, limits: Limits, requests: Sequence[ReservationRequest]
    ) -> list[Reservation]:
        """Reserve money for tasks of one tenant, for all of them or for none, in one round trip.

        Each task gets the first of its two amounts that fits after the tasks before it. A task that
        holds a reservation gets what is missing to the amount, if anything, and its reservation
        expires as if it were new. Redis does nothing else meanwhile: about 5 microseconds per task.

        Returns:
            The reservations in the order of the requests.

        Raises:
            BudgetExceeded: A budget has no room; the message says which one, what is left and when
                it resets. Nothing was reserved.
            TenantLimited: The concurrency or the rate is reached. Nothing was reserved.
        """
        reply = self._run_reserve(tenant_id, limits, requests)
        return read_reservations(tenant_id, limits, requests, reply)

    def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> bool:
        """Count the cost of a run of a task, and remove the task's reservation.

        Args:
            run: An id of the run; a repeated call has the same id.
            cost: Nano-dollars.

        Returns:
            False if the run was counted before; nothing has changed then.
        """
        return bool(self._run_settle(tenant_id, [(task_id, run, cost)]))

    def refund(self, tenant_id: str, task_id: str) -> None:
        """Remove a task's reservation, if there is one: the task will not run."""
        self.settle(tenant_id, task_id, "", 0)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """Return what a tenant has spent and reserved."""
        return self._budget(limits, self._read_ledger(tenant_id).execute())


class AsyncLedger(_LedgerScripts):
    """`Ledger` for asyncio; see there."""

    def __init__(self, client: redis.asyncio.Redis, clock: Clock | None = None) -> None:
        super().__init__(client, clock)

    async def reserve(
        self, tenant_id: str, limits: Limits, requests: Sequence[ReservationRequest]
    ) -> list[Reservation]:
        """Reserve as `Ledger.reserve` does."""
        reply = await self._run_reserve(tenant_id, limits, requests)
        return read_reservations(tenant_id, limits, requests, reply)

    async def settle(self, tenant_id: str, task_id: str, run: str, cost: int) -> bool:
        """Settle as `Ledger.settle` does."""
        return bool(await self._run_settle(tenant_id, [(task_id, run, cost)]))

    async def settle_many(self, runs: Iterable[tuple[str, str, str, int]]) -> None:
        """Call `settle` with each tuple of arguments, in one round trip."""
        by_tenant: defaultdict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for tenant_id, task_id, run, cost in runs:
            by_tenant[tenant_id].append((task_id, run, cost))
        pipe = ScriptPipeline(self._redis)
        for tenant_id, own in by_tenant.items():
            for start in range(0, len(own), SETTLED_AT_ONCE):
                self._run_settle(tenant_id, own[start : start + SETTLED_AT_ONCE], pipe)
        await pipe.execute()

    async def refund(self, tenant_id: str, task_id: str) -> None:
        """Refund as `Ledger.refund` does."""
        await self.settle(tenant_id, task_id, "", 0)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def budget(self, tenant_id: str, limits: Limits) -> Budget:
        """Return what `Ledger.budget` does."""
        return self._budget(limits, await self._read_ledger(tenant_id).execute())


def ledger_keys(tenant_id: str) -> list[str]:
    """Return the Redis keys of a tenant, as lua/budget/ledger.lua lists them."""
    kinds = ("ledger_nanousd", "open_nanousd", "ages", "busy", "rate")
    return [f"fleet:budget:{kind}:{tenant_id}" for kind in kinds]


def payer_key(task_id: str) -> str:
    """Return the Redis key of the tenant that has a reservation for a task."""
    return f"fleet:budget:payer:{task_id}"


def reserve_args(
    tenant_id: str,
    limits: Limits,
    requests: Iterable[ReservationRequest],
    now: float | None = None,
) -> list[Any]:
    """Return the arguments of lua/budget/reserve.lua.

    Args:
        now: Unix seconds; None for the clock of the server.
    """
    args = [
        _optional(now),
        _optional(limits.monthly_budget_nanousd),
        _optional(limits.daily_budget_nanousd),
        RESERVATION_TTL_SECONDS,
        KEPT_DAYS,
        _optional(limits.max_concurrency),
        _optional(limits.tokens_per_minute),
        MAX_CONCURRENCY_SECONDS,
        tenant_id,
    ]
    for task_id, amount, fallback, tokens in requests:
        args += (task_id, amount, _optional(fallback), *map(_optional, tokens))
    return args


def read_reservations(
    tenant_id: str, limits: Limits, requests: Sequence[ReservationRequest], reply: list[Any]
) -> list[Reservation]:
    """Decode the reply of lua/budget/reserve.lua. Raises as `Ledger.reserve` does."""
    status, now, *details = reply
    if status == ReserveStatus.REFUSED:
        raise _refusal(tenant_id, limits, now, details)
    return [
        Reservation(
            request.task_id,
            is_fallback=bool(grant & GrantFlag.IS_FALLBACK),
            is_new=not grant & GrantFlag.WAS_HELD,
        )
        for request, grant in zip(requests, details, strict=True)
    ]


def _refusal(tenant_id: str, limits: Limits, now: int, details: list[Any]) -> FleetError:
    limit, left, missing = details
    tenant = f"tenant {tenant_id!r}"
    if limit == ReachedLimit.CONCURRENCY:
        reason = f"its limit of {limits.max_concurrency} concurrent requests is reached"
        return TenantLimited.until(f"{tenant}: {reason}", CONCURRENCY_RETRY_SECONDS)
    if limit == ReachedLimit.RATE:
        rate = f"{limits.tokens_per_minute} tokens per minute"
        reason = f"the request has {missing} tokens, {left} are left of its {rate}"
        return TenantLimited.until(f"{tenant}: {reason}", 60.0 - now % 60)
    today = datetime.fromtimestamp(now, UTC)
    if limit == ReachedLimit.MONTHLY_BUDGET:
        budget, resets_at = limits.monthly_budget_nanousd, _next_month(today)
    else:
        budget, resets_at = limits.daily_budget_nanousd, _next_day(today)
    seconds = resets_at.timestamp() - now
    return BudgetExceeded(
        f"{tenant}: {format_dollars(missing)} must be reserved, {format_dollars(left)} is left of "
        f"the {limit} budget of {format_dollars(budget or 0)}, which resets at "
        f"{resets_at:%Y-%m-%dT%H:%M:%SZ}, in {seconds:.0f} s"
    )


def read_budget(ledger: Mapping[str, str], limits: Limits, now: datetime) -> Budget:
    """Return the budget of a tenant now.

    Args:
        ledger: Nano-dollars by period and kind: `2026-11-29 spent`, `2026-11 reserved`.
    """
    return Budget(
        day=_spending(ledger, f"{now:%Y-%m-%d}", limits.daily_budget_nanousd, _next_day(now)),
        month=_spending(ledger, f"{now:%Y-%m}", limits.monthly_budget_nanousd, _next_month(now)),
    )


def _optional(value: float | None) -> str:
    return "" if value is None else str(value)


def _next_day(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def _spending(
    ledger: Mapping[str, str], period: str, cap: int | None, resets_at: datetime
) -> Spending:
    spent, reserved = (int(ledger.get(f"{period} {kind}", 0)) for kind in ("spent", "reserved"))
    return Spending(spent, reserved, cap, resets_at)
