"""Submits a job: writes its input file, uploads it and creates the batch, once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from primarch_fleet.errors import BatchError, ProviderError
from primarch_fleet.parts import in_parts_by_bytes
from primarch_fleet.requests import Request
from scheduler.completion import batch_trace, metrics
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.jobs.orphans import OrphanSearch
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
from scheduler.providers.translator import Untranslatable
from scheduler.store.batch_pauses import Pause, rate_pause
from scheduler.store.jobs import LeaseLost
from tasks.failure_reasons import Reason
from tasks.provider_errors import Fault

logger = logging.getLogger(__name__)

#: Scans of the provider's list that must not show a batch before it is created again.
REQUIRED_CLEAN_SCANS = 3
#: How often the provider may not find a job's input file, and after how many it is uploaded again.
MAX_LOST_FILES, LOST_FILES_TO_UPLOAD = 9, 3
#: Most requests in memory while an input file is written, and most bytes of their lines unless one
#: line is larger.
CHUNK, CHUNK_BYTES = 200, 4_000_000


class Submitter:
    """Moves jobs that the caller holds from PREPARED to SUBMITTED.

    Each step is stored before it is taken. Raises ProviderCallFailed or ProviderRefused with the
    job in a state from which the next run goes on.
    """

    def __init__(self, context: BatchContext, finisher: JobFinisher, orphans: OrphanSearch) -> None:
        self._store = context.store
        self._blobs = context.blobs
        self._lines = context.lines
        self._backoff = context.backoff
        self._list_lag = context.policy.list_lag
        self._folder = context.folder
        self._finisher = finisher
        self._orphans = orphans

    async def submit(self, job: Job, provider: BatchProvider) -> None:
        """Bring a PREPARED or UPLOADED job to SUBMITTED, unless it cannot be sent any more."""
        if not await self._orphans.may_create(job):
            after = self._backoff.after(0)
            await self._store.advance(job, after=after, waits=job.waits + 1)
            return
        if await self._is_stale(job):
            # The next pass fails the late requests and creates a job of the others.
            await self._finisher.release_requests(job)
            return
        try:
            if job.state == "PREPARED":
                unreadable = await self._write_file(job)
                if unreadable:
                    await self._drop_requests(job, unreadable)
                    return
                job = await self._upload(job, provider)
            job = await self._store.advance(job, "SUBMITTING")
            if not await self._is_stored_safely(job):
                await self._store.advance(job, "UPLOADED", after=self._backoff.after(0))
                return
            with batch_trace.creation(job) as trace:
                batch = await provider.create(
                    job.file_id, job.group.endpoint, job.group.window, job.intent
                )
        except ProviderRefused as error:
            await self._handle_refusal(job, error)
        else:
            await self._store_submitted(job, provider, batch, trace)

    async def _is_stored_safely(self, job: Job) -> bool:
        """Whether the intent to create the batch survives a crash of Redis, with its requests.

        Not if the server has changed since the job was checked, or if requests of the job were
        found in another batch.
        """
        confirms = self._store.server.confirms
        on_disk = await self._store.server.is_on_disk()
        if on_disk is None and confirms:  # the server has just lost that ability: scan first
            return False
        if on_disk is False or not await self._orphans.is_settled(job.group.provider):
            return False
        return await self._store.remaining(job.intent) == job.requests

    async def reconcile(self, job: Job, provider: BatchProvider) -> Job | None:
        """Find out whether the batch of a SUBMITTING job was created.

        Adopts the batch if the provider's list shows it. If it is absent long enough, returns the
        job in state UPLOADED, to be submitted again. Otherwise returns None: the job waits.
        """
        batches = await find_batches(provider, await self._fingerprint(job))
        for duplicate in batches[1:]:
            await self._cancel_duplicate(job, provider, duplicate)
        if batches:
            metrics.observe_recovered(job, "batch")
            batch_id = batches[0].id
            logger.warning(
                "%s: adopted batch %s", job.intent, batch_id, extra={"action": "batch_adopted"}
            )
            await self._store.advance(job, "SUBMITTED", batch_id=batch_id)
            return None
        scans = job.scans + 1
        if scans >= REQUIRED_CLEAN_SCANS and await self._store.now() - job.since >= self._list_lag:
            logger.warning(
                "%s: batch was not created, creates it again",
                job.intent,
                extra={"action": "batch_not_created"},
            )
            return await self._store.advance(job, "UPLOADED", scans=0)
        after = self._backoff.after(job.waits)
        await self._store.advance(job, after=after, waits=job.waits + 1, scans=scans)
        return None

    async def _is_stale(self, job: Job) -> bool:
        """Whether the job must be made again.

        A deadline has passed, its deployment is gone from the configuration or has another model,
        or a scheduler died while it ended the unsent job.
        """
        late = 0 < job.deadline <= await self._store.now()
        gone = not self._lines.serves(job.terms.deployment, job.terms.upstream)
        return late or gone or await self._store.remaining(job.intent) != job.requests

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.intent}.jsonl"

    async def _write_file(self, job: Job) -> dict[str, LineOutcome]:
        """Write the job's input file; return the outcomes of the requests that cannot be sent."""
        requests = list((await self._store.members(job)).values())
        unreadable: dict[str, LineOutcome] = {}
        await asyncio.to_thread(_remove_old_file, self._path(job))
        sizes = await self._store.line_sizes(requests)
        for chunk in in_parts_by_bytes(sizes.items(), CHUNK_BYTES, CHUNK):
            loaded = await self._blobs.hydrate(await self._store.load(chunk))
            unreadable.update(await asyncio.to_thread(self._append, job, loaded))
        return unreadable

    def _append(
        self, job: Job, loaded: dict[str, tuple[ParkedRequest | None, AttemptCounts]]
    ) -> dict[str, LineOutcome]:
        unreadable: dict[str, LineOutcome] = {}
        with self._path(job).open("ab") as file:
            for request, (parked, attempts) in loaded.items():
                custom_id = jsonl.custom_id(request, sum(attempts) + 1)
                try:
                    line = self._lines.encode(job.terms.deployment, custom_id, _parse(parked))
                except Untranslatable as error:
                    unreadable[request] = LineRefused(ProviderError(str(error)))
                except (ValueError, LookupError) as error:
                    message = f"the stored request is unreadable: {error}"
                    unreadable[request] = LineRefused(BatchError(message))
                else:
                    file.write(line)
        return unreadable

    async def _upload(self, job: Job, provider: BatchProvider) -> Job:
        """Upload the input file, unless a scheduler that died or got no answer has done that."""
        file_id = await self._find_input_file(job, provider) if job.uploading else None
        if file_id is None:
            job = await self._store.advance(job, uploading=1)
            file_id = await provider.upload(self._path(job), job.filename)
        return await self._store.advance(job, "UPLOADED", file_id=file_id, uploading=0)

    async def _find_input_file(self, job: Job, provider: BatchProvider) -> str | None:
        """Return the id of the job's input file if the provider shows it.

        A file of this name and size has the same requests, whichever scheduler wrote it: the name
        is the job's alone, a job that lost a request is never sent, and neither the records nor the
        attempts of its requests change. If the files cannot be listed, that costs only an upload.
        """
        try:
            size_bytes = self._path(job).stat().st_size
            file_id = await provider.find_input_file(job.filename, size_bytes)
        except ProviderCallFailed as error:
            logger.warning("%s: %s", job.intent, error, extra={"action": "batch_files_not_listed"})
            return None
        if file_id is not None:
            metrics.observe_recovered(job, "file")
            logger.warning(
                "%s: adopted file %s", job.intent, file_id, extra={"action": "batch_file_adopted"}
            )
        return file_id

    async def _store_submitted(
        self, job: Job, provider: BatchProvider, batch: ProviderBatch, trace: dict[str, str]
    ) -> None:
        try:
            after = self._backoff.after(0)
            await self._store.advance(job, "SUBMITTED", after=after, batch_id=batch.id, **trace)
        except LeaseLost:
            # The scheduler that took over may have created another batch for the job.
            its_batch_id = (await self._store.reload(job)).batch_id
            if its_batch_id not in ("", batch.id):
                await self._cancel_duplicate(job, provider, batch)
            raise
        await self._store.pauses.set(rate_pause(job.group), Pause())
        logger.info(
            "%s: submitted %d requests as %s (%s)",
            job.intent,
            job.requests,
            batch.id,
            job.reason,
            extra={"action": "batch_submitted"},
        )

    async def _fingerprint(self, job: Job) -> BatchFingerprint:
        members = set((await self._store.members(job)).values())

        async def has(custom_id: str) -> bool:
            request = jsonl.request_of(custom_id)
            if request is None or request not in members:
                return False
            # An earlier attempt was in another batch.
            attempts = (await self._store.attempts([request]))[request]
            return custom_id == jsonl.custom_id(request, sum(attempts) + 1)

        live_jobs = await self._store.live_jobs()
        other_batches = frozenset(progress.job.batch_id for progress in live_jobs)
        return BatchFingerprint(
            job.intent, job.file_id, job.created_at, job.requests, other_batches, has
        )

    async def _cancel_duplicate(
        self, job: Job, provider: BatchProvider, batch: ProviderBatch
    ) -> None:
        metrics.observe_recovered(job, "duplicate")
        logger.error(
            "%s: cancels duplicate batch %s",
            job.intent,
            batch.id,
            extra={"action": "batch_duplicate"},
        )
        try:
            await provider.cancel(batch.id)
        except ProviderCallFailed as error:
            logger.error(
                "%s: %s", batch.id, error, extra={"action": "batch_duplicate_not_cancelled"}
            )

    async def _handle_refusal(self, job: Job, error: ProviderRefused) -> None:
        """Handle a refusal, after which no batch exists: wait, or fail the requests."""
        job = await self._store.reload(job)
        if job.state == "SUBMITTING":
            job = await self._store.advance(job, "UPLOADED")
        fault = error.fault
        if fault.reason is Reason.QUEUE_FULL:
            await self._finisher.back_off(job, error.message)
        elif error.faults:
            members = await self._store.members(job)
            await self._drop_requests(job, refused_requests(members, error.faults))
        elif isinstance(error, InputFileNotLocal):
            await self._store.advance(job, "PREPARED")
        elif fault.reason is Reason.FILE_NOT_FOUND:
            await self._wait_for_file(job, fault)
        elif fault.reason.is_permanent:
            await self._finisher.fail_job(job, fault.error())
        else:
            raise error

    async def _drop_requests(self, job: Job, errors: dict[str, LineOutcome]) -> None:
        """Fail the requests that cannot be sent; the next pass creates a job of the others."""
        await self._finisher.apply_outcomes(job, errors)
        await self._finisher.release_requests(job)

    async def _wait_for_file(self, job: Job, fault: Fault) -> None:
        """Delay the job: an input file may not be found right after its upload.

        After every LOST_FILES_TO_UPLOAD attempts the file is uploaded again. After MAX_LOST_FILES
        the account pauses, and the requests wait for another batch.
        """
        if job.lost_files >= MAX_LOST_FILES:
            await self._finisher.hold_job(job, fault)
            return
        lost = job.lost_files + 1
        state: JobState = "UPLOADED" if lost % LOST_FILES_TO_UPLOAD else "PREPARED"
        await self._store.advance(job, state, after=self._backoff.after(lost), lost_files=lost)


def _remove_old_file(path: Path) -> None:
    path.parent.mkdir(0o700, parents=True, exist_ok=True)  # the file has prompts
    path.unlink(missing_ok=True)


def _parse(parked: ParkedRequest | None) -> Request:
    if parked is None:
        raise LookupError("its record is gone")
    return parked.parse()
