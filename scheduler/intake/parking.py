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
from primarch_fleet.prompt_size import PromptSize
from primarch_fleet.requests import Request
from scheduler.completion import accounting
from scheduler.model import jsonl
from scheduler.model.job import ParkedRecord, ParkedRequest, RequestGroup, RequestSize
from scheduler.model.outcomes import ParkOutcome
from scheduler.providers.request_lines import LineEncoder
from scheduler.providers.translator import Untranslatable
from scheduler.store.batch_store import Store
from scheduler.store.blobs import BlobStore

#: As long as the longest custom_id of any request; used for its length.
LONGEST_CUSTOM_ID = jsonl.custom_id(jsonl.request_id(""), 9999)


class NewRequest(NamedTuple):
    """A request that is about to be parked."""

    #: The request's id on the lane.
    id: str
    request: Request
    prompt: PromptSize
    #: The task context that completes it.
    context: dict[str, Any]
    group: RequestGroup
    size: RequestSize

    @property
    def task_id(self) -> str:
        """The id of its task."""
        return str(self.context["id"])

    def record(self, now: float) -> ParkedRecord:
        """Return the record that the store keeps of the request."""
        parked = ParkedRequest(context=self.context, parked_at=now)
        return ParkedRecord(self.id, parked, self.group, self.size)


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
        body = request.body()
        prompt = request.prompt_size(body)  # raises for text that cannot be encoded
        size = self._size(request, body, prompt, deployment)
        id_ = jsonl.request_id(context["id"])
        return NewRequest(id_, request, prompt, context, group, size)

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
        accepted = [one.record(now) for one in requests if one.task_id not in refused]
        stored = await self._with_blobs(accepted)
        outcomes = zip(stored, await self._store.park(stored), strict=True)
        out = {record.request for record, outcome in outcomes if outcome is ParkOutcome.CANCELLED}
        await self._blobs.confirm_parked(record for record in stored if record.request not in out)
        cancelled = [record.parked for record in stored if record.request in out]
        await accounting.settle(accounting.UNSENT, [(parked, 0) for parked in cancelled])
        return {**refused, **{parked.context["id"]: Cancelled() for parked in cancelled}}

    async def _reserve(self, requests: Sequence[NewRequest]) -> Mapping[str, FleetError]:
        known = await self._store.known([one.id for one in requests])
        unknown = [one for one in requests if one.id not in known]
        return await accounting.reserve(
            {one.task_id: one.request for one in unknown},
            {one.task_id: one.prompt for one in unknown},
        )

    async def _with_blobs(self, records: Sequence[ParkedRecord]) -> list[ParkedRecord]:
        """The records, in their order; large bodies are stored outside of Redis."""
        large = {
            place: self._blobs.offload_request(one.request, one.parked)
            for place, one in enumerate(records)
            if one.size.size_bytes > self._blobs.max_inline_bytes
        }
        offloaded = dict(zip(large, await asyncio.gather(*large.values()), strict=True))
        return [
            one._replace(parked=offloaded[place]) if place in offloaded else one
            for place, one in enumerate(records)
        ]

    def _size(
        self, request: Request, body: dict[str, Any], prompt: PromptSize, deployment: Deployment
    ) -> RequestSize:
        try:
            line = self._lines.encode(deployment.id, LONGEST_CUSTOM_ID, request, body)
        except Untranslatable as error:
            raise ProviderError(str(error)) from None
        policy, line_bytes = self._config.batch, len(line)
        inputs = request.input_count
        if line_bytes > policy.max_bytes or inputs > policy.max_inputs:
            raise RequestTooLarge(
                f"request: {line_bytes} bytes and {inputs} inputs; a batch holds at most "
                f"{policy.max_bytes} bytes and {policy.max_inputs} inputs"
            )
        deadline = request.deadline.timestamp() if request.deadline else 0.0
        tokens = prompt.expected(deployment.media).total
        return RequestSize(line_bytes, inputs, tokens, deadline)
