"""What stands behind the batch tasks: requests are put where the scheduler finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from celery.exceptions import Reject

from config.fleet import FleetConfig
from primarch_fleet import wire
from primarch_fleet.contract import EmbeddingRequest, Request
from primarch_fleet.errors import RequestTooLarge, UnknownModel
from scheduler import lines
from scheduler.job import Group, Parked
from scheduler.store import Size, Store

#: Stands for the longest custom_id that a request can get, where only its length matters.
LONGEST = 9999


_T = TypeVar("_T")


class Lot:
    """`tasks.parking.Parking` over the store: made on the store's loop, called on other threads."""

    def __init__(self, store: Store, config: FleetConfig) -> None:
        self._store = store
        self._config = config
        self._loop = asyncio.get_running_loop()

    def knows(self, task_id: str) -> bool:
        """True when the task is parked or was completed before."""
        return self._wait(self._store.knows(lines.request_id(task_id)))

    def park(self, request: Request, context: dict[str, Any]) -> None:
        """Keep a request; it waits from now on. Raises UnknownModel, RequestTooLarge."""
        self._wait(self._park(request, context))

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except CancelledError:  # the worker stops: another one shall park it
            raise Reject("the worker stops", requeue=True) from None

    async def _park(self, request: Request, context: dict[str, Any]) -> None:
        try:
            deployment = self._config.batch_deployment(request.model)
        except KeyError:
            raise UnknownModel(f"model: {request.model!r} is not served on batch") from None
        request_id = lines.request_id(context["id"])
        parked = Parked(context=context, parked_at=await self._store.now())
        size = self._size(request, request_id, deployment.upstream)
        window = self._config.batch.completion_window
        group = Group(deployment.provider, request.endpoint, request.model, window)
        await self._store.park(request_id, parked, group, size)

    def _size(self, request: Request, request_id: str, upstream: str) -> Size:
        wire.size(request.to_wire())  # refuses text that cannot be encoded
        custom_id = lines.custom_id(request_id, LONGEST)
        length = len(lines.write(custom_id, request, upstream))
        policy = self._config.batch
        inputs = _inputs(request)
        if length > policy.max_bytes or inputs > policy.max_requests:
            raise RequestTooLarge(
                f"request: {length} bytes and {inputs} inputs; a batch holds {policy.max_bytes} "
                f"and {policy.max_requests}"
            )
        return Size(length, inputs, request.deadline.timestamp() if request.deadline else 0.0)


def _inputs(request: Request) -> int:
    """What the provider counts: each text or list of tokens to embed, else the request."""
    if not isinstance(request, EmbeddingRequest) or isinstance(request.input, str):
        return 1
    return 1 if isinstance(request.input[0], int) else len(request.input)
