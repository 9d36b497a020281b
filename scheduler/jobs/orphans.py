"""Finds the batches that Redis has forgotten, so that none of their requests is ordered again.

A Redis that went back (a crash, a failover to a replica, a backup) may have lost the job of a batch
that the provider works on. When the server has changed, an account creates no batch until its list
was scanned several times, as long as a new batch may be missing from it. A batch of this fleet that
no job knows is an orphan. Its lines name its requests:

- Requests that wait, or are in a job that is not sent, become members of a job of the orphan.
- Without such requests, the orphan is cancelled when the search ends.
- Requests that arrive later, as a message that is delivered again, get what the orphan answered.

Batches of other fleets at the account have other intents and are left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from config.fleet import FleetConfig
from scheduler.completion import metrics
from scheduler.jobs.batch_lines import BatchLines, Lines
from scheduler.jobs.context import BatchContext
from scheduler.jobs.pricing import pricing_of
from scheduler.model.job import Job, Location
from scheduler.providers.base import (
    CLOCK_SKEW_SECONDS,
    LIVE,
    BatchProvider,
    ProviderBatch,
    scan_list,
)
from scheduler.providers.errors import ProviderCallFailed, ProviderRefused
from scheduler.store.adoption import AdoptedBatch
from scheduler.store.server import FLEET_ID_LENGTH, INTENT_LENGTH, Recovery

logger = logging.getLogger(__name__)

#: How far Redis may have gone back, in seconds.
MAX_ROLLBACK_SECONDS = 3 * 86_400.0
#: Most pages of a list that a search reads.
MAX_PAGES = 1000
#: Scans of an account's list that a search makes at least.
REQUIRED_SCANS = 3
UNSENT = frozenset({"PREPARED", "UPLOADED"})


class ScanResult(NamedTuple):
    """What a scan of an account's list has found."""

    #: Ids of batches that may concern a waiting request: it is not known yet.
    undecided: list[str]
    #: Orphans without a request.
    strays: list[ProviderBatch]


