"""Reads what became of a batch that has ended: both files, whatever its status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from primarch_fleet.errors import BatchError
from scheduler import metrics
from scheduler.completion import accounting
from scheduler.jobs.context import BatchContext
from scheduler.jobs.finisher import JobFinisher
from scheduler.model import jsonl
from scheduler.model.job import Job
from scheduler.model.outcomes import LineAnswered, LineOutcome, LineRetry
from scheduler.providers import result_lines
from scheduler.providers.base import BatchProvider, ProviderBatch
from scheduler.providers.errors import BatchFault, refused_requests
from scheduler.providers.result_lines import BadLine, ResultLine

logger = logging.getLogger(__name__)

#: Lines in memory at once, and their bytes, but for one line.
CHUNK, CHUNK_BYTES = 100, 4_000_000


@dataclass
class ReadProgress:
    """What the files of a job have said so far, by request."""

    #: Those that are without an answer.
    left: set[str]
    errors: dict[str, LineOutcome] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


class ResultReader:
    """Gives every request of an ended batch its outcome. May be begun again at any point."""

    def __init__(self, desk: BatchContext, ending: JobFinisher) -> None:
        self._store = desk.store
        self._folder = desk.folder
        self._ending = ending

    async def read_results(self, job: Job, provider: BatchProvider, remote: ProviderBatch) -> None:
        """Deliver what was answered, retry or fail the rest, and close the job.

        Raises Failure when a file cannot be read whole; nothing of it was delivered then.
        """
        found = ReadProgress(set((await self._store.members(job)).values()))
        for number, file_id in enumerate(remote.files):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{job.intent}.{number}.jsonl"
            await _fetch(job, provider, file_id, path)
            await self._read(job, path, found)
        left, errors = found.left, found.errors
        await self._ending.settle(job, {one: errors[one] for one in left if one in errors})
        if remote.status == "failed":
            await self._failed(job, remote.faults)
            return
        await self._ending.clear_backoff(job)
        missing = left - set(errors)
        metrics.observe_anomaly(job, "missing", len(missing))
        await self._ending.settle(job, dict.fromkeys(missing, _unanswered(remote)))
        await self._ending.close(job)

    async def _read(self, job: Job, path: Path, found: ReadProgress) -> None:
        """Deliver the answers in a file and note its errors: an answer may still come for them."""
        for chunk in _chunks(path):
            answers: dict[str, LineOutcome] = {}
            for line in _lines(job, chunk):
                request = jsonl.request_of(line.custom_id)
                if request in found.seen:
                    metrics.observe_anomaly(job, "duplicate")
                if request not in found.left:
                    await self._stranger(job, line, request)
                    continue
                found.seen.add(request)
                if isinstance(line.outcome, LineAnswered):
                    answers[request] = line.outcome
                    found.left.discard(request)
                else:
                    found.errors.setdefault(request, line.outcome)
            await self._ending.settle(job, answers)

    async def _stranger(self, job: Job, line: ResultLine, request: str | None) -> None:
        """A line for none of the requests left: a repetition, a cancelled one's, or nobody's.

        What nobody asked for is not kept: its file is, at the provider, and its id is in the log.
        """
        if request is None or not await self._store.known([request]):
            metrics.observe_anomaly(job, "unknown")
            logger.warning(
                "%s: nobody asked for line %r",
                job.intent,
                line.custom_id[:64],
                extra={"action": "batch_line_unknown"},
            )
        elif isinstance(line.outcome, LineAnswered) and await self._store.is_withdrawn(request):
            cost = metrics.observe_dropped(job, line.outcome.body)
            payer = await self._store.costs.payer(request)
            if payer is not None:
                await accounting.settle_dropped(payer, job, request, cost)

    async def _failed(self, job: Job, faults: tuple[BatchFault, ...]) -> None:
        """The provider refused the batch as a whole: no request of it was executed."""
        members = await self._store.members(job)
        if not members:  # each had its own error, in a file
            return await self._ending.close(job)
        for fault in faults:
            if fault.is_token_limit:
                return await self._ending.back_off(job, fault.message)
            if fault.is_model_not_found:  # all lines have the same: no other one would do
                return await self._ending.fail(job, fault.request_error)
        named = refused_requests(members, faults)
        if named:
            # The others first: begun again, the lines that are named must still be found.
            await self._ending.requeue(job, [one for one in members.values() if one not in named])
            await self._ending.settle(job, named)
            return await self._ending.close(job)
        reasons = "; ".join(dict.fromkeys(fault.message or fault.code for fault in faults))
        error = BatchError(reasons or "the provider refused the batch")
        return await self._ending.bisect(job, error)


def _unanswered(remote: ProviderBatch) -> LineRetry:
    if remote.status == "completed":
        return LineRetry(BatchError("the batch was completed without an answer to this request"))
    return LineRetry(BatchError(f"the batch was {remote.status} before this request"), "expiries")


async def _fetch(job: Job, provider: BatchProvider, file_id: str, path: Path) -> None:
    """Download a result file, and once more when a line of it makes no sense.

    It may have been spoiled on its way, and what its length does not tell is still cheaper to fetch
    again than its request is to pay again. Coming twice, a bad line is the provider's.
    """
    await provider.download(file_id, path)
    if not await asyncio.to_thread(_makes_sense, path):
        logger.warning("%s: %s again", job.intent, file_id, extra={"action": "batch_file_bad"})
        await provider.download(file_id, path)


def _makes_sense(path: Path) -> bool:
    try:
        for chunk in _chunks(path):
            for text in chunk:
                result_lines.decode_line(text)
    except BadLine:
        return False
    return True


def _lines(job: Job, chunk: list[bytes]) -> Iterator[ResultLine]:
    for text in chunk:
        try:
            yield result_lines.decode_line(text)
        except BadLine as error:  # its request counts as unanswered
            metrics.observe_anomaly(job, "bad")
            logger.error("%s: bad line: %s", job.intent, error, extra={"action": "batch_line_bad"})


def _chunks(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        chunk: list[bytes] = []
        size = 0
        for line in filter(bytes.strip, file):
            if len(chunk) == CHUNK or size + len(line) > CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        yield chunk
