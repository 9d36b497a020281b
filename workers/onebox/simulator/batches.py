"""All batches: creation, the list, and time passing for all of them in order."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workers.onebox.simulator.batch import TERMINAL, Batch, Order
from workers.onebox.simulator.error import ApiError, JsonObject, invalid
from workers.onebox.simulator.files import File, Files, lifetime, page
from workers.onebox.simulator.parameters import optional, required, wrong_type
from workers.onebox.simulator.provider import ENDPOINTS, Provider
from workers.onebox.simulator.validation import Input, batch_error, enqueued_tokens, read

_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_MOST_LISTED, _LISTED = 100, 20


class Batches:
    """Brought up to the clock whenever one of them is looked at.

    Changes of status happen in the order of their times, over all batches: when two compete for a
    model's enqueued tokens, it does not matter who is looked at first. `ended` is called with each
    one that has come to its end.
    """

    def __init__(self, provider: Provider, files: Files, ended: Callable[[Batch], None]) -> None:
        self._provider = provider
        self._files = files
        self._ended = ended
        self._batches: dict[str, Batch] = {}
        self._agenda: list[tuple[float, int, Batch]] = []
        self._entries = itertools.count()  # breaks ties: the older plan first
        self._tokens: dict[str, int] = {}

    def create(self, body: JsonObject) -> JsonObject:
        """Accept a batch, which starts validating. Raises ApiError."""
        self.catch_up()
        order, file = self._order(body)
        found = self._struck(read(file.content, order.endpoint, self._provider.profile))
        batch = Batch(order, found, self._provider, self._files, self._admit)
        if self._limit(batch.model) is not None and not found.errors:
            self._tokens[batch.id] = enqueued_tokens(found, self._provider)
        self._batches[batch.id] = batch
        self._plan(batch)
        return batch.as_json()

    def retrieve(self, batch_id: str) -> JsonObject:
        """The batch as it is now."""
        return self._find(batch_id).as_json()

    def cancel(self, batch_id: str) -> JsonObject:
        """Start cancelling; a 409 once it is too late, no change where it is under way."""
        batch = self._find(batch_id)
        if batch.status == "cancelling":
            return batch.as_json()
        if batch.status not in ("validating", "in_progress"):
            text = f"Cannot cancel a batch with status '{batch.status}'."
            raise ApiError(409, text)
        batch.cancel(self._provider.clock.now())
        self._plan(batch)
        return batch.as_json()

    def list(self, query: JsonObject) -> JsonObject:
        """One page, newest first; 20 batches unless `limit` says otherwise, 100 at most."""
        self.catch_up()
        now = self._provider.clock.now()
        newest = now - self._provider.profile.batch.list_lag
        batches = [batch for batch in self._batches.values() if batch.created_at <= newest]
        for batch in batches:
            batch.work(now)
        return page(batches[::-1], query, _LISTED, _MOST_LISTED)

    def _struck(self, found: Input) -> Input:
        """The input with the errors that fault rules add."""
        errors = list(found.errors)
        for number, request in enumerate(found.requests, 1):
            fault = self._provider.faults.pick(
                "validation", request.endpoint, found.model, request.raw
            )
            if fault is not None:
                line = number if fault.names_line else None
                errors.append(batch_error(str(fault.code), fault.message, line=line))
        return replace(found, errors=errors)

    def _find(self, batch_id: str) -> Batch:
        self.catch_up()
        batch = self._batches.get(batch_id)
        if batch is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        batch.work(self._provider.clock.now())
        return batch

    def _plan(self, batch: Batch) -> None:
        if batch.status not in TERMINAL:
            heapq.heappush(self._agenda, (batch.due, next(self._entries), batch))

    def catch_up(self) -> None:
        """Make every change of status that is due."""
        now = self._provider.clock.now()
        while self._agenda and self._agenda[0][0] <= now:
            due, _, batch = heapq.heappop(self._agenda)
            # A cancelled batch has left an entry behind for what it will no longer do.
            if due == batch.due:
                batch.step()
                if batch.status in TERMINAL:
                    self._ended(batch)
                self._plan(batch)

    def _admit(self, batch: Batch) -> JsonObject | None:
        limit = self._limit(batch.model)
        if limit is None:
            return None
        enqueued = sum(
            self._tokens.get(other.id, 0)
            for other in self._batches.values()
            if other.model == batch.model and other.status not in ("validating", *TERMINAL)
        )
        if enqueued + self._tokens.get(batch.id, 0) <= limit:
            return None
        text = (
            f"Enqueued token limit reached for {batch.model} in organization org-simulator. "
            f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress batches "
            "have been completed."
        )
        return batch_error("token_limit_exceeded", text)

    def _limit(self, model: str | None) -> int | None:
        return self._provider.profile.prices(model or "").enqueued_token_limit

    def _order(self, body: JsonObject) -> tuple[Order, File]:
        input_file_id = required(body, "input_file_id", str)
        endpoint = _one_of(body, "endpoint", tuple(ENDPOINTS))
        window = _one_of(body, "completion_window", ("24h",))
        metadata = _metadata(body)
        life = lifetime(body.get("output_expires_after"), "output_expires_after")
        return Order(endpoint, input_file_id, window, metadata, life), self._input(input_file_id)

    def _input(self, file_id: str) -> File:
        try:
            file = self._files.find(file_id)
        except ApiError:
            text = (
                f"Cannot find file {file_id}, or project proj_simulator does not have access to it."
            )
            raise invalid(text, "input_file_id") from None
        if file.purpose != "batch":
            raise invalid(f"File {file_id} must have the purpose 'batch'.", "input_file_id")
        most = self._provider.profile.batch.max_bytes
        if len(file.content) > most:
            text = f"The batch input file is larger than the {most} maximum for the model."
            raise ApiError(413, text)
        return file


def _one_of(body: JsonObject, name: str, values: tuple[str, ...]) -> str:
    value = required(body, name, str)
    if value not in values:
        expected = ", ".join(f"'{known}'" for known in values)
        text = f"Invalid value: '{value}'. Supported values are: {expected}."
        raise invalid(text, name, "invalid_value")
    return value


def _metadata(body: JsonObject) -> dict[str, str] | None:
    metadata = optional(body, "metadata", dict)
    if metadata is None:
        return None
    if len(metadata) > _MOST_PAIRS:
        text = (
            "Invalid 'metadata': too many properties. Expected an object with at most "
            f"{_MOST_PAIRS} properties, but got an object with {len(metadata)} properties instead."
        )
        raise invalid(text, "metadata", "object_above_max_properties")
    for key, value in metadata.items():
        _check_pair(key, value)
    return metadata


def _check_pair(key: str, value: Any) -> None:
    name = f"metadata.{key}"
    if not isinstance(value, str):
        raise wrong_type(name, str, value)
    for text, longest in ((key, _LONGEST_KEY), (value, _LONGEST_VALUE)):
        if len(text) > longest:
            message = (
                f"Invalid '{name}': string too long. Expected a string with maximum length "
                f"{longest}, but got a string with length {len(text)} instead."
            )
            raise invalid(message, name, "string_above_max_length")
