"""One line of a batch's files: how a request is written, and what an answer means. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NamedTuple

from primarch_fleet import errors
from primarch_fleet.contract import Request

#: Statuses that another try may change; 0 is OpenAI's for a line that it lost.
RETRYABLE = frozenset({0, 408, 409, 429})
#: Codes of lines that were never executed: not the request's fault, and not charged.
NOT_EXECUTED_CODES = frozenset({"batch_expired", "batch_cancelled"})


class LineAnswered(NamedTuple):
    """OpenAI's response body."""

    body: dict[str, Any]


class LineRetry(NamedTuple):
    """Worth another batch, as long as its counter allows; after that this is its error."""

    error: errors.RequestFailed
    counter: Literal["failures", "expiries"] = "failures"


class LineRefused(NamedTuple):
    """The same request would get the same answer again."""

    error: errors.RequestFailed


LineOutcome = LineAnswered | LineRetry | LineRefused


class Line(NamedTuple):
    """A line of a result file."""

    custom_id: str
    outcome: LineOutcome


class BadLine(ValueError):
    """The line is no result: cut short, no JSON, or without an id."""


def request_id(task_id: str) -> str:
    """Our own id of a task's request: Celery's ids may be any text, a custom_id may not."""
    return hashlib.blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def custom_id(request: str, attempt: int) -> str:
    """Unique in a file, at most 64 of [A-Za-z0-9_-]: what every provider accepts."""
    return f"r-{request}-{attempt}"


def request_of(custom: str) -> str | None:
    """The request id in a custom_id; None if it is not one of ours."""
    parts = custom.split("-")
    return parts[1] if len(parts) == 3 and parts[0] == "r" else None


def encode_line(custom: str, request: Request, upstream: str) -> bytes:
    """A request's line, with its newline, for the provider's model `upstream`."""
    body = {**request.body(), "model": upstream}
    line = {"custom_id": custom, "method": "POST", "url": request.endpoint, "body": body}
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def decode_line(text: str | bytes) -> Line:
    """What a line of an output or an error file says. Raises BadLine."""
    try:
        line = json.loads(text)
    except ValueError as error:
        raise BadLine("not JSON") from error
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
        raise BadLine("no custom_id")
    return Line(line["custom_id"], _outcome(line))


def _outcome(line: dict[str, Any]) -> LineOutcome:
    response = _object(line.get("response"))
    status, body = response.get("status_code"), _body(response)
    error = line.get("error") or body.get("error") or {}
    if status == 200 and body and not error:
        return LineAnswered(body)
    known = error if isinstance(error, dict) else {"message": str(error)}
    return classify(status if isinstance(status, int) else 0, known)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _body(response: dict[str, Any]) -> dict[str, Any]:
    body = response.get("body")
    if isinstance(body, str):  # some compatible servers write JSON into a text
        try:
            body = json.loads(body)
        except ValueError:
            return {"error": {"message": "the answer is not JSON"}}
    return _object(body)


def classify(status: int, error: dict[str, Any]) -> LineOutcome:
    """What a line without an answer means, by its HTTP status and OpenAI's error object."""
    code = str(error.get("code") or "")
    message = str(error.get("message") or code or f"the provider answered {status} without a word")
    if code in NOT_EXECUTED_CODES:
        return LineRetry(errors.BatchError(message), "expiries")
    if code == "request_timeout" or status == 408:
        return LineRetry(errors.ProviderTimeout(message))
    if status == 429:
        return LineRetry(errors.RateLimited(message))
    if status in RETRYABLE or status >= 500 or (status == 200 and not error):
        return LineRetry(errors.ProviderUnavailable(message))
    return LineRefused(permanent_error(status, code, message))


def permanent_error(status: int, code: str, message: str) -> errors.RequestFailed:
    """The fleet's error for a refusal that stays."""
    if status in (401, 403):
        return errors.AuthenticationFailed(message)
    if code in ("content_policy_violation", "content_filter"):
        return errors.ContentPolicyViolation(message)
    if code == "context_length_exceeded" or "maximum context length" in message:
        return errors.ContextWindowExceeded(message)
    return errors.ProviderError(message)
