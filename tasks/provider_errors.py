"""What an error of a provider means, wherever it comes from: one classifier for every lane.

An error arrives as an HTTP answer, as a line of a batch's results, as an error of a batch, or
inside an answer with status 200 (see `failed_answers`). It is the fault of the request (the same
request would get it again), of the provider (a retry or another deployment may succeed), or of the
account (every request gets it until an operator pays, raises a limit or mends a key).

Pure: this module knows no SDK.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal, NamedTuple

from primarch_fleet import errors
from tasks.error_fields import error_fields
from tasks.failure_reasons import Category, Reason
from tasks.provider_error_tables import (
    CODES,
    GENERIC_CODES,
    REQUEST_CODES,
    SPENT_WORDS,
    STATUSES,
    WORDS,
)
from tasks.redaction import without_secrets

#: Where an error comes from: the answer to a call, a line of a batch, or a batch as a whole.
Source = Literal["call", "line", "batch"]


def _joined(code: str) -> str:
    """A code without what its words are joined by: `quotaExceeded` is `quota_exceeded`."""
    return re.sub(r"[\s_-]", "", code)


#: From the first quotation mark to the last, as a quoted text may have marks of its own; to the end
#: if the text was cut.
_QUOTED = re.compile(r"""(?<!\w)['"`](?:.*['"`](?!\w)|.*)""", re.DOTALL)
#: Statuses of refusals of a request, which quote the value that is wrong.
QUOTING_STATUSES = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)

_REASON_OF_CODE = {
    _joined(code): reason for reason, codes in CODES.items() for code in codes.split()
}


class Fault(NamedTuple):
    """An error of a provider: what went wrong, in its own words."""

    reason: Reason
    message: str

    @property
    def category(self) -> Category:
        """Whose fault it is."""
        return self.reason.category

    def error(self) -> errors.RequestFailed:
        """Return the fleet's error."""
        return self.reason.error(self.message)


def classify(
    status: int | None, error: object, *, source: Source = "call", message: str = ""
) -> Fault:
    """Return what an error means. The most specific part of it decides.

    First words that mean a lack of money, then a code that names one reason, then the message, then
    the status. An error that nothing matches is UNKNOWN, which is the provider's fault: retries are
    bounded.

    Args:
        status: The HTTP status; None where there is none, 0 for a line that got none.
        error: The error object in any provider's form, its text, or None.
        source: Where the error comes from.
        message: The text to keep, if it is not the error object's.
    """
    fields = error_fields(error)
    texts = (message, *fields.texts) if message else fields.texts
    reason = _reason(fields.status if status in (None, 200) else status, fields.codes, texts)
    if reason is Reason.FILE_NOT_FOUND and source != "batch":
        reason = Reason.INVALID_REQUEST  # a file that the request names
    fallback = next(iter(fields.codes), "") or f"HTTP {status or 0} without an error message"
    return Fault(reason, without_secrets(next(iter(texts), fallback)))


def _reason(status: int | None, codes: tuple[str, ...], texts: Sequence[str]) -> Reason:
    text = unquoted = "\n".join(texts).lower()
    if status in QUOTING_STATUSES:
        # What a refusal quotes of one tenant's request must not pause the account of all.
        unquoted = "\n".join(_QUOTED.sub("", one) for one in texts).lower()
    if any(part in unquoted for part in SPENT_WORDS):
        return Reason.BILLING
    names = [_plain(code) for code in codes]
    for name in map(_joined, names):
        if name in _REASON_OF_CODE:
            return _REASON_OF_CODE[name]
    for reason, words in WORDS:
        said = unquoted if reason.category is Category.ACCOUNT else text
        if any(part in said for part in words):
            return reason
    if status is not None and (status in STATUSES or status >= 500):
        return STATUSES.get(status, Reason.UNAVAILABLE)
    if any(name in GENERIC_CODES or REQUEST_CODES.search(name) for name in names):
        return Reason.INVALID_REQUEST
    return Reason.UNKNOWN


def _plain(code: str) -> str:
    """A code without the namespace that AWS puts before it or the address after it."""
    return code.rpartition("#")[2].partition(":")[0].strip().lower()
