"""A scheduler that dies where a test wants it, and a tracer that records what it completed."""

from __future__ import annotations

from typing import Any, NoReturn

from celery import Celery

from scheduler.completion.celery_tracer import CeleryTracer
from scheduler.model.job import JobState
from scheduler.store.batch_store import Store


class Killed(BaseException):
    """Stands for SIGKILL: the scheduler that meets it runs nothing more, not even clean-up."""


class MortalStore(Store):
    """A store whose scheduler dies at a chosen step.

    It dies after a job has entered the state `dies_at`, before a job enters the state
    `dies_before`, or after `dies_after` requests were finished.
    """

    dies_at: JobState | None = None
    dies_before: JobState | None = None
    dies_after: int | None = None
    dead = False
    finished = 0

    def die(self) -> NoReturn:
        """Kill the scheduler: every later script of the store raises Killed too."""
        self.dead = True
        raise Killed

    async def advance(self, job: Any, state: Any = None, after: float = 0.0, **fields: Any) -> Any:
        if state is not None and state == self.dies_before:
            self.die()
        job = await super().advance(job, state, after, **fields)
        self._die_in(job.state)
        return job

    async def create_job(self, *args: Any) -> Any:
        job = await super().create_job(*args)
        self._die_in("PREPARED")
        return job

    async def finish(self, requests: Any, *args: Any, **options: Any) -> None:
        remaining = None if self.dies_after is None else self.dies_after - self.finished
        self.finished += len(requests)
        await super().finish(requests[:remaining], *args, **options)
        if remaining is not None and len(requests) >= remaining:
            self.die()

    async def _run(self, script: str, keys: Any, args: Any) -> Any:
        if self.dead:
            raise Killed
        return await super()._run(script, keys, args)

    def _die_in(self, state: str) -> None:
        if state == self.dies_at:
            self.die()


class Witness(CeleryTracer):
    """A tracer that records the id of every task that it completes."""

    def __init__(self, app: Celery, completed: list[str]) -> None:
        super().__init__(app, "batch1@test")
        self._completed = completed

    def complete(self, context: dict[str, Any], *args: Any) -> Any:
        self._completed.append(context["id"])
        return super().complete(context, *args)
