"""Every error that the fleet raises, in one tree.

    FleetError
    ├── InvalidRequest           the producer's input is wrong; nothing was enqueued
    │   ├── UnknownModel
    │   ├── RequestTooLarge
    │   └── CostCapExceeded
    ├── FleetUnavailable         the broker did not answer in time
    │   └── NoCatalogue
    ├── FleetBusy                not now: nothing was enqueued; `retry_after` says when
    │   ├── LaneFull
    │   ├── LaneUnavailable
    │   └── TenantLimited
    ├── ResultTimeout            the result is not there yet; the request goes on
    ├── BodyUnavailable          the answer lies outside of Redis, where it could not be read
    ├── ConfigError              the operator's configuration is wrong
    └── RequestFailed            stored as the task's result by a worker
        ├── BudgetExceeded       raised by submit too: nothing was enqueued then
        ├── Cancelled
        ├── DeadlineExceeded
        ├── EngineError
        ├── BatchError
        ├── StreamInterrupted    raised by a reader; result() has, or will have, the answer
        └── ProviderError
            ├── AuthenticationFailed
            ├── ContentPolicyViolation
            ├── ContextWindowExceeded
            ├── ProviderTimeout
            ├── ProviderUnavailable
            └── RateLimited

The first line of a class's docstring is its default message. Every error travels as JSON: its only
argument is its message, `code` and `retryable` belong to the class.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self


class FleetError(Exception):
    """The fleet could not do what was asked."""

    code: ClassVar[str] = "fleet_error"
    #: True when the same request may succeed later without being changed.
    retryable: ClassVar[bool] = False

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
    """The estimated cost is over the request's max_cost."""


class FleetUnavailable(FleetError):
    """The broker did not answer: check its address and that it runs, then submit again."""

    retryable = True


class NoCatalogue(FleetUnavailable):
    """No fleet has published its models at this broker: start a worker, then submit again."""


class FleetBusy(FleetError):
    """The fleet takes no more of this now; nothing was enqueued: submit again later."""

    retryable = True
    #: Seconds after which the same submit may succeed; only known where it was refused.
    retry_after: float = 1.0

    @classmethod
    def until(cls, message: str, retry_after: float) -> Self:
        """The error with its `retry_after`, in seconds, which the message says too."""
        error = cls(f"{message}; try again in {retry_after:.1f} s")
        error.retry_after = retry_after
        return error


class LaneFull(FleetBusy):
    """The lane's queue is full; nothing was enqueued: submit again later."""


class LaneUnavailable(FleetBusy):
    """No worker serves the lane; nothing was enqueued: submit again later, or start a worker."""


class TenantLimited(FleetBusy):
    """The tenant has reached its concurrency or its rate; nothing was enqueued."""


class ResultTimeout(FleetError, TimeoutError):
    """The result is not there yet; the request goes on and can be waited for again."""

    retryable = True


class BodyUnavailable(FleetError):
    """The answer lies outside of Redis and could not be read there; result() may be asked again."""


class ConfigError(FleetError, ValueError):
    """The fleet's configuration is not valid."""


class RequestFailed(FleetError):
    """The request was taken by a worker and failed."""


class BudgetExceeded(RequestFailed):
    """The tenant's budget has no room for the request."""

    retryable = True


class Cancelled(RequestFailed):
    """The request was cancelled before it was answered."""


class DeadlineExceeded(RequestFailed):
    """The request's deadline passed before it was answered."""


class EngineError(RequestFailed):
    """The local engine could not answer the request."""


class BatchError(RequestFailed):
    """The batch job ended without an answer to this request."""


class StreamInterrupted(RequestFailed):
    """The stream started over on another worker: ask result() for the whole answer."""

    retryable = True


class ProviderError(RequestFailed):
    """The provider refused the request."""


class AuthenticationFailed(ProviderError):
    """The provider refused the fleet's credentials."""


class ContentPolicyViolation(ProviderError):
    """The provider refused the request by its content policy."""


class ContextWindowExceeded(ProviderError):
    """The prompt and the answer do not fit into the model's context window."""


class ProviderTimeout(ProviderError):
    """The provider did not answer in time."""

    retryable = True


class ProviderUnavailable(ProviderError):
    """The provider failed or could not be reached, and so did every fallback."""

    retryable = True


class RateLimited(ProviderError):
    """The provider's rate limit was reached on every deployment."""

    retryable = True


def error_class(code: str) -> type[FleetError]:
    """The class of an error by its code; RequestFailed for one that is not known here."""
    return _BY_CODE.get(code, RequestFailed)


def _tree(root: type[FleetError]) -> dict[str, type[FleetError]]:
    branches = [_tree(one) for one in root.__subclasses__()]
    return {root.code: root} | {code: one for branch in branches for code, one in branch.items()}


_BY_CODE = _tree(FleetError)
