"""Lets LiteLLM translate answers in which a provider reports no usage.

Such an answer is paid all the same, and its tokens are estimated (`tasks/answer_usage.py`).
LiteLLM's translations for some providers raise an error instead, so the answer would be lost and
paid again by each retry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

import httpx

#: Headers that no longer hold for a body that is encoded again.
_OF_THE_BODY = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_ORIGINAL = "__wrapped__"


class _Translation(NamedTuple):
    """A method of LiteLLM that needs fields in an answer."""

    module: str
    method: str
    #: Its argument with the provider's response, or with the body of that.
    argument: str
    #: The fields, as they are in an answer without tokens.
    fields: Mapping[str, Any]


_LLMS = "litellm.llms."
_GEMINI = _LLMS + "vertex_ai.gemini.vertex_and_google_ai_studio_gemini:VertexGeminiConfig"
_TRANSLATIONS = (
    _Translation(
        _LLMS + "anthropic.chat.transformation:AnthropicConfig",
        "transform_response",
        "raw_response",
        {"usage": {}},
    ),
    _Translation(
        _LLMS + "bedrock.chat.converse_transformation:AmazonConverseConfig",
        "_transform_response",
        "response",
        {"usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}},
    ),
    _Translation(
        _GEMINI,
        "transform_google_generate_content_to_openai_model_response",
        "completion_response",
        {"usageMetadata": {}},
    ),
    _Translation(  # of results of a batch
        _GEMINI,
        "_transform_google_generate_content_to_openai_model_response",
        "completion_response",
        {"usageMetadata": {}},
    ),
    _Translation(
        _LLMS + "groq.chat.transformation:GroqChatConfig",
        "transform_response",
        "raw_response",
        {"service_tier": "default"},
    ),
)


def accept_missing_usages() -> None:
    """Wrap LiteLLM's translations in this process; calling this again changes nothing."""
    for translation in _TRANSLATIONS:
        module, _, name = translation.module.partition(":")
        config: Any = getattr(importlib.import_module(module), name)
        method = getattr(config, translation.method)
        if not hasattr(method, _ORIGINAL):
            setattr(config, translation.method, _tolerant(method, translation))


def _tolerant(translate: Callable[..., Any], translation: _Translation) -> Callable[..., Any]:
    """A translation that is tried again with the missing fields, if it fails for an answer."""

    @wraps(translate)
    def tolerant(*args: Any, **arguments: Any) -> Any:
        try:
            return translate(*args, **arguments)
        except Exception:
            completed = _completed(arguments.get(translation.argument), translation.fields)
            if completed is None:
                raise
            return translate(*args, **{**arguments, translation.argument: completed})

    return tolerant


def _completed(response: Any, fields: Mapping[str, Any]) -> Any:
    """A response with the fields that it misses; None if it has them, or is no answer in JSON."""
    if isinstance(response, Mapping):
        return {**response, **missing} if (missing := _missing(response, fields)) else None
    try:
        body = response.json()
    except (AttributeError, ValueError):
        return None
    if not isinstance(body, dict) or not (missing := _missing(body, fields)):
        return None
    headers = {name: value for name, value in response.headers.items() if name not in _OF_THE_BODY}
    return httpx.Response(response.status_code, headers=headers, json={**body, **missing})


def _missing(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if body.get(name) is None}
