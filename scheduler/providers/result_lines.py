"""Decodes the lines of a batch's output and error files, which are in OpenAI's format. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from scheduler.model.outcomes import LineAnswered, LineOutcome
from scheduler.providers.errors import line_outcome
from tasks.failed_answers import fault_in_answer
from tasks.provider_errors import classify


class ResultLine(NamedTuple):
    """A line of a result file."""

    custom_id: str
    outcome: LineOutcome


class BadLine(ValueError):
    """The line is no result: it is truncated, not JSON, or has no custom_id."""


def decode_line(text: str | bytes) -> ResultLine:
    """Decode a line of an output or an error file. Raises BadLine."""
    try:
        line = json.loads(text)
    except ValueError as error:
        raise BadLine("not JSON") from error
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
        raise BadLine("no custom_id")
    return ResultLine(line["custom_id"], _outcome(line))


def _outcome(line: dict[str, Any]) -> LineOutcome:
    response = _object(line.get("response"))
    status, body = response.get("status_code"), _body(response)
    error = line.get("error") or body.get("error") or {}
    if status != 200 or not body or error:
        return line_outcome(
            classify(status if isinstance(status, int) else 0, error, source="line")
        )
    fault = fault_in_answer(body)
    return LineAnswered(body) if fault is None else line_outcome(fault)


def _body(response: dict[str, Any]) -> dict[str, Any]:
    body = response.get("body")
    if isinstance(body, str):  # some compatible servers encode the body twice
        try:
            body = json.loads(body)
        except ValueError:
            return {"error": {"message": "the response is not JSON"}}
    return _object(body)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
