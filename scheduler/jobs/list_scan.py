"""Reads what a provider says of many batches from its list, a page for a hundred of them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import aclosing

from scheduler.model.job import Job
from scheduler.providers.base import (
    CLOCK_SKEW_SECONDS,
    LIVE,
    BatchProvider,
    ProviderBatch,
    scan_list,
)

logger = logging.getLogger(__name__)

#: Batches that are asked for one by one in a pass; when there are more at a provider, its list is
#: read. Never fewer than PAGES: a sweep then takes no more calls than it could save.
MIN_DUE_FOR_SCAN = 100
#: Seconds for all pages of one list.
TIMEOUT_SECONDS = 60.0

#: Batches on their way, by their providers and their ids there.
SeenBatches = Mapping[tuple[str, str], ProviderBatch]


async def scan_lists(jobs: Iterable[Job], providers: Mapping[str, BatchProvider]) -> SeenBatches:
    """The batches of jobs that their providers' lists show as being on their way.

    Only for providers with more than SWEEP of the jobs. A batch that is missing here has ended, is
    not in the list yet, or the list could not be read: it is to be retrieved. That is also what
    makes it safe to read the list before a job is leased: statuses only move forward, so a batch
    that is shown here has at worst ended since then, which is found out at the next look.
    """
    wanted: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        wanted[job.group.provider].append(job)
    seen: dict[tuple[str, str], ProviderBatch] = {}
    for name, some in wanted.items():
        if len(some) > MIN_DUE_FOR_SCAN and name in providers:
            live = await _live(name, providers[name], some)
            seen.update({(name, one.id): one for one in live})
    return seen


async def _live(name: str, provider: BatchProvider, jobs: Collection[Job]) -> list[ProviderBatch]:
    since = min(job.created_at for job in jobs) - CLOCK_SKEW_SECONDS
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            shown = await _read(provider, {job.batch_id for job in jobs}, since)
    except Exception as error:  # whatever is wrong with a list, it keeps no job waiting
        logger.warning("%s: %r", name, error, extra={"action": "batch_sweep_failed"})
        return []
    return [one for one in shown if one.status in LIVE]


async def _read(provider: BatchProvider, wanted: set[str], since: float) -> list[ProviderBatch]:
    """Those of the wanted batches that the list shows; it is read until all were seen."""
    seen: dict[str, ProviderBatch] = {}
    async with aclosing(scan_list(provider, since)) as batches:
        async for batch in batches:
            if batch.id in wanted:
                seen[batch.id] = batch
            if len(seen) == len(wanted):
                break
    return list(seen.values())
