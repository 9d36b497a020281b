"""Parameters that no request may carry, each with the reason that its producer reads."""

from __future__ import annotations

from collections.abc import Iterable

#: Arguments of the openai SDK's `create` methods that are no field of a request.
REFUSED_ARGUMENTS = {
    "timeout": "set deadline or max_latency; the timeout of a call is configured in fleet.yaml",
    "extra_query": "the addresses of providers are configured in fleet.yaml",
}
_UNKNOWN = "no parameter of this request; send a provider's own parameters in extra_body"

_ACCOUNT = "accounts, addresses and routing are configured in fleet.yaml"
_LENGTH = (
    "money is reserved by the request's own limit; set max_completion_tokens and n of a chat, or "
    "max_output_tokens of a response"
)
_PROMPT = "the prompt is in the fields of the request"
_FLEET = "the fleet sets it itself"
#: Keys that `extra_body` must not have, besides the names of the request's own fields. Providers
#: and LiteLLM would take them for credentials, for a choice of the model, or for a longer answer
#: than money was reserved for.
_REASONS = {
    _ACCOUNT: (
        *("api_key", "api_base", "base_url", "api_version", "organization", "project", "region"),
        *("custom_llm_provider", "llm_provider", "deployment_id", "model_list", "model_info"),
        *("models", "route", "base_model", "specific_deployment", "region_name", "host"),
        *("fallbacks", "default_fallbacks", "context_window_fallbacks", "model_config"),
        *("content_policy_fallbacks", "num_retries", "max_retries", "retry_policy", "retry_after"),
        *("max_fallbacks", "disable_fallbacks", "cooldown_time", "mock_response", "mock_timeout"),
        *("mock_tool_calls", "mock_testing_fallbacks", "mock_testing_rate_limit_error"),
        *("callbacks", "success_callback", "failure_callback", "input_callback", "logger_fn"),
        *("headers", "default_headers", "extra_query", "default_query", "query", "ssl_verify"),
        *("http_client", "client", "drop_params", "additional_drop_params", "hf_model_name"),
        *("allowed_openai_params", "cache", "caching", "cache_key", "no_log", "guardrails"),
        *("prompt_id", "prompt_variables", "prompt_version", "proxy_server_request", "weight"),
        *("timeout", "request_timeout", "stream_timeout", "force_timeout", "rpm", "tpm", "order"),
        *("max_parallel_requests", "input_cost_per_token", "output_cost_per_token"),
    ),
    _LENGTH: (
        *("max_tokens", "max_completion_tokens", "n"),
        *("max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "num_predict", "best_of"),
        *("generation_config", "inference_config", "candidate_count", "options"),
    ),
    _PROMPT: (
        "prompt",
        "messages",
        "input",
        "contents",
        "system",
        "system_instruction",
        "instructions",
        "inputs",
    ),
    _FLEET: ("request_id", "method", "url", "custom_id"),
}
#: Parts of names that hold credentials, without their separators.
_SECRET_PARTS = ("apikey", "secret", "password", "credential", "authorization", "accesskey")
#: Beginnings of the names of a cloud's credentials and of LiteLLM's own arguments.
_RESERVED_STARTS = ("aws_", "azure_", "vertex_", "litellm_", "_")


def _plain(name: str) -> str:
    """A name as it compares: `apiKey`, `API-KEY` and `api_key` are the same."""
    return name.lower().replace("_", "").replace("-", "")


_REFUSED_KEYS = {_plain(name): why for why, names in _REASONS.items() for name in names}


def refused_argument(name: str) -> str:
    """Return why a request has no such argument, and what to do instead."""
    return REFUSED_ARGUMENTS.get(name) or _reason(name, {}) or _UNKNOWN


def refused_keys(keys: Iterable[str], fields: Iterable[str]) -> dict[str, str]:
    """Return the keys that `extra_body` must not have, each with the reason.

    Args:
        keys: The keys of `extra_body`.
        fields: The names of the request's fields.
    """
    own = {_plain(field): field for field in fields}
    reasons = {key: _reason(key, own) for key in keys}
    return {key: why for key, why in reasons.items() if why}


def _reason(key: str, own: dict[str, str]) -> str | None:
    name = _plain(key)
    if name == "metadata":
        return "set the field provider_metadata"
    if name in own:
        return f"set the field {own[name]}"
    if key.lower().startswith(_RESERVED_STARTS) or any(part in name for part in _SECRET_PARTS):
        return _ACCOUNT
    return _REFUSED_KEYS.get(name)
