"""Reads LiteLLM's errors: what they mean, and the fleet's error in place of each.

LiteLLM's own cannot be unpickled by Celery.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, MutableMapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Self

import httpx
from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from litellm import exceptions as litellm
from litellm.types.router import RouterErrors, RouterRateLimitError

from primarch_fleet import errors
from tasks.failure_reasons import Category, Reason
from tasks.provider_errors import Fault, classify
from tasks.redaction import without_secrets
from tasks.retry_after import bounded, retry_after_seconds
from workers.realtime.unbilled_calls import causes

#: LiteLLM's classes that say more than their status and their message.
REASONS: dict[type[BaseException], Reason] = {
    litellm.ContextWindowExceededError: Reason.CONTEXT_WINDOW,
    litellm.ContentPolicyViolationError: Reason.CONTENT_POLICY,
    litellm.UnsupportedParamsError: Reason.INVALID_REQUEST,
    litellm.Timeout: Reason.TIMEOUT,
    httpx.TransportError: Reason.UNAVAILABLE,
    RouterRateLimitError: Reason.RATE_LIMIT,
}
#: LiteLLM's ValueError when all deployments with a request's tags are cooling down.
NO_TAGGED_DEPLOYMENTS = RouterErrors.no_deployments_with_tag_routing.value
#: LiteLLM's text for an answer with status 200 and an error that is no object.
ERROR_IN_ANSWER = "Error in response object"
#: After one of these errors, a retry a moment later can succeed.
RETRY_LATER_REASONS = frozenset(
    {Reason.RATE_LIMIT, Reason.UNAVAILABLE, Reason.GENERATION_FAILED, Reason.BILLING}
)
#: The statuses whose Retry-After header counts.
RETRY_LATER_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
#: The class for which LiteLLM's Router does what a reason calls for, if the error has another one.
ROUTED: dict[Reason, type[Exception]] = {
    Reason.INVALID_REQUEST: litellm.BadRequestError,
    Reason.CONTEXT_WINDOW: litellm.ContextWindowExceededError,
    Reason.CONTENT_POLICY: litellm.ContentPolicyViolationError,
    Reason.MODEL_NOT_FOUND: litellm.NotFoundError,
    Reason.RATE_LIMIT: litellm.RateLimitError,
    **dict.fromkeys(
        (Reason.CREDENTIALS, Reason.PERMISSION, Reason.BILLING), litellm.AuthenticationError
    ),
}
#: What LiteLLM's translation of a request raises, which makes an APIConnectionError of it.
UNTRANSLATED = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
#: What a sign-in raises that does not reach the provider: Azure's library hides the OSError.
BROKEN_CONNECTIONS = (OSError, ServiceRequestError, ServiceResponseError)
#: The attribute in which an error carries what it means.
_FAULT = "fleet_fault"
_PREFIX = "litellm.APIConnectionError: "


class UnrepeatedTimeout(litellm.Timeout):
    """A timeout after which LiteLLM's Router calls no other deployment of the model.

    The Router writes the failed deployment into an error, and calls another one if it finds that.
    """

    failed_deployment_id = property(lambda _: None, lambda _, __: None)

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the same timeout as an error of this class."""
        provider = str(getattr(error, "llm_provider", "") or "unknown")
        timeout = cls(message="", model=str(getattr(error, "model", "")), llm_provider=provider)
        timeout.message = str(error)
        return timeout


def fault_of(error: BaseException) -> Fault:
    """Return what an error of LiteLLM means."""
    error = getattr(error, "original_exception", None) or error
    known = getattr(error, _FAULT, None)
    return known if isinstance(known, Fault) else _read_fault(error)


def code_of(error: BaseException) -> str:
    """Return the fleet's code for an error of LiteLLM."""
    return fault_of(error).reason.error("").code


def with_fault(error: Exception, fault: Fault) -> Exception:
    """Return the error that makes LiteLLM's Router do what a fault calls for; it has the fault.

    The Router decides by class and status. No fallback answers a 400, and a 400 that reports a lack
    of money, or an outage, must not end there.
    """
    kind, routed = ROUTED.get(fault.reason, litellm.InternalServerError), error
    if fault.category is Category.PROVIDER:
        is_right = not isinstance(error, litellm.BadRequestError)
    else:
        is_right = isinstance(error, kind) and fault.category is not Category.REQUEST
        is_right |= isinstance(error, kind) and _status(error) == HTTPStatus.BAD_REQUEST
    if not is_right:
        routed = _in_place_of(error, kind, fault)
    return mark(routed, fault)


def mark_untranslated(error: Exception) -> None:
    """Say in the error of a call that was never made that the request is at fault, if it is.

    LiteLLM reports a request that it cannot translate for the provider as a broken connection.
    """
    if not isinstance(error, litellm.APIConnectionError):
        return
    fault, cause = fault_of(error), error.__cause__ or error.__context__
    if fault.reason is Reason.UNAVAILABLE and isinstance(cause, UNTRANSLATED):
        why = f"{type(cause).__name__}: {fault.message.removeprefix(_PREFIX)}"
        text = f"LiteLLM cannot translate the request for {error.llm_provider or 'the provider'}"
        mark(error, Fault(Reason.INVALID_REQUEST, f"{text}: {why}"))


