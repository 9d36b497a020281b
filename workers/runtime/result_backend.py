"""The workers' side of results: Celery's Redis backend, which stores a result in one step.

Celery reads what is stored, then writes and publishes: a success is never overwritten. Here
lua/store.lua does all that in one round trip; where a success is stored, Celery's own way is taken.
Keys, channels, encoding, expiry and retries are Celery's, so producers and everybody else keep its
backend.
"""

from collections.abc import Callable, Iterable
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from primarch_fleet.redis_support import ScriptPipeline
from workers.runtime.scripts import ANNOUNCE, STORE


class WorkerResultBackend(RedisBackend):
    """Celery's Redis backend, with fewer round trips."""

    # What this relies on and Celery does not publish.
    _get_result_meta: Callable[..., dict[str, Any]]
    _MAX_STR_VALUE_SIZE: int
    expires: int | None
    failure_expires: int | None

    def _chord_publish_claim_expires(self, initial_expires: int, callback: Any) -> int:
        """Seconds for which one worker alone may send a chord's body: those of a first try.

        Celery's own answer leaves time for every retry of the publish: hours, by our policy. A
        worker that dies meanwhile would keep the part that comes again from sending the body.
        """
        return initial_expires

    def announce(self, states: Iterable[tuple[str, str, Any, Any]]) -> None:
        """Store states of tasks of which nothing is stored yet, all in one round trip.

        Args:
            states: Of each task its id, the state, what is told of it, and its request.
        """
        told = [
            (self.get_key_for_task(task_id), self._text(task_id, meta, state, None, request))
            for task_id, state, meta, request in states
        ]
        self.ensure(self._announce, (told,))

    def _announce(self, told: list[tuple[Any, Any]]) -> None:
        pipe = ScriptPipeline(self.client)
        for key, text in told:
            ANNOUNCE.run(pipe, [key, key], [text, self.expires or 0])
        pipe.execute()

    def _text(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> Any:
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
        text = self._text(task_id, result, state, traceback, request)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        key = self.get_key_for_task(task_id)
        if len(text) <= self._MAX_STR_VALUE_SIZE and self.ensure(
            STORE.run, (self.client, [key, key], [text, expires or 0])
        ):
            return result
        return super()._store_result(  # type: ignore[misc]
            task_id, result, state, traceback=traceback, request=request, **kwargs
        )


def backend_url(url: str) -> str:
    """A worker's `result_backend` for the results at this `redis://` or `rediss://` URL."""
    redis = url.startswith(("redis://", "rediss://"))
    return f"workers.runtime.result_backend:WorkerResultBackend+{url}" if redis else url
