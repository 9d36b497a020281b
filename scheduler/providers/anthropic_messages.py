"""Chat completions as Anthropic's Messages, and back: LiteLLM's translation. Without a network.

LiteLLM is imported when it is first needed: 120 MB that only who has such batches pays.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import httpx

Json = dict[str, Any]

#: OpenAI's defaults: what says nothing else than the API does by itself is left out.
DEFAULTS: Json = {
    "n": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
}
#: Parts of messages that are translated; LiteLLM leaves others out silently.
PARTS = frozenset({"text", "image_url", "file"})
#: Where LiteLLM notes that it had to rename tools.
RENAMED = "_anthropic_tool_name_map"

#: HTTP statuses of errors: https://docs.anthropic.com/en/api/errors. A lack of credit counts as a
#: limit: it says nothing of the request.
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 429,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "overloaded_error": 529,
}
#: What is said of a prompt that is too long; the error has no code of its own.
TOO_LONG = ("prompt is too long", "exceed context limit")
#: OpenAI's errors for requests that were not executed.
UNEXECUTED = {
    "canceled": {"code": "batch_cancelled", "message": "The batch was cancelled before it."},
    "expired": {"code": "batch_expired", "message": "The batch expired before it."},
}


class Untranslatable(ValueError):
    """Anthropic cannot be asked for this; the message repeats nothing of the conversation."""


class Params(NamedTuple):
    """One request as Anthropic takes it, and the beta features that it has to be sent under."""

    params: Json
    betas: frozenset[str]


def params(body: Json) -> Params:
    """An OpenAI chat body as Anthropic's `params`, with the model's most tokens where none are set.

    Raises Untranslatable for whatever would otherwise be dropped, changed or fetched.
    """
    litellm, config = _litellm()
    rest = {key: value for key, value in body.items() if DEFAULTS.get(key, ...) != value}
    model, messages = rest.pop("model"), rest.pop("messages")
    _check(rest, config.get_supported_openai_params(model))
    _check_parts(messages)
    try:
        options = config.map_openai_params(rest, {}, model, False)
    except (ValueError, KeyError, TypeError, litellm.exceptions.BadRequestError) as error:
        words = str(error).partition("\n")[0][:200]
        raise Untranslatable(f"not for Anthropic: {words}") from None
    own: Json = {}
    headers: Json = {}
    try:
        data: Json = config.transform_request(model, messages, options, own, headers)
    except Exception as error:  # whatever it is, it repeats the messages
        raise Untranslatable(f"messages: not for Anthropic ({type(error).__name__})") from None
    if own.get(RENAMED):
        raise Untranslatable("tools: Anthropic takes names of at most 128 of [A-Za-z0-9_-]")
    if not data["messages"]:
        raise Untranslatable("messages: Anthropic needs one of the user or the assistant")
    for internal in ("json_mode", "extra_headers", "stream"):
        data.pop(internal, None)
    betas = str(headers.get("anthropic-beta") or "").split(",")
    return Params(data, frozenset(one.strip() for one in betas if one.strip()))


def _check(options: Json, supported: list[str]) -> None:
    unknown = sorted(set(options) - set(supported))
    if unknown:
        raise Untranslatable(f"{', '.join(unknown)}: Anthropic has no such parameter")
    form = options.get("response_format") or {}
    if form.get("type") == "json_object":
        raise Untranslatable("response_format: Anthropic makes JSON by a json_schema alone")


def _check_parts(messages: list[Json]) -> None:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in PARTS:
                raise Untranslatable(f"messages: no part of type {str(kind)[:40]!r} for Anthropic")
            if '"http://' in json.dumps(part.get(kind)):  # LiteLLM would fetch it from here
                raise Untranslatable("messages: an address must be https, or the data itself")


def answer(line: Json, created: int) -> Json:
    """A line of Anthropic's results as one of OpenAI's, made at `created` (Unix seconds).

    Raises KeyError or TypeError when it is none.
    """
    result = line["result"]
    kind = result["type"]
    ours: Json = {"custom_id": line["custom_id"], "response": None, "error": None}
    if kind in UNEXECUTED:
        return {**ours, "error": UNEXECUTED[kind]}
    if kind == "succeeded":
        return {**ours, "response": _succeeded(result["message"], created)}
    told = result["error"]
    error = told.get("error") or told
    status = STATUSES.get(error.get("type"), 500)
    return {**ours, "response": _response(status, told.get("request_id"), {"error": _error(error)})}


def _succeeded(message: Json, created: int) -> Json:
    try:
        return _response(200, message["id"], _completion(message, created))
    except Exception as error:  # paid, and it would be again: its request fails
        words = f"the answer cannot be translated: {type(error).__name__}"
        return _response(422, message.get("id"), {"error": {"message": words}})


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
    message = str(error.get("message") or "")
    too_long = any(words in message for words in TOO_LONG)
    code = "context_length_exceeded" if too_long else str(error.get("type") or "")
    return {"message": message, "type": error.get("type"), "code": code}


@cache
def _litellm() -> tuple[Any, Any]:
    import workers.realtime  # noqa: F401, PLC0415 - LiteLLM's settings, before its import

    import litellm  # isort: skip # noqa: PLC0415

    return litellm, litellm.AnthropicConfig()
