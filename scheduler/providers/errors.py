"""The errors of a batch provider, and what they mean for a call, a batch or a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from primarch_fleet import errors
from scheduler.model.outcomes import LineOutcome, LineRefused, LineRetry

#: Statuses below 500 after which it is unknown whether the call took effect.
UNKNOWN_EFFECT_STATUSES = frozenset({408, 409})
#: Statuses of a line that a retry may change; 0 is OpenAI's for a line that it lost.
RETRYABLE_STATUSES = frozenset({0, 408, 409, 429})
#: Codes of lines that were never executed: not the request's fault, and not charged.
NOT_EXECUTED_CODES = frozenset({"batch_expired", "batch_cancelled"})
#: How a provider says that too many tokens are enqueued: by code, or only in the message.
TOKEN_LIMIT_CODE, TOKEN_LIMIT_WORDS = "token_limit_exceeded", "enqueued token"
#: How a provider says that it does not find the input file; there is no code for it.
FILE_NOT_FOUND_WORDS = ("cannot find file", "no such file")


class ProviderCallFailed(Exception):
    """A call to a provider failed; whether it took effect is unknown."""


class BatchFault(NamedTuple):
    """An error of a failed batch; `line` counts from 1 in its file, None if no line is named."""

    code: str
    message: str
    line: int | None

    @property
    def is_token_limit(self) -> bool:
        """Whether too many tokens are enqueued already."""
        return _is_token_limit(self.code, self.message)

    @property
    def is_model_not_found(self) -> bool:
        """Whether the model is unknown, which is the same for every line."""
        return self.code == "model_not_found"

    @property
    def request_error(self) -> errors.RequestFailed:
        """The error of the requests that the fault is about."""
        return permanent_error(400, self.code, self.message)


class ProviderRefused(ProviderCallFailed):
    """The provider refused a call: it had no effect.

    Args:
        status: The HTTP status.
        code: The provider's error code, if any.
        retry_after: Seconds to wait, if the provider says so.
        faults: The lines that are the reason; the others may be sent without them.
    """

    def __init__(
        self,
        message: str,
        status: int,
        code: str = "",
        retry_after: float | None = None,
        faults: tuple[BatchFault, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.faults = faults

    @property
    def is_account_error(self) -> bool:
        """Whether key, permissions, credit or rate is the reason, and not the call."""
        billing = "billing" in self.code or "quota" in self.code
        return billing or self.status in (401, 402, 403, 429)

    @property
    def is_rate_limit(self) -> bool:
        """Whether batches come too fast; a used-up quota, also a 429, is not that."""
        return self.status == 429 and "quota" not in self.code

    @property
    def is_token_limit(self) -> bool:
        """Whether too many tokens are enqueued already."""
        return _is_token_limit(self.code, self.message)

    @property
    def is_file_not_found(self) -> bool:
        """Whether the provider does not find the input file, not yet or not any more."""
        message = self.message.lower()
        return any(words in message for words in FILE_NOT_FOUND_WORDS)

    @property
    def request_error(self) -> errors.RequestFailed:
        """The error of every request of the refused batch."""
        return permanent_error(self.status, self.code, self.message)


class InputFileNotLocal(ProviderRefused):
    """The input file is on the machine that wrote it, which is another one: write it here."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"{file_id} is not on this machine", 404)


def error_from_status(
    status: int, message: str, code: str, headers: Mapping[str, str]
) -> ProviderCallFailed:
    """Return the error for an HTTP error status: ProviderRefused if the call had no effect."""
    if status >= 500 or status in UNKNOWN_EFFECT_STATUSES:
        return ProviderCallFailed(f"HTTP {status}: {message}")
    return ProviderRefused(message, status, code, _retry_after(headers))


def line_error(status: int, error: dict[str, Any]) -> LineOutcome:
    """Return the outcome of a line without a response.

    Args:
        status: The line's HTTP status, 0 if it has none.
        error: OpenAI's error object.
    """
    code = str(error.get("code") or "")
    message = str(error.get("message") or code or f"HTTP {status} without an error message")
    if code in NOT_EXECUTED_CODES:
        return LineRetry(errors.BatchError(message), "expiries")
    if code == "request_timeout" or status == 408:
        return LineRetry(errors.ProviderTimeout(message))
    if status == 429:
        return LineRetry(errors.RateLimited(message))
    if status in RETRYABLE_STATUSES or status >= 500 or (status == 200 and not error):
        return LineRetry(errors.ProviderUnavailable(message))
    return LineRefused(permanent_error(status, code, message))


def permanent_error(status: int, code: str, message: str) -> errors.RequestFailed:
    """Return the fleet's error for a refusal that a retry does not change."""
    if status in (401, 403):
        return errors.AuthenticationFailed(message)
    if code in ("content_policy_violation", "content_filter"):
        return errors.ContentPolicyViolation(message)
    if code == "context_length_exceeded" or "maximum context length" in message:
        return errors.ContextWindowExceeded(message)
    return errors.ProviderError(message)


def refused_requests(
    members: Mapping[int, str], faults: Iterable[BatchFault]
) -> dict[str, LineOutcome]:
    """Return the outcomes of the requests whose lines the faults name.

    Args:
        members: The job's requests by their lines.
    """
    return {
        members[fault.line]: LineRefused(fault.request_error)
        for fault in faults
        if fault.line is not None and fault.line in members
    }


def _is_token_limit(code: str, message: str) -> bool:
    return code == TOKEN_LIMIT_CODE or TOKEN_LIMIT_WORDS in message.lower()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds. None for a date too: it would need clocks that agree."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
