"""What can go wrong with a request, whose fault it is, and the fleet's error for it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from primarch_fleet import errors


class Category(StrEnum):
    """Whose fault an error is."""

    REQUEST = "request"
    PROVIDER = "provider"
    ACCOUNT = "account"


class Reason(StrEnum):
    """What went wrong. Stored, and a label of metrics."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    #: The deployment names a model that the account does not have.
    MODEL_NOT_FOUND = "model_not_found"
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    #: No money, or a quota that is used up; a rate limit is not that.
    BILLING = "billing"
    #: The provider does not find a batch's input file, not yet or not any more.
    FILE_NOT_FOUND = "file_not_found"
    RATE_LIMIT = "rate_limit"
    #: Too many tokens wait in the account's batches.
    QUEUE_FULL = "queue_full"
    TIMEOUT = "timeout"
    #: The batch ended before it executed the request.
    NOT_EXECUTED = "not_executed"
    UNAVAILABLE = "unavailable"
    #: The answer has status 200, and its generation failed.
    GENERATION_FAILED = "generation_failed"
    #: Nothing in the tables matches.
    UNKNOWN = "unknown"

    @property
    def category(self) -> Category:
        """Whose fault it is."""
        return MEANINGS[self].category

    @property
    def is_permanent(self) -> bool:
        """Whether the same request gets it again at the same deployment."""
        return self.category is Category.REQUEST or self is Reason.MODEL_NOT_FOUND

    def error(self, message: str) -> errors.RequestFailed:
        """Return the fleet's error for a message of the provider."""
        return MEANINGS[self].error_class(message)


class Meaning(NamedTuple):
    """What follows from a reason."""

    category: Category
    error_class: type[errors.RequestFailed]


MEANINGS = {
    Reason.INVALID_REQUEST: Meaning(Category.REQUEST, errors.ProviderError),
    Reason.CONTEXT_WINDOW: Meaning(Category.REQUEST, errors.ContextWindowExceeded),
    Reason.CONTENT_POLICY: Meaning(Category.REQUEST, errors.ContentPolicyViolation),
    # Another deployment may have the model, and the account's other models are not concerned.
    Reason.MODEL_NOT_FOUND: Meaning(Category.PROVIDER, errors.ProviderError),
    Reason.CREDENTIALS: Meaning(Category.ACCOUNT, errors.AuthenticationFailed),
    Reason.PERMISSION: Meaning(Category.ACCOUNT, errors.AuthenticationFailed),
    Reason.BILLING: Meaning(Category.ACCOUNT, errors.AccountUnavailable),
    Reason.FILE_NOT_FOUND: Meaning(Category.ACCOUNT, errors.AccountUnavailable),
    Reason.RATE_LIMIT: Meaning(Category.PROVIDER, errors.RateLimited),
    Reason.QUEUE_FULL: Meaning(Category.PROVIDER, errors.RateLimited),
    Reason.TIMEOUT: Meaning(Category.PROVIDER, errors.ProviderTimeout),
    Reason.NOT_EXECUTED: Meaning(Category.PROVIDER, errors.BatchError),
    Reason.UNAVAILABLE: Meaning(Category.PROVIDER, errors.ProviderUnavailable),
    Reason.GENERATION_FAILED: Meaning(Category.PROVIDER, errors.ProviderUnavailable),
    Reason.UNKNOWN: Meaning(Category.PROVIDER, errors.ProviderUnavailable),
}
