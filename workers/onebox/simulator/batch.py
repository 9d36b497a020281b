"""One batch and its changes of status."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from workers.onebox.simulator.errors import JsonObject
from workers.onebox.simulator.files import Files
from workers.onebox.simulator.profile import BatchProfile
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.results import Results
from workers.onebox.simulator.validation import BatchLine, CheckedInput

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The accepted parameters of a new batch."""

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    #: Seconds until its result files expire.
    output_lifetime: int | None


class Batch:
    """A batch whose status changes only in `step`, at the time `due`.

    Everything else is computed from the clock when the batch is read, so no background task runs.
    A batch keeps the times of the profile with which it was created.
    """

    def __init__(
        self,
        request: BatchRequest,
        checked: CheckedInput,
        provider: Provider,
        files: Files,
        admit: Callable[["Batch"], JsonObject | None],
    ) -> None:
        self.id = provider.ids.new("batch_")
        self.created_at = provider.clock.now()
        self.status = "validating"
        self.model = checked.model
        self.due = self.created_at + provider.profile.batch.validating
        self._profile: BatchProfile = provider.profile.batch
        self._expires_at = self.created_at + self._profile.completion_window
        self._request = request
        self._errors = checked.errors
        self._lines = _shuffled(checked.lines, provider.profile.seed)
        self._results = Results(provider)
        self._files = files
        self._admit = admit
        self._executed = 0
        self._started_at = math.inf
        self._stamps: dict[str, int] = {}
        self._total = 0
        self._output_file_id: str | None = None
        self._error_file_id: str | None = None

    def step(self) -> None:
        """Make the change of status that is due at `due`."""
        match self.status:
            case "validating":
                self._finish_validation()
            case "in_progress":
                self._finish_work()
            case "finalizing":
                self._finish("completed")
            case "cancelling":
                self._finish("cancelled", "batch_cancelled")

    def work(self, until: float) -> None:
        """Execute the lines that finish by the time `until`."""
        if self.status != "in_progress":
            return
        finished = self._finished_lines(until)
        for line in self._lines[self._executed : finished]:
            self._results.execute(line)
        self._executed = max(self._executed, finished)

    def cancel(self, now: float) -> None:
        """Stop at once; lines that finished by `now` keep their results."""
        self.work(now)
        self._enter("cancelling", now, now + self._profile.cancelling)

    def as_json(self) -> JsonObject:
        """OpenAI's `batch` object."""
        null = "" if self._profile.empty_ids else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self._request.endpoint,
            "model": None if self.status == "validating" else self.model,
            "errors": self._errors_json(),
            "input_file_id": self._request.input_file_id,
            "completion_window": self._request.completion_window,
            "status": self._profile.status_names.get(self.status, self.status),
            "output_file_id": self._output_file_id or null,
            "error_file_id": self._error_file_id or null,
            "created_at": int(self.created_at),
            "expires_at": int(self._expires_at),
            **{stamp: self._stamps.get(stamp) for stamp in _STAMPS},
            "request_counts": {
                "total": self._total,
                "completed": self._results.completed,
                "failed": self._results.failed,
            },
            "usage": self._usage_json(),
            "metadata": self._request.metadata,
        }

    def _finish_validation(self) -> None:
        error = None if self._errors else self._admit(self)
        if error is not None:
            self._errors = [error]
        if self._errors:
            self._lines = []
            self._finish("failed")
            return
        self._total = len(self._lines)
        self._started_at = self.due
        self._enter("in_progress", self.due, min(self._work_ends_at(), self._expires_late_at()))

    def _finish_work(self) -> None:
        self.work(self.due)
        if self._work_ends_at() > self._expires_late_at():
            self._finish("expired", "batch_expired")
        else:
            self._enter("finalizing", self.due, self.due + self._profile.finalizing)

    def _work_ends_at(self) -> float:
        if self._profile.expire_at_fraction is not None:
            return math.inf
        return self._started_at + self._profile.in_progress

    def _expires_late_at(self) -> float:
        return self._expires_at + self._profile.expires_late

    def _finished_lines(self, until: float) -> int:
        duration = self._profile.in_progress
        # Compare with the sum, as `_work_ends_at` does: a difference can be off by rounding.
        is_done = until >= self._started_at + duration
        share = 1.0 if is_done else (until - self._started_at) / duration
        if self._profile.expire_at_fraction is not None:
            share = min(share, self._profile.expire_at_fraction)
        # Round first: 0.29 * 100 is slightly less than 29.
        return math.floor(round(share * len(self._lines), 6))

    def _finish(self, status: str, unexecuted_code: str = "") -> None:
        for line in self._lines[self._executed :]:
            self._results.add_unexecuted(line, unexecuted_code)
        self._output_file_id = self._write_file("output", self._results.output)
        self._error_file_id = self._write_file("error", self._results.errors)
        self._lines = []
        self._enter(status, self.due, math.inf)

    def _enter(self, status: str, at: float, due: float) -> None:
        self.status = status
        self._stamps[f"{status}_at"] = int(at)
        self.due = due

    def _write_file(self, kind: str, lines: list[bytes]) -> str | None:
        if not lines:
            return None
        content = b"".join(lines)
        lines.clear()
        filename = f"{self.id}_{kind}.jsonl"
        return self._files.add_result(filename, content, self.due, self._request.output_lifetime).id

    def _errors_json(self) -> JsonObject | None:
        if self.status != "failed":
            return None
        return {"object": "list", "data": self._errors}

    def _usage_json(self) -> JsonObject:
        usage = self._results.usage
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }


def _shuffled(lines: list[BatchLine], seed: int) -> list[BatchLine]:
    """The lines in another order: OpenAI does not keep the order of the input file."""
    shuffled = list(lines)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    return shuffled[::-1] if shuffled == lines else shuffled
