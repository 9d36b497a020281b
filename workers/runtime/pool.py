"""The worker pool of `async def` tasks: one event loop per process, with a thread of its own.

How a task runs:

1. The consumer (consumer.py), on the main thread, receives a message and calls `apply_async`. The
   pool makes a `PoolJob`, which starts when fewer jobs run than the limit allows.
2. The job runs Celery's own tracer, unchanged: it calls the task, stores the result, sends retries,
   chains and signals. So all of these are Celery's. The tracer is synchronous: it runs in a
   greenlet of the event loop (task_greenlets.py), or in a thread where it may block for something
   else than the body and the result (`may_run_on_loop`).
3. The tracer calls the task; tasks/base.py hands the coroutine to `PoolJob.run_body`. That starts
   it on the process's event loop, and sets the greenlet aside, or blocks the thread, until the
   coroutine ends or a time limit passes.
4. The result is stored, and Celery acknowledges the message: in a greenlet, with the results and
   acknowledgements of other tasks (completions.py).

A revoke, a hard limit or a shutdown *claims* a job: it decides the outcome in place of the body,
cancels the coroutine and frees its place at once (`JobState`).

The settings say `worker_pool = "workers.runtime.pool:TaskPool"`; `worker_concurrency` is the number
of running tasks, `fleet_drain_timeout` the seconds that SIGTERM leaves them to finish.
"""

import asyncio
import functools
import itertools
import logging
import math
import queue
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, Terminated
from celery.utils.threads import USE_FAST_LOCALS  # type: ignore[attr-defined]
from celery.worker.request import Request
from celery.worker.state import task_ready

from tasks.base import Body, PrivateRequest, runner
from workers.runtime import event_loop, possession, task_greenlets
from workers.runtime.dead_letters import Undeliverable
from workers.runtime.leases import LEASES
from workers.runtime.redis_errors import comes_from_message

logger = logging.getLogger(__name__)

#: Seconds that cancelled bodies have to end.
UNWIND_SECONDS = 5.0


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
            self.on_failed(_raised(Terminated(signal)))

    def run_body(self, body: Body) -> Any:
        """Run a body on the loop and wait for it, within the time limits.

        Raises:
            Ignore: The job is claimed; the tracer then stores nothing.
        """
        with self.lock:
            if self.state is JobState.CLAIMED:
                raise Ignore
            self.state = JobState.RUNNING  # a plain `def` task may run several bodies in turn
            self._outcome = asyncio.run_coroutine_threadsafe(self._on_loop(body), self._loop)
        if task_greenlets.is_inside():
            task_greenlets.wait(asyncio.wrap_future(self._outcome))
        else:
            self._wait_within_limits(self._outcome)
        if possession.must_not_end(self.request, self.is_claimed):
            self.claim()
        if not self.end():
            raise Ignore
        try:
            return self._outcome.result()
        except CancelledError:
            raise RuntimeError("The task's body was cancelled") from None

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


