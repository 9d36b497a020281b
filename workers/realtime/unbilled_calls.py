"""Which failed calls cost nothing: those that the provider refused, or never received."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

import httpx

#: The call was never sent.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: The provider, or a gateway before it, gave up after it had received the call.
GAVE_UP = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT)


def was_refused(error: BaseException) -> bool:
    """Return whether a failed call of LiteLLM costs nothing.

    An error status means that the provider generated nothing. A call that timed out, or whose
    connection broke after it was sent, may have been answered at the provider's side, and so may
    one whose answer cannot be read.
    """
    chain = list(causes(error))
    if any(isinstance(cause, NOT_SENT) for cause in chain):
        return True
    answers = [cause.response for cause in chain if isinstance(cause, httpx.HTTPStatusError)]
    if answers:
        return answers[0].status_code not in GAVE_UP
    # Without an answer over HTTP, LiteLLM has the status of an error in a stream, or one of its
    # own: 408 for a timeout, 500 for a connection that broke.
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in GAVE_UP


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it, the last first; each once.

    LiteLLM's MidStreamFallbackError is among its own causes.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
