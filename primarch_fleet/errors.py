"""Every error that the fleet raises, in one tree.

    FleetError
    ├── InvalidRequest           a field of the request is wrong; nothing was enqueued
    │   ├── UnknownModel
    │   ├── RequestTooLarge
    │   ├── CostCapExceeded
    │   └── IdempotencyConflict
    ├── FleetUnavailable         the broker did not answer in time
    │   └── NoCatalogue
    ├── FleetBusy                nothing was enqueued; retry after `retry_after` seconds
    │   ├── LaneFull
    │   ├── LaneUnavailable
    │   └── TenantLimited
    ├── ClientClosed             the Fleet or AsyncFleet was closed before the call
    ├── UnknownRequest           cancel() knows nothing of this id
    ├── ResultTimeout            no result yet; the request continues
    ├── ResultExpired            the request has ended and its result is not stored any more
    ├── BodyUnavailable          the answer is stored outside Redis and could not be read
    ├── InvalidAnswer            the answer is not of the type that parse() was asked for
    ├── ConfigError              the operator's configuration is wrong
    └── RequestFailed            stored by a worker as the result of the task
        ├── BudgetExceeded       also raised by submit, which has then enqueued nothing
        ├── BudgetUnavailable
        ├── Cancelled
        │   └── BatchCancelled
        ├── DeadlineExceeded     also raised by submit if the deadline has passed
        │   └── BatchExpired
        ├── EngineError
        ├── BatchError
        ├── StreamInterrupted    raised by a reader; result() has, or will have, the answer
        └── ProviderError
            ├── AccountUnavailable
            │   └── AuthenticationFailed
            ├── ContentPolicyViolation
            ├── ContextWindowExceeded
            ├── ProviderTimeout
            ├── ProviderUnavailable
            └── RateLimited

The first line of a class's docstring is its default message. Errors travel as JSON: the message is
the only argument of an error, `code` and `retryable` belong to its class.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self


class FleetError(Exception):
    """The fleet could not execute the call."""

    code: ClassVar[str] = "fleet_error"
    #: True if the same request may succeed later, unchanged.
    retryable: ClassVar[bool] = False
    #: Seconds after which the same call may succeed; None if that is not known.
    retry_after: float | None = None

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class InvalidRequest(FleetError, ValueError):
    """The request is not valid."""


class UnknownModel(InvalidRequest):
    """The model is not in the fleet's catalogue."""


class RequestTooLarge(InvalidRequest):
    """The request is larger than the fleet accepts."""


class CostCapExceeded(InvalidRequest):
    """The estimated cost exceeds the request's max_cost."""


class IdempotencyConflict(InvalidRequest):
    """The idempotency key was used for another request: use another key, or repeat that request."""


class FleetUnavailable(FleetError):
    """The broker did not answer: check its URL and that it runs, then submit again."""

    retryable = True


class NoCatalogue(FleetUnavailable):
    """No worker has published its models at this broker: start a worker, then submit again."""


class FleetBusy(FleetError):
    """The fleet accepts no more of these requests now; nothing was enqueued: submit again later."""

    retryable = True
    #: Seconds after which the same submit may succeed. Set by the process that refused it; a copy
    #: that travelled as JSON has the default.
    retry_after: float = 1.0

    @classmethod
    def until(cls, message: str, retry_after: float) -> Self:
        """Create the error with `retry_after` seconds, which are also appended to the message."""
        error = cls(f"{message}; try again in {retry_after:.1f} s")
        error.retry_after = retry_after
        return error


class LaneFull(FleetBusy):
    """The lane's queue is full; nothing was enqueued: submit again later."""


class LaneUnavailable(FleetBusy):
    """No worker serves the lane, or it is paused; nothing was enqueued: submit again later."""


class TenantLimited(FleetBusy):
    """The tenant has reached its limit of concurrency or rate; nothing was enqueued."""


class ClientClosed(FleetError):
    """The client is closed: call the fleet before close(), or create another client."""


class UnknownRequest(FleetError):
    """Nothing is known of this id: it is misspelt, or the result is not stored any more."""


class ResultTimeout(FleetError, TimeoutError):
    """The result is not available yet; the request continues, and result() may be called again."""

    retryable = True


class ResultExpired(FleetError):
    """The request has ended, or was lost in Redis, and its result is not stored any more."""


class BodyUnavailable(FleetError):
    """The answer is stored outside Redis and could not be read; result() may be called again."""


class InvalidAnswer(FleetError, ValueError):
    """The answer is not of the type that was asked for."""


class ConfigError(FleetError, ValueError):
    """The fleet's configuration is not valid."""


class RequestFailed(FleetError):
    """The request failed."""


class BudgetExceeded(RequestFailed):
    """The tenant's budget is too small for the request."""

    retryable = True


class BudgetUnavailable(RequestFailed):
    """Redis refused to reserve the request's cost, so the request was not started."""

    retryable = True


class Cancelled(RequestFailed):
    """The request was cancelled before it was answered."""


class BatchCancelled(Cancelled):
    """The batch was cancelled before this request was answered."""


class DeadlineExceeded(RequestFailed):
    """The request's deadline passed before it was answered."""


class BatchExpired(DeadlineExceeded):
    """The batch's completion window ended before this request was answered."""


class EngineError(RequestFailed):
    """The local engine failed to answer the request."""

    retryable = True


class BatchError(RequestFailed):
    """The batch job ended without an answer to this request."""


class StreamInterrupted(RequestFailed):
    """The stream started over on another worker: call result() for the whole answer."""

    retryable = True


class ProviderError(RequestFailed):
    """The provider refused the request."""


class AccountUnavailable(ProviderError):
    """The provider refuses the fleet's account: its credit or quota is used up."""

    retryable = True


class AuthenticationFailed(AccountUnavailable):
    """The provider refused the fleet's credentials or permissions."""


class ContentPolicyViolation(ProviderError):
    """The provider refused the request because of its content policy."""


class ContextWindowExceeded(ProviderError):
    """Prompt and answer do not fit into the model's context window."""


class ProviderTimeout(ProviderError):
    """The provider did not answer in time."""

    retryable = True


class ProviderUnavailable(ProviderError):
    """The provider failed or could not be reached, and so did every fallback."""

    retryable = True


class RateLimited(ProviderError):
    """Every deployment has reached the provider's rate limit."""

    retryable = True


#: What a worker stores as the result of a task. Other errors are those of a caller or a reader.
OUTCOMES = (RequestFailed, InvalidRequest)


def error_class(code: str) -> type[FleetError]:
    """Return the class of an error code; RequestFailed for an unknown code."""
    return _CLASSES.get(code, RequestFailed)


def _by_code(root: type[FleetError]) -> dict[str, type[FleetError]]:
    classes = {root.code: root}
    for child in root.__subclasses__():
        classes |= _by_code(child)
    return classes


_CLASSES = _by_code(FleetError)
