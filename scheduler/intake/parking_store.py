"""Parks requests in the store of the batch lane, where the scheduler finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from celery.exceptions import Reject

from config.fleet import FleetConfig
from config.provider import Deployment
from primarch_fleet.errors import (
    Cancelled,
    FleetError,
    ProviderError,
    RequestTooLarge,
    UnknownModel,
)
from primarch_fleet.requests import Request
from scheduler.completion import accounting
from scheduler.model import jsonl
from scheduler.model.job import ParkedRecord, ParkedRequest, RequestGroup, RequestSize
from scheduler.model.outcomes import ParkOutcome
from scheduler.store.blobs import BlobStore
from scheduler.store.store import Store
from scheduler.translation.lines import LineEncoder
from scheduler.translation.translator import Untranslatable

#: As long as the longest custom_id of any request; used for its length.
LONGEST_CUSTOM_ID = jsonl.custom_id(jsonl.request_id(""), 9999)


class NewRequest(NamedTuple):
    """A request that is about to be parked."""

    request: Request
    record: ParkedRecord

    @property
    def task_id(self) -> str:
        """The id of its task."""
        return str(self.record.parked.context["id"])


class ParkingStore:
    """The `DeferralStore` of a batch worker.

    It is made on the store's event loop; its methods are called on other threads.
    """

    def __init__(
        self, store: Store, blobs: BlobStore, lines: LineEncoder, config: FleetConfig
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._lines = lines
        self._config = config
        self._loop = asyncio.get_running_loop()

    def record(self, request: Request, context: dict[str, Any]) -> NewRequest:
        """Make the record of a request, for `park`.

        Raises:
            UnknownModel: No deployment serves the model in batches.
            ProviderError: Its provider does not support the request.
            RequestTooLarge: No batch can hold the request.
        """
        try:
            deployment = self._config.batch_deployment(request.model)
        except KeyError:
            raise UnknownModel(
                f"model: {request.model!r} is not served on the batch lane"
            ) from None
        window = self._config.batch.completion_window
        endpoint = request.endpoint_at(deployment.kind)
        group = RequestGroup(deployment.provider, endpoint, deployment.model, window)
        size = self._size(request, deployment)
        parked = ParkedRequest(context=context, parked_at=0.0)  # `park` sets the time
        request_id = jsonl.request_id(context["id"])
        return NewRequest(request, ParkedRecord(request_id, parked, group, size))

    def park(self, records: Sequence[NewRequest]) -> Mapping[str, FleetError]:
        """Reserve budgets and store the records; known records stay as they are.

        The number of round trips depends on the number of tenants, not of records.

        Returns:
            The errors of requests without budget, or cancelled, by task id; these are not stored.

        Raises:
            Reject: The worker is stopping; the messages go back to their queue.
        """
        future = asyncio.run_coroutine_threadsafe(self._park(records), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise Reject("the worker is stopping", requeue=True) from None

    async def _park(self, requests: Sequence[NewRequest]) -> Mapping[str, FleetError]:
        now, refused = await self._store.now(), await self._reserve(requests)
        accepted = [one.record for one in requests if one.task_id not in refused]
        stored = await asyncio.gather(*(self._with_blob(record, now) for record in accepted))
        outcomes = zip(stored, await self._store.park(stored), strict=True)
        out = {record.request for record, outcome in outcomes if outcome is ParkOutcome.CANCELLED}
        await self._blobs.confirm_parked(record for record in stored if record.request not in out)
        cancelled = [record.parked for record in stored if record.request in out]
        await accounting.settle(accounting.UNSENT, [(parked, 0) for parked in cancelled])
        return {**refused, **{parked.context["id"]: Cancelled() for parked in cancelled}}

    async def _reserve(self, requests: Sequence[NewRequest]) -> Mapping[str, FleetError]:
        known = await self._store.known([one.record.request for one in requests])
        return await accounting.reserve(
            {one.task_id: one.request for one in requests if one.record.request not in known}
        )

    async def _with_blob(self, record: ParkedRecord, now: float) -> ParkedRecord:
        """The record with its time; a large body is stored outside of Redis."""
        parked = record.parked.model_copy(update={"parked_at": now})
        if record.size.size_bytes > self._blobs.max_inline_bytes:
            parked = await self._blobs.offload_request(record.request, parked)
        return record._replace(parked=parked)

    def _size(self, request: Request, deployment: Deployment) -> RequestSize:
        prompt = request.prompt_size()  # raises for text that cannot be encoded
        try:
            line_bytes = len(self._lines.encode(deployment.id, LONGEST_CUSTOM_ID, request))
        except Untranslatable as error:
            raise ProviderError(str(error)) from None
        policy = self._config.batch
        inputs = request.input_count
        if line_bytes > policy.max_bytes or inputs > policy.max_inputs:
            raise RequestTooLarge(
                f"request: {line_bytes} bytes and {inputs} inputs; a batch holds at most "
                f"{policy.max_bytes} bytes and {policy.max_inputs} inputs"
            )
        deadline = request.deadline.timestamp() if request.deadline else 0.0
        tokens = prompt.expected(deployment.media).total
        return RequestSize(line_bytes, inputs, tokens, deadline)
