"""The values that OpenAI's API takes for a parameter that a request leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: https://platform.openai.com/docs/api-reference/chat/create and /embeddings/create; also of an
#: option of `web_search_options`.
DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "encoding_format": ("float",),
    "frequency_penalty": (0,),
    "function_call": ("auto",),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "prompt_cache_options": ({},),
    "reasoning": ({},),
    "response_format": ({"type": "text"},),
    "search_context_size": ("medium",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream": (False,),
    "stream_options": ({},),
    "temperature": (1,),
    "text": ({},),
    "tool_choice": ("auto",),
    "top_p": (1,),
    "verbosity": ("medium",),
}


def is_default(name: str, value: Any) -> bool:
    """Return whether a request means the same without the parameter.

    An object without keys can turn something on, as `web_search_options` does; DEFAULTS has those
    that do not.
    """
    return value is None or value in ([], "") or value in DEFAULTS.get(name, ())
