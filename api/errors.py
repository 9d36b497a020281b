"""Errors in OpenAI's envelope, with the status on which its SDKs retry or not.

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": "..."}}

The SDKs retry the statuses 408, 409, 429 and 5xx; the header `x-should-retry` decides instead:
https://github.com/openai/openai-python/blob/main/src/openai/_base_client.py (_should_retry)
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from math import ceil
from typing import Any

from starlette.responses import JSONResponse

from primarch_fleet import errors
from primarch_fleet.errors import FleetError, InvalidRequest

logger = logging.getLogger(__name__)

#: The status and the code of each error of the fleet; that of the nearest class counts. None: the
#: error's own code.
_STATUSES: dict[type[FleetError], tuple[int, str | None]] = {
    errors.InvalidRequest: (400, None),
    errors.UnknownModel: (404, "model_not_found"),
    errors.RequestTooLarge: (413, None),
    errors.IdempotencyConflict: (422, None),
    errors.FleetUnavailable: (503, None),
    errors.FleetBusy: (503, None),
    errors.LaneFull: (429, None),
    errors.TenantLimited: (429, "rate_limit_exceeded"),
    errors.ClientClosed: (503, None),
    errors.UnknownRequest: (404, None),
    errors.ResultTimeout: (504, None),
    errors.ResultExpired: (404, None),
    errors.BodyUnavailable: (503, None),
    errors.BudgetExceeded: (429, "insufficient_quota"),
    errors.BudgetUnavailable: (503, None),
    errors.Cancelled: (409, None),
    errors.DeadlineExceeded: (408, None),
    errors.EngineError: (502, None),
    errors.BatchError: (502, None),
    errors.StreamInterrupted: (502, None),
    errors.ProviderError: (400, None),
    errors.AccountUnavailable: (503, None),
    errors.ContextWindowExceeded: (400, "context_length_exceeded"),
    errors.ProviderTimeout: (504, None),
    errors.ProviderUnavailable: (503, None),
    errors.RateLimited: (429, "rate_limit_exceeded"),
    FleetError: (500, None),
}
#: OpenAI's `type` by status; others are server errors.
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
#: A header of the answer to a call that would fail again.
NO_RETRY = {"x-should-retry": "false"}
#: A message of InvalidRequest that starts with the field it is about.
_FIELD = re.compile(r"([A-Za-z_][\w.\[\]-]*): ")


#: Errors whose details name hosts, users or stores of the fleet: what callers get instead.
_HIDDEN: dict[type[FleetError], str] = {
    errors.FleetUnavailable: "the fleet's broker did not answer: try again",
    errors.BodyUnavailable: "the answer is in a store that cannot be read now: try again",
}


def message_of(error: FleetError) -> str:
    """Return the text of an error for callers. Details that they do not get are logged."""
    shown = _HIDDEN.get(type(error))
    if shown is None:
        return str(error)
    logger.warning("%s", error, extra={"action": f"{error.code}_answered"})
    return shown


class ApiError(Exception):
    """A call that is answered with an error.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: What is wrong, and what to do.
        param: The parameter that is wrong.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: FleetError) -> ApiError:
        """Return the answer for an error of the fleet.

        Its message is `message_of` the error.
        """
        status, code = next(_STATUSES[one] for one in type(error).__mro__ if one in _STATUSES)
        found = _FIELD.match(str(error)) if isinstance(error, InvalidRequest) else None
        message = message_of(error)
        headers = {"x-should-retry": "true"} if error.retryable else NO_RETRY
        if error.retry_after is not None:
            headers = headers | {"retry-after": str(max(1, ceil(error.retry_after)))}
        return cls(
            status,
            code or error.code,
            message,
            param=found and found[1],
            headers=headers,
        )

    def envelope(self) -> dict[str, Any]:
        """Return the body of the answer."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(HTTPStatus(self.status), default),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.envelope(), self.status, headers=self.headers)


def not_found(what: str, identity: str) -> ApiError:
    """Return the answer for an object that does not exist, or that belongs to another tenant."""
    return ApiError(404, "not_found", f"No {what} found with id {identity[:100]!r}.", param="id")
