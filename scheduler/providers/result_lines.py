"""Decodes the lines of a batch's output and error files, which are in OpenAI's format. Pure."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any, NamedTuple

from scheduler.model.outcomes import LineAnswered, LineOutcome
from scheduler.providers.errors import line_outcome
from tasks.failed_answers import error_in, fault_in_answer
from tasks.provider_errors import classify


class ResultLine(NamedTuple):
    """A line of a result file."""

    custom_id: str
    outcome: LineOutcome
    #: The answer, also one whose generation failed: the provider bills its usage. Empty if the
    #: line has an error in its place.
    body: dict[str, Any]


class BadLine(ValueError):
    """The line is no result: it is truncated, not JSON, or has no custom_id."""


def parse_line(text: str | bytes) -> dict[str, Any]:
    """Parse a line of an output or an error file. Raises BadLine."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadLine("not JSON") from error
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
        raise BadLine("no custom_id")
    return line


def decode_line(text: str | bytes) -> ResultLine:
    """Decode a line of an output or an error file. Raises BadLine."""
    line = parse_line(text)
    response = _object(line.get("response"))
    body = _body(response)
    status = _status(response, HTTPStatus.OK if body else 0)
    refusal = error_in(line) or error_in(body)
    if not 200 <= status < 300 or not body or refusal:
        fault = classify(status, refusal or {}, source="line")
        return ResultLine(line["custom_id"], line_outcome(fault), {})
    failed = fault_in_answer(body)
    outcome = LineAnswered(body) if failed is None else line_outcome(failed)
    return ResultLine(line["custom_id"], outcome, body)


def _status(response: dict[str, Any], default: int) -> int:
    """The status of a response; some servers write it as a text, or leave it out."""
    try:
        return int(response["status_code"])
    except (KeyError, TypeError, ValueError):
        return default


def _body(response: dict[str, Any]) -> dict[str, Any]:
    body = response.get("body")
    if isinstance(body, str):  # some compatible servers encode the body twice
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return {"error": {"message": "the response is not JSON"}}
    return _object(body)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
