"""The errors of a batch provider, and what they mean for a call, a batch or a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from scheduler.model.outcomes import LineHeld, LineOutcome, LineRefused, LineRetry
from tasks.failure_reasons import Category, Reason
from tasks.provider_errors import Fault, Source, classify
from tasks.redaction import without_secrets
from tasks.retry_after import retry_after_seconds

#: Statuses below 500 after which it is unknown whether the call took effect.
UNKNOWN_EFFECT_STATUSES = frozenset({408, 409, 499})


class ProviderCallFailed(Exception):
    """A call to a provider failed; whether it took effect is unknown. Its text has no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class BatchFault(NamedTuple):
    """An error of a failed batch; `line` counts from 1 in its file, None if no line is named."""

    code: str
    message: str
    line: int | None

    @property
    def fault(self) -> Fault:
        """What the error means for the batch."""
        source: Source = "batch" if self.line is None else "line"
        return classify(None, {"code": self.code}, source=source, message=self.message)

    @property
    def request_fault(self) -> Fault:
        """What the error means for the request of its line: a batch's validation refused it."""
        return classify(400, {"code": self.code}, source="line", message=self.message)


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
        self.message = str(self)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.faults = faults

    @property
    def fault(self) -> Fault:
        """What the refusal means."""
        error = {"code": self.code}
        return classify(self.status, error, source="batch", message=self.message)


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
    return ProviderRefused(
        message, status, code, retry_after_seconds(headers.get("retry-after", ""))
    )


def line_outcome(fault: Fault) -> LineOutcome:
    """Return the outcome of a request whose line has an error."""
    if fault.reason is Reason.NOT_EXECUTED:
        return LineRetry(fault.error(), "expiries")
    if fault.reason.is_permanent:
        return LineRefused(fault.error())
    if fault.category is Category.ACCOUNT:
        return LineHeld(fault)
    return LineRetry(fault.error())


def refused_requests(
    members: Mapping[int, str], faults: Iterable[BatchFault]
) -> dict[str, LineOutcome]:
    """Return the outcomes of the requests whose lines the faults name.

    Args:
        members: The job's requests by their lines.
    """
    return {
        members[fault.line]: line_outcome(fault.request_fault)
        for fault in faults
        if fault.line is not None and fault.line in members
    }
