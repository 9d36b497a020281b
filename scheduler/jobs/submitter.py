"""Brings a job to the provider: write its file, upload it, order the batch, once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from primarch_fleet.contract import Request
from primarch_fleet.errors import BatchError
from scheduler import metrics
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.model import jsonl
from scheduler.model.job import AttemptCounts, Job, JobState, ParkedRequest
from scheduler.model.outcomes import LineOutcome, LineRefused
from scheduler.providers.base import BatchFingerprint, BatchProvider, ProviderBatch, find_batches
from scheduler.providers.errors import (
    InputFileNotLocal,
    ProviderCallFailed,
    ProviderRefused,
    refused_requests,
)
from scheduler.store.pauses import Pause, rate_pause
from scheduler.store.store import LeaseLost

logger = logging.getLogger(__name__)

#: Scans of the provider's list that must not show a batch before it is ordered again.
REQUIRED_CLEAN_SCANS = 3
#: Times that the provider may not find a job's file, and after how many it is uploaded again.
MAX_LOST_FILES, LOST_FILES_TO_UPLOAD = 9, 3
#: Requests in memory at once.
CHUNK = 16


class Submitter:
    """Moves jobs that the caller holds from PREPARED to SUBMITTED.

    Every step is written down before it is taken. Raises Failure or Refused with the job in the
    state from which it can be moved on later.
    """

    def __init__(self, desk: BatchContext, ending: JobFinisher) -> None:
        self._store = desk.store
        self._bodies = desk.blobs
        self._pace = desk.backoff
        self._list_lag = desk.policy.list_lag
        self._folder = desk.folder
        self._ending = ending

    async def submit(self, job: Job, provider: BatchProvider) -> None:
        """Move a job as far as it goes now."""
        if job.state == "SUBMITTING":
            job = await self._reconcile(job, provider)
        if job.state not in ("PREPARED", "UPLOADED"):
            return
        if await self._spoiled(job):
            await self._ending.release_requests(
                job
            )  # the next pass fails what is late and cuts the rest
        else:
            await self._send(job, provider)

    async def _spoiled(self, job: Job) -> bool:
        """A deadline has passed, or a scheduler died while it was ending the job unsent."""
        late = 0 < job.deadline <= await self._store.now()
        return late or len(await self._store.members(job)) != job.requests

    async def _send(self, job: Job, provider: BatchProvider) -> None:
        try:
            if job.state == "PREPARED":
                unreadable = await self._write(job)
                if unreadable:
                    await self._without(job, unreadable)
                    return
                job = await self._upload(job, provider)
            job = await self._store.advance(job, "SUBMITTING")
            remote = await provider.create(
                job.file_id, job.group.endpoint, job.group.window, job.intent
            )
        except ProviderRefused as error:
            await self._refused(job, error)
        else:
            await self._submitted(job, provider, remote)

    async def _upload(self, job: Job, provider: BatchProvider) -> Job:
        """Upload the job's file, unless a scheduler that died or got no answer has done it."""
        file_id = await self._uploaded(job, provider) if job.uploading else None
        if file_id is None:
            job = await self._store.advance(job, uploading=1)
            file_id = await provider.upload(self._path(job), job.filename)
        return await self._store.advance(job, "UPLOADED", file_id=file_id, uploading=0)

    async def _uploaded(self, job: Job, provider: BatchProvider) -> str | None:
        """The id of the job's file, if the provider has it; not knowing costs only an upload.

        Whichever scheduler wrote a file of this name and length, it asks the same: the name is the
        job's alone, a job that lost a request is never sent, and neither the records of its
        requests nor their tries change while they are in it.
        """
        try:
            file_id = await provider.find_input_file(job.filename, self._path(job).stat().st_size)
        except ProviderCallFailed as error:
            logger.warning("%s: %s", job.intent, error, extra={"action": "batch_files_not_listed"})
            return None
        if file_id is not None:
            metrics.observe_recovered(job, "file")
            logger.warning("%s: adopted %s", job.intent, file_id, extra={"action": "file_adopted"})
        return file_id

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.intent}.jsonl"

    async def _write(self, job: Job) -> dict[str, LineOutcome]:
        """Write the job's file; what becomes of the requests that cannot be written."""
        requests, unreadable = list((await self._store.members(job)).values()), {}
        await asyncio.to_thread(_clear, self._path(job))
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            loaded = await self._bodies.hydrate(await self._store.load(chunk))
            unreadable.update(await asyncio.to_thread(_append, self._path(job), job, loaded))
        return unreadable

    async def _submitted(self, job: Job, provider: BatchProvider, remote: ProviderBatch) -> None:
        try:
            await self._store.advance(
                job, "SUBMITTED", after=self._pace.after(0), batch_id=remote.id
            )
        except LeaseLost:
            await self._disown(job, provider, remote)
            raise
        for name in (job.group.provider, rate_pause(job.group)):
            await self._store.pauses.set(name, Pause())
        logger.info(
            "%s: %d requests as %s (%s)",
            job.intent,
            job.requests,
            remote.id,
            job.reason,
            extra={"action": "batch_submitted"},
        )

    async def _disown(self, job: Job, provider: BatchProvider, remote: ProviderBatch) -> None:
        """We were too slow: whoever took over may have ordered another batch for the job."""
        theirs = (await self._store.reload(job)).batch_id
        if theirs not in ("", remote.id):
            await self._cancel(job, provider, remote)

    async def _reconcile(self, job: Job, provider: BatchProvider) -> Job:
        """Find out whether a batch was made: adopt it, or be sure enough that there is none."""
        found = await find_batches(provider, await self._sought(job))
        for extra in found[1:]:
            await self._cancel(job, provider, extra)
        if found:
            metrics.observe_recovered(job, "batch")
            logger.warning(
                "%s: adopted %s", job.intent, found[0].id, extra={"action": "batch_adopted"}
            )
            return await self._store.advance(job, "SUBMITTED", batch_id=found[0].id)
        scans = job.scans + 1
        if scans >= REQUIRED_CLEAN_SCANS and await self._store.now() - job.since >= self._list_lag:
            logger.warning("%s: was not made", job.intent, extra={"action": "batch_not_made"})
            return await self._store.advance(job, "UPLOADED", scans=0)
        wait = self._pace.after(job.waits)
        return await self._store.advance(job, after=wait, waits=job.waits + 1, scans=scans)

    async def _sought(self, job: Job) -> BatchFingerprint:
        members = set((await self._store.members(job)).values())

        async def has(custom_id: str) -> bool:
            request = jsonl.request_of(custom_id)
            if request is None or request not in members:
                return False
            # An earlier attempt was in another batch.
            tries = (await self._store.attempts([request]))[request]
            return custom_id == jsonl.custom_id(request, sum(tries) + 1)

        others = frozenset(one.job.batch_id for one in await self._store.live_jobs())
        return BatchFingerprint(job.intent, job.file_id, job.created_at, job.requests, others, has)

    async def _cancel(self, job: Job, provider: BatchProvider, remote: ProviderBatch) -> None:
        metrics.observe_recovered(job, "duplicate")
        logger.error(
            "%s: %s is one batch too many",
            job.intent,
            remote.id,
            extra={"action": "batch_duplicate"},
        )
        try:
            await provider.cancel(remote.id)
        except ProviderCallFailed as error:
            logger.error(
                "%s: %s", remote.id, error, extra={"action": "batch_duplicate_not_cancelled"}
            )

    async def _refused(self, job: Job, error: ProviderRefused) -> None:
        """The provider said no, so that nothing was made: wait, or tell the callers."""
        job = await self._store.reload(job)
        if job.state == "SUBMITTING":
            job = await self._store.advance(job, "UPLOADED")
        if error.is_token_limit:
            await self._ending.back_off(job, error.message)
        elif error.is_account_error:
            raise error
        elif error.faults:
            await self._without(job, refused_requests(await self._store.members(job), error.faults))
        elif isinstance(error, InputFileNotLocal):
            await self._store.advance(job, "PREPARED")
        elif error.is_file_not_found and job.lost_files < MAX_LOST_FILES:
            await self._wait_for_file(job)
        else:
            await self._ending.fail(job, error.request_error)

    async def _without(self, job: Job, errors: dict[str, LineOutcome]) -> None:
        """Fail the requests that cannot be sent; the next pass cuts the others again."""
        await self._ending.settle(job, errors)
        await self._ending.release_requests(job)

    async def _wait_for_file(self, job: Job) -> None:
        """Just after an upload its file may not be found yet; after a while it is gone."""
        lost = job.lost_files + 1
        state: JobState = "UPLOADED" if lost % LOST_FILES_TO_UPLOAD else "PREPARED"
        await self._store.advance(job, state, after=self._pace.after(lost), lost_files=lost)


def _clear(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def _append(
    path: Path, job: Job, loaded: dict[str, tuple[ParkedRequest | None, AttemptCounts]]
) -> dict[str, LineOutcome]:
    unreadable: dict[str, LineOutcome] = {}
    with path.open("ab") as file:
        for request, (parked, tries) in loaded.items():
            custom_id = jsonl.custom_id(request, sum(tries) + 1)
            try:
                file.write(jsonl.encode_line(custom_id, _read(parked), job.terms.upstream))
            except (ValueError, LookupError) as error:
                message = f"the request cannot be read any more: {error}"
                unreadable[request] = LineRefused(BatchError(message))
    return unreadable


def _read(parked: ParkedRequest | None) -> Request:
    if parked is None:
        raise LookupError("its record is gone")
    return parked.parse()
