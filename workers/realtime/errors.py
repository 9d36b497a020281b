"""LiteLLM's errors as the fleet's: LiteLLM's own do not survive the way through Celery."""

from __future__ import annotations

from collections.abc import Iterable

import openai
from litellm import exceptions as litellm
from litellm.types.router import RouterRateLimitError

from primarch_fleet import errors

#: The first class of an error's ancestry that stands here decides.
TABLE: dict[type[BaseException], type[errors.RequestFailed]] = {
    litellm.ContextWindowExceededError: errors.ContextWindowExceeded,
    litellm.ContentPolicyViolationError: errors.ContentPolicyViolation,
    litellm.AuthenticationError: errors.AuthenticationFailed,
    litellm.PermissionDeniedError: errors.AuthenticationFailed,
    litellm.RateLimitError: errors.RateLimited,
    RouterRateLimitError: errors.RateLimited,
    litellm.Timeout: errors.ProviderTimeout,
    litellm.InternalServerError: errors.ProviderUnavailable,
    litellm.ServiceUnavailableError: errors.ProviderUnavailable,
    litellm.BadGatewayError: errors.ProviderUnavailable,
    litellm.APIConnectionError: errors.ProviderUnavailable,
    litellm.MidStreamFallbackError: errors.ProviderUnavailable,
    openai.OpenAIError: errors.ProviderError,
    Exception: errors.ProviderError,
}


def translate(error: Exception, secrets: Iterable[str]) -> errors.RequestFailed:
    """The fleet's error for one of LiteLLM's, with its message; no secret is left in it."""
    kind = next(TABLE[one] for one in type(error).__mro__ if one in TABLE)
    message = str(error).partition("\n")[0]
    for secret in secrets:
        message = message.replace(secret, "***")
    return kind(message)
