"""Reads what became of a batch that has ended: both files, whatever its status."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from primarch_fleet.errors import BatchError, RequestFailed
from scheduler import lines, metrics
from scheduler.desk import Desk
from scheduler.ending import Ending
from scheduler.job import Job
from scheduler.lines import Answered, BadLine, Line, Outcome, Refused, Retry
from scheduler.providers.base import BatchProvider, Fault, Remote

logger = logging.getLogger(__name__)

#: Lines in memory at once.
CHUNK = 16
#: How the provider says that too many tokens are enqueued: by code, or only in words.
TOKEN_LIMIT, TOKEN_LIMIT_WORDS = "token_limit_exceeded", "enqueued token"
MODEL_NOT_FOUND = "model_not_found"


class Drain:
    """Gives every request of an ended batch its outcome. May be begun again at any point."""

    def __init__(self, desk: Desk, ending: Ending) -> None:
        self._store = desk.store
        self._folder = desk.folder
        self._ending = ending

    async def drain(self, job: Job, provider: BatchProvider, remote: Remote) -> None:
        """Deliver what was answered, retry or fail the rest, and close the job.

        Raises Failure when a file cannot be read whole; nothing of it was delivered then.
        """
        left = set((await self._store.members(job)).values())
        errors: dict[str, Outcome] = {}
        for number, file_id in enumerate(remote.files):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{job.intent}.{number}.jsonl"
            await provider.download(file_id, path)
            await self._read(job, path, left, errors)
        await self._ending.settle(job, {one: errors[one] for one in left if one in errors})
        if remote.status == "failed":
            await self._failed(job, remote.faults)
            return
        await self._ending.relax(job)
        await self._ending.settle(job, dict.fromkeys(left - set(errors), _unanswered(remote)))
        await self._ending.close(job)

    async def _read(self, job: Job, path: Path, left: set[str], errors: dict[str, Outcome]) -> None:
        """Deliver the answers in a file and note its errors: an answer may still come for them."""
        for chunk in _chunks(path):
            answers: dict[str, Outcome] = {}
            for text in chunk:
                line = _line(job, text)
                request = line and lines.request_of(line.custom_id)
                if line is None:
                    continue
                if request not in left:
                    await self._stranger(job, line, request)
                elif isinstance(line.outcome, Answered):
                    answers[request] = line.outcome
                    left.discard(request)
                else:
                    errors.setdefault(request, line.outcome)
            await self._ending.settle(job, answers)

    async def _stranger(self, job: Job, line: Line, request: str | None) -> None:
        """A line for none of the requests left: a repetition, a cancelled one's, or nobody's."""
        if request is None or not await self._store.knows(request):
            logger.warning(
                "%s: nobody asked for line %r",
                job.intent,
                line.custom_id[:64],
                extra={"action": "batch_line_unknown"},
            )
        elif isinstance(line.outcome, Answered) and await self._store.cancelled(request):
            metrics.observe_dropped(job, line.outcome.body)

    async def _failed(self, job: Job, faults: tuple[Fault, ...]) -> None:
        """The provider refused the batch as a whole: no request of it was executed."""
        for fault in faults:
            if of_token_limit(fault.code, fault.message):
                return await self._ending.hold_back(job, fault.message)
            if fault.code == MODEL_NOT_FOUND:  # all lines have the same: no other one would do
                return await self._ending.fail(job, _refusal(fault))
        members = await self._store.members(job)
        named = {
            members[fault.line]: Refused(_refusal(fault))
            for fault in faults
            if fault.line in members
        }
        if named:
            # The others first: begun again, the lines that are named must still be found.
            await self._ending.requeue(job, [one for one in members.values() if one not in named])
            await self._ending.settle(job, named)
            return await self._ending.close(job)
        reasons = "; ".join(dict.fromkeys(fault.message or fault.code for fault in faults))
        error = BatchError(reasons or "the provider refused the batch")
        return await self._ending.halve(job, error)


def of_token_limit(code: str, message: str) -> bool:
    """Whether a refusal means that too many tokens are enqueued already."""
    return code == TOKEN_LIMIT or TOKEN_LIMIT_WORDS in message.lower()


def _refusal(fault: Fault) -> RequestFailed:
    return lines.refusal(400, fault.code, fault.message)


def _unanswered(remote: Remote) -> Retry:
    if remote.status == "completed":
        return Retry(BatchError("the batch was completed without an answer to this request"))
    return Retry(BatchError(f"the batch was {remote.status} before this request"), "expiries")


def _line(job: Job, text: bytes) -> Line | None:
    try:
        return lines.read(text)
    except BadLine as error:  # its request counts as unanswered
        logger.error("%s: bad line: %s", job.intent, error, extra={"action": "batch_line_bad"})
        return None


def _chunks(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        filled = (line for line in file if line.strip())
        while chunk := list(islice(filled, CHUNK)):
            yield chunk
