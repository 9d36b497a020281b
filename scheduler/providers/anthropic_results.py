"""Translates Anthropic's results to OpenAI's form, as LiteLLM does. No network."""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx

from tasks.failed_answers import is_failed_finish

Json = dict[str, Any]

#: HTTP statuses of errors: https://docs.anthropic.com/en/api/errors.
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "overloaded_error": 529,
}
#: OpenAI's errors for requests that were not executed.
NOT_EXECUTED = {
    "canceled": {"code": "batch_cancelled", "message": "The batch was cancelled before it."},
    "expired": {"code": "batch_expired", "message": "The batch expired before it."},
}


def result_line(line: Json, created: int) -> Json:
    """Translate a line of Anthropic's results to OpenAI's, as created at `created` (Unix seconds).

    Raises KeyError or TypeError when the line is no result.
    """
    result = line["result"]
    kind = result["type"]
    translated: Json = {"custom_id": line["custom_id"], "response": None, "error": None}
    if kind in NOT_EXECUTED:
        return {**translated, "error": NOT_EXECUTED[kind]}
    if kind == "succeeded":
        return {**translated, "response": _succeeded(result["message"], created)}
    envelope = result["error"]
    error = envelope.get("error") or envelope
    status = STATUSES.get(error.get("type"), 500)
    body = {"error": _error(error)}
    return {**translated, "response": _response(status, envelope.get("request_id"), body)}


def _succeeded(message: Json, created: int) -> Json:
    try:
        return _response(200, message["id"], _completion(message, created))
    except (
        Exception
    ) as error:  # the answer is paid, and a retry would cost again: the request fails
        reason = f"the response cannot be translated: {type(error).__name__}"
        return _response(422, message.get("id"), {"error": {"message": reason}})


def _completion(message: Json, created: int) -> Json:
    litellm, config = _litellm()
    # json_mode only turns the tool that stands for a response_format into text again.
    # LiteLLM needs a usage; without tokens in it, they are estimated.
    reported = {**message, "usage": message.get("usage") or {}}
    response = config.transform_parsed_response(
        reported, httpx.Response(200), litellm.ModelResponse(), json_mode=True
    )
    body: Json = response.model_dump(mode="json", exclude_none=True)
    for choice in body["choices"]:
        choice["message"].setdefault("content", None)
        if is_failed_finish(message.get("stop_reason")):  # LiteLLM takes it for "stop"
            choice["finish_reason"] = message["stop_reason"]
    return {**body, "id": message["id"], "created": created}


def _response(status: int, request_id: Any, body: Json) -> Json:
    return {"status_code": status, "request_id": request_id or "", "body": body}


def _error(error: Json) -> Json:
    kind = error.get("type")
    return {"message": str(error.get("message") or ""), "type": kind, "code": kind}


@cache
def _litellm() -> tuple[Any, Any]:
    from workers.realtime.litellm_import import litellm  # noqa: PLC0415 - takes two seconds

    return litellm, litellm.AnthropicConfig()
