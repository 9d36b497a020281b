"""How long a failed deployment gets no calls, and when a refused request can be retried."""

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

#: Seconds until the next attempt when LiteLLM found every deployment cooling down, but the
#: cooldown has ended since.
MIN_RETRY_SECONDS = 0.5


class Cooldowns:
    """The cooldowns of a LiteLLM Router; all processes see them if the Router shares its state."""

    def __init__(self, router: Router) -> None:
        # Undocumented: LiteLLM publishes no way to set a cooldown or to list the active ones.
        self._cache: Any = router.health().cooldowns
        self._disabled = bool(router.settings().disable_cooldowns)

    def apply_retry_after(self, deployment_id: str, error: Exception) -> None:
        """Cool a deployment down for as long as its error's Retry-After header says.

        LiteLLM itself does so only after `allowed_fails` failures, and never for a model's only
        deployment.
        """
        seconds = retry_after(error)
        if seconds and not self._disabled:
            status_code = getattr(error, "status_code", None)
            self._cache.add_deployment_to_cooldown(deployment_id, error, status_code, seconds)

    async def retry_delay(
        self, deployment_ids: Set[str], failed_ids: Set[str], error: Exception
    ) -> float | None:
        """The seconds until one of the deployments can answer; None if that is unknown.

        Args:
            deployment_ids: Deployments that can answer the request.
            failed_ids: Deployments that have just failed for the request.
            error: The error that LiteLLM raised.
        """
        if not issubclass(error_class_of(error), RETRY_LATER_ERRORS):
            return None
        cooling_down = await self._remaining_seconds(deployment_ids)
        available = deployment_ids - cooling_down.keys()
        if failed_ids and available and not available & failed_ids:
            return 0.0
        delays = list(cooling_down.values())
        if (seconds := retry_after(error)) is not None:
            delays.append(seconds)
        return min(delays, default=MIN_RETRY_SECONDS if all_cooling_down(error) else None)

    async def _remaining_seconds(self, deployment_ids: Set[str]) -> dict[str, float]:
        """The seconds left for each deployment that is cooling down."""
        active = await self._cache.async_get_active_cooldowns(list(deployment_ids), None)
        now = time.time()
        return {
            deployment_id: max(0.0, cooldown["timestamp"] + cooldown["cooldown_time"] - now)
            for deployment_id, cooldown in active
        }
