"""Reads the results of a batch that has ended: both its files, whatever its status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from primarch_fleet.errors import BatchError
from primarch_fleet.parts import in_parts_by_bytes
from scheduler.completion import accounting, metrics
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.model import jsonl
from scheduler.model.job import Job
from scheduler.model.outcomes import (
    LineAnswered,
    LineHeld,
    LineOutcome,
    LineRefused,
    LineRetry,
)
from scheduler.providers import result_lines
from scheduler.providers.base import BatchProvider, ProviderBatch
from scheduler.providers.errors import BatchFault, refused_requests
from scheduler.providers.result_lines import BadLine, ResultLine
from tasks.failure_reasons import Category, Reason

logger = logging.getLogger(__name__)

#: Reasons for which an account refuses all of its requests, or one of them.
ACCESS_REASONS = frozenset({Reason.CREDENTIALS, Reason.PERMISSION})
#: Most lines in memory, and most bytes of them unless one line is larger.
CHUNK, CHUNK_BYTES = 200, 4_000_000


@dataclass
class ReadProgress:
    """What the files of a job have said so far, by request."""

    #: The job's requests without a response.
    unanswered: set[str]
    errors: dict[str, LineOutcome] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


class ResultReader:
    """Gives every request of an ended batch its outcome. May be started again at any point."""

    def __init__(self, context: BatchContext, finisher: JobFinisher) -> None:
        self._store = context.store
        self._folder = context.folder
        self._finisher = finisher

    async def read_results(self, job: Job, provider: BatchProvider, batch: ProviderBatch) -> None:
        """Deliver the responses, retry or fail the other requests, and close the job.

        Raises:
            ProviderCallFailed: A file could not be read completely; nothing of that file was
                delivered.
        """
        progress = ReadProgress(set((await self._store.members(job)).values()))
        for number, file_id in enumerate(batch.files):
            self._folder.mkdir(0o700, parents=True, exist_ok=True)
            path = self._folder / f"{job.intent}.{number}.jsonl"
            await _download(job, provider, file_id, path)
            await self._read_file(job, path, progress)
        unanswered, errors = progress.unanswered, progress.errors
        answered = bool(progress.seen - errors.keys())
        failed = {
            request: _request_outcome(errors[request], answered)
            for request in unanswered
            if request in errors
        }
        await self._finisher.apply_outcomes(job, failed)
        if batch.status == "failed":
            await self._finish_failed_batch(job, batch.faults)
            return
        await self._finisher.clear_backoff(job)
        held = any(isinstance(outcome, LineHeld) for outcome in failed.values())
        if batch.status == "completed" and not held:
            await self._finisher.accounts.resume(job)
        missing = unanswered - set(errors)
        metrics.observe_anomaly(job, "missing", len(missing))
        await self._finisher.apply_outcomes(job, dict.fromkeys(missing, _missing_outcome(batch)))
        await self._finisher.close(job)

    async def _read_file(self, job: Job, path: Path, progress: ReadProgress) -> None:
        """Deliver a file's responses; keep its errors, as the other file may have a response."""
        for chunk in _chunks(path):
            answers: dict[str, LineOutcome] = {}
            failed: dict[str, ResultLine] = {}
            for line in _decode_lines(job, chunk):
                request = jsonl.request_of(line.custom_id)
                if request in progress.seen:
                    metrics.observe_anomaly(job, "duplicate")
                if request not in progress.unanswered:
                    await self._skip_line(job, line, request)
                    continue
                progress.seen.add(request)
                if isinstance(line.outcome, LineAnswered):
                    answers[request] = line.outcome
                    progress.unanswered.discard(request)
                else:
                    progress.errors.setdefault(request, line.outcome)
                    if line.body:
                        failed[request] = line
            await self._settle_failed(job, failed)
            await self._finisher.apply_outcomes(job, answers)

    async def _settle_failed(self, job: Job, lines: Mapping[str, ResultLine]) -> None:
        """Count the answers whose generation failed: the provider bills them."""
        if not lines:
            return
        for request, (parked, _) in (await self._store.load(list(lines))).items():
            if parked is not None and (cost := metrics.cost_of(job, lines[request].body)):
                await accounting.settle_failed(parked, job, request, cost)

    async def _skip_line(self, job: Job, line: ResultLine, request: str | None) -> None:
        """Account for a line without an unanswered request: repeated, withdrawn, or unknown.

        An unknown line is not kept: its file stays at the provider, and the log has its id.
        """
        if request is None or not await self._store.known([request]):
            metrics.observe_anomaly(job, "unknown")
            logger.warning(
                "%s: no request for result line %r",
                job.intent,
                line.custom_id[:64],
                extra={"action": "batch_line_unknown"},
            )
        elif line.body and await self._store.is_withdrawn(request):
            cost = metrics.observe_dropped(job, line.body)
            payer = await self._store.costs.payer(request)
            if payer is not None:
                await accounting.settle_dropped(payer, job, request, cost)

    async def _finish_failed_batch(self, job: Job, faults: tuple[BatchFault, ...]) -> None:
        """Handle a batch that the provider refused as a whole: no request was executed."""
        members = await self._store.members(job)
        if not members:  # each request had an error of its own in a file
            await self._finisher.close(job)
            return
        for fault in (fault.fault for fault in faults):
            if fault.reason is Reason.QUEUE_FULL:
                await self._finisher.back_off(job, fault.message)
                return
            if fault.category is Category.ACCOUNT:
                await self._finisher.hold_job(job, fault)
                return
            if fault.reason is Reason.MODEL_NOT_FOUND:
                await self._finisher.fail_job(job, fault.error())
                return
            if fault.category is Category.PROVIDER and fault.reason is not Reason.UNKNOWN:
                await self._finisher.retry_job(job, fault.error())
                return
        refused = refused_requests(members, faults)
        if not refused:
            reasons = "; ".join(dict.fromkeys(fault.message or fault.code for fault in faults))
            error = BatchError(reasons or "the provider refused the batch")
            await self._finisher.bisect(job, error)
            return
        # The other requests first: a scheduler that starts again must still find the refused ones.
        others = [request for request in members.values() if request not in refused]
        await self._finisher.requeue(job, others)
        await self._finisher.apply_outcomes(job, refused)
        await self._finisher.close(job)