def mark(error: Exception, fault: Fault) -> Exception:
    """Say in an error of LiteLLM what it means; return the error."""
    setattr(error, _FAULT, fault)
    return error


def translate(error: Exception, retry_delay: float | None = None) -> errors.RequestFailed:
    """Convert an error of LiteLLM to one of the fleet, with its message and without secrets.

    Args:
        retry_delay: Seconds after which to retry, if known; the message says so.
    """
    if isinstance(error, errors.RequestFailed):
        return error
    hint = "" if retry_delay is None else f" (retry after {math.ceil(retry_delay)} s)"
    if NO_TAGGED_DEPLOYMENTS in str(error):
        return errors.ProviderUnavailable(
            f"every deployment with the request's tags has failed{hint}"
        )
    fault = fault_of(error)
    text = fault.message if all_cooling_down(error) else str(error).partition("\n")[0]
    return fault.reason.error(without_secrets(text + hint))


def all_cooling_down(error: Exception) -> bool:
    """True if LiteLLM called no deployment because all are cooling down."""
    return isinstance(error, RouterRateLimitError) or NO_TAGGED_DEPLOYMENTS in str(error)


def retry_after(error: Exception) -> int | None:
    """The seconds of an error's Retry-After header, 1 to MAX_RETRY_AFTER_SECONDS; else None.

    Whole seconds, as in HTTP and in LiteLLM: fractions are rounded up.
    """
    if getattr(error, "status_code", None) not in RETRY_LATER_STATUSES:
        return None
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    seconds = _header_seconds(headers)
    return None if seconds is None else math.ceil(seconds)


def shorten_retry_after(error: Exception) -> None:
    """Cut the Retry-After headers of an error, by which LiteLLM sets cooldowns of its own."""
    for holder in (error, getattr(error, "response", None)):
        headers = getattr(holder, "headers", None)
        if isinstance(headers, MutableMapping) and (seconds := _header_seconds(headers)):
            headers["retry-after"] = str(math.ceil(seconds))


def _read_fault(error: BaseException) -> Fault:
    message = str(error).partition("\n")[0]
    if NO_TAGGED_DEPLOYMENTS in message:
        return Fault(Reason.UNAVAILABLE, message)
    if ERROR_IN_ANSWER in message:
        return Fault(Reason.GENERATION_FAILED, message)
    status: object = getattr(error, "status_code", None)
    if (answered := _error_in_answer(error)) is None:
        for base in type(error).__mro__:
            if base in REASONS:
                return Fault(REASONS[base], message)
        answered = _error_object(error, message)
    else:
        status = HTTPStatus.OK
    if isinstance(status, int):
        return classify(status, answered, message=message)
    # Not the provider's answer: LiteLLM refuses the call, or cannot sign in.
    fault = classify(None, None, message=message)
    if fault.reason is not Reason.UNKNOWN:
        return fault
    is_broken = any(isinstance(cause, BROKEN_CONNECTIONS) for cause in causes(error))
    return Fault(Reason.UNAVAILABLE if is_broken else Reason.INVALID_REQUEST, fault.message)


def _error_object(error: BaseException, message: str) -> Mapping[str, Any]:
    """The provider's error object: LiteLLM keeps it, wraps it, or quotes it in the message."""
    for cause in causes(error):
        body = getattr(cause, "body", None)
        # An error of another status is that of another call.
        if isinstance(body, Mapping) and _status(cause) == _status(error):
            return body
    quoted = message[message.find("{") :] if "{" in message else ""
    try:
        value, _ = json.JSONDecoder().raw_decode(quoted)
    except ValueError:
        value = {}
    return value if isinstance(value, Mapping) else {}


def _error_in_answer(error: BaseException) -> Mapping[str, object] | None:
    """The error object of an answer with status 200; None if the error is another.

    LiteLLM raises a bare Exception for it, with its code as the status, or with 422 for no code,
    and makes an error of that status of it.
    """
    for cause in causes(error):
        if type(cause) is Exception and (code := _status(cause)) is not None:
            code = None if code == HTTPStatus.UNPROCESSABLE_ENTITY else code
            return {"code": code, "message": getattr(cause, "message", "")}
    return None


def _status(error: BaseException) -> object:
    return getattr(error, "status_code", None)


def _in_place_of(error: Exception, kind: type[Exception], fault: Fault) -> Exception:
    """An error of another class of LiteLLM, with what the Router reads of this one."""
    provider = str(getattr(error, "llm_provider", "") or "unknown")
    model = str(getattr(error, "model", ""))
    routed: Any = kind(message="", llm_provider=provider, model=model)  # type: ignore[call-arg]
    routed.message = fault.message
    replacement: Exception = routed
    return replacement


def _header_seconds(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header, as a number or as a date; None for any other text."""
    value = headers.get("retry-after", "")
    seconds = retry_after_seconds(value)
    return bounded(_seconds_until(value)) if seconds is None else seconds


def _seconds_until(http_date: str) -> float:
    """The seconds until an HTTP date; 0 for any other text."""
    try:
        return parsedate_to_datetime(http_date).timestamp() - time.time()
    except ValueError:
        return 0.0
