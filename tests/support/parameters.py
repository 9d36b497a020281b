"""A value for each parameter that clients send, other than its default."""

from __future__ import annotations

from typing import Any

FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {}}}
#: The fields of CompletionRequest that the openai SDK has, besides model and messages.
CHAT: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "look"},
    "functions": [FUNCTION],
    "logit_bias": {"1": 2.0},
    "logprobs": True,
    "max_completion_tokens": 9,
    "max_tokens": 8,
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "the same text"},
    "presence_penalty": 0.25,
    "prompt_cache_key": "support-bot",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
    "provider_metadata": {"ticket": "T-1"},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s-1",
    "seed": 3,
    "service_tier": "flex",
    "stop": ["end"],
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 0.5,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": FUNCTION}],
    "top_logprobs": 5,
    "top_p": 0.75,
    "user": "u-1",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
CUSTOM = {"type": "custom", "custom": {"name": "write"}}
#: A tool of each type of OpenAI's chats, and choices among them that LiteLLM's check does not know.
ANY_TOOLS: list[dict[str, Any]] = [*CHAT["tools"], CUSTOM]
OWN_TOOL_CHOICES: list[dict[str, Any]] = [
    CUSTOM,
    {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "look"}}],
        },
    },
]
#: The fields of ResponsesRequest that the openai SDK has, besides model and input.
RESPONSE: dict[str, Any] = {
    "background": False,
    "context_management": [{"type": "compaction", "compact_threshold": 2000}],
    "conversation": "conv_1",
    "include": ["reasoning.encrypted_content"],
    "instructions": "Answer in one word.",
    "max_output_tokens": 90,
    "max_tool_calls": 2,
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": False,
    "previous_response_id": "resp_1",
    "prompt": {"id": "pmpt_1"},
    "prompt_cache_key": "support-bot",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
    "provider_metadata": {"ticket": "T-1"},
    "reasoning": {"effort": "low"},
    "safety_identifier": "s-1",
    "service_tier": "flex",
    "store": False,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 0.5,
    "text": {"format": {"type": "json_object"}},
    "tool_choice": "required",
    "tools": [{"type": "function", "strict": True, **FUNCTION}],
    "top_logprobs": 5,
    "top_p": 0.75,
    "truncation": "auto",
    "user": "u-1",
}
EMBEDDING: dict[str, Any] = {"dimensions": 256, "encoding_format": "base64", "user": "u-1"}

#: Parameters of vLLM's chat that OpenAI's API does not have.
ENGINE: dict[str, Any] = {
    "allowed_token_ids": [1, 2, 3],
    "bad_words": ["never"],
    "chat_template_kwargs": {"enable_thinking": False},
    "documents": [{"title": "t", "text": "d"}],
    "ignore_eos": True,
    "include_reasoning": False,
    "min_p": 0.1,
    "min_tokens": 2,
    "mm_processor_kwargs": {"num_crops": 4},
    "prompt_logprobs": 1,
    "repetition_penalty": 1.1,
    "stop_token_ids": [7],
    "structured_outputs": {"choice": ["a", "b"]},
    "top_k": 5,
    "truncate_prompt_tokens": 64,
}
#: Parameters of other providers that OpenAI's API does not have.
PROVIDER: dict[str, Any] = {
    "cache_control": {"type": "ephemeral"},
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "top_k": 5,
}
EXTRA_BODY: dict[str, Any] = {**ENGINE, **PROVIDER}
EMBEDDING_EXTRA_BODY: dict[str, Any] = {"input_type": "query", "truncate": "END"}
