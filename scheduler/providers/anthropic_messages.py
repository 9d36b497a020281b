"""Translates chat completions to Anthropic's Messages and back, as LiteLLM does. No network.

LiteLLM is imported on first use: only fleets with such batches pay its 120 MB of memory.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import httpx

Json = dict[str, Any]

#: OpenAI's defaults: a parameter with its default value is left out.
DEFAULTS: Json = {
    "n": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
}
#: Types of message parts that LiteLLM translates; it leaves out others silently.
PART_TYPES = frozenset({"text", "image_url", "file"})
#: Where LiteLLM notes that it had to rename tools.
RENAMED_TOOLS = "_anthropic_tool_name_map"
#: What LiteLLM adds for itself.
INTERNAL_FIELDS = ("json_mode", "extra_headers", "stream")

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


class Untranslatable(ValueError):
    """Anthropic does not support the request; the message repeats nothing of the conversation."""


class Params(NamedTuple):
    """A request in Anthropic's form, and the beta features that it needs."""

    params: Json
    betas: frozenset[str]


def params(body: Json) -> Params:
    """Translate an OpenAI chat body; a missing token limit becomes the model's maximum.

    Raises Untranslatable for whatever LiteLLM would drop, change or fetch.
    """
    litellm, config = _litellm()
    options = {key: value for key, value in body.items() if DEFAULTS.get(key, ...) != value}
    model, messages = options.pop("model"), options.pop("messages")
    _check_options(options, config.get_supported_openai_params(model))
    _check_parts(messages)
    try:
        optional_params = config.map_openai_params(options, {}, model, False)
    except (ValueError, KeyError, TypeError, litellm.exceptions.BadRequestError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise Untranslatable(f"not supported by Anthropic: {reason}") from None
    litellm_params: Json = {}
    headers: Json = {}
    try:
        data: Json = config.transform_request(
            model, messages, optional_params, litellm_params, headers
        )
    except Exception as error:  # its text may repeat the messages
        name = type(error).__name__
        raise Untranslatable(f"messages: not supported by Anthropic ({name})") from None
    if litellm_params.get(RENAMED_TOOLS):
        raise Untranslatable("tools: Anthropic supports names of up to 128 of [A-Za-z0-9_-]")
    if not data["messages"]:
        raise Untranslatable("messages: Anthropic needs one by the user or the assistant")
    for name in INTERNAL_FIELDS:
        data.pop(name, None)
    betas = str(headers.get("anthropic-beta") or "").split(",")
    return Params(data, frozenset(beta.strip() for beta in betas if beta.strip()))


def _check_options(options: Json, supported: list[str]) -> None:
    unsupported = sorted(set(options) - set(supported))
    if unsupported:
        raise Untranslatable(f"{', '.join(unsupported)}: not supported by Anthropic")
    response_format = options.get("response_format") or {}
    if response_format.get("type") == "json_object":
        raise Untranslatable("response_format: Anthropic supports JSON only by json_schema")


def _check_parts(messages: list[Json]) -> None:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in PART_TYPES:
                raise Untranslatable(
                    f"messages: parts of type {str(kind)[:40]!r} are not supported by Anthropic"
                )
            if '"http://' in json.dumps(part.get(kind)):  # LiteLLM would fetch it from here
                raise Untranslatable("messages: a URL must be https, or a data URL")


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
    response = config.transform_parsed_response(
        message, httpx.Response(200), litellm.ModelResponse(), json_mode=True
    )
    body: Json = response.model_dump(mode="json", exclude_none=True)
    for choice in body["choices"]:
        choice["message"].setdefault("content", None)
    return {**body, "id": message["id"], "created": created}


def _response(status: int, request_id: Any, body: Json) -> Json:
    return {"status_code": status, "request_id": request_id or "", "body": body}


def _error(error: Json) -> Json:
    kind = error.get("type")
    return {"message": str(error.get("message") or ""), "type": kind, "code": kind}


@cache
def _litellm() -> tuple[Any, Any]:
    import workers.realtime  # noqa: F401, PLC0415 - LiteLLM's settings, before its import

    import litellm  # isort: skip # noqa: PLC0415

    return litellm, litellm.AnthropicConfig()
