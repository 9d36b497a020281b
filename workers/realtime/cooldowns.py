"""How long deployments that refuse are left alone, and when one may be asked again."""

from __future__ import annotations

import time
from collections.abc import Set
from typing import Any

from litellm.router import Router

from workers.realtime.errors import (
    RETRY_LATER_ERRORS,
    all_cooling_down,
    error_class_of,
    retry_after,
)

#: Seconds until LiteLLM is asked again that had nobody to call a moment ago, and has again.
MIN_RETRY_SECONDS = 0.5


class Cooldowns:
    """Those of LiteLLM's Router: all processes know of them, if it shares its state."""

    def __init__(self, router: Router) -> None:
        self._cache: Any = router.health().cooldowns
        self._disabled = bool(router.settings().disable_cooldowns)

    def heed(self, deployment: str, error: Exception) -> None:
        """Leave a deployment alone for as long as it asks for when it refuses a call.

        LiteLLM does so after `allowed_fails` failures, and not where a model has no other.
        """
        seconds = retry_after(error)
        if seconds and not self._disabled:
            status: Any = error
            self._cache.add_deployment_to_cooldown(deployment, error, status.status_code, seconds)

    async def pause(
        self, deployments: Set[str], failed: Set[str], error: Exception
    ) -> float | None:
        """Seconds until one of these deployments may answer, or None if nobody has said when.

        Args:
            deployments: Those that may answer the request.
            failed: Those that just were called for it, in vain.
            error: What LiteLLM made of that.
        """
        if not issubclass(error_class_of(error), RETRY_LATER_ERRORS):
            return None
        left = await self._left(deployments)
        others = deployments - left.keys()
        if failed and others and not others & failed:
            return 0.0
        told = retry_after(error)
        moments = [*left.values(), *([told] if told else [])]
        return min(moments, default=MIN_RETRY_SECONDS if all_cooling_down(error) else None)

    async def _left(self, deployments: Set[str]) -> dict[str, float]:
        """The seconds left of each that cools down."""
        active = await self._cache.async_get_active_cooldowns(list(deployments), None)
        now = time.time()
        return {
            name: max(0.0, value["timestamp"] + value["cooldown_time"] - now)
            for name, value in active
        }
