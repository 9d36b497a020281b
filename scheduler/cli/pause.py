"""The commands `fleet pause` and `fleet resume`."""

from __future__ import annotations

import argparse
from typing import Any

from redis.asyncio import Redis

from primarch_fleet.catalogue import CATALOGUE_KEY, Catalogue
from primarch_fleet.cli.terminal import report
from primarch_fleet.contract import REALTIME_QUEUE
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from scheduler.cli.connection import with_redis
from scheduler.store.pauses import WHOLE_LANE, Pause
from scheduler.store.store import Store

#: The name of batch creation. The queue of that name goes on: its requests are parked.
BATCH = "batch"
#: End of the pause of batch creation, in Unix seconds: the year 2100.
UNTIL_RESUMED = 4_102_444_800.0


def pause(options: argparse.Namespace) -> int:
    """Pause queues or, without a name, batch creation until `resume`; what runs ends as always."""
    return with_redis(lambda client: _pause(client, options.names or [BATCH]))


def resume(options: argparse.Namespace) -> int:
    """Resume queues or, without a name, batch creation and accounts that were refused."""
    return with_redis(lambda client: _resume(client, options.names))


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of either command."""
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"realtime, local for all its queues, local.<model>, or {BATCH}, the default",
    )


async def pause_batches(store: Store) -> None:
    """Create no new batch until `resume`."""
    await store.pauses.set(WHOLE_LANE, Pause(until=UNTIL_RESUMED))
    report("batch creation paused; run `fleet resume` to continue", 0)


async def _pause(client: Redis, names: list[str]) -> int:
    queues = await _queues_by_name(client, names)
    if unknown := sorted(set(names) - queues.keys()):
        return _report_unknown("pause", unknown, queues)
    if BATCH in names:
        await pause_batches(Store(client))
    if paused := _named(queues, names):
        await _set_of(client).sadd(PAUSED_QUEUES_KEY, *paused)
        report(f"paused: {', '.join(paused)}; run `fleet resume {' '.join(paused)}` to continue", 0)
    return 0


async def _resume(client: Redis, names: list[str]) -> int:
    queues = await _queues_by_name(client, names)
    if unknown := sorted(set(names) - queues.keys()):
        return _report_unknown("resume", unknown, queues)
    if BATCH in names or not names:
        accounts = await _end_batch_pauses(Store(client))
        report(", ".join(["batch creation resumed", *accounts]), 0)
    if resumed := _named(queues, names):
        await _set_of(client).srem(PAUSED_QUEUES_KEY, *resumed)
        report(f"resumed: {', '.join(resumed)}", 0)
    if not names and (paused := sorted(await _set_of(client).smembers(PAUSED_QUEUES_KEY))):
        report(
            f"still paused: {', '.join(paused)}; run `fleet resume {' '.join(paused)}` to continue",
            0,
        )
    return 0


async def _queues_by_name(client: Redis, names: list[str]) -> dict[str, set[str]]:
    """The queues that each name stands for; batch creation is none.

    Only the queues of engines need the catalogue, which a fleet without workers does not have.
    """
    queues: dict[str, set[str]] = {BATCH: set(), "realtime": {REALTIME_QUEUE}}
    if not set(names) <= queues.keys():
        catalogue = Catalogue.parse(await client.get(CATALOGUE_KEY))
        # An engine that was removed may have left a paused queue.
        local = set(await _set_of(client).smembers(PAUSED_QUEUES_KEY)) - {REALTIME_QUEUE}
        for model in catalogue.models.values():
            local |= {offer.queue for lane, offer in model.lanes.items() if lane == "local"}
        queues |= {"local": local} if local else {}
        queues |= {queue: {queue} for queue in local}
    return queues


def _named(queues: dict[str, set[str]], names: list[str]) -> list[str]:
    return sorted(set().union(*(queues[name] for name in names)))


def _report_unknown(command: str, unknown: list[str], queues: dict[str, set[str]]) -> int:
    known = ", ".join(sorted(queues))
    return report(f"{command}: unknown: {', '.join(unknown)}; the names are {known}", 2)


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
