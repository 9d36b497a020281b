"""Converts LiteLLM's errors to the fleet's: LiteLLM's own cannot be unpickled by Celery."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx
import openai
from litellm import exceptions as litellm
from litellm.types.router import RouterErrors, RouterRateLimitError

from primarch_fleet import errors

#: The first class in the error's method resolution order that is listed here decides.
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
    httpx.TransportError: errors.ProviderUnavailable,
    openai.OpenAIError: errors.ProviderError,
    Exception: errors.ProviderError,
}

#: LiteLLM's ValueError when all deployments with a request's tags are cooling down.
NO_TAGGED_DEPLOYMENTS = RouterErrors.no_deployments_with_tag_routing.value
#: After one of these errors, a retry a moment later can succeed.
RETRY_LATER_ERRORS = (errors.RateLimited, errors.ProviderUnavailable)
#: The statuses whose Retry-After header counts.
RETRY_LATER_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def translate(
    error: Exception, secrets: Iterable[str], retry_delay: float | None = None
) -> errors.RequestFailed:
    """Convert an error of LiteLLM to one of the fleet, with its message and without any secret.

    Args:
        secrets: Provider keys; each is replaced by *** in the message.
        retry_delay: Seconds after which to retry, if known; the message says so.
    """
    if isinstance(error, errors.RequestFailed):
        return error
    hint = "" if retry_delay is None else f" (retry after {math.ceil(retry_delay)} s)"
    if NO_TAGGED_DEPLOYMENTS in str(error):
        return errors.ProviderUnavailable(
            f"every deployment with the request's tags has failed{hint}"
        )
    message = str(error).partition("\n")[0] + hint
    for secret in secrets:
        message = message.replace(secret, "***")
    return error_class_of(error)(message)


def error_class_of(error: Exception) -> type[errors.RequestFailed]:
    """The fleet's error class for an error of LiteLLM."""
    if NO_TAGGED_DEPLOYMENTS in str(error):
        return errors.ProviderUnavailable
    return next(FLEET_ERRORS[base] for base in type(error).__mro__ if base in FLEET_ERRORS)


def all_cooling_down(error: Exception) -> bool:
    """True if LiteLLM called no deployment because all are cooling down."""
    return isinstance(error, RouterRateLimitError) or NO_TAGGED_DEPLOYMENTS in str(error)


def retry_after(error: Exception) -> int | None:
    """The seconds of an error's Retry-After header, at least 1; None if it has none.

    Whole seconds, as in HTTP and in LiteLLM: fractions are rounded up.
    """
    if getattr(error, "status_code", None) not in RETRY_LATER_STATUSES:
        return None
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = headers.get("retry-after", "")
    is_number = value.replace(".", "", 1).isdecimal()
    seconds = float(value) if is_number else _seconds_until(value)
    return math.ceil(seconds) if seconds > 0 else None


def _seconds_until(http_date: str) -> float:
    """The seconds until an HTTP date; 0 for any other text."""
    try:
        return parsedate_to_datetime(http_date).timestamp() - time.time()
    except ValueError:
        return 0.0
