"""A run: each line of the input is asked once, and its answer is written as soon as it is there.

A line has always the same idempotency key, so a run that was killed continues where it was: what is
in the output is not asked, what has a result is read, and what is in a queue is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from primarch_fleet import Fleet, protocol
from primarch_fleet.batch_file.input_file import Line, identity
from primarch_fleet.batch_file.output_file import ErrorFile, OutputFile
from primarch_fleet.batch_file.stored_results import StoredResults
from primarch_fleet.contract import Completion
from primarch_fleet.errors import (
    BodyUnavailable,
    BudgetExceeded,
    Cancelled,
    FleetBusy,
    FleetError,
    FleetUnavailable,
)

#: The most requests that a run has in the fleet: on lanes whose requests are collected first, all
#: of a file of OpenAI's largest size; elsewhere, as many as keep some workers busy.
LARGE_WINDOW, SMALL_WINDOW = 50_000, 2_000
#: Most lines that are submitted together, and their bytes, unless one alone is larger.
CHUNK_LINES, CHUNK_BYTES = 200, 4 * 2**20
#: Bounds of the pause between two reads of all awaited results.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 10.0
#: How many times as long as the last read that pause is: reading takes a tenth of the time.
PAUSE_FACTOR = 10
#: Seconds until a line is submitted again for which the tenant's budget had no room.
BUDGET_RETRY_SECONDS = 5.0
#: Seconds that workers have to stop the requests of a chunk, when a run is ended early.
CANCEL_SECONDS = 30.0
#: Seconds between two attempts to reach the broker, and for which it may be unreachable.
RECONNECT_SECONDS, MAX_OUTAGE_SECONDS = 1.0, 600.0


def default_window(lane: str) -> int:
    """Return the most requests that a run on a lane has in the fleet."""
    return LARGE_WINDOW if lane in ("batch", "auto") else SMALL_WINDOW


@dataclass
class Totals:
    """What a run has done."""

    #: Answers of this run, and those among them that an earlier run has asked for.
    answered: int = 0
    asked_before: int = 0
    #: Answers of earlier runs in the output.
    kept: int = 0
    cost_nanousd: int = 0
    saving_nanousd: int = 0
    #: Tokens of this run's answers.
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class _Pending:
    """A line whose request has no result yet."""

    number: int
    custom_id: str


@dataclass
class _Backlog:
    """Lines that the fleet did not take, to submit again."""

    lines: list[Line] = field(default_factory=list)
    #: Why, and the monotonic time of the next attempt.
    reason: FleetError | None = None
    retry_at: float = 0.0


@dataclass
class BatchRun:
    """Submits lines and writes their answers, with at most `window` requests in the fleet."""

    fleet: Fleet
    results: StoredResults
    #: The lines of the input, in any order.
    lines: Iterator[Line]
    output: OutputFile
    errors: ErrorFile
    window: int
    #: Returns monotonic seconds.
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    totals: Totals = field(default_factory=Totals, init=False)
    #: By the id of the task.
    _pending: dict[str, _Pending] = field(default_factory=dict, init=False)
    _backlog: _Backlog = field(default_factory=_Backlog, init=False)
    _is_read: bool = field(default=False, init=False)
    _collect_at: float = field(default=0.0, init=False)
    _outage_ends_at: float | None = field(default=None, init=False)
    #: Until when a body may be unreadable, by the id of the task.
    _unread_until: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def done(self) -> int:
        """The lines that have an answer or an error."""
        return self.totals.kept + self.totals.answered + self.errors.count

    @property
    def waiting(self) -> int:
        """The requests that are in the fleet."""
        return len(self._pending)

    def run(self, show: Callable[[], None]) -> None:
        """Run until each line has an answer or an error.

        Args:
            show: Called when something has changed, and while nothing does.

        Raises:
            BudgetExceeded: The tenant's budget has no room for the next line, and none of the
                run's requests is in the fleet any more.
            FleetUnavailable: The broker did not answer for MAX_OUTAGE_SECONDS.
            OSError: A file could not be read or written.
        """
        while not self._is_finished():
            self._submit_next()
            if self.clock() >= self._collect_at:
                self._collect()
            self.output.flush()
            self.errors.flush()
            show()
            self.sleep(self._pause_seconds())

    def end(self, reason: FleetError) -> None:
        """End a run that `run` has not finished: nothing of it is left in the fleet.

        Requests in the fleet are cancelled, also those that an earlier run of these lines has
        submitted. Answers that are there are written; each other line is an error.

        Args:
            reason: The error of lines that are cancelled or were not submitted.

        Raises:
            FleetUnavailable: The broker did not answer. A new run of the same lines can be ended.
            OSError: A file could not be read or written.
        """
        for lines in self._unfinished():
            self._cancel(lines)
            for task_id, outcome in self.results.read(list(lines)):
                self._finish(task_id, lines.pop(task_id), outcome, reason)
            for task_id, line in lines.items():
                self.errors.write(line.number, line.custom_id, task_id, reason)
        self.output.flush()
        self.errors.flush()

    def _unfinished(self) -> Iterator[dict[str, _Pending]]:
        """The lines without an answer or an error, in chunks, by the ids of their tasks."""
        pending = iter(list(self._pending))
        while chunk := list(islice(pending, CHUNK_LINES)):
            yield {task_id: self._pending.pop(task_id) for task_id in chunk}
        lines, self._backlog = self._backlog.lines, _Backlog()
        while not self._is_read or lines:
            yield {
                line.task_id: _Pending(line.number, str(line.custom_id))
                for line in lines
                if self._is_to_ask(line)
            }
            lines = self._next_lines()
            self._is_read = not lines

    def _cancel(self, lines: dict[str, _Pending]) -> None:
        if asked := self.results.asked(list(lines)):
            self.fleet.cancel_many(asked, CANCEL_SECONDS, return_exceptions=True)

    def _is_finished(self) -> bool:
        return self._is_read and not self._pending and not self._backlog.lines

    def _pause_seconds(self) -> float:
        """Seconds until there is something to do."""
        if self._is_finished() or self._may_read():
            return 0.0
        times = [self._collect_at] if self._pending else []
        times += [self._backlog.retry_at] if self._backlog.lines else []
        return max(0.0, min(times) - self.clock())

    def _may_read(self) -> bool:
        has_room = len(self._pending) + self._chunk_lines <= self.window
        return has_room and not self._is_read and not self._backlog.lines

    @property
    def _chunk_lines(self) -> int:
        return min(CHUNK_LINES, self.window)

    def _submit_next(self) -> None:
        """Submit the lines that the fleet did not take, or the next ones of the file."""
        if self._backlog.lines:
            if self.clock() < self._backlog.retry_at:
                return
            lines, was_over_budget = self._backlog.lines, self._is_over_budget()
            self._backlog = _Backlog()
            self._submit(lines)
            if was_over_budget and self._is_over_budget() and not self._pending:
                raise self._backlog.reason or BudgetExceeded()
        elif self._may_read():
            lines = self._next_lines()
            self._is_read = not lines
            self._submit([line for line in lines if self._is_to_ask(line)])

    def _is_over_budget(self) -> bool:
        return isinstance(self._backlog.reason, BudgetExceeded)

    def _next_lines(self) -> list[Line]:
        lines: list[Line] = []
        size_bytes = 0
        while len(lines) < self._chunk_lines and size_bytes < CHUNK_BYTES:
            if (line := next(self.lines, None)) is None:
                break
            lines.append(line)
            size_bytes += line.size_bytes
        return lines

    def _is_to_ask(self, line: Line) -> bool:
        """Whether a line has neither an answer nor an error; an error is written."""
        if line.error is not None:
            self.errors.write(line.number, line.custom_id, line.task_id, line.error)
            return False
        is_answered = identity(str(line.custom_id)) in self.output.earlier
        self.totals.kept += is_answered
        return not is_answered

    def _submit(self, lines: list[Line]) -> None:
        """Submit lines without a result; write the others' results."""
        by_task = {line.task_id: line for line in lines}
        try:
            for task_id, outcome in self.results.read(list(by_task)):
                line = by_task.pop(task_id)
                waiting = _Pending(line.number, str(line.custom_id))
                if not self._finish(task_id, waiting, outcome):
                    self._pending[task_id] = waiting
                self.totals.asked_before += 1
        except FleetUnavailable as error:
            self._unreachable(error)
            self._hold(list(by_task.values()), error, RECONNECT_SECONDS)
            return
        self._send(list(by_task.values()))

    def _send(self, lines: list[Line]) -> None:
        """Submit lines. What the fleet refuses is divided, until a single line has the blame."""
        if self._backlog.lines or not lines:
            self._backlog.lines += lines
            return
        requests = [line.request for line in lines if line.request]
        try:
            if len(requests) == 1:  # its error is the line's: without a place among others
                self.fleet.submit(requests[0])
            else:
                self.fleet.submit_many(requests)
        except FleetUnavailable as error:
            self._unreachable(error)
            self._hold(lines, error, RECONNECT_SECONDS)
        except FleetError as error:
            if len(lines) > 1:
                self._send(lines[: len(lines) // 2])
                self._send(lines[len(lines) // 2 :])
            elif isinstance(error, FleetBusy):
                self._hold(lines, error, error.retry_after)
            elif isinstance(error, BudgetExceeded):
                self._hold(lines, error, BUDGET_RETRY_SECONDS)
            else:
                (line,) = lines
                self.errors.write(line.number, line.custom_id, line.task_id, error)
        else:
            self._outage_ends_at = None
            self._pending |= {
                line.task_id: _Pending(line.number, str(line.custom_id)) for line in lines
            }

    def _hold(self, lines: list[Line], reason: FleetError, seconds: float) -> None:
        self._backlog = _Backlog(self._backlog.lines + lines, reason, self.clock() + seconds)

    def _collect(self) -> None:
        """Write the results that are there by now."""
        started_at = self.clock()
        pending = iter(list(self._pending))
        try:
            while chunk := list(islice(pending, CHUNK_LINES)):
                for task_id, outcome in self.results.read(chunk):
                    if self._finish(task_id, self._pending[task_id], outcome):
                        del self._pending[task_id]
            self._outage_ends_at = None
        except FleetUnavailable as error:
            self._unreachable(error)
        ended_at = self.clock()
        pause = PAUSE_FACTOR * (ended_at - started_at)
        self._collect_at = ended_at + min(max(pause, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)

    def _finish(
        self, task_id: str, line: _Pending, outcome: Any, cancelled: FleetError | None = None
    ) -> bool:
        """Write the outcome of a line; `cancelled` is the error of a cancelled one.

        Returns:
            False if nothing is written: the answer cannot be read now, and perhaps later.
        """
        try:
            completion = protocol.completion_or_raise(outcome).fetched()
        except BodyUnavailable as found:
            until = self._unread_until.setdefault(task_id, self.clock() + MAX_OUTAGE_SECONDS)
            if cancelled is None and self.clock() < until:
                return False
            self.errors.write(line.number, line.custom_id, task_id, found)
        except FleetError as found:
            error = cancelled if cancelled and isinstance(found, Cancelled) else found
            self.errors.write(line.number, line.custom_id, task_id, error)
        else:
            self.output.write(line.custom_id, task_id, completion)
            self._count(completion)
        self._unread_until.pop(task_id, None)
        return True

    def _count(self, completion: Completion) -> None:
        receipt = completion.receipt
        self.totals.answered += 1
        self.totals.cost_nanousd += receipt.cost_nanousd + receipt.failed_cost_nanousd
        self.totals.saving_nanousd += receipt.saving_nanousd
        self.totals.input_tokens += receipt.input_tokens
        self.totals.cached_tokens += receipt.usage.cached_input_tokens
        self.totals.output_tokens += receipt.output_tokens
        self.totals.reasoning_tokens += receipt.usage.reasoning_tokens

    def _unreachable(self, error: FleetUnavailable) -> None:
        """Count an outage. Raises the error if the outage is too long."""
        if self._outage_ends_at is None:
            self._outage_ends_at = self.clock() + MAX_OUTAGE_SECONDS
        elif self.clock() >= self._outage_ends_at:
            raise error