def _request_outcome(outcome: LineOutcome, answered: bool) -> LineOutcome:
    """The outcome of a failed line, when it is known whether its batch had answers.

    The key and the permissions of an account that answered other lines of the batch are good: the
    provider refuses what this request asks for.
    """
    if answered and isinstance(outcome, LineHeld) and outcome.fault.reason in ACCESS_REASONS:
        return LineRefused(outcome.fault.error())
    return outcome


def _missing_outcome(batch: ProviderBatch) -> LineRetry:
    """The outcome of requests that are in no file."""
    if batch.status == "completed":
        return LineRetry(BatchError("the batch completed without a response to this request"))
    error = BatchError(f"the batch was {batch.status} before it executed this request")
    return LineRetry(error, "expiries")


async def _download(job: Job, provider: BatchProvider, file_id: str, path: Path) -> None:
    """Download a result file, a second time if a line of it is bad.

    The file may have been damaged in transit without a change of its length, and a download is
    cheaper than paying a request again. A line that is bad twice is bad at the provider.
    """
    await provider.download(file_id, path)
    if not await asyncio.to_thread(_has_no_bad_line, path):
        logger.warning(
            "%s: bad lines, downloads %s again",
            job.intent,
            file_id,
            extra={"action": "batch_file_bad"},
        )
        await provider.download(file_id, path)


def _has_no_bad_line(path: Path) -> bool:
    try:
        for chunk in _chunks(path):
            for text in chunk:
                result_lines.parse_line(text)
    except BadLine:
        return False
    return True


def _decode_lines(job: Job, chunk: list[bytes]) -> Iterator[ResultLine]:
    for text in chunk:
        try:
            yield result_lines.decode_line(text)
        except BadLine as error:  # its request counts as missing
            metrics.observe_anomaly(job, "bad")
            logger.error("%s: bad line: %s", job.intent, error, extra={"action": "batch_line_bad"})


def _chunks(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        sizes = ((line, len(line)) for line in filter(bytes.strip, file))
        yield from in_parts_by_bytes(sizes, CHUNK_BYTES, CHUNK)
