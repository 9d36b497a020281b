"""How long a failed deployment gets no calls, and when a refused request can be retried."""

from __future__ import annotations

import time
from collections.abc import Iterable, Set
from typing import Any

from litellm.router import Router

from tasks.failure_reasons import Category
from tasks.provider_error_tables import STATUSES
from tasks.provider_errors import Fault
from workers.realtime.errors import (
    RETRY_LATER_REASONS,
    all_cooling_down,
    fault_of,
    retry_after,
)

#: Seconds until the next attempt when LiteLLM found every deployment cooling down, but the
#: cooldown has ended since.
MIN_RETRY_SECONDS = 0.5


class Cooldowns:
    """The cooldowns of a LiteLLM Router; all processes see them if the Router shares its state."""

    def __init__(self, router: Router) -> None:
        # Undocumented: LiteLLM publishes no way to set a cooldown or to list the active ones.
        self._health: Any = router.health()
        self._cache: Any = self._health.cooldowns
        self._disabled = bool(router.settings().disable_cooldowns)

    def apply_retry_after(self, deployment_id: str, error: Exception) -> None:
        """Cool a deployment down for as long as its error's Retry-After header says.

        LiteLLM itself does so only after `allowed_fails` failures, and never for a model's only
        deployment.
        """
        seconds = retry_after(error)
        if seconds:
            self.cool_down([deployment_id], error, getattr(error, "status_code", None), seconds)

    def cool_down(
        self, deployment_ids: Iterable[str], error: Exception, status: int | None, seconds: float
    ) -> None:
        """Leave deployments alone for `seconds`, in all processes that share the Router's state."""
        if not self._disabled:
            for deployment_id in deployment_ids:
                self._cache.add_deployment_to_cooldown(deployment_id, error, status, seconds)

    def record_failure(self, deployment_id: str, error: Exception, status: int) -> None:
        """Count a failure that LiteLLM has not seen against a deployment's `allowed_fails`."""
        self._health.record_failure(deployment_id, error, status)

    async def account_fault(self, deployment_ids: Set[str]) -> Fault | None:
        """Return why no deployment gets calls, if their providers refuse the accounts of all."""
        active = await self._cache.async_get_active_cooldowns(list(deployment_ids), None)
        reasons = {STATUSES.get(int(cooldown["status_code"] or 0)) for _, cooldown in active}
        if len(active) < len(deployment_ids):
            return None
        refusals = [reason for reason in reasons if reason and reason.category is Category.ACCOUNT]
        if not refusals or len(refusals) < len(reasons):
            return None
        why = ", ".join(sorted(refusals))
        return Fault(max(refusals), f"the provider refuses the account of every deployment: {why}")

    async def retry_delay(
        self, deployment_ids: Set[str], failed_ids: Set[str], error: Exception
    ) -> float | None:
        """The seconds until one of the deployments can answer; None if that is unknown.

        Args:
            deployment_ids: Deployments that can answer the request.
            failed_ids: Deployments that have just failed for the request.
            error: The error that LiteLLM raised.
        """
        if fault_of(error).reason not in RETRY_LATER_REASONS:
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
            # Another worker's clock may have written the timestamp, and may differ.
            deployment_id: min(
                max(0.0, cooldown["timestamp"] + cooldown["cooldown_time"] - now),
                cooldown["cooldown_time"],
            )
            for deployment_id, cooldown in active
        }
