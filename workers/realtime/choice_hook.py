"""The hook through which LiteLLM's Router asks which deployments a call may go to."""

from __future__ import annotations

from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from workers.realtime.deployment_choice import CURRENT


class _ChoiceHook(CustomLogger):
    """Asks the choice of the request that the current asyncio task serves."""

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        current = CURRENT.get()
        if current is None:
            return healthy_deployments
        choice, request = current
        tried = (request_kwargs or {}).get("_excluded_deployment_ids") or ()
        return [*choice.candidates(request, model, healthy_deployments, tried)]


#: One per process, however many Routers there are: LiteLLM's callbacks are global.
CHOICE_HOOK = _ChoiceHook()
