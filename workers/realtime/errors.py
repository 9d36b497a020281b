"""LiteLLM's errors as the fleet's: LiteLLM's own do not survive the way through Celery."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import openai
from litellm import exceptions as litellm
from litellm.types.router import RouterErrors, RouterRateLimitError

from primarch_fleet import errors

#: The first class of an error's ancestry that stands here decides.
FLEET_ERRORS: dict[type[BaseException], type[errors.RequestFailed]] = {
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
NO_TAGGED_DEPLOYMENTS = RouterErrors.no_deployments_with_tag_routing.value
#: A request that failed so may be answered a moment later.
RETRY_LATER_ERRORS = (errors.RateLimited, errors.ProviderUnavailable)
#: The statuses that may say when to come again.
RETRY_LATER_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def translate(
    error: Exception, secrets: Iterable[str], pause: float | None = None
) -> errors.RequestFailed:
    """The fleet's error for one of LiteLLM's, with its message; no secret is left in it.

    Args:
        pause: The seconds after which to come again, if that is known: the message says so.
    """
    after = "" if pause is None else f" (retry after {math.ceil(pause)} s)"
    if NO_TAGGED_DEPLOYMENTS in str(error):
        return errors.ProviderUnavailable(
            f"every deployment with the request's tags has failed{after}"
        )
    message = str(error).partition("\n")[0] + after
    for secret in secrets:
        message = message.replace(secret, "***")
    return error_class_of(error)(message)


def error_class_of(error: Exception) -> type[errors.RequestFailed]:
    """What one of LiteLLM's errors is for the fleet."""
    if NO_TAGGED_DEPLOYMENTS in str(error):
        return errors.ProviderUnavailable
    return next(FLEET_ERRORS[one] for one in type(error).__mro__ if one in FLEET_ERRORS)


def all_cooling_down(error: Exception) -> bool:
    """True when LiteLLM called nobody: all cool down."""
    return isinstance(error, RouterRateLimitError) or NO_TAGGED_DEPLOYMENTS in str(error)


def retry_after(error: Exception) -> int | None:
    """The seconds after which a provider wants to be asked again, from 1; None if it says nothing.

    They are whole, as in HTTP and in LiteLLM: a part of one counts as one.
    """
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    said = headers.get("retry-after", "") if _status(error) in RETRY_LATER_STATUSES else ""
    seconds = float(said) if said.replace(".", "", 1).isdecimal() else _until(said)
    return math.ceil(seconds) if seconds > 0 else None


def _status(error: Exception) -> int | None:
    return getattr(error, "status_code", None)


def _until(date: str) -> float:
    """Seconds until a date as HTTP writes it; 0 for anything else."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0
