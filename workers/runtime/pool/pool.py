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

The settings say `worker_pool = "workers.runtime.pool.pool:TaskPool"`; `worker_concurrency` is the
number of running tasks, `fleet_drain_timeout` the seconds that SIGTERM leaves them to finish.
"""

import functools
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool
from celery.exceptions import Reject
from celery.worker.request import Request
from celery.worker.state import task_ready

from tasks.base import runner
from workers.runtime.dead_letters import Undeliverable
from workers.runtime.leases.leases import LEASES
from workers.runtime.loop import event_loop, task_greenlets
from workers.runtime.pool import lease_check
from workers.runtime.pool.pool_job import JobState, PoolJob, raised
from workers.runtime.redis_errors import comes_from_message
from workers.runtime.results.publishing import publishing_followers

logger = logging.getLogger(__name__)

#: Seconds that cancelled bodies have to end.
UNWIND_SECONDS = 5.0


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
        if lease_check.must_not_start(job.request, job.is_claimed):
            job.lose()
        if not job.accept():
            return
        with runner(job.run_body), publishing_followers(job.followers):
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
                job.on_failed(raised(Reject(repr(exc), requeue=True)))
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
