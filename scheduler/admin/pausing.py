"""Pausing and resuming: queues, and the creation of batches, until an operator resumes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from primarch_fleet.catalogue import CATALOGUE_KEY, Catalogue
from primarch_fleet.contract import REALTIME_QUEUE
from primarch_fleet.errors import FleetError
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from scheduler.store.batch_pauses import WHOLE_LANE, Pause
from scheduler.store.batch_store import Store

#: The name of batch creation. The queue of that name goes on: its requests are parked.
BATCH = "batch"
#: End of the pause of batch creation, in Unix seconds: the year 2100.
UNTIL_RESUMED = 4_102_444_800.0


class UnknownQueue(FleetError):
    """No queue that can be paused has this name."""


@dataclass(frozen=True)
class Named:
    """What was paused or resumed."""

    #: Sorted.
    queues: list[str]
    #: Whether batch creation was.
    batches: bool
    #: Accounts that their providers had refused, and that are tried again.
    accounts: tuple[str, ...] = ()


#: `pause` or `resume`.
Change = Callable[[Redis, list[str]], Awaitable[Named]]


async def pause(client: Redis, names: list[str]) -> Named:
    """Pause what the names stand for; what runs ends as always.

    Args:
        client: Must decode responses.
        names: `realtime`, `local` for the queues of all engines, `local.<model>`, or BATCH.

    Raises:
        UnknownQueue: A name stands for nothing; nothing is paused.
    """
    queues = await _named(client, names)
    if BATCH in names:
        await pause_batches(Store(client))
    if queues:
        await _set_of(client).sadd(PAUSED_QUEUES_KEY, *queues)
    return Named(queues, BATCH in names)


async def resume(client: Redis, names: list[str]) -> Named:
    """Resume what the names stand for; with BATCH, accounts that were refused are tried again.

    Args:
        client: Must decode responses.
        names: As of `pause`.

    Raises:
        UnknownQueue: A name stands for nothing; nothing is resumed.
    """
    queues = await _named(client, names)
    accounts = await _end_batch_pauses(Store(client)) if BATCH in names else []
    if queues:
        await _set_of(client).srem(PAUSED_QUEUES_KEY, *queues)
    return Named(queues, BATCH in names, tuple(accounts))


async def pause_batches(store: Store) -> None:
    """Create no new batch until they are resumed."""
    await store.pauses.set(WHOLE_LANE, Pause(until=UNTIL_RESUMED))


async def paused_queues(client: Redis) -> list[str]:
    """Return the paused queues, sorted; batch creation is none of them."""
    return sorted(await _set_of(client).smembers(PAUSED_QUEUES_KEY))


async def _named(client: Redis, names: list[str]) -> list[str]:
    """The queues that the names stand for. Raises UnknownQueue."""
    queues = await _queues_by_name(client, names)
    if unknown := sorted(set(names) - queues.keys()):
        known = ", ".join(sorted(queues))
        raise UnknownQueue(f"unknown: {', '.join(unknown)}; the names are {known}")
    return sorted(set().union(*(queues[name] for name in names)))


async def _queues_by_name(client: Redis, names: list[str]) -> dict[str, set[str]]:
    """The queues that each name stands for; batch creation is none.

    Only the queues of engines need the catalogue, which a fleet without workers does not have.
    """
    queues: dict[str, set[str]] = {BATCH: set(), "realtime": {REALTIME_QUEUE}}
    if not set(names) <= queues.keys():
        catalogue = Catalogue.parse(await client.get(CATALOGUE_KEY))
        # An engine that was removed may have left a paused queue.
        local = set(await paused_queues(client)) - {REALTIME_QUEUE}
        for model in catalogue.models.values():
            local |= {offer.queue for lane, offer in model.lanes.items() if lane == "local"}
        queues |= {"local": local} if local else {}
        queues |= {queue: {queue} for queue in local}
    return queues


def _set_of(client: Redis) -> Any:
    return client  # redis-py types each command for its sync and async clients


async def _end_batch_pauses(store: Store) -> list[str]:
    """End the pauses of the lane and of all accounts; return these accounts."""
    accounts = sorted(await store.pauses.accounts())
    for name in (WHOLE_LANE, *accounts):
        await store.pauses.set(name, Pause())
    for progress in await store.live_jobs():
        if progress.job.group.provider in accounts:
            await store.make_due(progress.job.intent)
    return accounts
