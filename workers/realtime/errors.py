"""LiteLLM's errors as the fleet's: LiteLLM's own do not survive the way through Celery."""

from __future__ import annotations

from collections.abc import Iterable

import openai
from litellm import exceptions as litellm
from litellm.types.router import RouterErrors, RouterRateLimitError

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


#: What LiteLLM says, as a ValueError, when all deployments with a request's tags cool down.
NONE_TAGGED = RouterErrors.no_deployments_with_tag_routing.value


def translate(error: Exception, secrets: Iterable[str]) -> errors.RequestFailed:
    """The fleet's error for one of LiteLLM's, with its message; no secret is left in it.

    The message also says what the provider's Retry-After does.
    """
    if NONE_TAGGED in str(error):
        return errors.ProviderUnavailable("every deployment with the request's tags has failed")
    kind = next(TABLE[one] for one in type(error).__mro__ if one in TABLE)
    message = str(error).partition("\n")[0] + _retry_after(error)
    for secret in secrets:
        message = message.replace(secret, "***")
    return kind(message)


def _retry_after(error: Exception) -> str:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return f" (retry after {headers['retry-after']} s)" if "retry-after" in headers else ""
