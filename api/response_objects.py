"""OpenAI's `response` objects and the events of their streams, with the ids of this API.

A response is known by an id of this API: the provider's id names the fleet's deployment, and a
response that still waits has none. The events of a background response are numbered by its chunks,
so any process can send them again from any number on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from api.errors import ApiError
from api.store.responses import ResponseRecord
from primarch_fleet.errors import OUTCOMES, Cancelled, FleetError

Body = dict[str, Any]
#: What OpenAI's type requires of a response, for those without an answer.
_EMPTY: Body = {
    "output": [],
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}
#: OpenAI's codes of a failed response by the status of the error; others are `server_error`.
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


def unfinished(record: ResponseRecord, status: str) -> Body:
    """Return the response of a request that has no answer: queued, in_progress or cancelled."""
    return _EMPTY | {
        "id": record.id,
        "object": "response",
        "created_at": record.created_at,
        "status": status,
        "model": record.model,
        "background": record.is_background,
        "metadata": record.metadata,
        "previous_response_id": record.previous_response_id,
    }


def failed(record: ResponseRecord, error: FleetError) -> Body:
    """Return the response of a request that has failed, or that was cancelled."""
    if isinstance(error, Cancelled):
        return unfinished(record, "cancelled")
    code = _CODES.get(ApiError.of(error).status, "server_error")
    return unfinished(record, "failed") | {"error": {"code": code, "message": str(error)}}


def answered(record: ResponseRecord, body: Body) -> Body:
    """Return an answer with the ids of this API in place of the provider's."""
    return body | {
        "id": record.id,
        "background": record.is_background,
        "metadata": record.metadata,
        "previous_response_id": record.previous_response_id,
    }


@dataclass
class EventWriter:
    """Writes the events of one stream, each with its number.

    Args:
        record: The response's.
        after: Events up to this number are left out.
    """

    record: ResponseRecord
    after: int = -1
    #: The number of the next event.
    _number: int = 0

    def opening(self) -> bytes:
        """Return the event that tells a background response's id before a worker has started."""
        body = unfinished(self.record, "queued")
        return self._numbered({"type": "response.created", "response": body})

    def chunk(self, event: Body) -> bytes:
        """Return the event of a chunk; nothing for those that the reader has."""
        if isinstance(response := event.get("response"), dict):
            event = event | {"response": answered(self.record, response)}
        if self.record.is_background and event.get("type") == "response.created":
            event = event | {"type": "response.in_progress"}  # it was created by `opening`
        return self._numbered(event)

    def ended(self, body: Body) -> bytes:
        """Return the last event of a response whose chunks do not have it."""
        return self._last({"type": f"response.{body['status']}", "response": body})

    def failure(self, error: FleetError) -> bytes:
        """Return the last event of a stream with an error.

        The response of a request that has failed ends. Other errors are those of the reader, who
        may ask for the stream again.
        """
        if isinstance(error, OUTCOMES):
            return self.ended(failed(self.record, error))
        shown = ApiError.of(error)
        event = {"type": "error", "code": shown.code, "message": str(shown), "param": None}
        return self._last(event)

    def _last(self, event: Body) -> bytes:
        self._number = max(self._number, self.after + 1)
        return self._numbered(event)

    def _numbered(self, event: Body) -> bytes:
        number, self._number = self._number, self._number + 1
        if number <= self.after:
            return b""
        text = json.dumps(event | {"sequence_number": number}, separators=(",", ":"))
        return f"event: {event['type']}\ndata: {text}\n\n".encode()
