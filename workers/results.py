"""The workers' side of results: Celery's Redis backend, which stores a first result in one step.

Celery reads what is stored, then writes and publishes: a success is never overwritten. Where
nothing is stored, as is the rule, lua/store.lua does all that in one round trip; where something
is, Celery's own way is taken. Keys, channels, encoding, expiry and retries are Celery's, so
producers and everybody else keep its backend.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from workers.leases import LUA


class ResultBackend(RedisBackend):
    """Celery's Redis backend, quicker for the first result of a task."""

    # What this relies on and Celery does not publish.
    _get_result_meta: Callable[..., dict[str, Any]]
    _MAX_STR_VALUE_SIZE: int
    expires: int | None
    failure_expires: int | None

    @cached_property
    def _store(self) -> Any:
        return self.client.register_script(LUA["store"])

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        text = self.encode(meta | {"task_id": task_id})
        expires = self.failure_expires if state == states.FAILURE else self.expires
        key = self.get_key_for_task(task_id)
        if len(text) <= self._MAX_STR_VALUE_SIZE and self.ensure(
            self._store, ([key, key], [text, expires or 0])
        ):
            return result
        return super()._store_result(  # type: ignore[misc]
            task_id, result, state, traceback=traceback, request=request, **kwargs
        )


def direct(url: str) -> str:
    """A worker's `result_backend` for the results at this `redis://` or `rediss://` URL."""
    redis = url.startswith(("redis://", "rediss://"))
    return f"workers.results:ResultBackend+{url}" if redis else url
