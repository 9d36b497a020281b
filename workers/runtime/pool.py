"""The worker pool of `async def` tasks: one event loop a process, one thread a task in flight.

A thread runs Celery's own tracer, unchanged, and waits while the body runs on the loop. So
acknowledgement, results, retries, chains and signals are Celery's, and its Redis calls do not hold
up the loop.

The settings say `worker_pool = "workers.runtime.pool:TaskPool"`; `worker_concurrency` is the number
of tasks in flight, `fleet_drain_timeout` the seconds that SIGTERM leaves them to finish.
"""

import asyncio
import itertools
import logging
import math
import queue
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, Terminated

from tasks.base import Body, runner

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[Any]]

#: Seconds that cancelled bodies, and after them the hooks of `at_stop`, have to end.
UNWIND_TIMEOUT = 5.0
CLOSE_TIMEOUT = 5.0

_BODY = "fleet-body"
_UNTRACED = {"action": "job_untraced"}


class _LoopThread:
    """An event loop on a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.hooks: list[Hook] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fleet-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # out of a task that a body started by itself
                logger.exception("A coroutine tried to exit", extra={"action": "loop_interrupted"})

    def stop(self, timeout: float) -> None:
        """Run the hooks, cancel what still runs, end the loop: in little more than `timeout`."""
        closing = asyncio.run_coroutine_threadsafe(self._close(timeout), self.loop)
        _ended_within(closing, timeout + 1)
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1)
        if self._thread.is_alive():
            logger.error("The event loop is blocked", extra={"action": "loop_abandoned"})
        else:
            self.loop.close()

    async def _close(self, seconds: float) -> None:
        deadline = self.loop.time() + seconds
        if bodies := [task for task in asyncio.all_tasks() if task.get_name() == _BODY]:
            await asyncio.wait(bodies, timeout=seconds / 2)  # they may still need what hooks close
        for hook in reversed(self.hooks):
            try:
                async with asyncio.timeout_at(deadline):
                    await hook()
            except Exception:
                logger.exception("A hook failed", extra={"action": "stop_hook_failed"})
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=max(0.1, deadline - self.loop.time()))
        await self.loop.shutdown_asyncgens()


_running: _LoopThread | None = None
_lock = threading.Lock()


def _loop_thread() -> _LoopThread:
    global _running  # noqa: PLW0603 - one loop a process
    with _lock:
        _running = _running or _LoopThread()
        return _running


def loop() -> asyncio.AbstractEventLoop:
    """The process's event loop, running on its own thread; started by the first call.

    Task bodies run on it, so clients that outlive a task (HTTP sessions, routers) are made on it.
    It runs until the pool has stopped.
    """
    return _loop_thread().loop


def at_stop(hook: Hook) -> None:
    """Have `hook()` awaited on the loop when the pool has stopped, before the loop does.

    Hooks run newest first and share `CLOSE_TIMEOUT` seconds; one that fails is logged.
    """
    _loop_thread().hooks.append(hook)


def stop_loop() -> None:
    """Run the hooks of `at_stop` and stop the loop, if there is one. The next `loop()` is new."""
    global _running
    with _lock:
        stopping, _running = _running, None
    if stopping:
        stopping.stop(CLOSE_TIMEOUT)


def _ended_within(future: "Future[Any]", seconds: float | None) -> bool:
    """Wait for the future to have a result, an exception or to be cancelled; say if it came to."""
    with suppress(TimeoutError, CancelledError):
        future.exception(seconds)
    return future.done()


class JobState(Enum):
    """The life of a job, forwards only, each step under the job's lock."""

    QUEUED = auto()  # no thread has it yet
    RUNNING = auto()  # accepted: the tracer, and in it the body, is at work
    ENDED = auto()  # the body is over: its outcome stands, and the tracer stores and reports it
    CLAIMED = auto()  # taken from its thread: whoever claimed it decides the outcome


