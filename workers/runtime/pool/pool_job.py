"""One running task of the pool: its state, its body on the loop, its limits, and who ends it."""

import asyncio
import math
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, SoftTimeLimitExceeded, Terminated
from celery.utils.threads import USE_FAST_LOCALS  # type: ignore[attr-defined]
from celery.worker.request import Request
from celery.worker.state import task_ready

from tasks.base import Body, PrivateRequest
from workers.runtime.loop import event_loop, task_greenlets
from workers.runtime.pool import lease_check
from workers.runtime.results import stored_outcome
from workers.runtime.results.publishing import Followers


class JobState(Enum):
    """The life of a job, which changes under the job's lock, and only forwards.

    QUEUED -> RUNNING -> ENDED, or from QUEUED or RUNNING to CLAIMED.
    """

    QUEUED = auto()  # no thread has taken it yet
    RUNNING = auto()  # accepted: the tracer, and in it the body, runs
    ENDED = auto()  # the body has ended: its outcome is final, and the tracer stores it
    CLAIMED = auto()  # a revoke, a hard limit or a shutdown decides the outcome


class PoolJob:
    """One task on its way through the pool.

    Two sides race for its outcome: the body that ends, and a revoke, hard limit or shutdown that
    claims it. `end` and `claim` decide under the lock, once; the loser does nothing.
    """

    def __init__(
        self,
        job_id: int,
        call: Callable[[], Any],
        options: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.id = job_id
        self.call = call
        self.task_id = options.get("correlation_id")
        self.soft_limit_seconds: float = options.get("soft_timeout") or math.inf
        self.hard_limit_seconds: float = options.get("timeout") or math.inf
        self.on_accepted = options["accept_callback"]
        self.on_ended = options["callback"]
        self.on_failed = options["error_callback"]
        self.on_timeout = options["timeout_callback"]
        #: The request of the task, whose methods Celery's callbacks are; None for other jobs.
        self.request: Request | None = getattr(self.on_accepted, "__self__", None)
        #: What Celery sends once the body has ended.
        self.followers = Followers(str(self.task_id))
        self.hard_limit_passed = False
        self.state = JobState.QUEUED
        # Reentrant: `on_accepted` claims the job if it was revoked in the meantime.
        self.lock = threading.RLock()
        #: Whether the tracer runs in a greenlet of the loop; otherwise, in a thread.
        self.on_loop = self.may_run_on_loop()
        self._loop = loop
        self._outcome: Future[Any] | None = None
        self._body: asyncio.Task[Any] | None = None
        self._soft_limit_passed = False  # and the body has not been told yet

    def accept(self) -> bool:
        """Tell Celery that the job starts; return False if it is claimed and must not run."""
        # Under the lock: a revoke comes before, and the callback sees it, or finds the job running.
        with self.lock:
            if self.state is JobState.QUEUED:
                self.state = JobState.RUNNING
                self.on_accepted(self.id, time.monotonic())
            return self.state is JobState.RUNNING

    def end(self) -> bool:
        """Make the body's outcome final; return False if the job was claimed before."""
        with self.lock:
            if self.state is not JobState.CLAIMED:
                self.state = JobState.ENDED
            return self.state is JobState.ENDED

    def claim(self, *states: JobState) -> bool:
        """Take over the outcome and cancel the body; its thread is free at once.

        Does not wait until the body has unwound, nor for a loop that is blocked.

        Args:
            states: Claim the job only in one of these; by default, QUEUED or RUNNING.

        Returns:
            False if the job is in another state.
        """
        with self.lock:
            if self.state not in (states or (JobState.QUEUED, JobState.RUNNING)):
                return False
            self.state = JobState.CLAIMED
            if self._outcome:
                self._outcome.cancel()
            return True

    def lose(self) -> None:
        """Claim the job: its message is no more this worker's, whose commands show it no more."""
        if self.claim() and self.request is not None:
            task_ready(self.request)

    def is_claimed(self) -> bool:
        """Return whether the outcome was taken over."""
        return self.state is JobState.CLAIMED

    def may_run_on_loop(self) -> bool:
        """Return whether the tracer makes no call that blocks, but those of task_greenlets.

        So it publishes nothing, and needs no time limit, which holds while the loop is blocked.
        """
        request = self.request
        task: Any = request.task if request is not None else None
        return (
            isinstance(request, PrivateRequest)
            and not USE_FAST_LOCALS  # Celery's requests are by greenlet, unless this is set
            and not request.has_followers
            and task.is_async
            and not getattr(task, "autoretry_for", ())
            and self.soft_limit_seconds == self.hard_limit_seconds == math.inf
        )

    def terminate(self, signal: object = None) -> None:
        """Report a job that was revoked before it was accepted; called by Celery."""
        if self.claim():
            self.on_failed(raised(Terminated(signal)))

    def run_body(self, body: Body) -> Any:
        """Run a body on the loop and wait for it, within the time limits.

        The outcome is that of an earlier run if Redis has one: the body then does not run.

        Raises:
            Ignore: The job is claimed; the tracer then stores nothing.
        """
        outcome = self._of_earlier_run() or self._run(body)
        if lease_check.must_not_end(self.request, self.is_claimed):
            self.lose()
        if not self.end():
            raise Ignore
        self.followers.are_links()
        try:
            return outcome.result()
        except CancelledError:
            raise RuntimeError("The task's body was cancelled") from None

    def _run(self, body: Body) -> "Future[Any]":
        """Return how the body ended, or how another run ended before it."""
        with self.lock:
            if self.state is JobState.CLAIMED:
                raise Ignore
            self.state = JobState.RUNNING  # a plain `def` task may run several bodies in turn
            self._outcome = asyncio.run_coroutine_threadsafe(self._on_loop(body), self._loop)
        if task_greenlets.is_inside():
            task_greenlets.wait(asyncio.wrap_future(self._outcome))
        else:
            self._wait_within_limits(self._outcome)
        return self._of_earlier_run() or self._outcome

    def _of_earlier_run(self) -> "Future[Any] | None":
        """Return the stored outcome of a message that was delivered before, if there is one."""
        # A plain `def` task may run several bodies, which have outcomes of their own.
        if self.request is None or not getattr(self.request.task, "is_async", False):
            return None
        return stored_outcome.of_earlier_run(self.request)

    def _wait_within_limits(self, outcome: "Future[Any]") -> None:
        # On this thread, so that the limits also hold while the loop is blocked.
        started = time.monotonic()
        soft, hard = self.soft_limit_seconds, self.hard_limit_seconds
        if soft < hard and not _ends_within(outcome, soft):
            self._loop.call_soon_threadsafe(self._raise_soft_limit)
            self.on_timeout(True, soft)
        remaining = None if hard == math.inf else max(0.0, started + hard - time.monotonic())
        if not _ends_within(outcome, remaining):
            self.hard_limit_passed = self.claim()

    def _raise_soft_limit(self) -> None:
        self._soft_limit_passed = True
        if self._body:
            self._body.cancel()  # `_drive` makes SoftTimeLimitExceeded of it

    async def _on_loop(self, body: Body) -> Any:
        if self.is_claimed():
            # asyncio starts a body that was cancelled before its first step, and cancels it then.
            raise asyncio.CancelledError
        self._body = asyncio.current_task()
        self._body.set_name(event_loop.BODY_TASK_NAME)  # type: ignore[union-attr]
        if self._soft_limit_passed:
            raise SoftTimeLimitExceeded(self.soft_limit_seconds)
        try:
            return await self._drive(body())
        except (SystemExit, KeyboardInterrupt) as exc:
            # asyncio would let it out of run_forever() and so stop the loop of all tasks.
            raise RuntimeError(f"The task's body raised {type(exc).__name__}") from exc

    @types.coroutine
    def _drive(self, body: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await a body, and replace the cancellation of a soft limit by SoftTimeLimitExceeded.

        asyncio can only cancel a task, not raise another exception where it waits. So this does by
        hand what `await body` does: it passes what the body waits for up to the loop, and the
        loop's values and exceptions down to the body.
        """
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                awaited = body.send(value) if error is None else body.throw(error)
            except StopIteration as end:
                return end.value
            error = None
            try:
                value = yield awaited
            except BaseException as exc:
                error = self._translated(exc)

    def _translated(self, exc: BaseException) -> BaseException:
        cancelled = isinstance(exc, asyncio.CancelledError)
        if not cancelled or not self._soft_limit_passed or self.state is JobState.CLAIMED:
            return exc
        self._soft_limit_passed = False
        if self._body:
            self._body.uncancel()
        return SoftTimeLimitExceeded(self.soft_limit_seconds)


def _ends_within(future: "Future[Any]", seconds: float | None) -> bool:
    """Wait until the future is done or cancelled; return False after so many seconds."""
    with suppress(TimeoutError, CancelledError):
        future.exception(seconds)
    return future.done()


def raised(exc: BaseException) -> ExceptionInfo:
    """Return an exception as Celery's callbacks take it."""
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()
