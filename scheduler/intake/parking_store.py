"""What stands behind the batch tasks: requests are put where the scheduler finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from celery.exceptions import Reject

from config.fleet import FleetConfig
from primarch_fleet import protocol
from primarch_fleet.contract import EmbeddingRequest, Request
from primarch_fleet.errors import FleetError, RequestTooLarge, UnknownModel
from primarch_fleet.estimates import BYTES_PER_TOKEN
from scheduler.completion import accounting
from scheduler.model import jsonl
from scheduler.model.job import ParkedRecord, ParkedRequest, RequestGroup, RequestSize
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Store

#: Stands for the longest custom_id that a request can get, where only its length matters.
LONGEST_CUSTOM_ID = jsonl.custom_id(jsonl.request_id(""), 9999)

_T = TypeVar("_T")


class ParkingStore:
    """`tasks.deferral.Parking` over the store.

    Made on the store's loop, called on other threads.
    """

    def __init__(self, store: Store, bodies: BlobStore, config: FleetConfig) -> None:
        self._store = store
        self._bodies = bodies
        self._config = config
        self._loop = asyncio.get_running_loop()

    def knows(self, task_id: str) -> bool:
        """True when the task is parked or was completed before."""
        return bool(self._wait(self._store.known([jsonl.request_id(task_id)])))

    def record(self, request: Request, context: dict[str, Any]) -> ParkedRecord:
        """What is kept of a request. Raises UnknownModel, RequestTooLarge."""
        try:
            deployment = self._config.batch_deployment(request.model)
        except KeyError:
            raise UnknownModel(f"model: {request.model!r} is not served on batch") from None
        window = self._config.batch.completion_window
        group = RequestGroup(deployment.provider, request.endpoint, request.model, window)
        size = self._size(request, deployment.upstream)
        parked = ParkedRequest(context=context, parked_at=0.0)  # the time is that of `park`
        return ParkedRecord(jsonl.request_id(context["id"]), parked, group, size)

    def park(self, records: Sequence[ParkedRecord]) -> Mapping[str, FleetError]:
        """Keep requests, but those for which there is no money; they wait from now on.

        As many round trips for many as for one, and one a tenant.
        """
        return self._wait(self._park(records))

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except CancelledError:  # the worker stops: another one shall park it
            raise Reject("the worker stops", requeue=True) from None

    async def _park(self, records: Sequence[ParkedRecord]) -> Mapping[str, FleetError]:
        now, refused = await self._store.now(), await self._reserve(records)
        taken = [one for one in records if one.parked.context["id"] not in refused]
        lighter = await asyncio.gather(*(self._lighter(one, now) for one in taken))
        await self._store.park(lighter)
        await self._bodies.confirm_parked(lighter)
        return refused

    async def _reserve(self, records: Sequence[ParkedRecord]) -> Mapping[str, FleetError]:
        known = await self._store.known([one.request for one in records])
        new = [one.parked for one in records if one.request not in known]
        return await accounting.reserve(new)

    async def _lighter(self, record: ParkedRecord, now: float) -> ParkedRecord:
        parked = record.parked.model_copy(update={"parked_at": now})
        if record.size.size_bytes > self._bodies.limit:
            parked = await self._bodies.offload_request(record.request, parked)
        return record._replace(parked=parked)

    def _size(self, request: Request, upstream: str) -> RequestSize:
        protocol.wire_size_bytes(request.to_wire())  # refuses text that cannot be encoded
        length = len(jsonl.encode_line(LONGEST_CUSTOM_ID, request, upstream))
        policy = self._config.batch
        inputs = _inputs(request)
        if length > policy.max_bytes or inputs > policy.max_inputs:
            raise RequestTooLarge(
                f"request: {length} bytes and {inputs} inputs; a batch holds {policy.max_bytes} "
                f"and {policy.max_inputs}"
            )
        deadline = request.deadline.timestamp() if request.deadline else 0.0
        return RequestSize(length, inputs, length // BYTES_PER_TOKEN + 1, deadline)


def _inputs(request: Request) -> int:
    """What the provider counts: each text or list of tokens to embed, else the request."""
    if not isinstance(request, EmbeddingRequest) or isinstance(request.input, str):
        return 1
    return 1 if isinstance(request.input[0], int) else len(request.input)
