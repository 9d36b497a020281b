"""The commands `fleet pause` and `fleet resume`."""

from __future__ import annotations

import argparse

from redis.asyncio import Redis

from primarch_fleet.cli.terminal import report
from scheduler.admin import pausing
from scheduler.admin.pausing import BATCH
from scheduler.cli.connection import with_redis
from scheduler.store.batch_store import Store


def pause(options: argparse.Namespace) -> int:
    """Pause queues or, without a name, batch creation until `resume`; what runs ends as always."""
    try:
        paused = with_redis(lambda client: pausing.pause(client, options.names or [BATCH]))
    except pausing.UnknownQueue as error:
        return report(f"pause: {error}", 2)
    if paused.batches:
        _report_batches_paused()
    if queues := paused.queues:
        report(f"paused: {', '.join(queues)}; {_how_to_resume(queues)}", 0)
    return 0


def resume(options: argparse.Namespace) -> int:
    """Resume queues or, without a name, batch creation and accounts that were refused."""
    try:
        resumed = with_redis(lambda client: pausing.resume(client, options.names or [BATCH]))
    except pausing.UnknownQueue as error:
        return report(f"resume: {error}", 2)
    if resumed.batches:
        report(", ".join(["batch creation resumed", *resumed.accounts]), 0)
    if resumed.queues:
        report(f"resumed: {', '.join(resumed.queues)}", 0)
    if not options.names and (paused := with_redis(pausing.paused_queues)):
        report(f"still paused: {', '.join(paused)}; {_how_to_resume(paused)}", 0)
    return 0


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of either command."""
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"realtime, local for all its queues, local.<model>, or {BATCH}, the default",
    )


async def pause_batches(client: Redis) -> None:
    """Create no new batch until `resume`, and say so."""
    await pausing.pause_batches(Store(client))
    _report_batches_paused()


def _report_batches_paused() -> None:
    report("batch creation paused; run `fleet resume` to continue", 0)


def _how_to_resume(queues: list[str]) -> str:
    return f"run `fleet resume {' '.join(queues)}` to continue"