class OrphanSearch:
    """Searches the accounts after a change of the server. Any number may run at once."""

    def __init__(
        self, context: BatchContext, config: FleetConfig, providers: Mapping[str, BatchProvider]
    ) -> None:
        self._store = context.store
        self._folder = context.folder
        self._backoff = context.backoff
        self._list_lag = context.policy.list_lag
        self._config = config
        self._providers = providers
        #: Whether the batches of other fleets are still to be reported.
        self._is_new = False
        self._lines = BatchLines(context.folder)

    async def start(self) -> None:
        """Say in the log when Redis cannot confirm what is on its disk."""
        self._is_new = (await self._store.server.look()).is_new
        await self._store.server.is_on_disk()

    async def recover(self) -> dict[str, Recovery]:
        """Search where a scan is due; return the searches that go on, by account.

        These accounts must not create a batch.
        """
        state = await self._store.server.look()
        if self._is_new or state.is_emptied:
            self._is_new = False
            await self._report_others()
        if not state.changed_at:
            return {}
        changed_at = state.changed_at
        accounts = list(self._providers)
        recoveries = await asyncio.gather(*(self._step(name, changed_at) for name in accounts))
        running = {
            name: recovery
            for name, recovery in zip(accounts, recoveries, strict=True)
            if not recovery.done
        }
        if not running and self._lines.held():
            orphans = [await self._store.adoption.orphans(account) for account in accounts]
            self._lines.keep({batch_id for batch_ids in orphans for batch_id in batch_ids})
        return running

    async def may_create(self, job: Job) -> bool:
        """Whether the account of an unsent job may create batches now.

        Where a change of the server might go unnoticed, the list is scanned first. Requests that
        are in an orphan leave the job: it must be checked afterwards. Not while an orphan cannot
        take a request of the job yet.
        """
        server, account = self._store.server, job.group.provider
        state = await server.look()
        if not await self._is_settled(account, state.changed_at):
            return False
        if server.confirms is None:
            await server.is_on_disk()
        if not (state.is_known and server.confirms):
            # A server that is known to have changed was searched further back already.
            seconds = self._list_lag if state.is_known else MAX_ROLLBACK_SECONDS
            await self._scan(account, await self._store.now(), seconds)
        return await self._claim(job)

    async def is_settled(self, account: str) -> bool:
        """Whether an account's search has ended, if there was a change of the server."""
        return await self._is_settled(account, (await self._store.server.look()).changed_at)

    async def _is_settled(self, account: str, changed_at: float) -> bool:
        if not changed_at:
            return True
        recovery = await self._store.server.recovery(account)
        return recovery.since == changed_at and recovery.done

    async def _step(self, account: str, changed_at: float) -> Recovery:
        now, recovery = await self._store.now(), await self._store.server.recovery(account)
        if recovery.since != changed_at:
            recovery = Recovery(since=changed_at)
        if recovery.done or now < recovery.due:
            return recovery
        ends_at = changed_at + self._list_lag
        try:
            found = await self._scan(account, changed_at, MAX_ROLLBACK_SECONDS)
        except ProviderCallFailed as error:
            logger.warning("%s: %s", account, error, extra={"action": "batch_search_failed"})
        else:
            first = recovery.strays if recovery.scans else [batch.id for batch in found.strays]
            scans = recovery.scans + 1
            done = scans >= REQUIRED_SCANS and now >= ends_at and not found.undecided
            if done:
                await self._end(account, found.strays, set(first))
            update = {"scans": scans, "done": done, "strays": tuple(first)}
            recovery = recovery.model_copy(update=update)
        due = now + self._backoff.after(recovery.scans)
        due = min(due, ends_at) if now < ends_at else due
        recovery = recovery.model_copy(update={"due": due})
        await self._store.server.set_recovery(account, recovery)
        return recovery

    async def _scan(self, account: str, changed_at: float, seconds: float) -> ScanResult:
        """Adopt the orphans of the last seconds that an account's list shows."""
        provider, result = self._providers[account], ScanResult([], [])
        since = await self._store.now() - seconds - CLOCK_SKEW_SECONDS
        listed = [batch async for batch in scan_list(provider, since, MAX_PAGES)]
        jobs = [progress.job for progress in await self._store.live_jobs()]
        # The newest first: a request was ordered again because its earlier batch did not answer.
        for batch in sorted(
            await self._orphans(provider, listed, jobs), key=_created, reverse=True
        ):
            lines = await self._lines.read(provider, batch)
            if lines is None:
                if batch.status in LIVE and batch.created_at < changed_at + CLOCK_SKEW_SECONDS:
                    result.undecided.append(batch.id)
                continue
            if lines:
                now = await self._store.now()
                await self._store.adoption.remember_orphan(account, batch.id, now)
            sent = [job for job in jobs if job.group.provider == account and _is_sent(job)]
            if await self._adopt(account, batch, lines, jobs):
                continue
            if await self._is_in(sent, lines):
                result.undecided.append(batch.id)
            else:
                result.strays.append(batch)
        return result

    async def _orphans(
        self, provider: BatchProvider, listed: list[ProviderBatch], jobs: Iterable[Job]
    ) -> list[ProviderBatch]:
        """Return the batches that may be this fleet's and that no job has, or only by adoption."""
        may_be_unmarked = not provider.capabilities.metadata
        fleet = await self._store.server.fleet_id()
        own_ids = {job.batch_id: job for job in jobs}
        marked = [batch.intent for batch in listed if batch.intent.startswith(fleet)]
        known = await self._store.adoption.known_jobs(marked)
        unmarked = [batch.id for batch in listed if not batch.intent]
        ended = await self._store.adoption.ended(unmarked)
        return [
            batch
            for batch in listed
            if (own_ids[batch.id].adopted if batch.id in own_ids else True)
            and batch.id not in ended
            and batch.status != "failed"
            and (
                _is_unordered(*known[batch.intent], batch.id)
                if batch.intent in known
                else may_be_unmarked and not batch.intent
            )
        ]

    async def _adopt(
        self, account: str, batch: ProviderBatch, lines: Lines, jobs: Iterable[Job]
    ) -> bool:
        """Give the requests of a batch that are not ordered a job; whether there is such a job."""
        fleet, now = await self._store.server.fleet_id(), await self._store.now()
        intent = _intent(batch, fleet)
        own = [job for job in jobs if job.group.provider == account]
        waiting = [Location(group) for group in await self._store.groups()]
        sources = [location for location in waiting if location.group.provider == account]
        sources += [Location(job.group, job.intent) for job in own if job.state in UNSENT]
        moved, has_job = 0, any(job.intent == intent for job in own)
        for source in sources:
            found = await self._present(source, lines)
            if not found:
                continue
            terms = pricing_of(self._config, source.group)
            if terms is None:
                continue
            adopted = AdoptedBatch(
                intent, batch.id, batch.input_file_id, batch.status, terms, now + self._list_lag
            )
            # The orphan's own job keeps its members.
            move = {} if source.intent == intent else {name: lines[name].number for name in found}
            moved += await self._store.adoption.adopt(adopted, source, move, now)
        if moved:
            metrics.orphans_total.labels(account, "adopted").inc()
            logger.warning(
                "%s: adopted batch %s, which no job knew, with %d waiting requests",
                intent,
                batch.id,
                moved,
                extra={"action": "batch_orphan_adopted"},
            )
        return bool(moved) or has_job

    async def _claim(self, job: Job) -> bool:
        """Give the orphans of before the requests of an unsent job that they have.

        Returns:
            Whether no orphan has a request of the job then. An orphan cannot take one while its
            results are being read.
        """
        account = job.group.provider
        orphans = await self._store.adoption.orphans(account)
        members = (await self._store.members(job)).values() if orphans else ()
        for batch_id in orphans:
            known = self._lines.known(batch_id)
            if known is not None and not await self._unanswered(members, known):
                continue
            batch = await self._retrieve_orphan(account, batch_id)
            if batch is None:
                continue
            lines = await self._lines.read(self._providers[account], batch) or {}
            if not await self._unanswered(members, lines):
                continue
            jobs = [progress.job for progress in await self._store.live_jobs()]
            await self._adopt(account, batch, lines, jobs)
            if await self._unanswered((await self._store.members(job)).values(), lines):
                return False
        return True

    async def _retrieve_orphan(self, account: str, batch_id: str) -> ProviderBatch | None:
        """The orphan; None when its answers cannot be had: it is gone, or has failed."""
        try:
            batch = await self._providers[account].retrieve(batch_id)
        except ProviderRefused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        if batch.status != "failed":
            return batch
        await self._store.adoption.forget_orphan(account, batch_id)
        return None

    async def _is_in(self, jobs: Iterable[Job], lines: Lines) -> bool:
        """Whether a request of a batch is in one of the jobs."""
        for job in jobs:
            if await self._present(Location(job.group, job.intent), lines):
                return True
        return False

    async def _present(self, location: Location, lines: Lines) -> list[str]:
        """Return the requests of a batch that are at a location and that it has not answered."""
        return await self._unanswered(await self._store.adoption.found_in(location, lines), lines)

    async def _unanswered(self, requests: Iterable[str], lines: Lines) -> list[str]:
        """Return those of the requests that a batch has and has not answered yet."""
        found = [request for request in requests if request in lines]
        attempts = await self._store.attempts(found) if found else {}
        return [request for request in found if lines[request].attempt > sum(attempts[request])]

    async def _end(
        self, account: str, strays: Sequence[ProviderBatch], first: Collection[str]
    ) -> None:
        """Cancel this fleet's orphans without a request, and remove files of forgotten jobs.

        Nothing is cancelled when such a batch was created during the search: then another scheduler
        works with a copy of this Redis.
        """
        fleet = await self._store.server.fleet_id()
        own = [batch for batch in strays if batch.intent.startswith(fleet)]
        may_cancel = all(batch.id in first for batch in own)
        for batch in own:
            metrics.orphans_total.labels(account, "abandoned").inc()
            logger.error(
                "%s: no request waits for batch %s (%s)",
                batch.intent,
                batch.id,
                batch.status,
                extra={"action": "batch_orphan_abandoned"},
            )
            if batch.status in LIVE and may_cancel:
                await self._cancel(account, batch)
        await self._remove_files(fleet)
        logger.info(
            "%s: the search for forgotten batches has ended",
            account,
            extra={"action": "batch_search_ended"},
        )

    async def _report_others(self) -> None:
        """Count the live batches of other fleets, which may be this one's before it was emptied."""
        fleet, now = await self._store.server.fleet_id(), await self._store.now()
        for account, provider in self._providers.items():
            try:
                since = now - MAX_ROLLBACK_SECONDS
                listed = [batch async for batch in scan_list(provider, since, MAX_PAGES)]
            except ProviderCallFailed as error:
                logger.warning("%s: %s", account, error, extra={"action": "batch_search_failed"})
                continue
            others = [
                batch.id
                for batch in listed
                if batch.intent and not batch.intent.startswith(fleet) and batch.status in LIVE
            ]
            if others:
                metrics.orphans_total.labels(account, "foreign").inc(len(others))
                logger.warning(
                    "%s: %d live batches, such as %s, are of another fleet, or of this one before "
                    "its Redis was emptied; they are left alone",
                    account,
                    len(others),
                    others[0],
                    extra={"action": "batch_of_another_fleet"},
                )

    async def _cancel(self, account: str, batch: ProviderBatch) -> None:
        try:
            await self._providers[account].cancel(batch.id)
        except ProviderCallFailed as error:
            logger.error("%s: %s", batch.id, error, extra={"action": "batch_orphan_not_cancelled"})

    async def _remove_files(self, fleet: str) -> None:
        paths = [path for path in self._folder.glob("*") if path.name.startswith(fleet)]
        intents = sorted({path.name.partition(".")[0] for path in paths})
        known = await self._store.adoption.known_jobs(intents)
        for path in paths:
            if known[path.name.partition(".")[0]].state in ("", "DONE"):
                path.unlink(missing_ok=True)


def _is_unordered(state: str, batch_id: str, listed_id: str) -> bool:
    """Whether a job with this intent has no batch and asks for none, or has adopted this one."""
    if batch_id:
        return batch_id == listed_id and state == "SUBMITTED"
    return state != "SUBMITTING"


def _is_sent(job: Job) -> bool:
    return job.state not in UNSENT and not job.adopted


def _created(batch: ProviderBatch) -> tuple[float, str]:
    return batch.created_at, batch.id


def _intent(batch: ProviderBatch, fleet: str) -> str:
    """The intent of a batch; of one without a mark, always the same."""
    size = (INTENT_LENGTH - FLEET_ID_LENGTH) // 2
    digest = hashlib.blake2b(batch.id.encode(), digest_size=size).hexdigest()
    return batch.intent or fleet + digest