class PoolJob:
    """One task on its way through the pool.

    Two sides race for its outcome: the body that ends, and a revoke, hard limit or shutdown that
    claims it. `end` and `claim` decide under the lock, once; the loser does nothing.
    """

    def __init__(self, job_id: int, call: Callable[[], Any], options: dict[str, Any]) -> None:
        self.id = job_id
        self.call = call
        self.task_id = options.get("correlation_id")
        self.soft: float = options.get("soft_timeout") or math.inf
        self.hard: float | None = options.get("timeout")
        self.on_accepted = options["accept_callback"]
        self.on_ended = options["callback"]
        self.on_failed = options["error_callback"]
        self.on_timeout = options["timeout_callback"]
        self.overran = False
        self.state = JobState.QUEUED
        # Reentrant: accepting a job that was revoked meanwhile claims it from within.
        self.lock = threading.RLock()
        self._outcome: Future[Any] | None = None
        self._body: asyncio.Task[Any] | None = None
        self._soft_due = False

    def accept(self) -> bool:
        """Tell Celery that the job starts, unless it is claimed; say if it is to run."""
        # Under the lock: a revoke comes before and is seen in the callback, or finds it running.
        with self.lock:
            if self.state is JobState.QUEUED:
                self.state = JobState.RUNNING
                self.on_accepted(self.id, time.monotonic())
            return self.state is JobState.RUNNING

    def end(self) -> bool:
        """Fix the outcome as the body's own; False if the job was claimed before."""
        with self.lock:
            if self.state is not JobState.CLAIMED:
                self.state = JobState.ENDED
            return self.state is JobState.ENDED

    def claim(self, *states: JobState) -> bool:
        """Take the outcome over and cancel the body; False if it has ended or is claimed.

        Does not wait for the body to unwind; its thread is free at once.
        """
        with self.lock:
            if self.state not in (states or (JobState.QUEUED, JobState.RUNNING)):
                return False
            self.state = JobState.CLAIMED
            if self._outcome:
                self._outcome.cancel()
            return True

    def terminate(self, signal: object = None) -> None:
        """Celery ends a revoke with this: report the job that Celery took for not yet accepted."""
        if self.claim():
            self.on_failed(_raised(Terminated(signal)))

    def run_body(self, body: Body) -> Any:
        """Run `body` on the loop and wait: the runner of this job's thread.

        Raises Ignore when the job is claimed: the tracer then stores nothing.
        """
        with self.lock:
            if self.state is JobState.CLAIMED:
                raise Ignore
            self.state = JobState.RUNNING  # a plain `def` task may run several bodies in turn
            self._loop = loop()
            self._outcome = asyncio.run_coroutine_threadsafe(self._guarded(body), self._loop)
        self._wait(self._outcome)
        if not self.end():
            raise Ignore
        try:
            return self._outcome.result()
        except CancelledError:
            raise RuntimeError("The task's body was cancelled") from None

    def _wait(self, outcome: "Future[Any]") -> None:
        """Wait for the body within its limits; on this thread, so a blocked loop hides none."""
        started = time.monotonic()
        if self.soft < (self.hard or math.inf) and not _ended_within(outcome, self.soft):
            self._loop.call_soon_threadsafe(self._interrupt)
            self.on_timeout(True, self.soft)
        left = self.hard and max(0.0, started + self.hard - time.monotonic())
        if not _ended_within(outcome, left):
            self.overran = self.claim()

    def _interrupt(self) -> None:
        self._soft_due = True
        if self._body:
            self._body.cancel()

    async def _guarded(self, body: Body) -> Any:
        self._body = asyncio.current_task()
        self._body.set_name(_BODY)  # type: ignore[union-attr]
        if self._soft_due:
            raise SoftTimeLimitExceeded(self.soft)
        try:
            return await self._steer(body())
        except (SystemExit, KeyboardInterrupt) as exc:
            # asyncio would let it out of run_forever(), on everybody's loop.
            raise RuntimeError(f"The task's body raised {type(exc).__name__}") from exc

    @types.coroutine
    def _steer(self, body: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await `body`; the cancellation of a soft limit reaches it as SoftTimeLimitExceeded."""
        resume: Callable[[Any], Any] = body.send
        value: Any = None
        while True:
            try:
                waits_for = resume(value)
            except StopIteration as end:
                return end.value
            try:
                resume, value = body.send, (yield waits_for)
            except BaseException as exc:
                resume, value = body.throw, self._translated(exc)

    def _translated(self, exc: BaseException) -> BaseException:
        softly = self._soft_due and self.state is not JobState.CLAIMED
        if not (softly and isinstance(exc, asyncio.CancelledError)):
            return exc
        self._soft_due = False
        if self._body:
            self._body.uncancel()
        return SoftTimeLimitExceeded(self.soft)


def _raised(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


class TaskPool(BasePool):
    """Celery's pool over the loop and the threads.

    A soft limit raises SoftTimeLimitExceeded inside the coroutine. A hard limit stores
    TimeLimitExceeded, revoke(terminate=True) stores REVOKED: both acknowledge the message, cancel
    the coroutine and free the thread at once. A plain `def` body cannot be interrupted and has no
    time limits here.

    SIGTERM: queued jobs do not start; running ones have `fleet_drain_timeout` seconds (30) to end,
    then are cancelled with their messages unacknowledged, which the transport gives back.
    """

    body_can_be_buffer = True
    signal_safe = False

    def on_start(self) -> None:
        """Start the loop. Threads come with the first tasks."""
        self.jobs: dict[int, PoolJob] = {}
        self._ids = itertools.count(1)
        self._waiting: queue.SimpleQueue[PoolJob | None] = queue.SimpleQueue()
        self._threads = 0
        self._changed = threading.Condition()
        loop()

    def on_apply(  # type: ignore[override]
        self, target: Callable[..., Any], args: Any = (), kwargs: Any = None, **options: Any
    ) -> PoolJob:
        """Queue a task. Celery keeps a weak reference to the job; the pool keeps it alive."""
        options["timeout"] = options.get("timeout") or self.options.get("timeout")
        options["soft_timeout"] = options.get("soft_timeout") or self.options.get("soft_timeout")
        job = PoolJob(next(self._ids), lambda: target(*args, **(kwargs or {})), options)
        self.jobs[job.id] = job
        self._waiting.put(job)
        if self._threads < min(len(self.jobs), self.limit):
            self._add_thread()
        return job

    def _add_thread(self) -> None:
        # Daemons: a thread that cannot store its result must not keep the process from ending.
        thread = threading.Thread(target=self._serve, name=f"task-{self._threads}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            logger.exception("No further thread", extra={"action": "thread_refused"})
        else:
            self._threads += 1

    def _serve(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                self._run(job)
            except BaseException as exc:
                self._run_again(job, exc)
            with self._changed:
                del self.jobs[job.id]
                self._changed.notify_all()

    def _run(self, job: PoolJob) -> None:
        if not job.accept():
            return
        with runner(job.run_body):
            outcome = job.call()
        if job.end():
            job.on_ended(outcome)
        elif job.overran:
            job.on_timeout(False, job.hard)

    def _run_again(self, job: PoolJob, exc: BaseException) -> None:
        """Requeue a task that Celery's tracer or callbacks failed: it may have no result."""
        logger.error("Task %s failed outside its body", job.task_id, exc_info=exc, extra=_UNTRACED)
        try:
            if job.end() or job.overran:
                job.on_failed(_raised(Reject(repr(exc), requeue=True)))
        except Exception:
            logger.exception("Task %s was not requeued", job.task_id, extra=_UNTRACED)

    def terminate_job(self, pid: int, signal: object = None) -> None:
        """Cancel one task by the id it was accepted with; Celery stores the outcome itself."""
        if job := self.jobs.get(pid):
            job.claim()

    def on_stop(self) -> None:
        """Drain, cancel what is left, run the hooks, stop the loop."""
        timeout = float(self.app.conf.get("fleet_drain_timeout", 30.0))
        for job in list(self.jobs.values()):
            job.claim(JobState.QUEUED)
        if not self._drained(timeout):
            logger.warning("Not all done in %s s", timeout, extra={"action": "drain_timeout"})
        self.on_terminate()

    def on_terminate(self) -> None:
        """Cancel every task, without acknowledging it, and stop the loop."""
        for job in list(self.jobs.values()):
            job.claim()
        self._drained(UNWIND_TIMEOUT)
        for _ in range(self._threads):
            self._waiting.put(None)
        stop_loop()

    def _drained(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self.jobs, timeout)

    def grow(self, n: int = 1) -> None:
        """Allow `n` more tasks in flight."""
        self.limit += n

    def shrink(self, n: int = 1) -> None:
        """Allow `n` fewer; those in flight go on, the consumer fetches fewer."""
        self.limit -= n

    def _get_info(self) -> dict[str, Any]:
        own = {"running": len(self.jobs), "threads": self._threads}
        return {**super()._get_info(), **own}  # type: ignore[misc]

    @property
    def num_processes(self) -> int:
        """What the prefetch limit is a multiple of."""
        return int(self.limit)
