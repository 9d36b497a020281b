"""The health of providers' accounts, as realtime workers check it and others show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Redis key of the last results, a hash: account -> `Health` as JSON.
CHECKS_KEY = "fleet:health_checks"
#: Failed checks in a row after which an account is unhealthy.
MAX_FAILURES = 2


class Health(NamedTuple):
    """The result of the last check of an account."""

    #: Failed checks in a row.
    failures: int
    #: Why the last check failed, or why there was none; "" after a successful check.
    reason: str
    #: The time of a successful check; None after any other.
    seconds: float | None

    @property
    def is_unhealthy(self) -> bool:
        """Whether requests avoid the account."""
        return self.failures >= MAX_FAILURES


def read_health(fields: Mapping[Any, Any]) -> dict[str, Health]:
    """Return the results by account, from the fields of CHECKS_KEY."""
    return {account: Health(**json.loads(text)) for account, text in fields.items()}
