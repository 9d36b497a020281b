"""One batch and the statuses it passes through."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from workers.onebox.simulator.error import JsonObject
from workers.onebox.simulator.files import Files
from workers.onebox.simulator.profile import BatchProfile
from workers.onebox.simulator.provider import Provider
from workers.onebox.simulator.results import Results
from workers.onebox.simulator.validation import Input, Request

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
class Order:
    """What the creator of a batch asked for, once accepted."""

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    output_life: int | None


class Batch:
    """Moves only through `step`, which takes it over its next change of status at time `due`.

    Everything else about it follows from the time it is looked at, so it needs no task of its own.
    A batch keeps the times of the profile it was created under.
    """

    def __init__(
        self,
        order: Order,
        found: Input,
        provider: Provider,
        files: Files,
        admit: Callable[["Batch"], JsonObject | None],
    ) -> None:
        self.id = provider.ids.new("batch_")
        self.created_at = provider.clock.now()
        self.status = "validating"
        self.model = found.model
        self.due = self.created_at + provider.profile.batch.validating
        self._profile: BatchProfile = provider.profile.batch
        self._expires_at = self.created_at + self._profile.completion_window
        self._order = order
        self._errors = found.errors
        self._requests = _shuffled(found.requests, provider.profile.seed)
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
        """Make the change of status that was due at `due`."""
        match self.status:
            case "validating":
                self._end_validation()
            case "in_progress":
                self._end_work()
            case "finalizing":
                self._end("completed")
            case "cancelling":
                self._end("cancelled", "batch_cancelled")

    def work(self, until: float) -> None:
        """Execute the lines that are finished by `until`."""
        if self.status != "in_progress":
            return
        finished = self._finished(until)
        for request in self._requests[self._executed : finished]:
            self._results.execute(request)
        self._executed = max(self._executed, finished)

    def cancel(self, now: float) -> None:
        """Stop at once; the lines finished until now stay finished."""
        self.work(now)
        self._enter("cancelling", now, now + self._profile.cancelling)

    def as_json(self) -> JsonObject:
        """OpenAI's `batch` object."""
        null = "" if self._profile.empty_ids else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self._order.endpoint,
            "model": None if self.status == "validating" else self.model,
            "errors": self._errors_json(),
            "input_file_id": self._order.input_file_id,
            "completion_window": self._order.completion_window,
            "status": self._profile.says.get(self.status, self.status),
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
            "metadata": self._order.metadata,
        }

    def _end_validation(self) -> None:
        refused = None if self._errors else self._admit(self)
        if refused is not None:
            self._errors = [refused]
        if self._errors:
            self._requests = []
            self._end("failed")
            return
        self._total = len(self._requests)
        self._started_at = self.due
        self._enter("in_progress", self.due, min(self._work_ends_at(), self._gives_up_at()))

    def _end_work(self) -> None:
        self.work(self.due)
        if self._work_ends_at() > self._gives_up_at():
            self._end("expired", "batch_expired")
        else:
            self._enter("finalizing", self.due, self.due + self._profile.finalizing)

    def _work_ends_at(self) -> float:
        if self._profile.expire_at_fraction is not None:
            return math.inf
        return self._started_at + self._profile.in_progress

    def _gives_up_at(self) -> float:
        return self._expires_at + self._profile.expires_late

    def _finished(self, until: float) -> int:
        needed = self._profile.in_progress
        # The sum, as the end is reckoned: a difference may fall short of it by a rounding.
        whole = until >= self._started_at + needed
        share = 1.0 if whole else (until - self._started_at) / needed
        if self._profile.expire_at_fraction is not None:
            share = min(share, self._profile.expire_at_fraction)
        # Rounded first: 0.29 * 100 is a little less than 29.
        return math.floor(round(share * len(self._requests), 6))

    def _end(self, status: str, unfinished: str = "") -> None:
        for request in self._requests[self._executed :]:
            self._results.give_up(request, unfinished)
        self._output_file_id = self._deliver("output", self._results.output)
        self._error_file_id = self._deliver("error", self._results.errors)
        self._requests = []
        self._enter(status, self.due, math.inf)

    def _enter(self, status: str, at: float, due: float) -> None:
        self.status = status
        self._stamps[f"{status}_at"] = int(at)
        self.due = due

    def _deliver(self, kind: str, lines: list[bytes]) -> str | None:
        if not lines:
            return None
        content = b"".join(lines)
        lines.clear()
        filename = f"{self.id}_{kind}.jsonl"
        return self._files.add_result(filename, content, self.due, self._order.output_life).id

    def _errors_json(self) -> JsonObject | None:
        if self.status != "failed":
            return None
        return {"object": "list", "data": self._errors}

    def _usage_json(self) -> JsonObject:
        usage = self._results.usage
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(usage),
        }


def _shuffled(requests: list[Request], seed: int) -> list[Request]:
    order = list(requests)
    random.Random(seed).shuffle(order)  # noqa: S311
    return order[::-1] if order == requests else order
