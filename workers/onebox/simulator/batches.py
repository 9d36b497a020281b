"""All batches: their creation, their list, and their changes of status in time order."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workers.onebox.simulator.batch import TERMINAL, Batch, BatchRequest
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid
from workers.onebox.simulator.files import File, Files, lifetime, page
from workers.onebox.simulator.parameters import optional, required, wrong_type
from workers.onebox.simulator.provider import ENDPOINTS, Provider
from workers.onebox.simulator.validation import CheckedInput, batch_error, check, enqueued_tokens

_MAX_PAIRS, _MAX_KEY_LENGTH, _MAX_VALUE_LENGTH = 16, 64, 512
_MAX_PAGE_SIZE, _DEFAULT_PAGE_SIZE = 100, 20


class Batches:
    """The batches, brought up to date with the clock whenever one is read.

    Changes of status happen in time order over all batches, so when two compete for a model's
    enqueued tokens, it does not matter which is read first.

    Args:
        provider: The provider that answers the lines.
        files: Input and result files.
        on_end: Called with each batch that reaches a terminal status.
    """

    def __init__(self, provider: Provider, files: Files, on_end: Callable[[Batch], None]) -> None:
        self._provider = provider
        self._files = files
        self._on_end = on_end
        self._batches: dict[str, Batch] = {}
        self._schedule: list[tuple[float, int, Batch]] = []
        self._entries = itertools.count()  # breaks ties: the older entry first
        self._enqueued_tokens: dict[str, int] = {}

    def create(self, body: JsonObject) -> JsonObject:
        """Accept a batch, which starts validating. Raises ApiError."""
        self.catch_up()
        request, file = self._read_request(body)
        checked = check(file.content, request.endpoint, self._provider.profile)
        checked = self._with_fault_errors(checked)
        batch = Batch(request, checked, self._provider, self._files, self._admit)
        if self._token_limit(batch.model) is not None and not checked.errors:
            self._enqueued_tokens[batch.id] = enqueued_tokens(checked, self._provider)
        self._batches[batch.id] = batch
        self._schedule_step(batch)
        return batch.as_json()

    def retrieve(self, batch_id: str) -> JsonObject:
        """The batch as it is now."""
        return self._find(batch_id).as_json()

    def cancel(self, batch_id: str) -> JsonObject:
        """Start cancelling; a 409 if the batch has ended, no change if it is cancelling already."""
        batch = self._find(batch_id)
        if batch.status == "cancelling":
            return batch.as_json()
        if batch.status not in ("validating", "in_progress"):
            text = f"Cannot cancel a batch with status '{batch.status}'."
            raise ApiError(409, text)
        batch.cancel(self._provider.clock.now())
        self._schedule_step(batch)
        return batch.as_json()

    def list(self, query: JsonObject) -> JsonObject:
        """One page, newest first; `limit` batches, 20 by default and 100 at most."""
        self.catch_up()
        now = self._provider.clock.now()
        newest = now - self._provider.profile.batch.list_lag
        batches = [batch for batch in self._batches.values() if batch.created_at <= newest]
        for batch in batches:
            batch.work(now)
        return page(batches[::-1], query, _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)

    def _with_fault_errors(self, checked: CheckedInput) -> CheckedInput:
        """The input with the errors that fault rules add."""
        errors = list(checked.errors)
        for number, line in enumerate(checked.lines, 1):
            fault = self._provider.faults.pick(line.subject("validation", checked.model))
            if fault is not None:
                line_number = number if fault.names_line else None
                errors.append(batch_error(str(fault.code), fault.message, line=line_number))
        return replace(checked, errors=errors)

    def _find(self, batch_id: str) -> Batch:
        self.catch_up()
        batch = self._batches.get(batch_id)
        if batch is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        batch.work(self._provider.clock.now())
        return batch

    def _schedule_step(self, batch: Batch) -> None:
        if batch.status not in TERMINAL:
            heapq.heappush(self._schedule, (batch.due, next(self._entries), batch))

    def catch_up(self) -> None:
        """Make every change of status that is due."""
        now = self._provider.clock.now()
        while self._schedule and self._schedule[0][0] <= now:
            due, _, batch = heapq.heappop(self._schedule)
            # Skip the old entry of a batch that was cancelled since.
            if due == batch.due:
                batch.step()
                if batch.status in TERMINAL:
                    self._on_end(batch)
                self._schedule_step(batch)

    def _admit(self, batch: Batch) -> JsonObject | None:
        limit = self._token_limit(batch.model)
        if limit is None:
            return None
        enqueued = sum(
            self._enqueued_tokens.get(other.id, 0)
            for other in self._batches.values()
            if other.model == batch.model and other.status not in ("validating", *TERMINAL)
        )
        if enqueued + self._enqueued_tokens.get(batch.id, 0) <= limit:
            return None
        text = (
            f"Enqueued token limit reached for {batch.model} in organization org-simulator. "
            f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress batches "
            "have been completed."
        )
        return batch_error("token_limit_exceeded", text)

    def _token_limit(self, model: str | None) -> int | None:
        return self._provider.profile.prices(model or "").enqueued_token_limit

    def _read_request(self, body: JsonObject) -> tuple[BatchRequest, File]:
        input_file_id = required(body, "input_file_id", str)
        endpoint = _one_of(body, "endpoint", tuple(ENDPOINTS))
        window = _one_of(body, "completion_window", ("24h",))
        metadata = _metadata(body)
        output_lifetime = lifetime(body.get("output_expires_after"), "output_expires_after")
        request = BatchRequest(endpoint, input_file_id, window, metadata, output_lifetime)
        return request, self._input_file(input_file_id)

    def _input_file(self, file_id: str) -> File:
        try:
            file = self._files.find(file_id)
        except ApiError:
            text = (
                f"Cannot find file {file_id}, or project proj_simulator does not have access to it."
            )
            raise invalid(text, "input_file_id") from None
        if file.purpose != "batch":
            raise invalid(f"File {file_id} must have the purpose 'batch'.", "input_file_id")
        max_bytes = self._provider.profile.batch.max_bytes
        if len(file.content) > max_bytes:
            text = f"The batch input file is larger than the {max_bytes} maximum for the model."
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
    if len(metadata) > _MAX_PAIRS:
        text = (
            "Invalid 'metadata': too many properties. Expected an object with at most "
            f"{_MAX_PAIRS} properties, but got an object with {len(metadata)} properties instead."
        )
        raise invalid(text, "metadata", "object_above_max_properties")
    for key, value in metadata.items():
        _check_pair(key, value)
    return metadata


def _check_pair(key: str, value: Any) -> None:
    name = f"metadata.{key}"
    if not isinstance(value, str):
        raise wrong_type(name, str, value)
    for text, max_length in ((key, _MAX_KEY_LENGTH), (value, _MAX_VALUE_LENGTH)):
        if len(text) > max_length:
            message = (
                f"Invalid '{name}': string too long. Expected a string with maximum length "
                f"{max_length}, but got a string with length {len(text)} instead."
            )
            raise invalid(message, name, "string_above_max_length")
