"""Reads the status of many batches from the provider's list, a hundred batches a page."""

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

#: Most batches of a provider that are retrieved one by one in a pass; with more, its list is read.
#: Not below MAX_PAGES, so that a scan never takes more calls than it can save.
MIN_DUE_FOR_SCAN = 100
#: Seconds for all pages of a list.
TIMEOUT_SECONDS = 60.0

#: Live batches by provider and batch id.
SeenBatches = Mapping[tuple[str, str], ProviderBatch]


async def scan_lists(jobs: Iterable[Job], providers: Mapping[str, BatchProvider]) -> SeenBatches:
    """Return those batches of the jobs that their providers' lists show as live.

    Scans only providers with more than MIN_DUE_FOR_SCAN of the jobs. A batch that is missing in the
    result has ended, is not listed yet, or the list could not be read: retrieve it. Because of that
    the list may be read before the jobs are leased: statuses only move forward, so a batch shown as
    live has at worst ended since, and the next poll finds that.
    """
    by_provider: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_provider[job.group.provider].append(job)
    seen: dict[tuple[str, str], ProviderBatch] = {}
    for name, provider_jobs in by_provider.items():
        if len(provider_jobs) > MIN_DUE_FOR_SCAN and name in providers:
            live = await _live_batches(name, providers[name], provider_jobs)
            seen.update({(name, batch.id): batch for batch in live})
    return seen


async def _live_batches(
    name: str, provider: BatchProvider, jobs: Collection[Job]
) -> list[ProviderBatch]:
    since = min(job.created_at for job in jobs) - CLOCK_SKEW_SECONDS
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            batches = await _read_list(provider, {job.batch_id for job in jobs}, since)
    except Exception as error:  # the jobs are polled one by one instead
        logger.warning("%s: %r", name, error, extra={"action": "batch_list_scan_failed"})
        return []
    return [batch for batch in batches if batch.status in LIVE]


async def _read_list(
    provider: BatchProvider, wanted: set[str], since: float
) -> list[ProviderBatch]:
    """Return the wanted batches that the list shows; stop reading when all were seen."""
    seen: dict[str, ProviderBatch] = {}
    async with aclosing(scan_list(provider, since)) as batches:
        async for batch in batches:
            if batch.id in wanted:
                seen[batch.id] = batch
            if len(seen) == len(wanted):
                break
    return list(seen.values())
