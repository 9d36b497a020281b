"""Calls at the flex tier: half the price, an answer in minutes, refused when capacity is short.

`lane="auto"` allows the tier to requests that are cost-sensitive and can wait; the header
`protocol.SERVICE_TIER` says so. https://platform.openai.com/docs/guides/flex-processing
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from config.fleet import FleetConfig
from primarch_fleet.routing import FLEX

logger = logging.getLogger(__name__)

#: What OpenAI answers, with status 429, when it has no capacity for the tier: nothing is charged.
NO_CAPACITY = re.compile(r"resource[ _]unavailable|capacity", re.IGNORECASE)
NO_CAPACITY_STATUS = 429

#: Whether the calls of the current asyncio task may use the tier.
_allowed: ContextVar[bool] = ContextVar("flex_tier", default=False)


def allow_flex_tier(service_tier: str | None) -> None:
    """Allow the tier to the calls of the current asyncio task, or not.

    Args:
        service_tier: The tier that the fleet chose for the request.
    """
    _allowed.set(service_tier == FLEX)


class FlexTier:
    """The flex tier of the deployments that have a price for it."""

    def __init__(self, config: FleetConfig) -> None:
        policy = config.routing.flex
        self._arguments = {"service_tier": FLEX, "timeout": policy.timeout if policy else None}
        self._deployments = {
            deployment.id
            for deployment in config.deployments
            if policy and FLEX in config.rates(deployment).tiers
        }

    async def call(
        self, endpoint: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]
    ) -> Any:
        """Call a deployment at the tier if allowed; at its ordinary tier if it has no capacity.

        Raises:
            Exception: What the endpoint raises.
        """
        if not _allowed.get() or arguments["model_info"]["id"] not in self._deployments:
            return await endpoint(**arguments)
        try:
            return await endpoint(**{**arguments, **self._arguments})
        except Exception as error:
            if not _is_without_capacity(error):
                raise
            logger.info(
                "%s: no capacity at the flex tier; calling its ordinary tier",
                arguments["model_info"]["id"],
                extra={"action": "flex_tier_refused"},
            )
        return await endpoint(**arguments)


def _is_without_capacity(error: Exception) -> bool:
    status = getattr(error, "status_code", None)
    return status == NO_CAPACITY_STATUS and bool(NO_CAPACITY.search(str(error)))
