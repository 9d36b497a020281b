"""The workers' result backend: Celery's Redis backend, which stores a result in one round trip.

Celery reads the stored result, then writes and publishes, so that a success is never overwritten.
lua/store_result.lua does all that in one step, and never overwrites any outcome: SUCCESS, FAILURE
or REVOKED. Keys, channels, encoding, expiry and retries are Celery's, so producers and all others
use its backend.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from celery import Celery, states
from celery.exceptions import TaskRevokedError

from primarch_fleet.budgets import ledger_keys
from primarch_fleet.cancellation import COMPLETED, COMPLETED_MARK_TTL_SECONDS, mark_key
from primarch_fleet.celery_redis import PrimaryBackend
from primarch_fleet.parts import in_parts
from primarch_fleet.redis_support import ScriptPipeline
from primarch_fleet.redis_url import normalized
from workers.runtime.loop import task_greenlets
from workers.runtime.results import stored_outcome
from workers.runtime.results.chords import ChordJoins
from workers.runtime.results.completions import COMPLETIONS
from workers.runtime.results.publishing import sending_errbacks
from workers.runtime.results.stored_outcome import StoredOutcome
from workers.runtime.scripts import ANNOUNCE, COMPLETE_MARK, STORE_RESULT, STORE_RESULTS

#: Seconds for which the state of an unfinished task is kept: longer than the longest batch.
UNFINISHED_TTL_SECONDS = 3 * 86_400
#: States that one script stores: Redis does nothing else meanwhile.
STORED_AT_ONCE = 50
#: The fields of a task's request by which other tasks follow it, or wait for it.
AWAITED_BY = ("callbacks", "chain", "group", "chord")


class _Result(NamedTuple):
    """The result of a task that has succeeded, stored at the end of a block."""

    #: Of the result, and of the mark of its task.
    keys: tuple[Any, str]
    #: The id of its task, and the encoded result.
    args: tuple[str, Any]
    #: Where the script cannot store it.
    store_as_celery: Callable[[], Any]


#: The results of the tasks of this thread, within `stored_together`.
_collected: ContextVar[list[_Result] | None] = ContextVar("collected", default=None)


def _is_awaited(request: Any) -> bool:
    return any(getattr(request, name) for name in AWAITED_BY)


class _NoSubscriptions(PrimaryBackend.ResultConsumer):  # type: ignore[misc]
    """Celery's consumer of results, which subscribes to none.

    Celery subscribes to the results of errbacks, which nothing waits for. Their objects unsubscribe
    when Python collects them, wherever a thread is then: also on the loop, while another thread has
    the lock of the connection. A chord joins results that are stored: it reads them.
    """

    def consume_from(self, task_id: str) -> None:
        """Do nothing."""


class WorkerResultBackend(PrimaryBackend):
    """Celery's Redis backend, with fewer round trips."""

    ResultConsumer = _NoSubscriptions
    waits_for_memory = True
    # Attributes of Celery's that it does not document.
    _MAX_STR_VALUE_SIZE: int
    expires: int | None
    failure_expires: int | None
    app: Celery
    url: str

    @functools.cached_property
    def chords(self) -> "_ChordBackend":
        """The backend that joins chords."""
        return _ChordBackend(app=self.app, url=self.url)

    def on_chord_part_return(
        self, request: Any, state: str, result: Any, propagate: bool | None = None, **kwargs: Any
    ) -> Any:
        """Count a finished part of a chord; the last part publishes the chord's body.

        Its outcome is the stored one: another run of the part may have ended before.
        """
        stored = stored_outcome.of_task(self, request.id)
        outcome = stored or StoredOutcome(state, result)
        return self.chords.on_chord_part_return(request, *outcome, propagate, **kwargs)

    def announce(self, states: Iterable[tuple[str, str, Any, Any]]) -> None:
        """Store and publish the states of tasks that have none yet, all in one round trip.

        Args:
            states: Of each task its id, the state, the state's meta data, and the request.
        """
        encoded_states = [
            (self.get_key_for_task(task_id), self._encoded(task_id, meta, state, None, request))
            for task_id, state, meta, request in states
        ]
        self.ensure(self._announce, (encoded_states,))

    def _announce(self, encoded_states: list[tuple[Any, Any]]) -> None:
        pipeline = ScriptPipeline(self.client)
        for part in in_parts(encoded_states, STORED_AT_ONCE):
            texts = [text for _, text in part]
            ANNOUNCE.run(pipeline, [key for key, _ in part], [UNFINISHED_TTL_SECONDS, *texts])
        pipeline.execute()

    @functools.cached_property
    def _is_extended(self) -> bool:
        """Whether results have the arguments of their tasks: `result_extended`."""
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, **options: Any
    ) -> dict[str, Any]:
        """Return what Celery does, which looks up `result_extended` for each result."""
        if self._is_extended or options:
            meta: dict[str, Any] = super()._get_result_meta(  # type: ignore[misc]
                result, state, traceback, request, **options
            )
            return meta
        is_ready = state in states.READY_STATES
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": self.app.now().isoformat() if is_ready else None,
        }
        for name, field in (("group_id", "group"), ("parent_id", "parent_id")):
            if value := getattr(request, field, None):
                meta[name] = value
        return meta

    def _encoded(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        return self.encode(meta | {"task_id": task_id})

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        text = self._encoded(task_id, result, state, traceback, request)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        if state not in states.READY_STATES:
            expires = UNFINISHED_TTL_SECONDS
        key, was_run = self.get_key_for_task(task_id), state in (states.SUCCESS, states.FAILURE)
        keys = [key, key, mark_key(task_id)]
        args = [text, expires or 0, COMPLETED_MARK_TTL_SECONDS if was_run else "", task_id]
        if state in states.PROPAGATE_STATES:
            args += ledger_keys("")
        store_as_celery = functools.partial(
            super()._store_result,  # type: ignore[misc]
            task_id,
            result,
            state,
            traceback=traceback,
            request=request,
            **kwargs,
        )
        if len(text) > self._MAX_STR_VALUE_SIZE:
            return task_greenlets.off_loop(store_as_celery)
        collected = _collected.get()
        if collected is not None and state == states.SUCCESS and not _is_awaited(request):
            collected.append(_Result((key, mark_key(task_id)), (task_id, text), store_as_celery))
        elif self._store(keys, args) < 0:
            return task_greenlets.off_loop(store_as_celery)
        return result

    @contextmanager
    def stored_together(self) -> Iterator[None]:
        """Store the results of the block's tasks at its end, in one round trip.

        Those of tasks with links, in a group or in a chord, and failures, are stored at once: the
        tasks that follow read them. Applies to the tasks of this thread.
        """
        results: list[_Result] = []
        token = _collected.set(results)
        try:
            yield
        finally:
            _collected.reset(token)
        self.ensure(self._store_many, (results,))

    def _store_many(self, results: list[_Result]) -> None:
        pipeline = ScriptPipeline(self.client)
        groups = in_parts(results, STORED_AT_ONCE)
        for part in groups:
            keys = [key for result in part for key in result.keys]
            args = [arg for result in part for arg in result.args]
            ttls = [self.expires or 0, COMPLETED_MARK_TTL_SECONDS]
            STORE_RESULTS.run(pipeline, keys, [*ttls, *args])
        for part, others in zip(groups, pipeline.execute(), strict=True):
            for number in others:
                part[number - 1].store_as_celery()

    def _store(self, keys: Sequence[Any], args: Sequence[Any]) -> int:
        """Return the reply of lua/store_result.lua; on the loop, it goes with other results."""
        if task_greenlets.is_inside():
            reply = COMPLETIONS.store(self.url, keys, args)
            if reply is not None:
                return reply
        return int(self.ensure(STORE_RESULT.run, (self.client, keys, args)))

    def ensure(self, fun: Callable[..., Any], args: Any, **policy: Any) -> Any:
        """Call `fun` and repeat it as Celery does; the event loop goes on meanwhile."""
        ensure = super().ensure
        return task_greenlets.off_loop(functools.partial(ensure, fun, args, **policy))

    def mark_as_failure(self, *args: Any, **kwargs: Any) -> Any:
        """Store that a task has failed, then send its errbacks, as Celery does."""
        sending_errbacks()
        return super().mark_as_failure(*args, **kwargs)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Store that a task was revoked; its errbacks, chain and chord get that as any failure.

        Celery tells only the chord. They are told once, also where several messages of one task are
        dropped, and again only if a worker dies meanwhile.

        Args:
            request: Of the message that is dropped; None if its worker has not dropped it yet.
        """
        error, mark = TaskRevokedError(reason), mark_key(task_id)
        if request is not None and self.ensure(self.client.get, (mark,)) == COMPLETED.encode():
            return
        self.mark_as_failure(
            task_id, error, request=request, store_result=store_result, state=state
        )
        if request is not None:
            args = [COMPLETED, COMPLETED_MARK_TTL_SECONDS]
            self.ensure(COMPLETE_MARK.run, (self.client, [mark], args))


class _ChordBackend(ChordJoins, WorkerResultBackend):
    """Joins chords."""


def backend_url(url: str) -> str:
    """Return a worker's `result_backend`. Raises ConfigError."""
    return f"workers.runtime.results.result_backend:WorkerResultBackend+{normalized(url)}"