def _raised(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


class TaskPool(BasePool):
    """Celery's pool, with the event loop, greenlets and threads of the module's docstring.

    A soft limit raises SoftTimeLimitExceeded inside the coroutine. A hard limit stores
    TimeLimitExceeded, revoke(terminate=True) stores REVOKED: both acknowledge the message, cancel
    the coroutine and free its place at once. A plain `def` body cannot be interrupted and has no
    time limits here.

    After SIGTERM, queued jobs do not start. Running jobs have `fleet_drain_timeout` seconds (30) to
    end; then they are cancelled without an acknowledgement, and the process releases their leases.
    """

    body_can_be_buffer = True
    signal_safe = False

    def on_start(self) -> None:
        """Start the loop. Threads start with the first tasks that need one."""
        self.limit = max(1, self.limit)
        self.jobs: dict[int, PoolJob] = {}
        self._ids = itertools.count(1)
        self._waiting: deque[PoolJob] = deque()  # for a free place
        self._queued: queue.SimpleQueue[PoolJob | None] = queue.SimpleQueue()  # for a thread
        self._running = self._running_in_threads = self._threads = 0
        self._job_removed = threading.Condition()  # of what changes by threads
        self._loop = event_loop.get()

    def on_apply(  # type: ignore[override]
        self, target: Callable[..., Any], args: Any = (), kwargs: Any = None, **options: Any
    ) -> PoolJob:
        """Queue a task. Celery keeps a weak reference to the job; the pool keeps it alive."""
        options["timeout"] = options.get("timeout") or self.options.get("timeout")
        options["soft_timeout"] = options.get("soft_timeout") or self.options.get("soft_timeout")
        call = functools.partial(target, *args, **(kwargs or {}))
        job = PoolJob(next(self._ids), call, options, self._loop)
        self.jobs[job.id] = job
        self._waiting.append(job)
        self._start_waiting()
        return job

    def _start_waiting(self) -> None:
        """Start the jobs that wait, as far as the limit allows."""
        while job := self._next_to_start():
            if job.on_loop:
                self._loop.call_soon_threadsafe(
                    task_greenlets.start, functools.partial(self._run_to_end, job)
                )
            else:
                self._queued.put(job)
                self._add_threads()

    def _next_to_start(self) -> PoolJob | None:
        with self._job_removed:
            if not self._waiting or self._running >= self.limit:
                return None
            job = self._waiting.popleft()
            self._running += 1
            self._running_in_threads += not job.on_loop
            return job

    def _add_threads(self) -> None:
        while self._threads < min(self._running_in_threads, self.limit):
            # A daemon: a thread that cannot store its result must not keep the process from ending.
            name = f"task-{self._threads}"
            thread = threading.Thread(target=self._run_jobs, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                logger.exception("Cannot start a thread", extra={"action": "thread_start_failed"})
                return
            with self._job_removed:
                self._threads += 1

    def _run_jobs(self) -> None:
        while not self._ends_surplus_thread():
            job = self._queued.get()
            if job is None:  # wakes a thread that may be surplus
                continue
            self._run_to_end(job)

    def _run_to_end(self, job: PoolJob) -> None:
        try:
            self._run(job)
        except BaseException as exc:
            task_greenlets.off_loop(functools.partial(self._end_without_outcome, job, exc))
        with self._job_removed:
            self._running -= 1
            self._running_in_threads -= not job.on_loop
        self._remove(job)
        self._start_waiting()

    def _ends_surplus_thread(self) -> bool:
        """Return whether the calling thread must end, because the pool has become smaller."""
        with self._job_removed:
            is_surplus: bool = self._threads > self.limit
            self._threads -= is_surplus
            return is_surplus

    def _wake_surplus_threads(self) -> None:
        for _ in range(self._threads - self.limit):
            self._queued.put(None)

    def _remove(self, job: PoolJob) -> None:
        with self._job_removed:
            del self.jobs[job.id]
            self._job_removed.notify_all()

    def _run(self, job: PoolJob) -> None:
        if possession.must_not_start(job.request, job.is_claimed):
            job.claim()
        if not job.accept():
            return
        with runner(job.run_body):
            outcome = job.call()
        if job.end():
            job.on_ended(outcome)
        elif job.hard_limit_passed:
            job.on_timeout(False, job.hard_limit_seconds)

    def _end_without_outcome(self, job: PoolJob, exc: BaseException) -> None:
        """End a job after an error in Celery's tracer or callbacks: it may have no result.

        It runs again if Redis or the process is the reason. Any other error would come again, after
        another paid call: the message becomes a dead letter.
        """
        action = {"action": "task_tracer_failed"}
        logger.error("Task %s failed outside its body", job.task_id, exc_info=exc, extra=action)
        try:
            if not (job.end() or job.hard_limit_passed):
                return  # a revoke or the shutdown has claimed it
            if job.request is None or not comes_from_message(exc):
                job.on_failed(_raised(Reject(repr(exc), requeue=True)))
            else:
                task_ready(job.request)
                tag = job.request.message.delivery_tag
                LEASES.dead_letter(tag, Undeliverable("unfinishable", exc))
        except Exception:
            action = {"action": "task_requeue_failed"}
            logger.exception("Task %s was not requeued", job.task_id, extra=action)

    def terminate_job(self, pid: int, signal: object = None) -> None:
        """Cancel a task by the job id of `on_accepted`; Celery stores the outcome after that.

        Once that outcome is stored, the task starts no call any more.
        """
        job = self.jobs.get(pid)
        if job and job.claim() and not task_greenlets.is_inside():
            is_cancelled = threading.Event()
            self._loop.call_soon_threadsafe(is_cancelled.set)  # after the cancellation of the body
            is_cancelled.wait(UNWIND_SECONDS)

    def on_stop(self) -> None:
        """Wait for the running tasks, cancel those that do not end, stop the loop."""
        timeout = float(self.app.conf.get("fleet_drain_timeout", 30.0))
        for job in list(self.jobs.values()):
            job.claim(JobState.QUEUED)
        if not self._empty_within(timeout):
            action = {"action": "drain_timeout"}
            logger.warning("Not all tasks ended within %s s", timeout, extra=action)
        self.on_terminate()

    def on_terminate(self) -> None:
        """Cancel every task without acknowledging its message, run the hooks, stop the loop."""
        for job in list(self.jobs.values()):
            job.claim()
        self._empty_within(UNWIND_SECONDS)
        self.limit = 0
        self._wake_surplus_threads()
        event_loop.stop()

    def _empty_within(self, seconds: float) -> bool:
        with self._job_removed:
            return self._job_removed.wait_for(lambda: not self.jobs, seconds)

    def flush(self) -> None:
        """Drop the tasks that have not started: their messages are the consumer's to give back."""
        with self._job_removed:
            jobs = [job for job in self._waiting if job.request is not None]
            self._waiting = deque(job for job in self._waiting if job.request is None)
        for job in jobs:
            job.claim(JobState.QUEUED)
            self._remove(job)

    def requests(self) -> list[Request]:
        """Return the requests of all jobs, until Celery's callbacks at their end have returned."""
        return [job.request for job in list(self.jobs.values()) if job.request is not None]

    def grow(self, n: int = 1) -> None:
        """Allow `n` more running tasks."""
        self.limit += n
        self._start_waiting()

    def shrink(self, n: int = 1) -> None:
        """Allow `n` fewer, but at least one. Running tasks go on; the consumer fetches fewer."""
        self.limit = max(1, self.limit - n)
        self._wake_surplus_threads()

    def _get_info(self) -> dict[str, Any]:
        own = {"running": len(self.jobs), "threads": self._threads}
        return {**super()._get_info(), **own}  # type: ignore[misc]

    @property
    def num_processes(self) -> int:
        """The number of running tasks allowed; the prefetch limit is a multiple of it."""
        return int(self.limit)
